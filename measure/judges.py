"""What a judge sees of a video, and from that to a number under the name that it may bear.

Paper   App. B.3, Sec. 4 (Tables 1-4 and 7)

Shapes  clips of a data set -> load_clips -> (B, 3, T, H, W) in [0, 1]
          -> measure_videos -> rows, one per video: 400 logits for FVD, 101 for IS, one PSNR, ...
          -> score -> mean and deviation over the folds
          -> entry -> "FVD", or "FVD*" with what was not as in the paper

Files   rows of a batch (write_rows): "fvd-1f2e3d4c5b" (B, 400), "psnr" (B,), ...

Read    measure_videos, score, entry.

Not here: which videos, and how they were made (evaluate.py, folders.py); the mathematics
        (metrics.py).
"""
from __future__ import annotations

import json
import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from data.clips import written_whole
from data.source import ClipSource, clip_at, cores, digest, parallel, to_float
from measure.metrics import (best_of_trials, frames_of, fvd, inception_score, mean_of_finite,
                             over_folds, psnr, ssim)
from measure.networks import C3D, I3D, LPIPS, randomize
from measure.pretrained import c3d_input, i3d_input, load_c3d, load_i3d, load_lpips
from training.processes import Processes

METRICS = {"fvd": "FVD", "is": "IS", "psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS"}
PAIRED = ("psnr", "ssim", "lpips")          # of a video and its real one; the others are of sets
JUDGES = {"fvd": (I3D, load_i3d), "is": (C3D, load_c3d), "lpips": (LPIPS, load_lpips)}


def open_judges(metrics: list[str], directory: str | Path | None, device: torch.device
                ) -> dict[str, nn.Module]:
    """The networks that the metrics need, by metric. FileNotFoundError says which file to put
    where. directory None: random weights, whose numbers mean nothing."""
    judges = {}
    for metric in metrics:
        if metric not in METRICS:
            raise ValueError(f"number {metric!r}; choose from {' '.join(METRICS)}")
        if metric in JUDGES:
            network, load = JUDGES[metric]
            try:
                judge = load(directory) if directory else randomize(network(), 0)
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{error}; or leave {METRICS[metric]} out, or try the "
                                        "pipeline with --random-weights") from None
            judges[metric] = judge.to(device)
    return judges


def refuse_clips(metrics: list[str], frames: int, height: int, width: int) -> None:
    """ValueError unless every metric can see clips of so many frames and pixels."""
    if "fvd" in metrics and frames < 9:
        raise ValueError(f"clips of {frames} frames; I3D needs at least 9")
    if "is" in metrics and frames != 16:
        raise ValueError(f"clips of {frames} frames; IS takes exactly 16")
    for name, least in dict(ssim=11, lpips=16).items():
        if name in metrics and min(height, width) < least:
            raise ValueError(f"clips of {width}x{height} pixels; {name} needs {least}x{least}")


# ---------------------------------------------------------------------------------------------
# Rows

def load_clips(source: ClipSource, clips: list, device: torch.device) -> tuple[Tensor, Tensor]:
    """Clips, each a protocols.Clip, as (B, 3, T, H, W) in [0, 1] and their labels (B,)."""
    threads = min(8, cores()) if parallel(source) else 1
    with ThreadPoolExecutor(threads) as pool:
        frames, labels = zip(*pool.map(lambda clip: clip_at(source, *clip), clips))
    return to_float(np.stack(frames)).to(device), torch.tensor(labels, device=device)


