"""Numbers with their protocol: FVD, IS, PSNR, SSIM, LPIPS of a run, or of two folders.

Paper   Sec. 4 (Tables 1-4 and 7), App. B.3

Shapes  sample i -> its real clip -> generate -> video (B, 3, T, H, W) in [0, 1]
          -> look -> a row per video: 400 logits for FVD, 101 for IS, one PSNR, ...
          -> kept on disk -> score -> mean and deviation over the folds -> FVD, or FVD*

Read    look and score; evaluate_protocol, which is App. B.3 in one function; stored (how a run of
        days goes on after a kill, and is shared out to processes); compare.

A number bears a star, in the table and in the JSON, where anything was not as in the paper:
fewer samples, other videos, other weights. The reasons stand beside it.

Not here: the mathematics (metrics.py), the protocols (protocols.py), the networks that judge
        (pretrained.py), what needs none of these (report.py).

Run:    python evaluate.py RUN                                    numbers and pictures of a run
        python evaluate.py RUN --protocol bair --data DIR         (torchrun for several GPUs)
        python evaluate.py RUN --protocol ucf101 --data DIR --tasks reconstruction
        python evaluate.py RUN --speed
        python evaluate.py fvd REAL FAKE                          also is, psnr, ssim, lpips
"""
from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

import protocols
from checkpoint import load_run
from commit import TASKS
from data import VIDEO_SUFFIXES, ClipSource, VideoFolder, read_video, to_float
from decode import generate, gumbel_noise
from metrics import (best_of_trials, frechet_distance, fvd, fvd_infinity, gaussian,
                     inception_score, over_folds, psnr, ssim)
from pretrained import (C3D, I3D, LPIPS, c3d_input, i3d_input, load_c3d, load_i3d, load_lpips,
                        randomize)
from protocols import PROTOCOLS, Clip, Protocol, deviations, read_clip, real_clips, to_measure
from report import (autocast, evaluate_reconstruction, evaluate_tasks, frames_of, measure_classes,
                    measure_speed, print_speed, report)
from shapes import MovingShapes

__all__ = ["PROTOCOLS", "evaluate_protocol", "evaluate_reconstruction", "evaluate_tasks",
           "frechet_distance", "fvd", "fvd_infinity", "gaussian", "inception_score",
           "measure_classes", "over_folds", "psnr", "report", "ssim"]

METRICS = {"fvd": "FVD", "is": "IS", "psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS"}
JUDGES = {"fvd": (I3D, load_i3d), "is": (C3D, load_c3d), "lpips": (LPIPS, load_lpips)}


class Place(NamedTuple):
    """This process among those that torchrun started."""

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")


# ---------------------------------------------------------------------------------------------
# From videos to rows, from rows to numbers

def open_judges(metrics: list[str], directory: str | Path, random: bool,
                device: torch.device) -> dict[str, nn.Module]:
    """The networks that the metrics need. FileNotFoundError says which file to put where."""
    judges = {}
    for metric in metrics:
        if metric in JUDGES:
            network, load = JUDGES[metric]
            try:
                judges[metric] = randomize(network(), 0) if random else load(directory)
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{error}; or leave {METRICS[metric]} out (--metrics), or "
                                        "try the pipeline with --random-weights") from None
            judges[metric].to(device)
    return judges


@torch.no_grad()
def look(judges: dict[str, nn.Module], metrics: list[str], video: Tensor,
         real: Tensor | None = None) -> dict[str, Tensor]:
    """What the metrics must know of videos (B, 3, T, H, W) in [0, 1], a row for each.

    "fvd" (B, 400) and "is" (B, 101): logits. "psnr", "ssim", "lpips" (B,): means over frames,
    against `real` of the same shape; left out where it is None. In float32 without TF32.
    """
    rows = {}
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        if "fvd" in metrics:
            rows["fvd"] = judges["fvd"](i3d_input(video))
        if "is" in metrics:
            rows["is"] = judges["is"](c3d_input(video))
        for name, compare_ in dict(psnr=psnr, ssim=ssim, lpips=judges.get("lpips")).items():
            if real is not None and name in metrics:
                rows[name] = compare_(frames_of(video), frames_of(real)).mean(1)
    return rows


