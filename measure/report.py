"""The end of a run in its own numbers and pictures: no foreign network, no protocol, no waiting.

Paper   Table 7 (reconstruction), Sec. 4.4 (tasks); the toy's judge is ours: it can measure where a
        real data set can only be looked at

Shapes  clips (B, 3, T, H, W) in [0, 1] -> tokenizer and back, or a task and back -> dicts
        a task's videos and the clips that gave their conditions -> Judge -> shares of the B

Files   RUN/metrics.json, reconstruction.gif, samples.gif, loss.png

Read    report, what train.py calls at its end; evaluate_reconstruction, evaluate_tasks,
        measure_classes; Judge: its answers, then __call__.

Not here: FVD and the other numbers of the paper (evaluate.py).

Run:    python evaluate.py RUN
"""
from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Iterator

import torch
from torch import Tensor, nn
from tqdm import tqdm

from commit import TASKS, make_condition
from data.clips import written_whole
from data.moving_shapes import MovingShapes
from data.source import NO_LABEL, ClipSource, all_clips, load_batch
from decode import Noise, generate, seeded_noise
from measure.metrics import frames_of, mean_of_finite, motion, psnr, ssim
from measure.pictures import draw_curves, to_frames, write_grid
from steps import autocast
from training.checkpoint import Run, load_checkpoint, load_network, load_run
from training.kernels import resolve_precision
from training.processes import device_of_this_process


def report(run: str | Path, clips: int = 64, samples: int = 256,
           source: ClipSource | None = None) -> dict:
    """Numbers and pictures of a finished run, written into its folder and printed.

    clips: how many are reconstructed at most; samples: how many the toy makes by class. source:
    the clips to look at; by default those that the run's data holds out.
    """
    if clips < 1 or samples < 1:
        raise ValueError(f"{clips} clips and {samples} samples; wanted 1 or more of each")
    device = device_of_this_process()
    run = load_run(run, device)
    held_out = run.data.has_held_out or source is not None
    source = source or run.held_out(run.folder / "videos-test.json")
    config, drawn, clips = run.config, run.data.dataset == "shapes", min(clips, len(source))
    metrics: dict = dict(data="held-out clips" if held_out else
                         "centre clips of the training videos: not held out",
                         decoding=config.decoding)
    with autocast(resolve_precision(config.precision, device), device):    # as tokens were learned
        metrics["reconstruction"] = evaluate_reconstruction(run.tokenizer, source, clips)
        state = load_checkpoint(run.folder / "tokenizer.pt")
        if "ema" in state and config.tokenizer_ema ** state["step"] > 0.05:
            # A short run's average still holds its start, and can turn a comparison round.
            raw = load_network(state, device, averaged=False)
            metrics["reconstruction_not_averaged"] = evaluate_reconstruction(raw, source, clips)
        metrics["tasks"] = evaluate_tasks(run, source, min(16, len(source)))
        if drawn and "CG" in run.tasks and config.class_dropout < 1:
            metrics["class_conditional_generation"] = measure_classes(
                run.tokenizer, run.transformer, samples, config.decoding, frames=config.frames)
        pictures = draw_run(run, source)
    with written_whole(run.folder / "metrics.json") as temporary:
        temporary.write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    print_report(metrics)
    print(f"wrote {run.folder}/metrics.json, {', '.join(pictures)}")
    return metrics


# ---------------------------------------------------------------------------------------------
# Numbers

