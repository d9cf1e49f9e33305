"""What one training step is: the losses of each stage, and what they update.

Paper   Sec. 3.1 (Training: VQ, pixels, adversary), Sec. 3.2 (Eq. (2) and (3)), App. B.2 (weights)

Shapes  stage 1: video (B, 3, T, H, W) -> reconstruction -> losses -> one update of both networks
        stage 2: tokens, condition tokens (B, N) -> Eq. (2) -> logits (B, N, K) -> Eq. (3)

Read    Recipe (the weights), tokenizer_step and tokenizer_pass; TokenBatch, transformer_step.

Not here: where batches come from (data/, training/tokens.py), who takes part (training/build.py),
        when to step and at which rate (training/loop.py).

Run:    python steps.py            every term of both stages, on one batch of the toy
"""
from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from commit import commit_loss, commit_mask, cutoff_score, mask_ratio, task_index
from discriminator import discriminator_loss, generator_loss, r1_penalty
from tokenizer import average_over_processes


def setting(group: str, default: Any, help: str, *, may_change: bool = False) -> Any:
    """A field of a configuration, with what else must be known of it.

    group: its heading on the command line. may_change: a stopped run may go on with another value.
    """
    return field(default=default, metadata=dict(help=help, group=group, may_change=may_change))


STAGE_1, STAGE_2 = partial(setting, "stage 1, tokenizer"), partial(setting, "stage 2, transformer")
MACHINE = partial(setting, "machine")


@dataclass(frozen=True)
class Recipe:
    """What the losses of a step weigh, and how it is computed. The defaults are the paper's."""

    reconstruction_weight: float = STAGE_1(1.0, "of the mean squared error; official")
    codebook_weight: float = STAGE_1(1.0, "of the codes' pull to their latents; official")
    commitment_weight: float = STAGE_1(0.25, "of the latents' pull to their codes; official")
    entropy_weight: float = STAGE_1(0.1, "keeps codes in use; official, the paper is silent")
    entropy_boost: float = STAGE_1(0.0, "of that weight: added at step 0, gone after ...")
    entropy_boost_steps: int = STAGE_1(2000, "... so many steps; MAGVIT-v2, App. A.2")
    perceptual_weight: float = STAGE_1(0.1, "of LPIPS, App. B.2; needs --lpips-weights")
    adversarial_weight: float = STAGE_1(0.1, "of the generator's loss, App. B.2; 0: no adversary")
    r1_weight: float = STAGE_1(10.0, "of the discriminator's R1, App. B.2")
    lecam_weight: float = STAGE_1(0.001, "of LeCam, Sec. 3.1; the value is MAGVIT-v2's")
    tokenizer_ema: float = STAGE_1(0.999, "decay of the averaged weights, App. B.2")
    mask_schedule: str = STAGE_2("cosine", "gamma: cosine, uniform, exp, ...; App. B.2")
    label_smoothing: float = STAGE_2(1e-4, "App. B.2")
    loss_weights: tuple[float, float, float] = STAGE_2(
        (1.0, 1.0, 1.0), "of Eq. (4)'s parts: refine, mask, reconstruct; zeros for Table 5")
    gradient_clip: float = STAGE_2(1.0, "largest norm of all gradients together, App. B.2")
    precision: str = MACHINE("auto", "auto (bf16 where it is fast), bf16, tf32, float32",
                             may_change=True)
    accumulate: int = MACHINE(1, "passes that make up a batch; the entropy and LeCam terms then "
                              "take their means over one of them", may_change=True)


@dataclass
class Trainee:
    """What a stage trains, all of it saved: networks and their optimizers, by name.

    Stage 1: tokenizer, ema, and with an adversary discriminator and lecam. Stage 2: transformer.
    """

    networks: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    perceptual: nn.Module | None = None             # LPIPS: frozen, not saved
    step: int = 0                                   # the one in progress; the loop sets it

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
    """bfloat16 where matrices and convolutions are; losses, distances and R1 stay float32.

    precision: the Recipe's; "auto" is bfloat16 on GPUs and on CPUs where it is fast: with AMX, or
    AVX-512 on AMD's (on Intel's without AMX, a step takes 1.3 to 1.6 times as long as in float32).
    """
    enabled = precision not in ("float32", "tf32")
    if precision == "auto" and device.type == "cpu":
        cpu = torch.cpu.get_capabilities()
        enabled = cpu.get("amx_bf16") or cpu.get("avx512_bf16") and "Intel" not in cpu["cpu_name"]
    return torch.autocast(device.type, torch.bfloat16, enabled=bool(enabled))


