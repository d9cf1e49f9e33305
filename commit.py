"""COMMIT: conditions as masks. Ten tasks, one corrupted sequence, one loss.

Paper   Sec. 2 (mask ratio, cut-off), Sec. 3.2 (Eq. (2)-(4)), App. B.1 (the ten tasks)

Shapes  video (B, 3, T, H, W), task
          -> make_condition  -> condition video (B, 3, T, H, W), valid (T, H, W), True = given
          -> tokenizer       -> condition tokens (B, N)
          -> is_padding      -> is_pad (t, h, w), True = nothing given in this supervoxel
        scores (B, N), count (B,) -> cutoff_score -> cutoff (B,)
        tokens, condition tokens, is_pad, scores, cutoff -> commit_mask, Eq. (2) -> (B, N)
        cross-entropy of each token (B, N) -> commit_loss, Eq. (3)-(4)

Read    commit_mask and commit_loss first: they are the paper. Then mask_ratio, num_masked,
        cutoff_score; then TASKS with its regions and paddings, make_condition, is_padding.

Not here: the transformer and its cross-entropy (transformer.py), the training step (steps.py),
        decoding, which uses Eq. (2) too (decode.py).

Run:    python commit.py          the ten tasks as a table
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn


# ---------------------------------------------------------------------------------------------
# The multivariate mask and its loss (Sec. 3.2)

def commit_mask(tokens: Tensor, condition_tokens: Tensor, is_pad: Tensor, scores: Tensor,
                cutoff: Tensor, mask_id: int) -> Tensor:
    """Eq. (2): the corrupted sequence z-bar = m(z | z-tilde).

    tokens x (B, N): the clip's own tokens z in training, the best guess z-hat so far in decoding.
    condition_tokens z-tilde (B, N). is_pad (N,) or (B, N), True where the supervoxel holds only
    padding; (N,) is enough, since all examples of a step have one task. scores s (B, N), cutoff
    s* (B,). Returns (B, N) with ids and mask_id.

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


