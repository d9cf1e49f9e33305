"""COMMIT: conditions as masks. Ten tasks, one corrupted sequence, one loss.

Paper   Sec. 2 (mask ratio, cut-off), Sec. 3.2 (Eq. (2)-(4)), App. B.1 (the ten tasks)

Shapes  video (B, 3, T, H, W), task
          -> make_condition  -> condition video (B, 3, T, H, W), valid (T, H, W), True = given
          -> tokenizer       -> condition tokens (B, N)
          -> is_padding      -> is_pad (t, h, w), True = nothing given in this supervoxel
        scores (B, N), ratio (B,) -> cutoff_score -> cutoff (B,)
        tokens, condition tokens, is_pad, scores, cutoff -> commit_mask, Eq. (2) -> (B, N)
        logits (B, N, K) of the transformer -> commit_loss, Eq. (3)-(4)

Read    commit_mask and commit_loss first: they are the paper. Then cutoff_score, mask_ratio;
        then TASKS with its regions and paddings, make_condition, is_padding.

Not here: the networks; sampling of tasks (train.py); decoding, the other user of Eq. (2)
        (decode.py).

Run:    python commit.py [out.png]      draws Fig. 2: what each of the ten tasks gives the model
"""
from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


# ---------------------------------------------------------------------------------------------
# The multivariate mask and its loss (Sec. 3.2)

def commit_mask(tokens: Tensor, condition_tokens: Tensor, is_pad: Tensor, scores: Tensor,
                cutoff: Tensor, mask_id: int) -> Tensor:
    """Eq. (2): the corrupted sequence z-bar = m(z | z-tilde).

    tokens z, condition_tokens z-tilde (B, N); is_pad (N,) or (B, N), True where the supervoxel
    holds only padding; scores s (B, N), cutoff s* (B,). Returns (B, N) with ids and mask_id.

        m_i(x | z-tilde_i)  =  z-tilde_i    if s_i <= s*  and  not ispad(z-tilde_i)
                               [MASK]       if s_i <= s*  and      ispad(z-tilde_i)
                               x            if s_i >  s*
    """
    masked = scores <= cutoff[:, None]
    return torch.where(masked & ~is_pad, condition_tokens,
                       torch.where(masked & is_pad, mask_id,
                                   tokens))


class CommitLoss(NamedTuple):
    """Eq. (4): total = refine + mask + reconstruct, each its share of the mean over N tokens."""

    total: Tensor
    refine: Tensor          # z-bar_i = z-tilde_i : correct the tokens of the condition
    mask: Tensor            # z-bar_i = [MASK]    : predict what is hidden, Eq. (1)
    reconstruct: Tensor     # z-bar_i = z_i       : copy what is shown


