"""Algorithm 1: from conditions to tokens in a few steps, and from pixels to pixels.

Paper   Sec. 3.2 (Algorithm 1, Inference, Fig. 3), App. B.3 (steps, schedule, temperature)

Shapes  task (B,), label (B,), condition tokens (B, N), is_pad (N,) or (B, N)
          -> commit_decode: `steps` times [Eq. (2) -> transformer -> sample -> keep the surest]
          -> tokens (B, N) -> tokenizer.decode -> video (B, 3, T, H, W)

Read    commit_decode beside Algorithm 1; then guided_logits, generate.

Not here: Eq. (2), tasks and schedules (commit.py); the networks. Models are arguments.

Run:    python decode.py        how many tokens Algorithm 1 leaves masked after each step
        python decode.py RUN                          all ten tasks on a clip of the run's data
        python decode.py RUN --task OPC --video in.mp4 --out out.gif
        python figures.py steps                       Fig. 3: what happens between the steps
"""
from __future__ import annotations

import math
from typing import Any, Callable, Iterator, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from commit import (TASKS, codes_of, commit_mask, cutoff_score, digits_of, mask_ratio, num_masked,
                    task_index, tokenize_condition)


class DecodeState(NamedTuple):
    """Where decoding stands after a step. The last state's tokens are the answer."""

    step: int               # t, from 0
    inputs: Tensor          # (B, N) z-bar: what the transformer was given in this step
    tokens: Tensor          # (B, N) z-hat: the best guess now, without any [MASK]
    unknown: Tensor         # (B, N) bool, True where the next step will predict anew
    confidence: Tensor      # (B, N) log probability plus noise; inf where decided for good


@torch.no_grad()
def commit_decode(model: nn.Module, task: Tensor, label: Tensor, condition_tokens: Tensor,
                  is_pad: Tensor, *, steps: int = 12, temperature: float = 4.5,
                  schedule: str = "cosine", generator: torch.Generator | None = None,
                  guidance_scale: float | Callable[[float], float] = 0.0,
                  softmax_temperature: float | Callable[[float], float] = 1.0,
                  noise: Callable[[torch.Size], Tensor] | None = None,
                  masked_counts: Tensor | None = None, known: Tensor | None = None,
                  order: str = "confidence", grid: tuple[int, int, int] | None = None,
                  ) -> Iterator[DecodeState]:
    """Algorithm 1, one DecodeState per step. The defaults are App. B.3's.

    model: MaskedTransformer; task (B,), label (B,) its prefix. condition_tokens z-tilde (B, N);
    is_pad (N,) or (B, N), True where they hold only padding.

    Two things are not in the printed algorithm and come from the official code. Scores are log
    probabilities, with inf for tokens decided for good (the order is that of p with 1). And
    Gumbel noise times temperature, fading to none at the last step, is added to the scores, so
    that which tokens stay is left to chance at first. Temperature 0 is the printed algorithm.

    The scores start at 0 below a cut-off of 1: every token is masked, none is read before it is
    decided. In the last step gamma(1) N = 0, a "0th smallest" score does not exist: all is decided.

    All noise is Gumbel from `generator`, two draws a step: of the logits' shape to sample the
    tokens, then (B, N) to rank them. To replay a recording, `noise(shape)` may return it instead,
    and masked_counts (steps, B) replaces ceil(gamma((t+1)/steps) N) in line 6.

    known (N,) or (B, N), True where condition_tokens are tokens of the answer: they never change,
    and N in line 6 counts the others. guidance_scale, and softmax_temperature that divides logits:
    a number, or a function of t / steps. order: what decides which tokens stay, "confidence"
    (App. B.3), "random", or "halton", places far apart first, for which grid is needed (ours).
    """
    if steps < 1:
        raise ValueError(f"{steps} decoding steps; give at least 1")
    if noise is None:
        def noise(shape: torch.Size) -> Tensor:
            return gumbel_noise(shape, generator, condition_tokens.device)
    B, N = condition_tokens.shape
    scores = torch.zeros(B, N, device=condition_tokens.device)                    # line 1
    cutoff = torch.ones(B, device=condition_tokens.device)
    tokens = torch.zeros_like(condition_tokens)
    if known is not None:
        tokens = torch.where(known, condition_tokens, tokens)
        scores = scores.masked_fill(known, torch.inf)
    to_decide = (scores <= cutoff[:, None]).sum(1)
    if not to_decide.all():
        raise ValueError("every token of a sequence is known; nothing is left to decode")
    priority = fixed_priority(order, scores, grid, noise)
    for t in range(steps):                                                        # line 2
        inputs = commit_mask(tokens, condition_tokens, is_pad, scores, cutoff,    # line 3
                             model.mask_id)
        scale, tau = (each(t / steps) if callable(each) else each
                      for each in (guidance_scale, softmax_temperature))
        logits = guided_logits(model, inputs, tokens, task, label, scores, cutoff, scale) / tau
        unknown = scores <= cutoff[:, None]
        sampled = codes_of((logits + noise(logits.shape)).argmax(-1), logits.shape[-1])
        tokens = torch.where(unknown, sampled, tokens)                            # line 4

        chosen = digits_of(tokens, logits)[..., None]
        confidence = F.log_softmax(logits, dim=-1).gather(-1, chosen).view(B, N, -1).sum(-1)
        confidence = confidence + temperature * (1 - (t + 1) / steps) * noise(confidence.shape)
        confidence = confidence if priority is None else priority
        scores = torch.where(unknown, confidence, scores)                         # line 5

        progress = torch.tensor([(t + 1) / steps], dtype=torch.float64, device=scores.device)
        count = (num_masked(mask_ratio(progress, schedule, N), to_decide)
                 if masked_counts is None else masked_counts[t])
        count = torch.minimum(count, unknown.sum(1))        # what is decided is never reopened
        cutoff = cutoff_score(scores, count / N)                                  # line 6
        scores = scores.masked_fill(scores > cutoff[:, None], torch.inf)          # line 7
        last = t == steps - 1
        yield DecodeState(t, inputs, tokens, (scores <= cutoff[:, None]) & (not last), scores)
    # lines 8 and 9: the caller's last state holds z-hat