def commit_loss(losses: Tensor, is_pad: Tensor, scores: Tensor, cutoff: Tensor,
                weights: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> CommitLoss:
    """Eq. (3)-(4): -log p(z_i | rho, c, z-bar) at every i, in the three parts of Eq. (2).

    losses (B, N): that cross-entropy of each token (MaskedTransformer.cross_entropy); is_pad,
    scores, cutoff as in commit_mask. The paper prints a sum over i; this is the mean, which keeps
    the learning rate's meaning at any N (official). weights (refine, mask, reconstruct) scale the
    parts: zeros give the rows of Table 5.
    """
    masked = scores <= cutoff[:, None]
    cases = (masked & ~is_pad, masked & is_pad, ~masked)       # the lines of Eq. (2), in order
    parts = [weight * (losses * case).mean() for weight, case in zip(weights, cases)]
    return CommitLoss(sum(parts), *parts)


# ---------------------------------------------------------------------------------------------
# How much is masked (Sec. 2)

def mask_ratio(r: Tensor, schedule: str = "cosine", num_tokens: int = 1024) -> Tensor:
    """gamma(r) for r in [0, 1], elementwise, in [1e-6, 1]: 1 masks all, falling to none.

    schedule: "cosine" (the default of App. B.2 and B.3), "uniform" (a straight line; Kinetics) or
    "exp" (slow start, steep end; BAIR), which depends on num_tokens (official).
    """
    if schedule == "cosine":
        ratio = torch.cos(r * (math.pi / 2))
    elif schedule == "uniform":
        ratio = 1 - r
    elif schedule == "exp":
        ratio = 1 - torch.exp2(math.log2(num_tokens) * (r - 1))
    else:
        raise ValueError(f"mask schedule {schedule!r} is unknown; choose cosine, uniform or exp")
    return ratio.clamp(1e-6, 1.0)


def num_masked(ratio: Tensor, num_tokens: int) -> Tensor:
    """ceil(ratio * N), at least 1: how many tokens are masked at a mask ratio (Sec. 2); int64.

    The product is rounded at 1e-3 first, so that a half computed as 0.50000006 stays a half.
    """
    exact = (ratio.double() * num_tokens * 1000).round() / 1000
    return exact.ceil().long().clamp(min=1)


def cutoff_score(scores: Tensor, count: Tensor) -> Tensor:
    """s*, the count-th smallest score: scores (B, N), count (B,) int64 in [1, N] -> (B,).

    In training each token draws a uniform score, so that "at most the cut-off" picks that many
    tokens at random; in decoding the scores are confidences.
    """
    return scores.sort(dim=1).values.gather(1, count[:, None] - 1)[:, 0]


# ---------------------------------------------------------------------------------------------
# The ten tasks (App. B.1): which pixels are given, and what stands in for the others

def nothing(T: int, H: int, W: int) -> Tensor:
    return torch.zeros(T, H, W, dtype=torch.bool)


def first_frames(T: int, H: int, W: int, condition_frames: int) -> Tensor:
    return (torch.arange(T) < condition_frames)[:, None, None].expand(T, H, W)


def both_ends(T: int, H: int, W: int, condition_frames: int) -> Tensor:
    start = first_frames(T, H, W, condition_frames)
    return start | start.flip(0)


def vertical_strip(T: int, H: int, W: int) -> Tensor:
    column = torch.arange(W)
    return ((column >= W // 4) & (column < W * 3 // 4)).expand(T, H, W)


def horizontal_strip(T: int, H: int, W: int) -> Tensor:
    return vertical_strip(T, W, H).transpose(1, 2)


def centre_box(T: int, H: int, W: int) -> Tensor:
    return vertical_strip(T, H, W) & horizontal_strip(T, H, W)


def moving_strip(T: int, H: int, W: int) -> Tensor:
    """Half the width, from the left edge in the first frame to the right edge in the last."""
    left = torch.linspace(0, W // 2, T, dtype=torch.float64).round()[:, None]
    column = torch.arange(W)
    return ((column >= left) & (column < left + W // 2))[:, None].expand(T, H, W)


def outside_centre_box(T: int, H: int, W: int) -> Tensor:
    return ~centre_box(T, H, W)


def outside_moving_box(T: int, H: int, W: int) -> Tensor:
    return ~(moving_strip(T, H, W) & horizontal_strip(T, H, W))


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
    region: Callable[..., Tensor]                       # T, H, W -> valid (T, H, W), True = given
    padding: Callable[[Tensor, Tensor], Tensor]         # video, valid -> condition video
    counts_frames: bool = False                         # region takes condition_frames as well
    class_conditional: bool = False

    @property
    def needs_classes(self) -> bool:
        """True if the task makes no sense without classes: CFP. (CG is then unconditional.)"""
        return self.class_conditional and self.region is not nothing


TASKS = {
    "FP": Task("frame prediction", first_frames, edge_padding, counts_frames=True),
    "FI": Task("frame interpolation", both_ends, interpolation, counts_frames=True),
    "OPC": Task("central outpainting", centre_box, edge_padding),
    "OPV": Task("vertical outpainting", vertical_strip, edge_padding),
    "OPH": Task("horizontal outpainting", horizontal_strip, edge_padding),
    "OPD": Task("dynamic outpainting", moving_strip, zero_padding),
    "IPC": Task("central inpainting", outside_centre_box, zero_padding),
    "IPD": Task("dynamic inpainting", outside_moving_box, zero_padding),
    "CG": Task("class-conditional generation", nothing, zero_padding, class_conditional=True),
    "CFP": Task("class-conditional frame prediction", first_frames, edge_padding,
                counts_frames=True, class_conditional=True),
}
# The paper's sets of tasks (Sec. 4.4).
MT8 = ("FP", "FI", "OPC", "OPV", "OPH", "OPD", "IPC", "IPD")
MT10 = (*MT8, "CG", "CFP")


def task_index(task: str, prompts: tuple[str, ...] = MT10) -> int:
    """Which of a model's prompts belongs to the task.

    prompts: the tasks of the model's prompts, in order (TransformerConfig.tasks). 0 for a model
    without prompts, which ignores it. ValueError for a name that is not in TASKS, and for a task
    that the model has no prompt for.
    """
    if task not in TASKS:
        raise ValueError(f"task {task!r} is unknown; choose from {' '.join(TASKS)}")
    if not prompts:
        return 0
    if task not in prompts:
        raise ValueError(f"this model has no prompt for {task}; it was trained with prompts for "
                         f"{' '.join(prompts)}")
    return prompts.index(task)


def make_condition(video: Tensor, task: str, condition_frames: int = 1) -> tuple[Tensor, Tensor]:
    """V-tilde: keep the task's interior condition of a video, pad the rest (App. B.1).

    video (B, 3, T, H, W). condition_frames: how many are given in FP and CFP, and at each end in
    FI (1 in the paper, 5 on Kinetics-600). Returns the condition video and valid (T, H, W) bool,
    True where a pixel is given. What is not given has no influence on the condition video.
    """
    if task not in TASKS:
        raise ValueError(f"task {task!r} is unknown; choose from {' '.join(TASKS)}")
    T, H, W = video.shape[2:]
    counted = (condition_frames,) if TASKS[task].counts_frames else ()
    valid = TASKS[task].region(T, H, W, *counted).to(video.device)
    if counted and (condition_frames < 1 or valid.all()):
        most = (T - 1) // (2 if task == "FI" else 1)
        raise ValueError(f"{condition_frames} condition frames for {task} of a video of {T} "
                         f"frames; give 1 to {most}")
    return TASKS[task].padding(video, valid), valid


def is_padding(valid: Tensor, latent_shape: tuple[int, int, int]) -> Tensor:
    """ispad: valid (T, H, W) -> (t, h, w) bool, True where the supervoxel is only padding."""
    t, h, w = latent_shape
    return ~rearrange(valid, "(t a) (h b) (w c) -> t h w (a b c)", t=t, h=h, w=w).any(-1)


@torch.no_grad()
def tokenize_condition(tokenizer: nn.Module, video: Tensor, task: str, condition_frames: int = 1
                       ) -> tuple[Tensor, Tensor]:
    """z-tilde and ispad of a task: video (B, 3, T, H, W) -> tokens (B, N), is_pad (N,).

    A tokenizer whose first latent stands for fewer frames than the others says how many it lacks,
    as `lead`; the first frame is counted that often more. 3D-VQ lacks none.
    """
    condition, valid = make_condition(video, task, condition_frames)
    if TASKS[task].region is nothing:                 # CG: black for every clip, so encoded once
        condition = condition[:1]
    tokens = rearrange(tokenizer.encode(condition), "b t h w -> b (t h w)")
    lead = getattr(tokenizer, "lead", 0)
    valid = torch.cat([valid[:1].expand(lead, -1, -1), valid])
    is_pad = is_padding(valid, tokenizer.latent_shape(*video.shape[2:])).flatten()
    return tokens.expand(len(video), -1).contiguous(), is_pad


# ---------------------------------------------------------------------------------------------

def main() -> None:
    """What each task gives."""
    print("of 4 x 16 x 16 tokens (16 x 128 x 128 pixels), so many hold a given pixel")
    for name, task in TASKS.items():
        valid = make_condition(torch.zeros(1, 3, 16, 128, 128), name)[1]
        given = int((~is_padding(valid, (4, 16, 16))).sum())
        print(f"  {name:4} {task.title:36} {given:5}   {task.padding.__name__}")


if __name__ == "__main__":
    main()
