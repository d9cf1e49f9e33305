"""What one training step is: the losses of each stage, and what they update.

Paper   Sec. 3.1 (Training: VQ, pixels, adversary), Sec. 3.2 (Eq. (2) and (3)), App. B.2 (weights)

Shapes  stage 1: video (B, 3, T, H, W) -> reconstruction -> losses -> one update of both networks
        stage 2: tokens, condition tokens (B, N) -> Eq. (2) -> logits (B, N, K) -> Eq. (3)

Read    Recipe (the weights), tokenizer_step and tokenizer_pass; TokenBatch, transformer_step.

Not here: where batches come from (data/, training/tokens.py), where weights start
        (training/start.py), when to step and at which rate (training/loop.py).
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from commit import commit_loss, commit_mask, cutoff_score, mask_ratio, num_masked, task_index
from discriminator import discriminator_loss, generator_loss, r1_penalty
from tokenizer import average_over_processes


@dataclass(frozen=True)
class Recipe:
    """What the losses of a step weigh, and how it is computed. The defaults are the paper's."""

    # stage 1, tokenizer
    reconstruction_weight: float = 1.0      # of the mean squared error; official
    codebook_weight: float = 1.0            # of the codes' pull to their latents; official
    commitment_weight: float = 0.25         # of the latents' pull to their codes; official
    entropy_weight: float = 0.1             # keeps codes in use; official, the paper is silent
    perceptual_weight: float = 0.1          # of LPIPS, App. B.2; needs --lpips-weights
    adversarial_weight: float = 0.1         # of the generator's loss, App. B.2; 0: no adversary
    r1_weight: float = 10.0                 # of the discriminator's R1, App. B.2
    lecam_weight: float = 0.001             # of LeCam, Sec. 3.1; the value is MAGVIT-v2's
    tokenizer_ema: float = 0.999            # decay of the averaged weights, App. B.2
    # stage 2, transformer
    mask_schedule: str = "cosine"           # gamma: cosine, uniform or exp; App. B.2
    label_smoothing: float = 1e-4           # App. B.2
    loss_weights: tuple[float, float, float] = (1.0, 1.0, 1.0)     # refine, mask, reconstruct: the
    #                                         parts of Eq. (4); zeros for Table 5
    gradient_clip: float = 1.0              # largest norm of all gradients together, App. B.2
    # machine
    precision: str = "auto"                 # auto (bf16 where it is fast), bf16, tf32, float32
    accumulate: int = 1                     # passes that make up a batch; the means in the entropy
    #                                         and LeCam terms are then over the clips of one pass


