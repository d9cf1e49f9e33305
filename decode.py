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
"""
from __future__ import annotations

import argparse
import math
import sys
from typing import Callable, Iterator, NamedTuple

import torch
from torch import Tensor, nn

from commit import (TASKS, commit_mask, cutoff_score, make_condition, mask_ratio, num_masked,
                    task_index, tokenize_condition)
from tokenizer import refuse_other_pixels

Noise = Callable[[torch.Size], Tensor]
Scale = float | Callable[[float], float]


class DecodeState(NamedTuple):
    """Where decoding stands after a step. The last state's tokens are the answer."""

    step: int               # t, from 0
    inputs: Tensor          # (B, N) z-bar: what the transformer was given in this step
    tokens: Tensor          # (B, N) z-hat: the best guess after this step, without any [MASK]
    unknown: Tensor         # (B, N) bool, True where the next step predicts anew
    confidence: Tensor      # (B, N) log probability plus noise where unknown, else inf


@torch.no_grad()
def commit_decode(model: nn.Module, task: Tensor, label: Tensor, condition_tokens: Tensor,
                  is_pad: Tensor, *, steps: int = 12, temperature: float = 4.5,
                  schedule: str = "cosine", noise: Noise | None = None,
                  guidance_scale: Scale = 0.0) -> Iterator[DecodeState]:
    """Algorithm 1, one DecodeState per step. The defaults are App. B.3's.

    model: MaskedTransformer; task (B,), label (B,) its prefix. condition_tokens z-tilde (B, N);
    is_pad (N,) or (B, N), True where they hold only padding. noise(shape) is Gumbel noise, asked
    for twice a step: of the logits' shape to sample tokens, then (B, N) to rank them.

    Two things come from the official code. Scores are log probabilities, and inf, not 1, once a
    token is decided. And noise times temperature, fading to none at the last step, is added to the
    scores, so that chance decides at first which tokens stay. Log probabilities are a few nats
    apart: at 4.5 noise outweighs them in the first steps, at BAIR's 400 until the last. Temperature
    0 is Algorithm 1 as printed.
    """
    if steps < 1:
        raise ValueError(f"{steps} decoding steps; give at least 1")
    noise = noise or (lambda shape: gumbel_noise(shape, device=condition_tokens.device))
    (B, N), device = condition_tokens.shape, condition_tokens.device
    scores, cutoff = torch.zeros(B, N, device=device), torch.ones(B, device=device)    # line 1
    tokens = torch.zeros_like(condition_tokens)     # placeholders: all are masked in the first step
    for t in range(steps):                                                             # line 2
        masked = scores <= cutoff[:, None]
        inputs = commit_mask(tokens, condition_tokens, is_pad, scores, cutoff,         # line 3
                             model.mask_id)
        scale = guidance_scale(t / steps) if callable(guidance_scale) else guidance_scale
        logits = guided_logits(model, inputs, tokens, masked, task, label, scale)
        sampled, log_probability = model.sample(logits, noise(logits.shape))
        tokens = torch.where(masked, sampled, tokens)                                  # line 4
        confidence = log_probability + temperature * (1 - (t + 1) / steps) * noise(tokens.shape)
        scores = torch.where(masked, confidence, scores)                               # line 5
        progress = torch.tensor((t + 1) / steps, dtype=torch.float64, device=device)
        count = torch.as_tensor(num_masked(mask_ratio(progress, schedule, N), N), device=device)
        cutoff = cutoff_score(scores, count.expand(B))                                 # line 6
        if t + 1 == steps:         # gamma(1) N = 0: no score is the 0th smallest, all are decided
            cutoff = torch.full_like(cutoff, -torch.inf)
        scores = scores.masked_fill(scores > cutoff[:, None], torch.inf)               # line 7
        yield DecodeState(t, inputs, tokens, scores <= cutoff[:, None], scores)
    # lines 8 and 9: the caller's last state holds z-hat


def gumbel_noise(shape: torch.Size, generator: torch.Generator | None = None,
                 device: torch.device | str = "cpu") -> Tensor:
    """Standard Gumbel noise: argmax(logits + noise) is a sample of softmax(logits)."""
    uniform = torch.rand(shape, generator=generator, device=device)
    return -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))


def seeded_noise(seed: int, device: torch.device | str = "cpu") -> Noise:
    """Noise for commit_decode that is the same each time for the same seed."""
    generator = torch.Generator(device).manual_seed(seed)
    return lambda shape: gumbel_noise(shape, generator, device)


