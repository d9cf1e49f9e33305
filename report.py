"""A trained run in its own numbers and pictures: no foreign network, no protocol, no waiting.

Paper   Table 7 (reconstruction), Sec. 4.4 (tasks), Fig. 5 (speed)

Shapes  clips (B, 3, T, H, W) in [0, 1] -> tokenizer and back, or a task and back -> dicts

Read    report, what train.py calls at its end; evaluate_reconstruction, evaluate_tasks,
        measure_classes; measure_speed.

Not here: FVD and the other numbers of the paper (evaluate.py).

Run:    python report.py [RUN]             writes RUN/metrics.json and the pictures (assets/toy)
        python evaluate.py RUN --speed
"""
from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from einops import rearrange
from tqdm import tqdm

from checkpoint import load_run
from commit import TASKS, make_condition
from data import NO_LABEL, ClipSource, load_batch, open_source, write_grid
from decode import commit_decode, draw_samples, generate
from metrics import psnr, ssim
from presets import autocast
from shapes import MovingShapes
from transformer import MaskedTransformer


def frames_of(video: Tensor) -> Tensor:
    return rearrange(video, "b c t h w -> b t c h w")


# ---------------------------------------------------------------------------------------------
# What a run can do

@torch.no_grad()
def evaluate_reconstruction(tokenizer: nn.Module, source: ClipSource, clips: int,
                            batch: int = 16) -> dict:
    """PSNR, SSIM and codes used, of centre clips through the tokenizer and back."""
    values, used = dict(psnr=[], ssim=[]), torch.zeros(tokenizer.codebook_size, dtype=torch.bool)
    device = next(tokenizer.parameters()).device
    for step in range(-(-clips // batch)):
        video, _, _ = load_batch(source, step, batch, seed=0, augment=False)
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
                   clips: int, frames: int, decoding: dict, seed: int = 0) -> dict:
    """Per task: PSNR against the real clip inside the given region, outside it, and over all.

    Inside says how well the condition is kept; outside need not be high, since many videos fit
    a condition. Tasks that need a class are left out where a clip has none.
    """
    table = {}
    device = next(model.parameters()).device
    video, label, _ = load_batch(source, 0, clips, seed=seed, augment=False)
    video, label = video.to(device), label.to(device)
    generator = torch.Generator(device).manual_seed(seed)
    for task in tqdm(tasks, desc="tasks", mininterval=1.0):
        conditional = TASKS[task].class_conditional
        if conditional and (label == NO_LABEL).any():
            continue
        generated = generate(tokenizer, model, video, task, label if conditional else None,
                             frames=frames, generator=generator, **decoding)
        error = (generated - video).square()
        _, valid = make_condition(video, task, frames)
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


def decoding_of(config: dict) -> dict:
    """The keywords of commit_decode that a run's configuration sets (App. B.3)."""
    return {name: config["train"][f"decode_{name}"] for name in ("steps", "schedule",
                                                                 "temperature")}


def report(run: str | Path, clips: int = 64, samples: int = 256) -> dict:
    """Numbers and pictures of a finished run, written into its folder and printed."""
    run = Path(run)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer, model, config = load_run(run, device)
    train, decoding = config["train"], decoding_of(config)
    source = open_source(train, config["data"], run / "videos-test.json", split="test")
    held_out = train["dataset"] == "shapes" or any(
        config["data"].get(name) for name in ("test_root", "test_split"))
    classes = model.no_class > 0
    tasks = [task for task in dict.fromkeys(train["tasks"])
             if classes or not TASKS[task].class_conditional]
    metrics: dict = dict(data="held-out clips" if held_out else
                         "centre clips of the training videos: not held out", decoding=decoding)
    with autocast(train["precision"], torch.device(device)):         # as the tokens were learned
        metrics |= dict(
            reconstruction=evaluate_reconstruction(tokenizer, source, min(clips, len(source))),
            tasks=evaluate_tasks(tokenizer, model, source, tasks, min(16, len(source)),
                                 train["condition_frames"], decoding))
        if train["dataset"] == "shapes" and "CG" in tasks:
            metrics["class_conditional_generation"] = measure_classes(tokenizer, model, samples,
                                                                      decoding)
        pictures = draw_run(run, tokenizer, model, source, tasks, train, decoding)
    (run / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print_report(metrics)
    print(f"wrote {run}/metrics.json, {', '.join(pictures)}")
    return metrics


def draw_run(run: Path, tokenizer: nn.Module, model: nn.Module, source: ClipSource,
             tasks: list[str], train: dict, decoding: dict) -> list[str]:
    """reconstruction.gif, samples.gif and, if there is a log, loss.png; returns what it drew."""
    device = next(model.parameters()).device
    video, label, _ = load_batch(source, 0, min(4, len(source)), seed=1, augment=False)
    decoded = tokenizer.decode(tokenizer.encode(video.to(device))).clamp(0, 1)
    names = [source.class_names[i] if i != NO_LABEL else f"clip {n}"
             for n, i in enumerate(label.tolist())]
    write_grid(run / "reconstruction.gif", [
        (name, list(pair)) for name, pair in zip(names, zip(video, decoded))], ["real", "decoded"])
    first = None if label[0] == NO_LABEL else int(label[0])
    draw_samples(tokenizer, model, video[:1].to(device), first, run / "samples.gif", tasks,
                 frames=train["condition_frames"], **decoding)
    if not (run / "log.jsonl").exists():
        return ["reconstruction.gif", "samples.gif"]
    draw_losses(run / "log.jsonl", run / "loss.png")
    return ["reconstruction.gif", "samples.gif", "loss.png"]


def draw_losses(log: Path, path: Path) -> None:
    """The curves of log.jsonl, a panel per stage."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    panels = {"image": ["psnr"], "tokenizer": ["psnr"],
              "transformer": ["loss", "mask", "refine", "reconstruct"]}
    panels = {stage: names for stage, names in panels.items()
              if any(line["stage"] == stage for line in lines)}
    figure, axes = plt.subplots(1, len(panels), figsize=(6 * len(panels), 3.5), squeeze=False)
    for axis, (stage, names) in zip(axes[0], panels.items()):
        # a run that was stopped has logged some steps twice: the later line counts
        rows = sorted({line["step"]: line for line in lines if line["stage"] == stage}.items())
        for name in names:
            axis.plot([step for step, _ in rows], [row[name] for _, row in rows], label=name)
        axis.set(title=stage, xlabel="step", ylabel="dB" if names == ["psnr"] else "loss")
        axis.legend()
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def print_report(metrics: dict) -> None:
    """What report returns, as a table."""
    reconstruction = metrics["reconstruction"]
    print(f"\nmeasured on {metrics['data']}")
    print(f"reconstruction: {reconstruction['psnr']:.2f} dB PSNR, {reconstruction['ssim']:.3f} "
          f"SSIM, {reconstruction['codes_used']} of {reconstruction['codes']} codes used "
          f"({reconstruction['clips']} clips)")
    print("task   PSNR inside the given region   outside (dB)")
    for task, row in metrics["tasks"].items():
        given, generated = (f"{value:.2f}" if value is not None else "-"
                            for value in (row["psnr_given"], row["psnr_generated"]))
        print(f"{task:5} {given:>29} {generated:>14}")
    if "class_conditional_generation" in metrics:
        row = metrics["class_conditional_generation"]
        print(f"class-conditional generation: right direction in {row['right_direction']:.1%}, "
              f"right shape in {row['right_shape']:.1%} of {row['samples']} samples")


# ---------------------------------------------------------------------------------------------
# Speed (Fig. 5)

@torch.no_grad()
def measure_speed(run: str | Path, resolutions: tuple[int, ...] = (64, 128, 256),
                  repeats: int = 2, most_tokens: int = 4096) -> list[dict]:
    """Frames per second of generating one video, and where the time goes: a row per resolution.

    The tokenizer is the run's; it takes any size. The transformer is the run's where the number
    of tokens is; elsewhere one of its sizes with random weights, which takes the same time.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer, model, config = load_run(run, device)
    train, decoding, rows = config["train"], decoding_of(config), []
    for resolution in sorted({*resolutions, train["resolution"]}):
        latent = tokenizer.latent_shape(train["frames"], resolution, resolution)
        N = math.prod(latent)
        row = dict(resolution=resolution, sequence=N + 2, steps=decoding["steps"])
        rows.append(row)
        if N > most_tokens:
            row["left_out"] = f"{N:,} tokens; attention over more than {most_tokens:,} is not tried"
            continue
        own = N == model.config.num_tokens
        network = model if own else MaskedTransformer(
            replace(model.config, num_tokens=N)).to(device).eval()
        zero, tokens = (torch.zeros(shape, dtype=torch.long, device=device)
                        for shape in ((1,), (1, N)))
        generator = torch.Generator(device).manual_seed(0)

        def decode_tokens() -> None:
            for _ in commit_decode(network, zero, zero, tokens, tokens == 0, generator=generator,
                                   **decoding):
                pass

        with autocast(train["precision"], device):
            seconds = dict(
                transformer=seconds_of(decode_tokens, repeats, device),
                tokenizer=seconds_of(lambda: tokenizer.decode(tokens.view(1, *latent)), repeats,
                                     device))
        row |= dict(frames_per_second=round(train["frames"] / sum(seconds.values()), 2),
                    weights="trained" if own else "random",
                    **{f"{part}_seconds": round(value, 4) for part, value in seconds.items()})
    return rows


def seconds_of(work, repeats: int, device: torch.device) -> float:
    """The fastest of `repeats` after one to warm up: others on the machine only slow it down."""
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def print_speed(rows: list[dict]) -> None:
    """What measure_speed returns, as a table."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else (
        f"CPU, {torch.get_num_threads()} threads")
    print(f"generating one video at a time on {device}")
    print("pixels  sequence  steps  frames/s   transformer     tokenizer   transformer weights")
    for row in rows:
        start = f"{row['resolution']:6} {row['sequence']:9,} {row['steps']:6}"
        if "left_out" in row:
            print(f"{start}  left out: {row['left_out']}")
            continue
        whole = row["transformer_seconds"] + row["tokenizer_seconds"]
        shares = (f"{row[f'{part}_seconds']:7.3f} s {row[f'{part}_seconds'] / whole:4.0%}"
                  for part in ("transformer", "tokenizer"))
        print(f"{start} {row['frames_per_second']:9.1f} {' '.join(shares)}   {row['weights']}")


def main() -> None:
    try:
        report(sys.argv[1] if len(sys.argv) > 1 else "assets/toy")
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"report.py: {error}")


if __name__ == "__main__":
    main()