@dataclass
class Trainee:
    """What a stage trains, all of it saved: networks and their optimizers, by name.

    Stage 1: tokenizer, ema, and with an adversary discriminator and lecam. Stage 2: transformer.
    """

    networks: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    perceptual: nn.Module | None = None             # LPIPS: frozen, not saved

    def state(self) -> dict:
        networks = {name: network.state_dict() for name, network in self.networks.items()}
        return networks | {f"optimizer {name}": optimizer.state_dict()
                           for name, optimizer in self.optimizers.items()}

    def load(self, state: dict) -> None:
        for name, network in self.networks.items():
            network.load_state_dict(state[name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state[f"optimizer {name}"])


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """bfloat16 for matrices and convolutions if precision is "bf16".

    Codebook distances, R1, softmax and cross-entropy stay in float32 all the same.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def average_gradients(network: nn.Module) -> None:
    """Replace each gradient by its mean over processes, in one exchange.

    DistributedDataParallel does so during the backward pass. After it, the GAN's two losses, R1's
    second derivative and accumulation need no hooks and no wrappers.
    """
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, averaged in zip(gradients, flat.split([g.numel() for g in gradients])):
        gradient.copy_(averaged.view_as(gradient))


# ---------------------------------------------------------------------------------------------
# Stage 1 (Sec. 3.1)

def tokenizer_step(trainee: Trainee, video: Tensor, config: Recipe) -> dict[str, Tensor]:
    """Stage 1: one simultaneous update of tokenizer and discriminator (Sec. 3.1, App. B.2).

    video (B, 3, T, H, W) in [0, 1]. Returns `loss`, which is weighted, its terms, which are not,
    the norms of the gradients, and the tokens used.
    """
    passes = [tokenizer_pass(trainee, clips, len(clips) / len(video), config)
              for clips in video.chunk(config.accumulate)]
    terms = {name: sum(each[name] for each in passes) for name in passes[0] if name != "tokens"}
    for name, optimizer in trainee.optimizers.items():
        average_gradients(trainee.networks[name])
        terms[f"{name} gradient"] = nn.utils.get_total_norm(
            [p.grad for p in trainee.networks[name].parameters() if p.grad is not None])
        optimizer.step()
        optimizer.zero_grad()
    if "lecam" in trainee.networks:                   # once a step, with the batch's means
        trainee.networks["lecam"].update(terms.pop("real logit"), terms.pop("fake logit"))
    with torch.no_grad():                             # the moving average of the weights
        for average, weight in zip(trainee.networks["ema"].parameters(),
                                   trainee.networks["tokenizer"].parameters()):
            average.lerp_(weight, 1 - config.tokenizer_ema)
    return terms | dict(tokens=torch.cat([each["tokens"] for each in passes]))


def tokenizer_pass(trainee: Trainee, video: Tensor, share: float, config: Recipe
                   ) -> dict[str, Tensor]:
    """Forward and backward for some clips of the batch, which are `share` of it.

    Both losses are taken from the same forward pass, with the weights before the step
    (official). `inputs=` keeps them apart: each backward pass fills the gradients of one network
    only. Returns the terms times share, and the tokens.
    """
    tokenizer, discriminator, lecam = (trainee.networks.get(name)
                                       for name in ("tokenizer", "discriminator", "lecam"))
    with autocast(config.precision, video.device):
        output = tokenizer(video)
    terms = dict(reconstruction=F.mse_loss(output.reconstruction, video),
                 codebook=output.codebook_loss, commitment=output.commitment_loss,
                 entropy=output.entropy_loss)
    if trainee.perceptual is not None:
        frames = [rearrange(clips, "b c t h w -> b t c h w")
                  for clips in (output.reconstruction, video)]
        terms["perceptual"] = trainee.perceptual(*frames).mean()
    if discriminator is not None:
        video.requires_grad_()                        # for R1, which needs float32; so no autocast
        fake_logits, real_logits = discriminator(output.reconstruction), discriminator(video)
        terms["generator"] = generator_loss(fake_logits)
        terms |= {name: average_over_processes(logits.mean()) for name, logits in
                  (("real logit", real_logits), ("fake logit", fake_logits))}
        terms |= dict(discriminator=discriminator_loss(real_logits, fake_logits),
                      r1=r1_penalty(real_logits, video),
                      lecam=lecam(terms["real logit"], terms["fake logit"]))
        (share * (terms["discriminator"] + config.r1_weight * terms["r1"]
                  + config.lecam_weight * terms["lecam"])
         ).backward(inputs=list(discriminator.parameters()), retain_graph=True)
    loss = (config.reconstruction_weight * terms["reconstruction"]
            + config.codebook_weight * terms["codebook"]
            + config.commitment_weight * terms["commitment"]
            + config.entropy_weight * terms["entropy"]
            + config.perceptual_weight * terms.get("perceptual", 0.0)
            + config.adversarial_weight * terms.get("generator", 0.0))
    (share * loss).backward(inputs=list(tokenizer.parameters()))
    terms = dict(loss=loss, **terms, contrast=output.reconstruction.std())
    return {name: share * term.detach() for name, term in terms.items()} | dict(
        tokens=output.tokens)


# ---------------------------------------------------------------------------------------------
# Stage 2 (Sec. 3.2)

class TokenBatch(NamedTuple):
    """What stage 2 learns from: clips of one task, tokenized."""

    task: str
    tokens: Tensor               # (B, N) z
    condition_tokens: Tensor     # (B, N) z-tilde
    is_pad: Tensor               # (N,) bool
    label: Tensor                # (B,) in [0, C], C for "no class"
    scores: Tensor               # (B, N) s, uniform
    r: Tensor                    # (B,) uniform


def transformer_step(trainee: Trainee, batch: TokenBatch, config: Recipe) -> dict[str, Tensor]:
    """Stage 2: one update on Eq. (3), sequences corrupted by Eq. (2).

    Returns `loss` with its three parts, Eq. (4), and the norm of the gradient.
    """
    transformer, optimizer = trainee.networks["transformer"], trainee.optimizers["transformer"]
    N = batch.tokens.shape[1]
    count = num_masked(mask_ratio(batch.r, config.mask_schedule, N), N)
    cutoff = cutoff_score(batch.scores, count)
    inputs = commit_mask(batch.tokens, batch.condition_tokens, batch.is_pad, batch.scores, cutoff,
                         transformer.mask_id)
    task = torch.full_like(batch.label, task_index(batch.task, transformer.config.tasks))
    terms = dict.fromkeys(("loss", "refine", "mask", "reconstruct"), 0.0)
    for rows in torch.arange(len(inputs), device=inputs.device).chunk(config.accumulate):
        share = len(rows) / len(inputs)
        with autocast(config.precision, inputs.device):
            logits = transformer(inputs[rows], task[rows], batch.label[rows])
        losses = transformer.cross_entropy(logits, batch.tokens[rows], config.label_smoothing)
        loss = commit_loss(losses, batch.is_pad, batch.scores[rows], cutoff[rows],
                           config.loss_weights)
        (share * loss.total).backward()
        for name, value in zip(terms, loss):
            terms[name] = terms[name] + share * value.detach()
    average_gradients(transformer)
    terms["transformer gradient"] = nn.utils.clip_grad_norm_(transformer.parameters(),
                                                             config.gradient_clip)
    optimizer.step()
    optimizer.zero_grad()
    return terms