def gumbel_noise(shape: torch.Size, generator: torch.Generator | None,
                 device: torch.device | str = "cpu") -> Tensor:
    """Standard Gumbel noise: argmax(logits + noise) is a sample of softmax(logits)."""
    uniform = torch.rand(shape, generator=generator, device=device)
    return -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))


def fixed_priority(order: str, scores: Tensor, grid: tuple[int, int, int] | None,
                   noise: Callable[[torch.Size], Tensor]) -> Tensor | None:
    """What stands for the confidences (B, N) of all steps; None where confidence decides.

    "halton" visits the cells of the grid as the points of a Halton sequence do, in bases 5, 3 and
    2 along t, h and w: a cell's rank is that of the first point in it.
    """
    if order == "confidence":
        return None
    if order == "random":
        return noise(scores.shape)
    if order != "halton":
        raise ValueError(f"order {order!r} is unknown; choose confidence, random or halton")
    N = scores.shape[1]
    if grid is None or math.prod(grid) != N:
        raise ValueError(f"order 'halton' needs the grid (t, h, w) of the {N} tokens, got {grid}")
    place, point = 0, torch.arange(1, 64 * N)
    for length, base in zip(grid, (5, 3, 2)):
        turned, rest, scale = 0, point, 1          # turned / scale: the digits behind the point
        while scale <= len(point):
            turned, rest, scale = turned * base + rest % base, rest // base, scale * base
        place = place * length + length * turned // scale
    first = torch.full((N,), len(point)).scatter_reduce(0, place, point, "amin")
    return -first.argsort(stable=True).argsort().to(scores).expand_as(scores)