def average_gradients(network: nn.Module) -> None:
    """Replace each gradient by its mean over processes, in one exchange; alone: nothing.

    What DistributedDataParallel does, but after all backward passes: the GAN's two, R1's second
    derivative and accumulation need no care about hooks and wrappers.
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
    parts = video.chunk(config.accumulate)
    passes = [tokenizer_pass(trainee, part, len(part) / len(video), config) for part in parts]
    terms = {name: sum(each[name] for each in passes) for name in passes[0] if name != "tokens"}
    for name, optimizer in trainee.optimizers.items():
        average_gradients(trainee.networks[name])
        terms[f"{name} gradient"] = nn.utils.get_total_norm(
            [p.grad for p in trainee.networks[name].parameters() if p.grad is not None])
        optimizer.step()
        optimizer.zero_grad()
    if "lecam" in trainee.networks:                   # once a step, with the batch's means
        trainee.networks["lecam"].update(terms.pop("real logit"), terms.pop("fake logit"))
    with torch.no_grad():
        torch._foreach_lerp_(list(trainee.networks["ema"].parameters()),
                             list(trainee.networks["tokenizer"].parameters()),
                             1 - config.tokenizer_ema)
    return terms | dict(tokens=torch.cat([each["tokens"] for each in passes]))


def tokenizer_pass(trainee: Trainee, part: Tensor, share: float, config: Recipe
                   ) -> dict[str, Tensor]:
    """Forward and backward for a part of the batch, which counts as `share` of it.

    Both losses are taken from the same forward pass, with the weights before the step
    (official). `inputs=` keeps them apart: each backward pass fills the gradients of one network
    only. Returns the terms times share, and the tokens.
    """
    tokenizer, discriminator, lecam = (trainee.networks.get(name)
                                       for name in ("tokenizer", "discriminator", "lecam"))
    with autocast(config.precision, part.device):
        output = tokenizer(part)
    terms = dict(reconstruction=F.mse_loss(output.reconstruction, part),
                 codebook=output.codebook_loss, commitment=output.commitment_loss,
                 entropy=output.entropy_loss)
    if trainee.perceptual is not None:
        frames = [rearrange(clip, "b c t h w -> b t c h w")
                  for clip in (output.reconstruction, part)]
        terms["perceptual"] = trainee.perceptual(*frames).mean()
    if discriminator is not None:
        part.requires_grad_()                         # for R1, which needs float32; so no autocast
        fake_logits, real_logits = discriminator(output.reconstruction), discriminator(part)
        terms["generator"] = generator_loss(fake_logits)
        terms |= {name: average_over_processes(logits.mean()) for name, logits in
                  (("real logit", real_logits), ("fake logit", fake_logits))}
        terms |= dict(discriminator=discriminator_loss(real_logits, fake_logits),
                      r1=r1_penalty(real_logits, part),
                      lecam=lecam(terms["real logit"], terms["fake logit"]))
        (share * (terms["discriminator"] + config.r1_weight * terms["r1"]
                  + config.lecam_weight * terms["lecam"])
         ).backward(inputs=list(discriminator.parameters()), retain_graph=True)
    boost = 1 + config.entropy_boost * max(0, 1 - trainee.step / config.entropy_boost_steps)
    loss = (config.reconstruction_weight * terms["reconstruction"]
            + config.codebook_weight * terms["codebook"]
            + config.commitment_weight * terms["commitment"]
            + config.entropy_weight * boost * terms["entropy"]
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
    """Stage 2: one update on Eq. (3), sequences corrupted by Eq. (2)."""
    transformer, optimizer = trainee.networks["transformer"], trainee.optimizers["transformer"]
    N = batch.tokens.shape[1]
    cutoff = cutoff_score(batch.scores, mask_ratio(batch.r, config.mask_schedule, N))
    inputs = commit_mask(batch.tokens, batch.condition_tokens, batch.is_pad, batch.scores, cutoff,
                         transformer.mask_id)
    task = torch.full_like(batch.label, task_index(batch.task, transformer.prompts))
    terms = dict.fromkeys(("loss", "refine", "mask", "reconstruct"), 0.0)
    for part in torch.arange(len(inputs), device=inputs.device).chunk(config.accumulate):
        share = len(part) / len(inputs)
        with autocast(config.precision, inputs.device):
            logits = transformer(inputs[part], task[part], batch.label[part])
        loss = commit_loss(logits, batch.tokens[part], batch.is_pad, batch.scores[part],
                           cutoff[part], config.label_smoothing, config.loss_weights)
        (share * loss.total).backward()
        for name, value in zip(terms, loss):
            terms[name] = terms[name] + share * value.detach()
    average_gradients(transformer)
    terms["transformer gradient"] = nn.utils.clip_grad_norm_(transformer.parameters(),
                                                             config.gradient_clip)
    optimizer.step()
    optimizer.zero_grad()
    return terms


# ---------------------------------------------------------------------------------------------

def main() -> None:
    """Both stages on two clips of the toy, over and over, with the adversary: term by term."""
    from data.moving_shapes import MovingShapes        # the demo alone looks up to the wings
    from data.source import load_batch
    from training.build import build
    from training.presets import PRESETS
    from training.processes import Processes
    from training.tokens import TokenSource

    config = replace(PRESETS["toy"], adversarial_weight=0.1, tokenizer_rate=1e-3, tasks=("FP",),
                     transformer_batch=2, token_pool=0)
    torch.manual_seed(0)
    video, _ = load_batch(MovingShapes(), 0, 2, seed=0)
    stage_1, stage_2 = build(config, "tokenizer"), build(config, "transformer", num_classes=16)
    rows = [tokenizer_step(stage_1, video, config) for _ in range(11)]
    print("stage 1                   step 0    step 5   step 10")
    for term in (term for term, value in rows[0].items() if value.ndim == 0):
        print(f"  {term:22}" + "".join(f"{row[term].item():10.3g}" for row in rows[::5]))
    batch = TokenSource(stage_1.networks["tokenizer"], MovingShapes(), config, Processes(), 16)(6)
    masked = batch.scores <= cutoff_score(batch.scores, mask_ratio(batch.r))[:, None]
    parts = dict(refine=masked & ~batch.is_pad, mask=masked & batch.is_pad, reconstruct=~masked)
    rows = [transformer_step(stage_2, batch, config) for _ in range(11)]
    print("\nstage 2: cross-entropy per token in nats; ln K = 4.85 is guessing")
    for part, case in parts.items():             # the log has shares of the mean over all tokens
        print(f"  {part:11} {int(case.sum()):4} tokens" + "".join(
            f"{row[part].item() / case.float().mean():10.3f}" for row in rows[::5]))


if __name__ == "__main__":
    main()
