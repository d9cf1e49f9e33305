"""Numbers, each with the protocol it was measured under.

Paper   Sec. 4 (metrics, tables), App. B.3 (protocols)

Shapes  pictures (..., 3, H, W) in [0, 1] -> psnr, ssim (...), one value per frame

Read    psnr, ssim; evaluate_reconstruction, evaluate_tasks, measure_classes; report.

Not here: the frozen networks that judge (pretrained.py).

Run:    python evaluate.py RUN
"""
from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from tqdm import tqdm

from checkpoint import load_run
from commit import TASKS, make_condition
from data import NO_LABEL, ClipSource, load_batch, open_source, write_grid
from decode import draw_samples, generate
from shapes import MovingShapes


# ---------------------------------------------------------------------------------------------
# Pictures against pictures (App. B.3)

def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of (..., 3, H, W) in [0, 1] -> (...); equal ones: inf."""
    return -10 * torch.log10((a.double() - b.double()).square().mean(dim=(-3, -2, -1)))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of (..., 3, H, W) in [0, 1] -> (...), as the official code has it.

    On one grey channel (0.2125, 0.7154, 0.0721), 11-tap Gaussian of deviation 1.5, only where the
    window fits, K1 = 0.01, K2 = 0.03. Colour by colour or with borders gives other numbers.
    """
    if a.shape != b.shape or min(a.shape[-2:]) < 11:
        raise ValueError(f"pictures of {tuple(a.shape)} and {tuple(b.shape)}; SSIM wants equal "
                         "shapes of at least 11x11 pixels")
    grey = torch.tensor([0.2125, 0.7154, 0.0721], dtype=torch.float64, device=a.device)
    x, y = (torch.einsum("...chw,c->...hw", picture.double(), grey) for picture in (a, b))
    tap = torch.arange(-5, 6, dtype=torch.float64, device=a.device)
    window = torch.exp(-tap.square() / (2 * 1.5 ** 2))
    window = window / window.sum()

    def blur(picture: Tensor) -> Tensor:
        flat = picture.reshape(-1, 1, *picture.shape[-2:])
        flat = F.conv2d(F.conv2d(flat, window[None, None, :, None]), window[None, None, None])
        return flat.reshape(*picture.shape[:-2], *flat.shape[-2:])

    mean_x, mean_y = blur(x), blur(y)
    var_x = (blur(x * x) - mean_x.square()).clamp(min=0)
    var_y = (blur(y * y) - mean_y.square()).clamp(min=0)
    cov = blur(x * y) - mean_x * mean_y
    limit = (var_x * var_y).sqrt()                        # rounding must not make them disagree
    cov = cov.clamp(-limit, limit)
    c1, c2 = 0.01 ** 2, 0.03 ** 2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * cov + c2)
                  / ((mean_x.square() + mean_y.square() + c1) * (var_x + var_y + c2)))
    return similarity.mean(dim=(-2, -1))


# ---------------------------------------------------------------------------------------------
# Sets of videos against sets of videos (App. B.3)

def frechet_distance(mean1: Tensor, covariance1: Tensor, mean2: Tensor, covariance2: Tensor
                     ) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two Gaussians, in float64.

    The root is taken symmetrically, tr (A C2 A)^(1/2) with A = C1^(1/2), as TF-GAN does it: no
    epsilon on the diagonal, singular values below 1e-10 are not rooted. Float32 would be wrong in
    the second decimal.
    """
    mean1, covariance1, mean2, covariance2 = (
        torch.as_tensor(x).double() for x in (mean1, covariance1, mean2, covariance2))
    root = symmetric_root(covariance1)
    trace = symmetric_root(root @ covariance2 @ root).trace()
    distance = ((mean1 - mean2).square().sum() + covariance1.trace() + covariance2.trace()
                - 2 * trace)
    return distance.item()


def symmetric_root(matrix: Tensor) -> Tensor:
    u, values, vh = torch.linalg.svd(matrix)
    return u @ torch.diag(torch.where(values < 1e-10, values, values.sqrt())) @ vh


def gaussian(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D), divided by n - 1, of features (n, D), in float64."""
    features = torch.as_tensor(features).double()
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features of shape {tuple(features.shape)}; wanted (clips, D) of at "
                         "least 2 clips")
    return features.mean(0), features.T.cov()


def inception_score(logits: Tensor) -> float:
    """exp of the mean KL divergence of each clip's classes from their mean. logits (n, classes)."""
    log_p = F.log_softmax(torch.as_tensor(logits).double(), dim=1)
    p = log_p.exp()
    log_mean = torch.logsumexp(log_p, 0) - math.log(len(log_p))
    return (p * (log_p - log_mean)).sum(1).mean().exp().item()


def over_folds(score: Callable[..., float], folds: int, *sets: Tensor) -> tuple[float, float]:
    """Mean and population deviation of a score over the folds of its sets, cut in order."""
    if any(len(features) % folds for features in sets):
        raise ValueError(f"{[len(features) for features in sets]} clips do not make {folds} equal "
                         "folds")
    scores = torch.tensor([score(*parts) for parts in zip(*(
        features.chunk(folds) for features in sets))], dtype=torch.float64)
    return scores.mean().item(), scores.std(correction=0).item()


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
    a condition.
    """
    table = {}
    device = next(model.parameters()).device
    video, label, _ = load_batch(source, 0, clips, seed=seed, augment=False)
    video, label = video.to(device), label.to(device)
    generator = torch.Generator(device).manual_seed(seed)
    for task in tqdm(tasks, desc="tasks", mininterval=1.0):
        conditional = TASKS[task].class_conditional
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
    held_out = train["dataset"] == "shapes" or bool(config["data"]["test_root"])
    classes = model.no_class > 0
    tasks = [task for task in dict.fromkeys(train["tasks"])
             if classes or not TASKS[task].class_conditional]
    metrics = dict(
        data="held-out clips" if held_out else "centre clips of the training videos: not held out",
        reconstruction=evaluate_reconstruction(tokenizer, source, min(clips, len(source))),
        tasks=evaluate_tasks(tokenizer, model, source, tasks, min(16, len(source)),
                             train["condition_frames"], decoding),
        decoding=decoding)
    if train["dataset"] == "shapes" and "CG" in tasks:
        metrics["class_conditional_generation"] = measure_classes(tokenizer, model, samples,
                                                                  decoding)
    draw_run(run, tokenizer, model, source, tasks, train, decoding)
    (run / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print_report(metrics)
    print(f"wrote {run}/metrics.json, samples.gif, reconstruction.gif, loss.png")
    return metrics


def draw_run(run: Path, tokenizer: nn.Module, model: nn.Module, source: ClipSource,
             tasks: list[str], train: dict, decoding: dict) -> None:
    """reconstruction.gif, samples.gif and loss.png."""
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
    draw_losses(run / "log.jsonl", run / "loss.png")


def draw_losses(log: Path, path: Path) -> None:
    """The curves of log.jsonl, a panel per stage."""
    if not log.exists():
        return
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


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a trained run.")
    parser.add_argument("run", help="folder of a run, for example runs/toy")
    parser.add_argument("--clips", type=int, default=64, help="for the reconstruction")
    parser.add_argument("--samples", type=int, default=256, help="for the toy's classes")
    options = parser.parse_args()
    try:
        report(options.run, options.clips, options.samples)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"evaluate.py: {error}")


if __name__ == "__main__":
    main()
