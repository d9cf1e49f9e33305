"""Who sees what, and who moves whom: measured by gradients and by changing pixels.

Paper   Sec. 3.2 (why the tokens of a region are not simply unmasked); Sec. 3.1 (the losses);
        App. Figs. 4-5 (long videos)

Shapes  two videos (1, 3, T, H, W) -> leaking_shares -> influence by distance, shares of tokens
        tokenizer, discriminator, video -> gradient_norms -> {loss: {part: norm}}
        a film (1, 3, T, H, W) -> context_shares, seam_errors -> tokens changed, errors per step

Read    leaking_shares (leaks); context_shares and seam_errors (windows);
        gradient_norms. figures.py draws them.

Run:    python -m measure.influence     how far an untrained toy's token sees
"""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from commit import make_condition, tokenize_condition
from data.source import to_float
from discriminator import LeCam, discriminator_loss, generator_loss, r1_penalty
from long_video import decode_long, encode_long
from measure.metrics import frames_of, psnr
from pictures import to_frames
from tokenizer import TOKENIZERS, VideoTokenizer


def leaking_shares(tokenizer: nn.Module, video: Tensor, other: Tensor
                   ) -> tuple[list[float], list[float]]:
    """video, other (1, 3, T, H, W) in [0, 1]. First: of all that moves the latent in the middle,
    the share at each distance in pixels from the token's own pixels. Second: of the tokens of
    OPC's region, the share that changes when all pixels outside of it are `other`'s, if they are
    unmasked as they are, and in COMMIT."""
    sizes, grid = video.shape[2:], tokenizer.latent_shape(*video.shape[2:])
    place = [length // 2 for length in grid]
    pixels = video.clone().requires_grad_()
    latent = tokenizer.latents(pixels)[(0, slice(None), *place)]
    influence = sum(torch.autograd.grad(number, pixels, retain_graph=True)[0].abs().sum((0, 1))
                    for number in latent)                                        # (T, H, W)
    away = torch.zeros(sizes)
    for axis, (size, cell, i) in enumerate(zip(sizes, grid, place)):
        first, last = i * size // cell, (i + 1) * size // cell - 1
        position = torch.arange(size)
        steps = torch.maximum(first - position, position - last).clamp(min=0)
        away = torch.maximum(away, steps.view([-1 if a == axis else 1 for a in range(3)]).float())
    by_distance = torch.zeros(int(away.max()) + 1).scatter_add_(0, away.flatten().long(),
                                                                influence.flatten())
    changed = torch.where(make_condition(video, "OPC")[1], video, other)
    (before, is_pad), (after, _) = (tokenize_condition(tokenizer, v, "OPC")
                                    for v in (video, changed))
    unmasked = [tokenizer.encode(v).flatten(1) for v in (video, changed)]
    return ((by_distance / by_distance.sum()).tolist(),
            [(x != y)[:, ~is_pad].float().mean().item() for x, y in (unmasked, (before, after))])


def gradient_norms(tokenizer: nn.Module, discriminator: nn.Module, video: Tensor
                   ) -> dict[str, dict[str, float]]:
    """How far each loss of stage 1 reaches: the norm of its gradient in each part; 0: none.

    video (B, 3, T, H, W) in [0, 1]. Losses as in steps.tokenizer_pass, before it cuts any.
    """
    output, real = tokenizer(video), video.clone().requires_grad_()
    fake_logits, real_logits = discriminator(output.reconstruction), discriminator(real)
    losses = {"reconstruction": F.mse_loss(output.reconstruction, video),
              "codebook": output.codebook_loss, "commitment": output.commitment_loss,
              "entropy": output.entropy_loss, "generator": generator_loss(fake_logits),
              "discriminator": discriminator_loss(real_logits, fake_logits),
              "R1": r1_penalty(real_logits, real),
              "LeCam": LeCam()(real_logits.mean(), fake_logits.mean())}
    named = list(tokenizer.named_parameters())
    parts = {part: [p for name, p in named if name.startswith(part)]
             for part in ("encoder", "quantizer", "decoder")}
    parts["discriminator"] = list(discriminator.parameters())
    return {name: {part: nn.utils.get_total_norm([g for g in torch.autograd.grad(
        loss, parameters, retain_graph=True, allow_unused=True) if g is not None]).item()
        for part, parameters in parts.items()} for name, loss in losses.items()}


def context_shares(tokenizer: nn.Module, video: Tensor, lengths: tuple[int, ...] = (16, 32, 64),
                   window: int = 16) -> list[tuple[int, float, float]]:
    """For each length: the share of the first window's tokens that change when it is encoded as
    part of so many frames, and its PSNR then. video (1, 3, T, H, W) in [0, 1].

    Group norm spans (T, H, W): each token depends on all frames that pass together, and statistics
    over more frames than in training are none that the network knows.
    """
    rows, real = [], video[:, :, :window]
    alone = tokenizer.encode(real)
    for length in lengths:
        tokens = tokenizer.encode(video[:, :, :length])
        decoded = tokenizer.decode(tokens)[:, :, :window].clamp(0, 1)
        changed = (tokens[:, :alone.shape[1]] != alone).float().mean().item()
        rows.append((length, changed, psnr(frames_of(decoded), frames_of(real)).mean().item()))
    return rows


def seam_errors(tokenizer: nn.Module, video: Tensor, overlap: int, window: int = 16) -> Tensor:
    """How wrong each step from frame to frame is after decoding, (T - 1,): the mean absolute
    difference of decoded and real steps. video (1, 3, T, H, W) in [0, 1]."""
    tokens = encode_long(tokenizer, to_frames(video[0]), window, overlap)
    decoded = decode_long(tokenizer, tokens, overlap, video.shape[3:], video.shape[2])
    decoded = to_float(np.stack(list(decoded))[None])
    return (decoded.diff(dim=2) - video.diff(dim=2)).abs().mean(dim=(0, 1, 3, 4))


def main() -> None:
    torch.manual_seed(0)
    tokenizer = VideoTokenizer(replace(TOKENIZERS["toy"], residual_gain=1.0))
    influence, shares = leaking_shares(tokenizer, *torch.rand(2, 1, 3, 16, 32, 32))
    for distance, share in enumerate(influence):
        print(f"{distance:3} pixels away {share:6.1%} of what moves a token")
    print(f"tokens that change with pixels not given: {shares[0]:.0%}; COMMIT {shares[1]:.0%}")


if __name__ == "__main__":
    main()