def guided_logits(model: nn.Module, inputs: Tensor, tokens: Tensor, masked: Tensor, task: Tensor,
                  label: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: logits + scale * (logits - unconditional logits), (B, N, K).

    Unconditional is the same sequence without condition tokens and without a class, under the
    prompt of CG (official), or under the example's own where the model has not trained CG.
    masked (B, N) bool. The paper does not guide: scale 0 is a plain forward pass. Guide only a
    model that was trained with class dropout.
    """
    if scale == 0:
        return model(inputs, task, label).float()
    trained = model.config.trained_tasks or model.config.tasks
    baseline_task = (torch.full_like(task, task_index("CG", model.config.tasks))
                     if "CG" in trained else task)
    unconditional = torch.where(masked, model.mask_id, tokens)
    logits, baseline = model(
        torch.cat([inputs, unconditional]), torch.cat([task, baseline_task]),
        torch.cat([label, torch.full_like(label, model.no_class)])).float().chunk(2)
    return logits + scale * (logits - baseline)


# ---------------------------------------------------------------------------------------------
# Pixels to pixels

@torch.no_grad()
def generate(tokenizer: nn.Module, model: nn.Module, video: Tensor, task: str,
             label: Tensor | None = None, *, condition_frames: int = 1, prompt: str | None = None,
             decode: Callable[..., Iterator[DecodeState]] = commit_decode, **decoding) -> Tensor:
    """Do a task on videos: condition -> tokens -> Algorithm 1 -> video.

    video (B, 3, T, H, W) in [0, 1]; only the task's condition is taken from it, and for CG only
    its shape. label (B,) ints in [0, C) for CG and CFP, None for the others; model.no_class is
    none of them. A model without classes takes None for CG, which is unconditional then.
    condition_frames as in make_condition; prompt: a task whose prompt stands for this one's;
    decode: commit_decode, or a function that takes the same arguments; decoding: its keywords.
    Returns (B, 3, T, H, W) in [0, 1]; the given region is generated anew too, from its refined
    tokens. ValueError where the pixels, the label or the size do not fit.
    """
    refuse_other_pixels(video)
    if task not in TASKS:
        raise ValueError(f"task {task!r} is unknown; choose from {' '.join(TASKS)}")
    index, classes = task_index(prompt or task, model.config.tasks), model.no_class
    if TASKS[task].class_conditional and (classes or TASKS[task].needs_classes):
        if classes == 0:
            raise ValueError(f"{task} needs classes, and this model was trained without any")
        if label is None or label.min() < 0 or label.max() > classes:
            got = "none" if label is None else f"{label.tolist()}"
            raise ValueError(f"{task} needs a class label in 0..{classes - 1} ({classes}: no "
                             f"class), got {got}")
    elif label is not None:
        raise ValueError(f"{task} takes no class label; CG and CFP do, where there are classes")
    if label is not None and label.shape != video.shape[:1]:
        raise ValueError(f"labels are {tuple(label.shape)}; wanted one for each of the "
                         f"{len(video)} videos")
    size, grid = model.config, tokenizer.latent_shape(*video.shape[2:])
    if math.prod(grid) != size.num_tokens or size.grid and tuple(size.grid) != grid:
        raise ValueError(f"a {'x'.join(map(str, video.shape[2:]))} video has "
                         f"{'x'.join(map(str, grid))} tokens; this transformer was trained on "
                         f"{'x'.join(map(str, size.grid)) or size.num_tokens}: resize or cut the "
                         "video")
    condition_tokens, is_pad = tokenize_condition(tokenizer, video, task, condition_frames)
    task_ids = torch.full((len(video),), index, device=video.device)
    labels = torch.full_like(task_ids, classes) if label is None else label
    for state in decode(model, task_ids, labels, condition_tokens, is_pad, **decoding):
        pass
    return tokenizer.decode(state.tokens.view(-1, *grid)).clamp(0, 1)


# ---------------------------------------------------------------------------------------------
# The command

def print_steps(num_tokens: int = 1024, steps: int = 12) -> None:
    """The masked counts of line 6 for the three schedules of App. B.3."""
    print(f"ceil(gamma((t+1)/K) N), the tokens still masked after each step; N = {num_tokens}")
    progress = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    for schedule in ("cosine", "uniform", "exp"):
        counts = num_masked(mask_ratio(progress, schedule, num_tokens), num_tokens)
        print(f"  {schedule:8}", *(f"{count:5}" for count in counts[:-1].tolist()), "    0")


def main() -> None:
    parser = argparse.ArgumentParser(
        usage="%(prog)s RUN [FLAGS]", description="Do the paper's tasks with a trained run.",
        epilog="example: decode.py assets/toy --task CG --label \"disc left\" --samples 4")
    parser.add_argument("run", nargs="?", help="folder of a run, for example assets/toy")
    parser.add_argument("--task", nargs="+", choices=[*TASKS, "all"], default=["all"],
                        metavar="TASK", help=f"{' '.join(TASKS)}, or all (default)")
    parser.add_argument("--video", help="any video file; without it, a clip of the run's data")
    parser.add_argument("--clip", type=int, help="which clip, without --video (default 0; of the "
                        "toy's drawn shapes 36, of which every task is shown something)")
    parser.add_argument("--label", help="class for CG and CFP: its name or number")
    parser.add_argument("--out", default="out.gif", help=".gif, or .png for a contact sheet")
    parser.add_argument("--start", type=int, default=0, help="first frame taken from the video")
    parser.add_argument("--stride", type=int, help="take every n-th frame; as the run was trained")
    parser.add_argument("--condition-frames", type=int, help="frames given in FP, FI and CFP")
    parser.add_argument("--samples", type=int, default=2, help="of each task (2)")
    parser.add_argument("--steps", type=int, help="K of Algorithm 1; by default the run's")
    parser.add_argument("--schedule", choices=["cosine", "uniform", "exp"], help="gamma; likewise")
    parser.add_argument("--temperature", type=float, help="of the noise; likewise")
    parser.add_argument("--guidance-scale", type=float, default=0.0, help="0: no guidance")
    parser.add_argument("--seed", type=int, default=0, help="of all random draws (0)")
    options = parser.parse_args()
    if options.run is None:
        print_steps()
        return
    try:
        do_tasks(options)
    except (ValueError, OSError) as error:
        sys.exit(f"decode.py: {error}")


def do_tasks(options: argparse.Namespace) -> None:
    """Load the run and the video; per task generate; write the grid: given, generated, real."""
    from data.clips import check_output, load_clip    # the command alone needs more than the paper
    from data.source import NO_LABEL, to_float
    from measure.pictures import write_grid
    from steps import autocast
    from training.checkpoint import load_run
    from training.kernels import resolve_precision
    from training.processes import device_of_this_process

    refuse_senseless(options)
    check_output(options.out, (".gif", ".png"))
    device = device_of_this_process()
    run, label = load_run(options.run, device), None
    drawn = run.data.dataset == "shapes"
    if options.video:
        stride = run.config.stride if options.stride is None else options.stride
        video = load_clip(options.video, run.config.clip_shape, options.start, stride)
        if drawn:
            print(f"{options.run} has seen drawn shapes only: of real videos it makes shapes too",
                  file=sys.stderr)
    else:
        number, clips = 36 * drawn if options.clip is None else options.clip, run.held_out()
        if number >= len(clips):
            raise ValueError(f"--clip {number}; the run has held-out clips 0 to {len(clips) - 1}")
        clip, found = clips.clip(number, None)
        video, label = to_float(clip[None]), None if found == NO_LABEL else found
    if options.label is not None:
        label = class_number(options.label, run.class_names)
    tasks = chosen_tasks(options, run, label)
    unseen = [task for task in tasks if task not in run.config.tasks]
    if unseen:
        print(f"this run was not trained on {' '.join(unseen)}", file=sys.stderr)

    decoding = {name: value if getattr(options, name) is None else getattr(options, name)
                for name, value in run.config.decoding.items()}
    condition_frames = options.condition_frames or run.config.condition_frames
    noise = seeded_noise(options.seed, device)
    video = video.to(device)
    several = video.expand(options.samples, -1, -1, -1, -1)
    labels = None if label is None else torch.full((options.samples,), label, device=device)
    rows = []
    with autocast(resolve_precision(run.config.precision, device), device):    # as it was trained
        for task in tasks:
            made = generate(run.tokenizer, run.transformer, several, task, noise=noise,
                            condition_frames=condition_frames, **run.how(task, labels),
                            guidance_scale=options.guidance_scale, **decoding)
            condition, valid = make_condition(video, task, condition_frames)
            given = torch.where(valid, condition, 0.5 + 0.5 * video.mean()).clamp(0, 1)
            rows.append((f"{task}\n{TASKS[task].title}", [given[0], *made, video[0]]))
    write_grid(options.out, rows, ["given", *["generated"] * options.samples, "real"])
    print(f"wrote {options.out}")


def refuse_senseless(options: argparse.Namespace) -> None:
    """ValueError that names a flag whose value makes no sense."""
    for name, least in (("samples", 1), ("steps", 1), ("stride", 1), ("condition_frames", 1),
                        ("start", 0), ("clip", 0), ("temperature", 0), ("guidance_scale", 0)):
        value = getattr(options, name)
        if value is not None and not least <= value < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} {value}; wanted at least {least}")


def chosen_tasks(options: argparse.Namespace, run, label: int | None) -> list[str]:
    """The tasks that were asked for, in the paper's order. ValueError where options do not fit."""
    every, classes = "all" in options.task, run.transformer.no_class
    tasks = [task for task in TASKS if task in (run.tasks if every else options.task)]
    needing = [task for task in tasks if TASKS[task].class_conditional and classes]
    if label is None and every:
        tasks = [task for task in tasks if task not in needing]
    elif label is None and needing:
        raise ValueError(f"{' '.join(needing)} needs --label; the classes of this run are "
                         f"{', '.join(run.class_names) or 'none'}")
    if options.label is not None and not needing:
        raise ValueError(f"{' '.join(tasks)} takes no --label; CG and CFP do")
    if options.condition_frames is not None and not any(TASKS[t].counts_frames for t in tasks):
        raise ValueError("--condition-frames says how many frames are given in FP, FI and CFP, "
                         f"not in {' '.join(tasks)}")
    return tasks


def class_number(label: str, names: list[str]) -> int:
    """A class by its name or number. ValueError where the run has no such class."""
    if label in names:
        return names.index(label)
    if label.isdecimal() and int(label) < len(names):
        return int(label)
    raise ValueError(f"class {label!r} is unknown; this run has {len(names)} classes"
                     + (f": {', '.join(names)}" if names else ""))


if __name__ == "__main__":
    main()
