"""What one training step is: the losses of each stage, and what they update.

Paper   Sec. 3.1 (Training: VQ, pixels, adversary), Sec. 3.2 (Eq. (2) and (3)), App. B.2 (weights)

Shapes  stage 1: video (B, 3, T, H, W) -> reconstruction -> losses -> one update of both networks
        stage 2: tokens, condition tokens (B, N) -> Eq. (2) -> logits (B, N, K) -> Eq. (3)

Read    tokenizer_step and tokenizer_pass; TokenBatch and transformer_step.

Not here: where batches come from and who is in a Trainee (train.py), when to step (loop.py).

Run:    python steps.py            every term of both stages, on one batch of the toy
"""
from __future__ import annotations

import copy
from dataclasses import replace
from typing import Callable, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from commit import (commit_loss, commit_mask, cutoff_score, mask_ratio, task_index,
                    tokenize_condition)
from discriminator import (Discriminator3d, LeCam, discriminator_loss, generator_loss,
                           r1_penalty)
from loop import Trainee, average_gradients
from presets import PRESETS, TrainConfig, autocast
from shapes import MovingShapes
from tokenizer import VideoTokenizer, average_over_processes
from transformer import MaskedTransformer


def tokenizer_step(trainee: Trainee, video: Tensor, config: TrainConfig) -> dict[str, Tensor]:
    """Stage 1: one simultaneous update of tokenizer and discriminator (Sec. 3.1, App. B.2).

    video (B, 3, T, H, W) in [0, 1]. Returns `loss`, which is weighted, its terms, which are not,
    the norms of the gradients, and the tokens used.
    """
    model, ema = trainee.networks["model"], trainee.networks["ema"]
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
        torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()),
                             1 - config.tokenizer_ema)
    return terms | dict(tokens=torch.cat([each["tokens"] for each in passes]))


def tokenizer_pass(trainee: Trainee, part: Tensor, share: float, config: TrainConfig
                   ) -> dict[str, Tensor]:
    """Forward and backward for a part of the batch, which counts as `share` of it.

    Both losses are taken from the same forward pass, with the weights before the step
    (official). `inputs=` keeps them apart: each backward pass fills the gradients of one network
    only. Returns the terms times share, and the tokens.
    """
    model, discriminator, lecam = (trainee.networks.get(name)
                                   for name in ("model", "discriminator", "lecam"))
    with autocast(config.precision, part.device):
        output = model(part)
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
    loss = (config.reconstruction_weight * terms["reconstruction"]
            + config.codebook_weight * terms["codebook"]
            + config.commitment_weight * terms["commitment"]
            + config.entropy_weight * terms["entropy"]
            + config.perceptual_weight * terms.get("perceptual", 0.0)
            + config.adversarial_weight * terms.get("generator", 0.0))
    (share * loss).backward(inputs=list(model.parameters()))
    terms = dict(loss=loss, **terms, contrast=output.reconstruction.std())
    return {name: share * term.detach() for name, term in terms.items()} | dict(
        tokens=output.tokens)


class TokenBatch(NamedTuple):
    """What stage 2 learns from: clips of one task, tokenized."""

    task: str
    tokens: Tensor               # (B, N) z
    condition_tokens: Tensor     # (B, N) z-tilde
    is_pad: Tensor               # (N,) bool
    label: Tensor                # (B,) in [0, C], C for "no class"
    scores: Tensor               # (B, N) s, uniform
    r: Tensor                    # (B,) uniform


def transformer_step(trainee: Trainee, batch: TokenBatch, config: TrainConfig) -> dict[str, Tensor]:
    """Stage 2: one update on Eq. (3), sequences corrupted by Eq. (2)."""
    model, optimizer = trainee.networks["model"], trainee.optimizers["model"]
    N = batch.tokens.shape[1]
    cutoff = cutoff_score(batch.scores, mask_ratio(batch.r, config.mask_schedule, N))
    inputs = commit_mask(batch.tokens, batch.condition_tokens, batch.is_pad, batch.scores, cutoff,
                         model.mask_id)
    task = torch.full_like(batch.label, task_index(batch.task))
    terms = dict.fromkeys(("loss", "refine", "mask", "reconstruct"), 0.0)
    for part in torch.arange(len(inputs), device=inputs.device).chunk(config.accumulate):
        share = len(part) / len(inputs)
        with autocast(config.precision, inputs.device):
            logits = model(inputs[part], task[part], batch.label[part])
        loss = commit_loss(logits, batch.tokens[part], batch.is_pad, batch.scores[part],
                           cutoff[part], config.label_smoothing)
        (share * loss.total).backward()
        for name, value in zip(terms, loss):
            terms[name] = terms[name] + share * value.detach()
    average_gradients(model)
    terms["model gradient"] = nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
    optimizer.step()
    optimizer.zero_grad()
    return terms


def main() -> None:
    """Both stages on one batch of the toy, over and over, with the adversary: term by term."""
    config = replace(PRESETS["toy"], adversarial_weight=0.1)
    torch.manual_seed(0)
    clips = np.stack([MovingShapes().clip(index)[0] for index in range(2)])
    video = rearrange(torch.from_numpy(clips), "b t h w c -> b c t h w") / 255
    tokenizer = VideoTokenizer(config.tokenizer_config())
    stage_1 = dict(model=tokenizer, ema=copy.deepcopy(tokenizer).requires_grad_(False),
                   discriminator=Discriminator3d(config.discriminator_config()), lecam=LeCam())
    stage_2 = dict(model=MaskedTransformer(config.transformer_config(config.num_classes)))

    def repeat(step: Callable, batch: object, networks: dict[str, nn.Module]) -> None:
        trainee = Trainee(networks, {
            name: torch.optim.Adam(networks[name].parameters(), lr=1e-3)
            for name in ("model", "discriminator") if name in networks})
        rows = [step(trainee, batch, config) for _ in range(11)]
        print(f"{step.__name__:24}" + "".join(f" step {number:<4}" for number in (0, 5, 10)))
        for term, value in rows[0].items():
            if value.ndim == 0:
                print(f"  {term:22}" + "".join(f"{row[term].item():10.3g}" for row in rows[::5]))

    repeat(tokenizer_step, video, stage_1)
    tokens = rearrange(tokenizer.encode(video), "b t h w -> b (t h w)")
    condition_tokens, is_pad = tokenize_condition(tokenizer, video, "FP")
    repeat(transformer_step, TokenBatch(
        "FP", tokens, condition_tokens, is_pad, label=torch.zeros(2, dtype=torch.long),
        scores=torch.rand(tokens.shape), r=torch.rand(2)), stage_2)


if __name__ == "__main__":
    main()
