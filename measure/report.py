"""A trained run in its own numbers and pictures: no foreign network, no protocol, no waiting.

Paper   Table 7 (reconstruction), Sec. 4.4 (tasks)

Shapes  clips (B, 3, T, H, W) in [0, 1] -> tokenizer and back, or a task and back -> dicts

Read    report, what train.py calls at its end; evaluate_reconstruction, evaluate_tasks,
        measure_classes; do_tasks, which is decode.py's command line.

Not here: FVD and the other numbers of the paper (evaluate.py), speed (speed.py).

Run:    python -m measure.report [RUN]      writes RUN/metrics.json and the pictures (assets/toy)
"""
from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Iterator

import torch
from torch import Tensor, nn
from tqdm import tqdm

from commit import TASKS, make_condition
from data.clips import load_clip
from data.moving_shapes import MovingShapes
from data.source import NO_LABEL, ClipSource, load_batch, to_float
from decode import generate
from measure.metrics import frames_of, mean_of_finite, motion, psnr, ssim
from measure.toy import Judge
from pictures import draw_curves, write_grid
from steps import autocast
from training.checkpoint import Run, load_checkpoint, load_network, load_run
from training.processes import device_of_this_process


# ---------------------------------------------------------------------------------------------
# What a run can do

@torch.no_grad()
def evaluate_reconstruction(tokenizer: nn.Module, source: ClipSource, clips: int,
                            batch: int = 16) -> dict:
    """PSNR, SSIM, motion and codes used, of centre clips through the tokenizer and back."""
    videos, used = [], torch.zeros(tokenizer.codebook_size, dtype=torch.bool)
    device = next(tokenizer.parameters()).device
    for step in range(-(-clips // batch)):
        video, _ = load_batch(source, step, batch, seed=0, augment=False)
        tokens = tokenizer.encode(video.to(device))
        used[tokens.unique().cpu()] = True
        videos.append((video, tokenizer.decode(tokens).clamp(0, 1).cpu()))
    real, decoded = (torch.cat(each)[:clips] for each in zip(*videos))
    pair = frames_of(real), frames_of(decoded)
    means = mean_of_finite(torch.stack([mean_of_finite(psnr(*pair)), ssim(*pair).mean(1)])).tolist()
    energy, kept = (round(x, 3) if math.isfinite(x) else None for x in motion(real, decoded))
    return dict(psnr=round(means[0], 3), ssim=round(means[1], 3), motion_energy=energy,
                motion_kept=kept, codes_used=int(used.sum()), codes=len(used),
                codes_used_share=round(used.float().mean().item(), 3), clips=clips)


def do_each(run: Run, tasks: list[str], video: Tensor, label: Tensor, *, condition_frames: int,
            seed: int = 0, **decoding) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Each task with what it generates of videos (B, 3, T, H, W), its condition, what is given.

    The last two as of make_condition. Tasks that need a class are left out where label (B,) has
    a NO_LABEL or the run knows no classes.
    """
    generator = torch.Generator(video.device).manual_seed(seed)
    for task in tasks:
        unknown = (label == NO_LABEL).any() if run.transformer.no_class else (
            TASKS[task].needs_classes)
        if TASKS[task].class_conditional and unknown:
            continue
        generated = generate(run.tokenizer, run.transformer, video, task,
                             condition_frames=condition_frames, generator=generator,
                             **run.how(task, label), **decoding)
        yield task, generated, *make_condition(video, task, condition_frames)


def evaluate_tasks(run: Run, source: ClipSource, tasks: list[str], clips: int) -> dict:
    """Per task: PSNR against the real clip inside the given region, outside it, and over all.

    Inside says how well the condition is kept; outside need not be high, since many videos fit
    a condition. On the toy also the shares of toy.Judge.
    """
    table, device = {}, next(run.transformer.parameters()).device
    judge = (Judge(run.config.frames, run.config.condition_frames)
             if run.data.dataset == "shapes" else None)
    video, label = (each.to(device) for each in load_batch(source, 0, clips, 0, augment=False))
    done = do_each(run, tasks, video, label, condition_frames=run.config.condition_frames,
                   **run.config.decoding)
    for task, generated, _, valid in tqdm(done, "tasks", len(tasks), mininterval=1.0):
        error = (generated - video).square()
        given = valid.expand_as(error)
        regions = dict(psnr_given=given, psnr_generated=~given, psnr=torch.ones_like(given))
        table[task] = {name: round(-10 * error[region].mean().log10().item(), 2)
                       if error[region].any() else None for name, region in regions.items()}
        if judge:
            table[task] |= judge(task, generated, video, label)
    return table


def measure_classes(tokenizer: nn.Module, model: nn.Module, samples: int, decoding: dict,
                    seed: int = 0, batch: int = 64, frames: int = 16) -> dict:
    """Class-conditional generation on the toy, read back from the pixels by the plain rule."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    labels = torch.arange(samples, device=device) % model.no_class
    size = frames, MovingShapes.H, MovingShapes.W
    shapes, directions = 0, 0
    for part in tqdm(labels.split(batch), desc="classes", mininterval=1.0):
        blank = torch.zeros(len(part), 3, *size, device=device)
        video = generate(tokenizer, model, blank, "CG", part, generator=generator, **decoding)
        shape, direction = MovingShapes.recognize(video)
        shapes += int((shape == part // 4).sum())
        directions += int((direction == part % 4).sum())
    return dict(right_shape=round(shapes / samples, 4),
                right_direction=round(directions / samples, 4), samples=samples)


def measurable_tasks(run: Run) -> list[str]:
    """The tasks that a run was trained on; without classes CFP is not among them."""
    return [task for task in dict.fromkeys(run.config.tasks)
            if run.transformer.no_class or not TASKS[task].needs_classes]


def report(folder: str | Path, clips: int = 64, samples: int = 256,
           source: ClipSource | None = None) -> dict:
    """Numbers and pictures of a finished run, written into its folder and printed.

    source: the clips to look at; by default those that the run's data holds out.
    """
    device = device_of_this_process()
    run = load_run(folder, device)
    held_out = run.data.has_held_out or source is not None
    source = source or run.held_out(run.folder / "videos-test.json")
    config, tasks, clips = run.config, measurable_tasks(run), min(clips, len(source))
    metrics: dict = dict(data="held-out clips" if held_out else
                         "centre clips of the training videos: not held out",
                         decoding=config.decoding)
    with autocast(config.precision, device):                         # as the tokens were learned
        metrics["reconstruction"] = evaluate_reconstruction(run.tokenizer, source, clips)
        state = load_checkpoint(run.folder / "tokenizer.pt")
        if "ema" in state and config.tokenizer_ema ** state["step"] > 0.05:
            # A short run's average still holds its start, and can turn a comparison round.
            raw = load_network(state, device, averaged=False)
            metrics["reconstruction_not_averaged"] = evaluate_reconstruction(raw, source, clips)
        metrics["tasks"] = evaluate_tasks(run, source, tasks, min(16, len(source)))
        if run.data.dataset == "shapes" and "CG" in tasks and config.class_dropout < 1:
            metrics["class_conditional_generation"] = measure_classes(
                run.tokenizer, run.transformer, samples, config.decoding, frames=config.frames)
        pictures = draw_run(run, source, tasks)
    (run.folder / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    print_report(metrics)
    print(f"wrote {run.folder}/metrics.json, {', '.join(pictures)}")
    return metrics


# ---------------------------------------------------------------------------------------------
# Pictures

def draw_run(run: Run, source: ClipSource, tasks: list[str]) -> list[str]:
    """reconstruction.gif, samples.gif and, if there is a log, loss.png; returns what it drew."""
    video, labels = load_batch(source, 0, min(4, len(source)), seed=1, augment=False)
    video = video.to(next(run.transformer.parameters()).device)
    decoded = run.tokenizer.decode(run.tokenizer.encode(video)).clamp(0, 1)
    rows = [(f"clip {n}" if label == NO_LABEL else source.class_names[label], [real, ours])
            for n, (label, real, ours) in enumerate(zip(labels, video, decoded))]
    write_grid(run.folder / "reconstruction.gif", rows, ["real", "decoded"])
    draw_samples(run, video[:1], None if labels[0] == NO_LABEL else int(labels[0]),
                 run.folder / "samples.gif", tasks, condition_frames=run.config.condition_frames,
                 **run.config.decoding)
    pictures = ["reconstruction.gif", "samples.gif"]
    if (run.folder / "log.jsonl").exists():
        draw_losses(run.folder / "log.jsonl", run.folder / "loss.png")
        pictures.append("loss.png")
    return pictures


def draw_samples(run: Run, video: Tensor, label: int | None, path: str | Path, tasks: list[str],
                 *, condition_frames: int = 1, samples: int = 2, **decoding) -> None:
    """Write a GIF (or a PNG contact sheet): a row per task, given | generated ... | real.

    video (1, 3, T, H, W) in [0, 1]. Tasks that need a class are left out where label is None.
    decoding: the keywords of commit_decode, and a seed.
    """
    labels = torch.full((samples,), NO_LABEL if label is None else label, device=video.device)
    grey, rows = 0.5 + 0.5 * video.mean(), []
    for task, generated, condition, valid in do_each(
            run, tasks, video.expand(samples, -1, -1, -1, -1), labels,
            condition_frames=condition_frames, **decoding):
        given = torch.where(valid, condition, grey).clamp(0, 1)
        rows.append((f"{task}\n{TASKS[task].title}", [given[0], *generated, video[0]]))
    write_grid(path, rows, ["given", *["generated"] * samples, "real"])


def draw_losses(log: Path, path: Path) -> None:
    """The curves of log.jsonl, a panel per stage."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    shown = {"image": ["psnr"], "tokenizer": ["psnr"],
             "transformer": ["loss", "mask", "refine", "reconstruct"]}
    panels = []
    for stage, names in shown.items():
        # a run that was stopped has logged some steps twice: the later line counts
        rows = sorted({line["step"]: line for line in lines if line["stage"] == stage}.items())
        if rows:
            steps = [step for step, _ in rows]
            panels.append((stage, "step", "dB" if names == ["psnr"] else "loss",
                           {name: (steps, [row[name] for _, row in rows]) for name in names
                            if name in rows[0][1]}))
    draw_curves(path, panels)


def do_tasks(options: argparse.Namespace) -> None:
    """What decode.py's command line asks; ValueError, in one line, where it makes no sense."""
    run = load_run(options.run, device_of_this_process())
    names, label, every = run.class_names, None, "all" in options.task
    if options.video:
        stride = run.config.stride if options.stride is None else options.stride
        video = load_clip(options.video, run.config.clip_shape, options.start, stride)
        if run.data.dataset == "shapes":
            print(f"{options.run} has seen drawn shapes only: of real videos it makes shapes too",
                  file=sys.stderr)
    else:
        clip, number = run.held_out().clip(options.clip, None)
        video, label = to_float(clip[None]), None if number == NO_LABEL else number
    if options.label is not None:
        label = class_number(options.label, names)
    chosen = measurable_tasks(run) if every else options.task
    tasks = [task for task in TASKS if task in chosen]
    needing = [task for task in tasks if TASKS[task].class_conditional and names]
    if not every and needing and label is None:
        raise ValueError(f"{' '.join(needing)} needs --label; the classes of this run are "
                         f"{', '.join(names) or 'none'}")
    if options.label is not None and not needing:
        raise ValueError(f"{' '.join(tasks)} takes no --label; CG and CFP do")
    if options.condition_frames is not None and not any(TASKS[t].counts_frames for t in tasks):
        raise ValueError("--condition-frames says how many frames are given in FP, FI and CFP, "
                         f"not in {' '.join(tasks)}")
    unseen = [task for task in tasks if task not in run.config.tasks]
    if unseen:
        print(f"this run was not trained on {' '.join(unseen)}", file=sys.stderr)
    asked = {name: getattr(options, name) for name in run.config.decoding
             if getattr(options, name) is not None}
    device = next(run.transformer.parameters()).device
    with autocast(run.config.precision, device):                      # as the run was trained
        draw_samples(run, video.to(device), label, options.out, tasks, samples=options.samples,
                     seed=options.seed, guidance_scale=options.guidance_scale,
                     condition_frames=options.condition_frames or run.config.condition_frames,
                     **run.config.decoding | asked)
    print(f"wrote {options.out}")


def class_number(label: str, names: list[str]) -> int:
    """A class by its name or number. ValueError where the run has no such class."""
    if label in names:
        return names.index(label)
    if label.isdigit() and int(label) < len(names):
        return int(label)
    raise ValueError(f"class {label!r} is unknown; this run has {len(names)} classes"
                     + (f": {', '.join(names)}" if names else ""))


def print_report(metrics: dict) -> None:
    """What report returns, as a table."""
    print(f"\nmeasured on {metrics['data']}")
    print("reconstruction: {psnr:.2f} dB PSNR, {ssim:.3f} SSIM, {codes_used} of {codes} codes used "
          "({clips} clips)".format(**metrics["reconstruction"]))
    if metrics["reconstruction"]["motion_energy"] is not None:
        print("  motion: {motion_energy:.0%} of the energy of frame differences, {motion_kept:.0%} "
              "of them explained".format(**metrics["reconstruction"]))
    if "reconstruction_not_averaged" in metrics:
        raw = metrics["reconstruction_not_averaged"]["psnr"]
        print(f"  by the weights that were not averaged: {raw:.2f} dB (a short run: see both)")
    judged = [name for name in ("right_shape", "right_direction", "recited")
              if all(name in row for row in metrics["tasks"].values())]
    print("task   PSNR inside the given region   outside (dB)",
          *(name.replace("_", " ") for name in judged), sep="   ")
    for task, row in metrics["tasks"].items():
        given, generated = ("-" if row[name] is None else f"{row[name]:.2f}"
                            for name in ("psnr_given", "psnr_generated"))
        print(f"{task:5} {given:>29} {generated:>14}",
              *(f"{row[name]:>{len(name) + 2}.0%}" for name in judged), sep=" ")
    if "class_conditional_generation" in metrics:
        print("class-conditional generation: right direction in {right_direction:.1%}, right shape "
              "in {right_shape:.1%} of {samples} samples".format(
                  **metrics["class_conditional_generation"]))


def main() -> None:
    try:
        report(sys.argv[1] if len(sys.argv) > 1 else "assets/toy")
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"report.py: {error}")


if __name__ == "__main__":
    main()