@torch.no_grad()
def evaluate_reconstruction(tokenizer: nn.Module, source: ClipSource, clips: int,
                            batch: int = 16) -> dict:
    """PSNR, SSIM, motion and codes used, of centre clips through the tokenizer and back."""
    device = next(tokenizer.parameters()).device
    used, moved = torch.zeros(tokenizer.codebook_size, dtype=torch.bool), 0
    rows = []
    for step in range(-(-clips // batch)):
        real = load_batch(source, step, batch, seed=0, augment=False)[0][:clips - step * batch]
        tokens = tokenizer.encode(real.to(device))
        used[tokens.unique().cpu()] = True
        decoded = tokenizer.decode(tokens).clamp(0, 1).cpu()
        pair = frames_of(real), frames_of(decoded)
        rows.append(torch.stack([mean_of_finite(psnr(*pair)), ssim(*pair).mean(1)]))
        moved = moved + motion(real, decoded)
    means = mean_of_finite(torch.cat(rows, 1)).tolist()
    energy, ours, missed = moved.tolist()                    # nothing moves in clips of one frame
    return dict(psnr=rounded(means[0], 3), ssim=rounded(means[1], 3),
                motion_energy=rounded(ours / energy, 3) if energy else None,
                motion_kept=rounded(1 - missed / energy, 3) if energy else None,
                codes_used=int(used.sum()), codes=len(used),
                codes_used_share=rounded(used.float().mean().item(), 3), clips=clips)


def rounded(value: float, digits: int) -> float | None:
    """A number for JSON, which has no infinity and no NaN."""
    return round(value, digits) if math.isfinite(value) else None


def do_tasks(run: Run, video: Tensor, label: Tensor, noise: Noise
             ) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Each task of the run with what it generates of videos (B, 3, T, H, W), its condition, and
    what is given, the last two as of make_condition.

    Tasks with a class are left out where label (B,) has a NO_LABEL and the run knows classes.
    """
    frames = run.config.condition_frames
    for task in run.tasks:
        if TASKS[task].class_conditional and run.transformer.no_class and (label == NO_LABEL).any():
            continue
        made = generate(run.tokenizer, run.transformer, video, task, condition_frames=frames,
                        noise=noise, **run.how(task, label), **run.config.decoding)
        yield task, made, *make_condition(video, task, frames)


def evaluate_tasks(run: Run, source: ClipSource, clips: int) -> dict:
    """Per task: PSNR against the real clip inside the given region, outside it, and over all.

    Inside says how well the condition is kept; outside need not be high, since many videos fit
    a condition. On the toy also the shares of Judge.
    """
    table, device = {}, next(run.transformer.parameters()).device
    judge = (Judge(run.config.frames, run.config.condition_frames)
             if run.data.dataset == "shapes" else None)
    video, label = (each.to(device) for each in load_batch(source, 0, clips, 0, augment=False))
    done = do_tasks(run, video, label, seeded_noise(0, device))
    for task, generated, _, valid in tqdm(done, "tasks", len(run.tasks), mininterval=1.0):
        error = (generated - video).square()
        given = valid.expand_as(error)
        regions = dict(psnr_given=given, psnr_generated=~given, psnr=torch.ones_like(given))
        table[task] = {name: rounded(-10 * error[region].mean().log10().item(), 2)
                       if error[region].any() else None for name, region in regions.items()}
        if judge:
            table[task] |= judge(task, generated, video, label)
    return table


def measure_classes(tokenizer: nn.Module, model: nn.Module, samples: int, decoding: dict,
                     seed: int = 0, batch: int = 64, frames: int = 16) -> dict:
    """Class-conditional generation on the toy, read back from the pixels by the plain rule."""
    device = next(model.parameters()).device
    noise = seeded_noise(seed, device)
    labels = torch.arange(samples, device=device) % model.no_class
    size = frames, MovingShapes.H, MovingShapes.W
    shapes, directions = 0, 0
    for part in tqdm(labels.split(batch), desc="classes", mininterval=1.0):
        blank = torch.zeros(len(part), 3, *size, device=device)
        video = generate(tokenizer, model, blank, "CG", part, noise=noise, **decoding)
        shape, direction = MovingShapes.recognize(video)
        shapes += int((shape == part // 4).sum())
        directions += int((direction == part % 4).sum())
    return dict(right_shape=round(shapes / samples, 4),
                right_direction=round(directions / samples, 4), samples=samples)


class Judge:
    """judge(task, made, video, label) -> shares. Knows all clips that the toy can draw.

    A condition may leave something open. One frame says nothing of the direction, and a strip may
    miss the shape altogether. So what counts as right is asked of the data set, which is finite:
    any shape and direction with which some clip, of training or held out, would give this
    condition. frames: T of its clips.
    """

    def __init__(self, frames: int = 16, condition_frames: int = 1):
        self.condition_frames = condition_frames
        self.learned, labels = all_clips(MovingShapes("train", frames))
        held_out, others = all_clips(MovingShapes("test", frames))
        self.labels = torch.cat([labels, others])
        self.frames = [to_frames(clip) for clip in torch.cat([self.learned, held_out])]

    def answers(self, task: str, video: Tensor, label: Tensor) -> Tensor:
        """(B, 16) bool: the classes with which the toy has a clip of the same condition. Tasks
        with a class are told the label (B,), so it is their one answer."""
        classes = torch.arange(len(MovingShapes().class_names))
        if TASKS[task].class_conditional:
            return label[:, None] == classes
        valid = make_condition(video, task, self.condition_frames)[1].numpy()
        given, asked = ([frames[valid].tobytes() for frames in clips]
                        for clips in (self.frames, map(to_frames, video)))
        found = torch.zeros(len(video), len(classes), dtype=torch.bool)
        for row, condition in enumerate(asked):
            found[row, self.labels[[clip == condition for clip in given]]] = True
        return found

    def __call__(self, task: str, made: Tensor, video: Tensor, label: Tensor) -> dict[str, float]:
        """Shares of the videos: right_shape and right_direction, of an answer; open_direction,
        where there are several; recited: a training clip within 20 dB, the real one farther."""
        made, video, label = made.float().cpu(), video.cpu(), label.cpu()
        answers = self.answers(task, video, label).view(len(video), -1, 4)     # shape x direction
        shape, direction = MovingShapes.recognize(made)
        shapes, directions = answers.any(2), answers.any(1)
        right_shape = shapes.gather(1, shape.clamp(min=0)[:, None])[:, 0] & (shape >= 0)
        right_way = directions.gather(1, direction.clamp(min=0)[:, None])[:, 0] & (direction >= 0)
        error = torch.cdist(made.flatten(1), self.learned.flatten(1)).square() / made[0].numel()
        real = (made - video).square().flatten(1).mean(1)
        nearest = error.amin(1)
        shares = dict(right_shape=right_shape, right_direction=right_way,
                      open_direction=directions.sum(1) > 1,
                      recited=(nearest < real) & (nearest < 0.01))
        return {name: round(share.float().mean().item(), 3) for name, share in shares.items()}


# ---------------------------------------------------------------------------------------------
# Pictures and print

def draw_run(run: Run, source: ClipSource) -> list[str]:
    """reconstruction.gif, samples.gif and, if there is a log, loss.png; returns what it drew."""
    video, labels = load_batch(source, 0, min(4, len(source)), seed=1, augment=False)
    video = video.to(next(run.transformer.parameters()).device)
    decoded = run.tokenizer.decode(run.tokenizer.encode(video)).clamp(0, 1)
    rows = [(f"clip {n}" if label == NO_LABEL else source.class_names[label], [real, ours])
            for n, (label, real, ours) in enumerate(zip(labels, video, decoded))]
    write_grid(run.folder / "reconstruction.gif", rows, ["real", "decoded"])

    pictures = ["reconstruction.gif"]
    if draw_tasks(run, video[:1], labels[:1].to(video.device), run.folder / "samples.gif"):
        pictures.append("samples.gif")
    if (run.folder / "log.jsonl").exists():
        draw_losses(run.folder / "log.jsonl", run.folder / "loss.png")
        pictures.append("loss.png")
    return pictures


def draw_tasks(run: Run, video: Tensor, label: Tensor, path: Path, samples: int = 2) -> bool:
    """A row for each task of the run, of one clip (1, 3, T, H, W): what is given of it, what is
    generated, the clip. False where there is no task to draw."""
    several, labels = video.expand(samples, -1, -1, -1, -1), label.expand(samples)
    grey, rows = 0.5 + 0.5 * video.mean(), []
    for task, made, condition, valid in do_tasks(run, several, labels,
                                                 seeded_noise(0, video.device)):
        given = torch.where(valid, condition, grey).clamp(0, 1)
        rows.append((f"{task}\n{TASKS[task].title}", [given[0], *made, video[0]]))
    if rows:
        write_grid(path, rows, ["given", *["generated"] * samples, "real"])
    return bool(rows)


def draw_losses(log: Path, path: Path) -> None:
    """The curves of log.jsonl, a panel per stage. A broken line is named and left out."""
    shown = {"image": ["psnr"], "tokenizer": ["psnr"],
             "transformer": ["loss", "mask", "refine", "reconstruct"]}
    rows: dict[str, dict[int, dict]] = {stage: {} for stage in shown}
    for number, line in enumerate(log.read_text(errors="replace").splitlines(), 1):
        try:
            row = json.loads(line)
            # a run that was stopped has logged some steps twice: the later line counts
            rows.setdefault(row["stage"], {})[row["step"]] = row
        except (ValueError, KeyError, TypeError):
            print(f"{log}, line {number}, is broken and left out", file=sys.stderr)
    panels = []
    for stage, names in shown.items():
        steps = sorted(rows[stage])
        curves = {name: [(step, rows[stage][step][name]) for step in steps
                         if name in rows[stage][step]] for name in names}
        curves = {name: tuple(zip(*points)) for name, points in curves.items() if points}
        if curves:
            panels.append((stage, "step", "dB" if names == ["psnr"] else "loss", curves))
    if panels:
        draw_curves(path, panels)


def print_report(metrics: dict) -> None:
    """What report returns, as text."""
    def words(name: str) -> str:
        return name.replace("_", " ").replace("psnr", "PSNR").replace("ssim", "SSIM")

    print(f"\nmeasured on {metrics['data']}")
    for part in ("class_conditional_generation", "reconstruction", "reconstruction_not_averaged"):
        if part in metrics:
            print(f"{words(part)}:", ", ".join(f"{words(name)} {value}"
                                               for name, value in metrics[part].items()))
    if "reconstruction_not_averaged" in metrics:
        print("the last line is by the weights that were not averaged; of a short run, see both")
    columns = list(dict.fromkeys(name for row in metrics["tasks"].values() for name in row))
    print("tasks: PSNR in dB inside the given region, in what is generated, and over all")
    print(aligned([("task", *map(words, columns)), *(
        (task, *("-" if row[name] is None else f"{row[name]:.2f}" for name in columns))
        for task, row in metrics["tasks"].items())]))


def aligned(rows: list[tuple]) -> str:
    """Rows of cells, the first of which is the header, as a table in Markdown."""
    cells = [[str(cell) for cell in row] for row in rows]
    first, *others = [max(map(len, column)) for column in zip(*cells)]
    cells.insert(1, [":" + "-" * (first - 1), *("-" * (width - 1) + ":" for width in others)])
    return "\n".join("| " + " | ".join([row[0].ljust(first), *(
        cell.rjust(width) for cell, width in zip(row[1:], others))]) + " |" for row in cells)