def commit_loss(logits: Tensor, tokens: Tensor, is_pad: Tensor, scores: Tensor, cutoff: Tensor,
                label_smoothing: float = 1e-4,
                weights: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> CommitLoss:
    """Eq. (3)-(4): -log p(z_i | rho, c, z-bar) at every i, in the three parts of Eq. (2).

    logits (B, N, K), tokens z (B, N) the ground truth; is_pad, scores, cutoff as in commit_mask.
    The paper prints a sum over i; this is the mean, which keeps the learning rate's meaning at
    any N (official). label_smoothing is App. B.2's. weights (refine, mask, reconstruct) scale
    the parts: zeros give the rows of Table 5.
    """
    loss = token_cross_entropy(logits, tokens, label_smoothing)                   # (B, N)
    masked = scores <= cutoff[:, None]
    cases = (masked & ~is_pad, masked & is_pad, ~masked)       # the lines of Eq. (2), in order
    parts = [weight * (loss * case).mean() for weight, case in zip(weights, cases)]
    return CommitLoss(sum(parts), *parts)


def token_cross_entropy(logits: Tensor, tokens: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """-log p(z_i) per token (B, N), in float32. Smoothing mixes the target with the uniform."""
    return F.cross_entropy(rearrange(logits.float(), "b n k -> b k n"), tokens,
                           reduction="none", label_smoothing=label_smoothing)


# ---------------------------------------------------------------------------------------------
# How much is masked (Sec. 2)

def mask_ratio(r: Tensor, schedule: str = "cosine", num_tokens: int = 1024) -> Tensor:
    """gamma(r) for r in [0, 1], elementwise, in [1e-6, 1]: 1 masks all, falling to none.

    schedule: "cosine" (the default of App. B.2 and B.3), "uniform" (a straight line; Kinetics),
    "exp" (slow start, steep end; BAIR), "log", "pow2" and other powers, or "poly:a,b,c" with
    coefficients of falling powers, as in the official code. num_tokens shapes "exp" and "log".
    """
    bits = math.log2(num_tokens)
    if schedule == "cosine":
        ratio = torch.cos(r * (math.pi / 2))
    elif schedule == "uniform":
        ratio = 1 - r
    elif schedule == "exp":
        ratio = 1 - torch.exp2(bits * (r - 1))
    elif schedule == "log":
        ratio = -torch.log2(r) / bits
    elif schedule.startswith("pow"):
        ratio = 1 - r ** _numbers(schedule, "pow")[0]
    elif schedule.startswith("poly:"):
        ratio = torch.zeros_like(r)
        for coefficient in _numbers(schedule, "poly:"):
            ratio = ratio * r + coefficient
    else:
        raise ValueError(f"mask schedule {schedule!r} is unknown; choose cosine, uniform, exp, "
                         "log, pow<exponent> or poly:<coefficients>")
    return ratio.clamp(1e-6, 1.0)


def _numbers(schedule: str, name: str) -> list[float]:
    try:
        return [float(number) for number in schedule.removeprefix(name).split(",")]
    except ValueError:
        raise ValueError(f"mask schedule {schedule!r}; wanted {name} followed by a number, "
                         f"for example {name}2") from None


def num_masked(ratio: Tensor, num_tokens: int) -> Tensor:
    """ceil(ratio * N), at least 1: how many tokens are masked at a mask ratio (Sec. 2).

    The product is rounded at 1e-3 first, so that a half computed as 0.50000006 stays a half.
    """
    exact = (ratio.double() * num_tokens * 1000).round() / 1000
    return exact.ceil().long().clamp(1, num_tokens)


def cutoff_score(scores: Tensor, ratio: Tensor) -> Tensor:
    """s*, the ceil(ratio * N)-th smallest of scores (B, N) for ratio (B,) in [0, 1] -> (B,)."""
    count = num_masked(ratio, scores.shape[1])
    return scores.sort(dim=1).values.gather(1, count[:, None] - 1)[:, 0]


# ---------------------------------------------------------------------------------------------
# The ten tasks (App. B.1): which pixels are given, and what stands in for the others

def nothing(T: int, H: int, W: int, frames: int) -> Tensor:
    return torch.zeros(T, H, W, dtype=torch.bool)


def first_frames(T: int, H: int, W: int, frames: int) -> Tensor:
    return (torch.arange(T) < frames)[:, None, None].expand(T, H, W)


def both_ends(T: int, H: int, W: int, frames: int) -> Tensor:
    return first_frames(T, H, W, frames) | first_frames(T, H, W, frames).flip(0)


def vertical_strip(T: int, H: int, W: int, frames: int) -> Tensor:
    column = torch.arange(W)
    return ((column >= W // 4) & (column < W * 3 // 4)).expand(T, H, W)


def horizontal_strip(T: int, H: int, W: int, frames: int) -> Tensor:
    return vertical_strip(T, W, H, frames).transpose(1, 2)


def centre_box(T: int, H: int, W: int, frames: int) -> Tensor:
    return vertical_strip(T, H, W, frames) & horizontal_strip(T, H, W, frames)


def moving_strip(T: int, H: int, W: int, frames: int) -> Tensor:
    """Half the width, from the left edge in the first frame to the right edge in the last."""
    left = torch.linspace(0, W // 2, T, dtype=torch.float64).round()[:, None]
    column = torch.arange(W)
    return ((column >= left) & (column < left + W // 2))[:, None].expand(T, H, W)


def outside_centre_box(T: int, H: int, W: int, frames: int) -> Tensor:
    return ~centre_box(T, H, W, frames)


def outside_moving_box(T: int, H: int, W: int, frames: int) -> Tensor:
    return ~(moving_strip(T, H, W, frames) & horizontal_strip(T, H, W, frames))


def zero_padding(video: Tensor, valid: Tensor) -> Tensor:
    """Black."""
    return video * valid


def edge_padding(video: Tensor, valid: Tensor) -> Tensor:
    """The nearest given pixel along each axis: the last given frame, or the box's border.

    For boxes only: inside the bounding box of `valid` the video is kept.
    """
    for axis in range(3):
        given = valid.any(dim=tuple({0, 1, 2} - {axis})).nonzero()
        nearest = torch.arange(valid.shape[axis], device=video.device).clamp(
            given.min(), given.max())
        video = video.index_select(axis - 3, nearest)
    return video


def interpolation(video: Tensor, valid: Tensor) -> Tensor:
    """A straight line in time from the last given frame at the start to the first at the end."""
    hidden = (~valid[:, 0, 0]).nonzero()[:, 0]
    start, end = int(hidden[0]) - 1, int(hidden[-1]) + 1
    weight = (torch.arange(1, end - start, device=video.device) / (end - start))[:, None, None]
    first, last = video[:, :, start, None], video[:, :, end, None]
    return torch.cat([video[:, :, :start + 1], first + (last - first) * weight,
                      video[:, :, end:]], dim=2)


@dataclass(frozen=True)
class Task:
    """A row of App. B.1."""

    title: str
    region: Callable[[int, int, int, int], Tensor]      # T, H, W, frames -> valid (T, H, W)
    padding: Callable[[Tensor, Tensor], Tensor]         # video, valid -> condition video
    class_conditional: bool = False


TASKS = {
    "FP": Task("frame prediction", first_frames, edge_padding),
    "FI": Task("frame interpolation", both_ends, interpolation),
    "OPC": Task("central outpainting", centre_box, edge_padding),
    "OPV": Task("vertical outpainting", vertical_strip, edge_padding),
    "OPH": Task("horizontal outpainting", horizontal_strip, edge_padding),
    "OPD": Task("dynamic outpainting", moving_strip, zero_padding),
    "IPC": Task("central inpainting", outside_centre_box, zero_padding),
    "IPD": Task("dynamic inpainting", outside_moving_box, zero_padding),
    "CG": Task("class-conditional generation", nothing, zero_padding, class_conditional=True),
    "CFP": Task("class-conditional frame prediction", first_frames, edge_padding,
                class_conditional=True),
}


MT8 = tuple(task for task in TASKS if not TASKS[task].class_conditional)       # Sec. 4.4


def task_index(task: str) -> int:
    """The task's number, which chooses its prompt. ValueError for a name not in TASKS."""
    if task not in TASKS:
        raise ValueError(f"task {task!r} is unknown; choose from {' '.join(TASKS)}")
    return list(TASKS).index(task)


def make_condition(video: Tensor, task: str, frames: int = 1) -> tuple[Tensor, Tensor]:
    """V-tilde: keep the task's interior condition of a video, pad the rest (App. B.1).

    video (B, 3, T, H, W). frames: how many are given in FP and CFP, and at each end in FI
    (1 in the paper, 5 on Kinetics-600). Returns the condition video and valid (T, H, W) bool,
    True where a pixel is given. What is not given has no influence on the condition video.
    """
    task_index(task)
    T, H, W = video.shape[2:]
    most = (T - 1) // 2 if task == "FI" else T - 1
    if not 1 <= frames <= most:
        raise ValueError(f"{frames} condition frames for {task} of a video of {T} frames; "
                         f"give 1 to {most}")
    valid = TASKS[task].region(T, H, W, frames).to(video.device)
    return TASKS[task].padding(video, valid), valid


def is_padding(valid: Tensor, latent_shape: tuple[int, int, int]) -> Tensor:
    """ispad: valid (T, H, W) -> (t, h, w) bool, True where the supervoxel is only padding."""
    t, h, w = latent_shape
    return ~rearrange(valid, "(t a) (h b) (w c) -> t h w (a b c)", t=t, h=h, w=w).any(-1)


@torch.no_grad()
def tokenize_condition(tokenizer: nn.Module, video: Tensor, task: str, frames: int = 1
                       ) -> tuple[Tensor, Tensor]:
    """z-tilde and ispad of a task: video (B, 3, T, H, W) -> tokens (B, N), is_pad (N,)."""
    condition, valid = make_condition(video, task, frames)
    if TASKS[task].region is nothing:                    # CG: the same padding for every clip
        condition = condition[:1]
    tokens = rearrange(tokenizer.encode(condition), "b t h w -> b (t h w)")
    tokens = tokens.expand(len(video), -1).contiguous()
    return tokens, is_padding(valid, tokenizer.latent_shape(*video.shape[2:])).flatten()


# ---------------------------------------------------------------------------------------------

def draw_tasks(video: Tensor, latent_shape: tuple[int, int, int], path: str) -> None:
    """Fig. 2 and App. Fig. 2: a row per task with the video, its condition, ispad and z-bar.

    video (1, 3, T, H, W) in [0, 1]. Green: given or condition token; white: padding;
    black: [MASK]; blue: the video's own token, shown because its score is above the cut-off.
    """
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    generator = torch.Generator().manual_seed(0)
    T, num_tokens = video.shape[2], math.prod(latent_shape)
    frames = torch.linspace(0, T - 1, latent_shape[0]).round().long()
    scores = torch.rand(1, num_tokens, generator=generator)
    ratio = mask_ratio(torch.tensor([0.4]))
    cutoff = cutoff_score(scores, ratio)
    colours = torch.tensor([[0.2, 0.7, 0.3], [0.0, 0.0, 0.0], [0.35, 0.6, 0.95]])

    def strip(volume: Tensor) -> Tensor:                     # (3, t, h, w) -> frames in a row
        volume = F.pad(volume, (1, 1, 1, 1), value=0.8)
        return rearrange(volume, "c t h w -> h (t w) c")

    figure, axes = plt.subplots(len(TASKS), 5, figsize=(16, 1.05 * len(TASKS)))
    titles = ["video V", "given pixels (green)", "condition V~", "ispad (white)",
              f"masked sequence, {ratio.item():.0%} masked"]
    for row, (name, task) in zip(axes, TASKS.items()):
        condition, valid = make_condition(video, name)
        is_pad = is_padding(valid, latent_shape)
        # Eq. (2) on ids that say where they come from: 0 condition, 1 [MASK], 2 the video.
        kinds = commit_mask(torch.full_like(scores, 2).long(), torch.zeros_like(scores).long(),
                            is_pad.flatten(), scores, cutoff, mask_id=1)
        green_or_white = torch.tensor([[0.2, 0.7, 0.3], [1.0, 1.0, 1.0]])
        pictures = [video[0, :, frames], rearrange(
            green_or_white[(~valid).long()], "t h w c -> c t h w")[:, frames],
            condition[0, :, frames],
            rearrange(green_or_white[is_pad.long()], "t h w c -> c t h w"),
            rearrange(colours[kinds[0]].view(*latent_shape, 3), "t h w c -> c t h w")]
        for axis, picture, title in zip(row, pictures, titles):
            axis.imshow(strip(picture).clamp(0, 1).numpy(), interpolation="nearest")
            axis.set(xticks=[], yticks=[], title=title if name == "FP" else "")
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=13)
        row[4].set_xlabel(task.title, fontsize=8)
    figure.tight_layout(h_pad=0.2)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def draw_schedules(path: str, num_tokens: int = 1024, steps: int = 12) -> None:
    """gamma: the tokens still masked after each step, for App. B.3's three schedules and "log"."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    progress = torch.linspace(0, 1, steps + 1)
    figure, axis = plt.subplots(figsize=(5, 3))
    for schedule in ("exp", "cosine", "uniform", "log"):
        count = num_masked(mask_ratio(progress, schedule, num_tokens), num_tokens)
        axis.plot(range(steps + 1), count.tolist(), marker="o", markersize=3, label=schedule)
    axis.set(xlabel="step of Algorithm 1", ylabel=f"tokens still masked, of {num_tokens}")
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    """Draw Fig. 2 on a video made here: a disc on a slope of colours, moving right."""
    path = sys.argv[1] if len(sys.argv) > 1 else "assets/tasks.png"
    y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 64), indexing="ij")
    background = torch.stack([0.3 + 0.4 * y, 0.5 - 0.2 * y, 0.6 - 0.3 * x])
    disc = torch.stack([(x - c) ** 2 + (y - 0.5) ** 2 < 0.04 for c in
                        torch.linspace(0.25, 0.75, 16)])[None]
    video = torch.where(disc, torch.tensor([1.0, 0.8, 0.2])[:, None, None, None],
                        background[:, None])[None]
    draw_tasks(video, (4, 16, 16), path)
    draw_schedules(path.replace(".png", "-schedules.png"))
    print(f"wrote {path}\n\nshare of the 4 x 16 x 16 tokens at 16 x 64 x 64 that hold a condition")
    for name, task in TASKS.items():
        given = ~is_padding(make_condition(video, name)[1], (4, 16, 16))
        print(f"  {name:4} {task.title:36} {given.sum():5} of 1024")


if __name__ == "__main__":
    main()