def guided_logits(model: nn.Module, inputs: Tensor, tokens: Tensor, task: Tensor, label: Tensor,
                  scores: Tensor, cutoff: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: logits + scale * (logits - unconditional logits), (B, N, K).

    Unconditional is the CG task without a class and without condition tokens (official). The
    paper does not use it: scale 0 is a plain forward pass. Train with class dropout before use.
    """
    if scale == 0:
        return model(inputs, task, label).float()
    everywhere = torch.ones_like(scores, dtype=torch.bool)
    unconditional = commit_mask(tokens, tokens, everywhere, scores, cutoff, model.mask_id)
    logits, baseline = model(
        torch.cat([inputs, unconditional]),
        torch.cat([task, torch.full_like(task, task_index("CG"))]),
        torch.cat([label, torch.full_like(label, model.no_class)])).float().chunk(2)
    return logits + scale * (logits - baseline)


# ---------------------------------------------------------------------------------------------
# Pixels to pixels

@torch.no_grad()
def generate(tokenizer: nn.Module, model: nn.Module, video: Tensor, task: str,
             label: Tensor | None = None, *, condition_frames: int = 1, prompt: str | None = None,
             decode: Callable[..., Iterator[Any]] | None = None, **decoding) -> Tensor:
    """Do a task on videos: condition -> tokens -> Algorithm 1 -> video.

    video (B, 3, T, H, W) in [0, 1]; only the task's condition is taken from it, and for CG only
    its shape. label (B,) ints in [0, C) for CG and CFP, None for the others; model.no_class is
    none of them. A model without classes takes None for CG, which is unconditional then.
    condition_frames as in make_condition; prompt: a task whose prompt stands for this one's;
    decode: commit_decode (by default, or the model's own `decode`) or another with its arguments;
    decoding: its keywords. Returns (B, 3, T, H, W) in [0, 1]; the given region is generated anew
    too, from its refined tokens.
    """
    index = task_index(prompt if prompt and task in TASKS else task, model.prompts)
    classes = model.no_class
    if TASKS[task].class_conditional and (classes or TASKS[task].needs_classes):
        if classes == 0:
            raise ValueError(f"{task} needs classes, and this model was trained without any")
        if label is None or label.min() < 0 or label.max() > classes:
            got = "none" if label is None else f"{label.tolist()}"
            raise ValueError(f"{task} needs a class label in 0..{classes - 1} ({classes}: no "
                             f"class), got {got}")
    elif label is not None:
        raise ValueError(f"{task} takes no class label; CG and CFP do, where there are classes")
    shape = tokenizer.latent_shape(*video.shape[2:])
    condition_tokens, is_pad = tokenize_condition(tokenizer, video, task, condition_frames)
    if condition_tokens.shape[1] != model.config.num_tokens:
        raise ValueError(f"a {'x'.join(map(str, video.shape[2:]))} video has "
                         f"{condition_tokens.shape[1]} tokens; this transformer was trained on "
                         f"{model.config.num_tokens}: resize or cut the video")
    task_ids = torch.full((len(video),), index, device=video.device)
    labels = torch.full_like(task_ids, classes) if label is None else label
    decode = decode or getattr(model, "decode", commit_decode)
    for state in decode(model, task_ids, labels, condition_tokens, is_pad, grid=shape, **decoding):
        pass
    return tokenizer.decode(state.tokens.view(-1, *shape)).clamp(0, 1)


def latent_masking(model: nn.Module, task: Tensor, label: Tensor, condition_tokens: Tensor,
                   is_pad: Tensor, **decoding) -> Iterator[DecodeState]:
    """What the paper compares with (Table 5): the condition's tokens are simply unmasked.

    With commit_decode's arguments; needs no training beyond Eq. (1). Where is_pad, all is [MASK].
    """
    return commit_decode(model, task, label, condition_tokens, torch.ones_like(is_pad),
                         known=~is_pad, **decoding)


def print_steps(num_tokens: int = 1024, steps: int = 12) -> None:
    """The masked counts of line 6 for the three schedules of App. B.3."""
    print(f"ceil(gamma((t+1)/K) N), the tokens still masked after each step; N = {num_tokens}")
    progress = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    for schedule in ("cosine", "uniform", "exp"):
        counts = num_masked(mask_ratio(progress, schedule, num_tokens), num_tokens)
        print(f"  {schedule:8}", *(f"{count:5}" for count in counts[:-1].tolist()), "    0")


def main() -> None:
    import argparse                         # the command alone looks up to the wings
    import sys

    from measure.report import do_tasks

    parser = argparse.ArgumentParser(description="Do the paper's tasks with a trained run.")
    parser.add_argument("run", nargs="?", help="folder of a run, for example runs/toy")
    parser.add_argument("--task", nargs="+", choices=[*TASKS, "all"], default=["all"])
    parser.add_argument("--video", help="any video file; without it, a clip of the run's data")
    parser.add_argument("--clip", type=int, default=0, help="which clip, without --video")
    parser.add_argument("--label", help="class for CG and CFP: its name or number")
    parser.add_argument("--out", default="out.gif", help=".gif, or .png for a contact sheet")
    parser.add_argument("--start", type=int, default=0, help="first frame taken from the video")
    parser.add_argument("--stride", type=int, help="take every n-th frame; as the run was trained")
    parser.add_argument("--condition-frames", type=int, help="frames given in FP, FI and CFP")
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--steps", type=int, help="K of Algorithm 1")
    parser.add_argument("--schedule", help="cosine, uniform, exp, ...")
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--guidance-scale", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.run is None:
        print_steps()
        return
    try:
        do_tasks(options)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"decode.py: {error}")


if __name__ == "__main__":
    main()
