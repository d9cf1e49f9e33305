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
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from commit import TASKS, make_condition
from data.clips import load_clip
from data.moving_shapes import MovingShapes
from data.source import NO_LABEL, ClipSource, load_batch, to_float
from decode import generate
from measure.metrics import frames_of, psnr, ssim
from pictures import draw_curves, write_grid
from steps import autocast
from training.checkpoint import Run, load_checkpoint, load_network, load_run


# ---------------------------------------------------------------------------------------------
# What a run can do

@torch.no_grad()
def evaluate_reconstruction(tokenizer: nn.Module, source: ClipSource, clips: int,
                            batch: int = 16) -> dict:
    """PSNR, SSIM and codes used, of centre clips through the tokenizer and back."""
    values, used = dict(psnr=[], ssim=[]), torch.zeros(tokenizer.codebook_size, dtype=torch.bool)
    device = next(tokenizer.parameters()).device
    for step in range(-(-clips // batch)):
        video, _ = load_batch(source, step, batch, seed=0, augment=False)
        tokens = tokenizer.encode(video.to(device))
        used[tokens.unique().cpu()] = True
        pair = frames_of(tokenizer.decode(tokens).clamp(0, 1)).cpu(), frames_of(video)
        values["psnr"].append(psnr(*pair).mean(1))
        values["ssim"].append(ssim(*pair).mean(1))
    means = {name: round(torch.cat(parts)[:clips].mean().item(), 3)
             for name, parts in values.items()}
    return dict(**means, codes_used=int(used.sum()), codes=len(used),
                codes_used_share=round(used.float().mean().item(), 3), clips=clips)


def evaluate_tasks(tokenizer: nn.Module, model: nn.Module, source: ClipSource, tasks: list[str],
                   clips: int, condition_frames: int, decoding: dict, seed: int = 0) -> dict:
    """Per task: PSNR against the real clip inside the given region, outside it, and over all.

    Inside says how well the condition is kept; outside need not be high, since many videos fit
    a condition. Tasks that need a class are left out where a clip has none.
    """
    table = {}
    device = next(model.parameters()).device
    video, label = load_batch(source, 0, clips, seed=seed, augment=False)
    video, label = video.to(device), label.to(device)
    generator = torch.Generator(device).manual_seed(seed)
    for task in tqdm(tasks, desc="tasks", mininterval=1.0):
        conditional = TASKS[task].class_conditional
        if conditional and (label == NO_LABEL).any():
            continue
        generated = generate(tokenizer, model, video, task, label if conditional else None,
                             condition_frames=condition_frames, generator=generator, **decoding)
        error = (generated - video).square()
        _, valid = make_condition(video, task, condition_frames)
        given = valid.expand_as(error)
        table[task] = {name: round(-10 * error[region].mean().log10().item(), 2) if region.any()
                       else None for name, region in
                       (("psnr_given", given), ("psnr_generated", ~given),
                        ("psnr", torch.ones_like(given)))}
    return table


def measure_classes(tokenizer: nn.Module, model: nn.Module, samples: int, decoding: dict,
                    seed: int = 0, batch: int = 64) -> dict:
    """Class-conditional generation on the toy, read back from the pixels by the plain rule."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    labels = torch.arange(samples, device=device) % model.no_class
    blank = torch.zeros(1, 3, MovingShapes.T, MovingShapes.H, MovingShapes.W, device=device)
    right = torch.zeros(2)
    for part in tqdm(labels.split(batch), desc="classes", mininterval=1.0):
        video = generate(tokenizer, model, blank.expand(len(part), -1, -1, -1, -1), "CG", part,
                         generator=generator, **decoding)
        shape, direction = MovingShapes.recognize(video)
        right += torch.stack([(shape == part // 4).sum(), (direction == part % 4).sum()]).cpu()
    shape, direction = (right / samples).tolist()
    return dict(right_shape=round(shape, 4), right_direction=round(direction, 4), samples=samples)


def measurable_tasks(run: Run) -> list[str]:
    """The tasks that a run was trained on; without classes CG and CFP are not among them."""
    return [task for task in dict.fromkeys(run.config.tasks)
            if run.transformer.no_class or not TASKS[task].class_conditional]


def report(folder: str | Path, clips: int = 64, samples: int = 256,
           source: ClipSource | None = None) -> dict:
    """Numbers and pictures of a finished run, written into its folder and printed.

    source: the clips to look at; by default those that the run's data holds out.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = load_run(folder, device)
    held_out = run.data.has_held_out or source is not None
    source = source or run.held_out(run.folder / "videos-test.json")
    config, tasks = run.config, measurable_tasks(run)
    metrics: dict = dict(data="held-out clips" if held_out else
                         "centre clips of the training videos: not held out",
                         decoding=config.decoding)
    with autocast(config.precision, device):                         # as the tokens were learned
        metrics["reconstruction"] = evaluate_reconstruction(run.tokenizer, source,
                                                            min(clips, len(source)))
        state = load_checkpoint(run.folder / "tokenizer.pt")
        if "ema" in state and config.tokenizer_ema ** state["step"] > 0.05:
            # A short run's average still holds its start, and can turn a comparison round.
            raw = load_network(state, device, averaged=False)
            metrics["reconstruction_not_averaged"] = evaluate_reconstruction(
                raw, source, min(clips, len(source)))
        metrics["tasks"] = evaluate_tasks(run.tokenizer, run.transformer, source, tasks,
                                          min(16, len(source)), config.condition_frames,
                                          config.decoding)
        if run.data.dataset == "shapes" and "CG" in tasks:
            metrics["class_conditional_generation"] = measure_classes(
                run.tokenizer, run.transformer, samples, config.decoding)
        pictures = draw_run(run, source, tasks)
    (run.folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print_report(metrics)
    print(f"wrote {run.folder}/metrics.json, {', '.join(pictures)}")
    return metrics


# ---------------------------------------------------------------------------------------------
# Pictures

def draw_run(run: Run, source: ClipSource, tasks: list[str]) -> list[str]:
    """reconstruction.gif, samples.gif and, if there is a log, loss.png; returns what it drew."""
    device = next(run.transformer.parameters()).device
    video, label = load_batch(source, 0, min(4, len(source)), seed=1, augment=False)
    decoded = run.tokenizer.decode(run.tokenizer.encode(video.to(device))).clamp(0, 1)
    names = [source.class_names[i] if i != NO_LABEL else f"clip {n}"
             for n, i in enumerate(label.tolist())]
    write_grid(run.folder / "reconstruction.gif", [
        (name, list(pair)) for name, pair in zip(names, zip(video, decoded))], ["real", "decoded"])
    draw_samples(run, video[:1].to(device), None if label[0] == NO_LABEL else int(label[0]),
                 run.folder / "samples.gif", tasks, condition_frames=run.config.condition_frames,
                 **run.config.decoding)
    if not (run.folder / "log.jsonl").exists():
        return ["reconstruction.gif", "samples.gif"]
    draw_losses(run.folder / "log.jsonl", run.folder / "loss.png")
    return ["reconstruction.gif", "samples.gif", "loss.png"]


def draw_samples(run: Run, video: Tensor, label: int | None, path: str | Path, tasks: list[str],
                 *, condition_frames: int = 1, samples: int = 2, seed: int = 0,
                 **decoding) -> None:
    """Write a GIF (or a PNG contact sheet): a row per task, given | generated ... | real.

    video (1, 3, T, H, W) in [0, 1]. Tasks that need a class are left out where label is None.
    """
    generator = torch.Generator(video.device).manual_seed(seed)
    rows = []
    for task in tasks:
        conditional = TASKS[task].class_conditional
        if conditional and (label is None or run.transformer.no_class == 0):
            continue
        labels = torch.full((samples,), label, device=video.device) if conditional else None
        generated = generate(run.tokenizer, run.transformer,
                             video.expand(samples, -1, -1, -1, -1), task, labels,
                             condition_frames=condition_frames, generator=generator, **decoding)
        condition, valid = make_condition(video, task, condition_frames)
        given = torch.where(valid, condition, 0.5 + 0.5 * video.mean()).clamp(0, 1)
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
                           {name: (steps, [row[name] for _, row in rows]) for name in names}))
    draw_curves(path, panels)


def do_tasks(options: argparse.Namespace) -> None:
    """What decode.py's command line asks; ValueError, in one line, where it makes no sense."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = load_run(options.run, device)
    names, trained = run.class_names, measurable_tasks(run)
    if options.video:
        video, label = load_clip(options.video, run.config.clip_shape, options.start,
                                 options.stride), None
        if run.data.dataset == "shapes":
            print(f"{options.run} has seen drawn shapes only: of real videos it makes shapes too",
                  file=sys.stderr)
    else:
        clip, label = run.held_out().clip(options.clip, None)
        video, label = to_float(clip[None]), None if label == NO_LABEL else label
    if options.label is not None:
        label = class_number(options.label, names)
    every = "all" in options.task
    tasks = [task for task in TASKS if task in (trained if every else options.task)]
    needing = [task for task in tasks if TASKS[task].class_conditional]
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
    decoding = {name: default if (given := getattr(options, name)) is None else given
                for name, default in run.config.decoding.items()}
    draw_samples(run, video.to(device), label, options.out, tasks, samples=options.samples,
                 seed=options.seed, guidance_scale=options.guidance_scale,
                 condition_frames=options.condition_frames or run.config.condition_frames,
                 **decoding)
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
    reconstruction = metrics["reconstruction"]
    print(f"\nmeasured on {metrics['data']}")
    print(f"reconstruction: {reconstruction['psnr']:.2f} dB PSNR, {reconstruction['ssim']:.3f} "
          f"SSIM, {reconstruction['codes_used']} of {reconstruction['codes']} codes used "
          f"({reconstruction['clips']} clips)")
    if "reconstruction_not_averaged" in metrics:
        raw = metrics["reconstruction_not_averaged"]["psnr"]
        print(f"  by the weights that were not averaged: {raw:.2f} dB (a short run: see both)")
    print("task   PSNR inside the given region   outside (dB)")
    for task, row in metrics["tasks"].items():
        given, generated = (f"{value:.2f}" if value is not None else "-"
                            for value in (row["psnr_given"], row["psnr_generated"]))
        print(f"{task:5} {given:>29} {generated:>14}")
    if "class_conditional_generation" in metrics:
        row = metrics["class_conditional_generation"]
        print(f"class-conditional generation: right direction in {row['right_direction']:.1%}, "
              f"right shape in {row['right_shape']:.1%} of {row['samples']} samples")


def main() -> None:
    try:
        report(sys.argv[1] if len(sys.argv) > 1 else "assets/toy")
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"report.py: {error}")


if __name__ == "__main__":
    main()