def score(metrics: list[str], folds: int, real: dict[str, Tensor], fake: dict[str, Tensor],
          clips: Tensor | None = None, infinity: bool = False) -> dict[str, tuple[float, float]]:
    """Mean and deviation over folds of each metric, from the rows of `look` in sample order.

    clips (n,): which real clip each sample tried to predict; if given, PSNR and SSIM are those
    of the best trial for each clip within a fold.
    """
    numbers = {}
    if "fvd" in metrics:
        numbers["fvd"] = over_folds(fvd, folds, real["fvd"], fake["fvd"])
        if infinity:
            smallest = min(5000, max(2, len(fake["fvd"]) // 4))
            numbers["fvd_infinity"] = fvd_infinity(real["fvd"], fake["fvd"], smallest), 0.0
    if "is" in metrics:
        numbers["is"] = over_folds(inception_score, folds, fake["is"])
    for name in ("psnr", "ssim", "lpips"):
        if name in metrics and clips is not None and name != "lpips":
            numbers[name] = over_folds(lambda values, which: best_of_trials(
                values, which).mean().item(), folds, fake[name], clips)
        elif name in metrics:
            numbers[name] = over_folds(lambda values: values.mean().item(), folds, fake[name])
    return numbers


def entry(metric: str, number: tuple[float, float], samples: int, folds: int,
          judges: dict[str, nn.Module], reasons: list[str]) -> tuple[str, dict]:
    """A number under the name it may bear: "FVD", or "FVD*" with what is not as it should be."""
    name, network = METRICS.get(metric, "FVD_inf"), judges.get(metric.split("_")[0])
    weights = getattr(network, "weights", "none needed")
    if weights.startswith("random"):
        reasons = ["random weights: the number means nothing", *reasons]
    elif network is not None and ("unverified" in weights or "verified" not in weights):
        reasons = [f"weights that nothing vouches for: {weights}", *reasons]
    if metric == "fvd_infinity" and samples < 10_000:
        reasons = ["the line in 1/N is drawn from fewer than 5,000 to 10,000 samples", *reasons]
    value = dict(mean=number[0], deviation=number[1], samples=samples, folds=folds,
                 weights=weights, not_as_wanted=reasons)
    return f"{name}{'*' if reasons else ''}", value


def print_numbers(title: str, rows: list[tuple[str, str, dict]]) -> None:
    """rows: (task or set, name of the number, its entry)."""
    print(f"\n{title}\n{'number':9} {'of':15} {'value':>20} {'samples':>13}   weights")
    for subject, name, value in rows:
        number = f"{value['mean']:.3f} ± {value['deviation']:.3f}"
        samples = f"{value['samples']:,}"
        if value["folds"] > 1:
            samples = f"{value['samples'] // value['folds']:,} x {value['folds']}"
        print(f"{name:9} {subject:15} {number:>20} {samples:>13}   {value['weights']}")
    reasons = {}
    for subject, name, value in rows:
        for reason in value["not_as_wanted"]:
            reasons.setdefault(reason, {})[name] = True
    if reasons:
        print("* not comparable with published numbers:")
    for reason, names in reasons.items():
        print(f"  - {reason} ({', '.join(names)})")


# ---------------------------------------------------------------------------------------------
# A protocol, from beginning to end

@torch.no_grad()
def evaluate_protocol(run: str | Path, name: str, *, data: str | Path | None = None,
                      tasks: list[str] | None = None, metrics: list[str] | None = None,
                      samples: int | None = None, batch: int = 16, seed: int = 0,
                      weights: str | Path = "weights", random_weights: bool = False,
                      infinity: bool = False, decoding: dict | None = None,
                      place: Place = Place()) -> dict | None:
    """App. B.3: what `name` of PROTOCOLS asks for, on a run. Writes RUN/evaluation-NAME.json.

    tasks: of commit.TASKS, or "reconstruction" (through the tokenizer and back). samples: in
    all, over the folds. Sample i, its real clip and its noise are functions of (seed, i); it is
    decoded in the i // batch-th batch whatever the number of processes. Returns what it wrote;
    None in processes other than the first.
    """
    run, row = Path(run), PROTOCOLS[name]
    tasks, metrics = tasks or [row.tasks[0]], metrics or list(row.metrics)
    count = row.samples * row.folds if samples is None else samples
    least = 2 * row.folds if "fvd" in metrics else row.folds
    if count < least or count % row.folds:
        raise ValueError(f"{count} samples; {row.folds} folds need a multiple of {row.folds} and "
                         f"at least {least}")
    judges = open_judges(metrics, weights, random_weights, place.device)
    tokenizer, model, config = load_run(run, place.device)
    train, decoding = config["train"], row.decoding | (decoding or {})
    source, identity = open_real(name, data, train, run)
    clips = real_clips(source, row, -(-count // batch) * batch, seed)
    # the same clip may be the real one of many samples: it is looked at once
    distinct = {clip: number for number, clip in enumerate(dict.fromkeys(clips[:count]))}
    which = torch.tensor([distinct[clip] for clip in clips[:count]])
    load = partial(load_clips, source, row, train["resolution"], device=place.device)
    common = dict(data=identity, clips=(row.windows, row.crops), seed=seed, batch=batch,
                  size=(train["frames"], train["stride"], train["resolution"], row.measured_at),
                  weights={metric: judges[metric].weights for metric in judges},
                  device=place.device.type)

    def look_at_real(part: list[Clip], first: int) -> dict[str, Tensor]:
        return look(judges, ["fvd"], load(part)[1])

    def look_at_fake(task: str, part: list[Clip], first: int) -> dict[str, Tensor]:
        video, real, label = load(part)
        with autocast(train, place.device):
            fake, codes = make_video(tokenizer, model, video, task, label, source, config, decoding,
                                     seed, first)
        fake = to_measure(fake.float(), real.shape[-1])
        return look(judges, metrics, fake, real) | codes

    real = {}
    if "fvd" in metrics:
        folder = run / "features" / f"real-{digest(common)}"
        real = stored(folder, list(distinct), batch, look_at_real, place, "real clips")
    results, rows = {}, []
    for task in tasks:
        settings = common | dict(task=task, decoding=decoding, metrics=sorted(metrics),
                                 precision=train["precision"], checkpoints=stamps(run))
        fake = stored(run / "features" / f"{task}-{digest(settings)}", clips, batch,
                      partial(look_at_fake, task), place, task)
        if place.rank > 0:
            continue
        fake = {key: values[:count] for key, values in fake.items()}
        best = row.best_of > 1 and task != "reconstruction"
        numbers = score(metrics, row.folds, {"fvd": real["fvd"][which]} if real else {}, fake,
                        which if best else None, infinity)
        reasons = deviations(name, task, samples=count, folds=row.folds, videos=len(source),
                             train=train, decoding=decoding)
        results[task] = dict(entry(metric, number, count, row.folds, judges, reasons)
                             for metric, number in numbers.items())
        rows += [(task, *item) for item in results[task].items()]
        if task == "reconstruction":
            used = int(np.unpackbits(fake["codes"].numpy().max(0)).sum()
                       if len(fake["codes"]) == 1 else
                       np.unpackbits(np.bitwise_or.reduce(fake["codes"].numpy())).sum())
            results[task]["codes used"] = dict(used=used, codes=tokenizer.codebook_size)
    if place.rank > 0:
        return None
    outcome = dict(protocol=name, source=row.source, real_clips=row.rule, run=str(run),
                   distinct_real_clips=len(distinct), seed=seed, decoding=decoding,
                   results=results)
    path = run / f"evaluation-{name}.json"
    path.write_text(json.dumps(outcome, indent=2) + "\n")
    print_numbers(f"protocol {name} ({row.source})\nreal: {row.rule}; {len(distinct):,} clips of "
                  f"{len(source):,} videos\ndecoding: {protocols.say(decoding)}", rows)
    print_tasks(results, tokenizer.codebook_size)
    print(f"wrote {path}")
    return outcome