@torch.no_grad()
def measure_videos(judges: dict[str, nn.Module], metrics: list[str], video: Tensor,
                   real: Tensor | None = None) -> dict[str, Tensor]:
    """What the metrics must know of videos (B, 3, T, H, W) in [0, 1], a row for each.

    "fvd" (B, 400) and "is" (B, 101): logits. "psnr", "ssim", "lpips" (B,): means over all frames,
    the given ones too (official), against `real` of the same shape; left out where it is None. A
    frame that is identical with the real one has no finite PSNR: with "psnr" it is counted in
    "identical" (B,) and is not in the mean, which is NaN where all are identical.
    """
    rows = {}
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):      # ten bits are too few
        if "fvd" in metrics:
            rows["fvd"] = judges["fvd"](i3d_input(video))
        if "is" in metrics:
            rows["is"] = judges["is"](c3d_input(video))
        pairs = [] if real is None else list(zip(frames_of(video), frames_of(real)))
        for name, distance in dict(ssim=ssim, lpips=judges.get("lpips")).items():
            if pairs and name in metrics:                  # a video at a time: VGG is large
                rows[name] = torch.stack([distance(*pair).mean() for pair in pairs])
    if pairs and "psnr" in metrics:
        of_frames = torch.stack([psnr(*pair) for pair in pairs])
        rows["identical"] = of_frames.isinf().sum(1)
        rows["psnr"] = mean_of_finite(of_frames)
    return rows


def stored_name(row: str, judges: dict[str, nn.Module]) -> str:
    """What a row is called in a file: a judge's by its weights, others by their own name."""
    return f"{row}-{digest(judges[row].weights)}" if row in judges else row


def write_rows(path: Path, rows: dict[str, Tensor]) -> None:
    """Rows as an .npz file, whole or not at all."""
    with written_whole(path) as temporary:
        np.savez(temporary, **{name: row.cpu().numpy() for name, row in rows.items()})


def read_rows(path: Path, count: int) -> dict[str, Tensor]:
    """The rows of a file; none where it is missing, broken, or not of so many videos."""
    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            rows = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except Exception as error:      # whatever a broken file raises: it is made anew
        print(f"{path} is broken ({type(error).__name__}): made anew", file=sys.stderr)
        return {}
    return rows if all(len(row) == count for row in rows.values()) else {}


def shared_out(folder: Path, items: list, batch: int, processes: Processes
               ) -> Iterator[tuple[Path, list, int]]:
    """This process's batches of items: the file of its rows, the items, the first one's number."""
    firsts = range(0, len(items), batch)[processes.rank::processes.world]
    for first in tqdm(firsts, folder.name, disable=processes.rank > 0, mininterval=1.0):
        yield folder / f"{first // batch:06}.npz", items[first:first + batch], first


def read_all(folder: Path, count: int, batch: int, keys: dict[str, str]) -> dict[str, Tensor]:
    """The rows of all batches, once every process is here. keys: a row's name -> that in the file.

    FileNotFoundError where some are missing.
    """
    if dist.is_initialized():
        dist.barrier()
    parts = []
    for first in range(0, count, batch):
        path = folder / f"{first // batch:06}.npz"
        parts.append(read_rows(path, min(batch, count - first)))
        if set(keys.values()) - set(parts[-1]):
            raise FileNotFoundError(f"{path} lacks rows that another process should have made: "
                                    "start the same command again")
    return {row: torch.cat([part[key] for part in parts]) for row, key in keys.items()}


def read_json(path: Path) -> dict:
    """What a file holds; nothing where it is missing, or broken, when it is put aside."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
        if isinstance(found, dict):
            return found
    except ValueError:
        pass
    print(f"{path} is broken: put aside as {path.name}.broken and made anew", file=sys.stderr)
    os.replace(path, f"{path}.broken")
    return {}


def write_json(path: Path, values: dict) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")


def sample_name(number: int) -> str:
    return f"{number:06}.mp4"


def claim(folder: Path, count: int, whose: dict) -> None:
    """Write beside a folder of `count` samples whose they are. ValueError where it holds those of
    other settings, or anything else: whoever measures the folder would measure that, too."""
    said = folder.with_name(f"{folder.name}.json")
    there = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if read_json(said).get("settings") == whose["settings"]:
        there -= set(map(sample_name, range(count)))
    if strange := sorted(name for name in there if not name.startswith(".")):
        raise ValueError(f"{folder} holds {strange[0]}{' and more' if strange[1:] else ''}, which "
                         "is not of these samples; give --save an empty folder, or delete it")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(said, whose)


# ---------------------------------------------------------------------------------------------
# Numbers

def score(metrics: list[str], folds: int, real: Tensor | None, fake: dict[str, Tensor],
          clips: Tensor | None = None) -> dict[str, tuple[float, float]]:
    """Mean and deviation over folds of each metric, from rows in sample order.

    real: I3D's logits of the real videos, for FVD. clips (n,): which real clip each sample tried
    to predict; if given, PSNR and SSIM are those of the best trial for each clip within a fold.
    PSNR is NaN where no frame differs from the real one, and of those that differ elsewhere.
    """
    def best(values: Tensor, which: Tensor) -> float:
        differ = ~values.isnan()
        return (best_of_trials(values[differ], which[differ]).mean().item() if differ.any()
                else math.nan)

    numbers = {}
    if "fvd" in metrics:
        numbers["fvd"] = over_folds(fvd, folds, real, fake["fvd"])
    if "is" in metrics:
        numbers["is"] = over_folds(inception_score, folds, fake["is"])
    for name in PAIRED:
        if name in metrics:                                # the official LPIPS is a plain mean
            alone = torch.arange(len(fake[name]))
            which = alone if clips is None or name == "lpips" else clips
            numbers[name] = over_folds(best, folds, fake[name], which)
    return numbers


def entry(metric: str, number: tuple[float, float], samples: int, folds: int,
          judges: dict[str, nn.Module], reasons: list[str]) -> tuple[str, dict]:
    """A number under the name it may bear: "FVD", or "FVD*" with what is not as it should be.

    number: mean and deviation. samples: in all folds. reasons: those of the protocol.
    """
    weights = judges[metric].weights if metric in JUDGES else "none needed"
    if weights.startswith("random"):
        reasons = ["random weights: the number means nothing", *reasons]
    elif metric in JUDGES and ("verified" not in weights or "unverified" in weights):
        reasons = ["weights for which nobody published a hash: they may be others", *reasons]
    mean, deviation = (value if math.isfinite(value) else None for value in number)    # JSON's
    return f"{METRICS[metric]}{'*' if reasons else ''}", dict(
        mean=mean, deviation=deviation, samples=samples, folds=folds, weights=weights,
        not_as_wanted=reasons)


def print_numbers(title: str, results: dict[str, dict[str, dict]]) -> None:
    """results: task or sets -> name of the number -> its entry, and perhaps "identical_frames"."""
    rows = [(subject, name, value) for subject, entries in results.items()
            for name, value in entries.items() if "mean" in value]
    print(f"\n{title}\n{'number':9} {'of':14} {'value':>20} {'samples':>13}   weights")
    reasons: dict[str, dict] = {}
    for subject, name, value in rows:
        number = "-" if value["mean"] is None else f"{value['mean']:.4f}"
        samples = f"{value['samples']:,}"
        if value["folds"] > 1 and value["mean"] is not None:
            number = f"{number} ± {value['deviation']:.4f}"
            samples = f"{value['samples'] // value['folds']:,} x {value['folds']}"
        print(f"{name:9} {subject:14} {number:>20} {samples:>13}   {value['weights']}")
        for reason in value["not_as_wanted"]:
            reasons.setdefault(reason, {})[name] = None
    if reasons:
        print("* not comparable with published numbers:")
    for reason, names in reasons.items():
        print(f"  - {', '.join(names)}: {reason}")
    for subject, entries in results.items():
        if entries.get("identical_frames"):
            print(f"{subject}: {entries['identical_frames']['count']:,} frames are identical with "
                  "the real ones; their PSNR is infinite and not in the mean")
