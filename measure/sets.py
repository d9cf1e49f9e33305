"""Two sets of videos, whoever made them: one metric of them, as they are.

Paper   none: for people who have two folders and no run

Shapes  folders of videos, or .npy uint8 (N, T, H, W, 3) -> rows -> a number

Read    compare.

Run:    python -m measure.sets                   a metric of two sets that are made here
        python evaluate.py fvd REAL FAKE         also psnr, ssim, lpips; is FAKE
"""
from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Callable

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from data.clips import read_video
from data.layouts import VIDEO_SUFFIXES
from data.source import to_float
from measure.features import Rows, measure_videos, open_judges, start_evaluation
from measure.numbers import entry, print_numbers, score
from training.loop import Processes


def compare(metric: str, paths: list[str], *, weights: str | Path | None = "weights",
            infinity: bool = False, folds: int = 1, batch: int = 16) -> dict:
    """One metric of two sets of videos, real and fake; IS of one. Videos of one size, as they are.

    fvd: any numbers of videos of at least 9 frames. psnr, ssim, lpips: video by video, in order.
    """
    if len(paths) != (1 if metric == "is" else 2):
        raise ValueError(f"{metric} of {len(paths)} sets; it takes "
                         + ("one, the fakes" if metric == "is" else "two, real and fake"))
    sets = [open_set(path) for path in paths]
    counts, shape = [count for count, _ in sets], sets[0][1](0).shape
    least = folds * (2 if metric == "fvd" else 1)
    if min(counts) < least or any(count % folds for count in counts):
        raise ValueError(f"{' and '.join(map(str, counts))} videos; {folds} folds of {metric} need "
                         f"a multiple of {folds}, at least {least}")
    if metric not in ("fvd", "is") and counts[0] != counts[1]:
        raise ValueError(f"{counts[0]} and {counts[1]} videos; {metric} compares pairs")
    if metric == "fvd" and shape[0] < 9:
        raise ValueError(f"videos of {shape[0]} frames; I3D needs at least 9")
    processes = start_evaluation()
    judges = open_judges([metric], weights, processes.device)
    rows = rows_of_sets(metric, paths, sets, judges, batch, processes)
    numbers = score([metric], folds, rows[0], rows[-1], infinity=infinity)
    reasons = []
    if metric in ("fvd", "is") and min(counts) < 2048 * folds:
        reasons.append(f"{min(counts) // folds:,} videos a fold; below 2,048 it is mostly bias")
    if metric == "fvd" and shape[0] != 16:
        reasons.append(f"{shape[0]} frames; FVDs are published of 16")
    entries = dict(entry(name, number, counts[-1], folds, judges, reasons)
                   for name, number in numbers.items())
    print_numbers(f"no protocol: {' against '.join(paths)}, as they are, "
                  f"{'x'.join(map(str, shape[:3]))}", {"sets": entries})
    return entries


def open_set(path: str | Path) -> tuple[int, Callable[[int], np.ndarray]]:
    """A folder of videos, in order of their names, or a .npy -> how many, and video number i.

    A .npy is uint8 (N, T, H, W, 3). FileNotFoundError where there is nothing.
    """
    path = Path(path)
    if path.suffix == ".npy" and path.is_file():
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.dtype != np.uint8 or array.ndim != 5 or array.shape[4] != 3:
            raise ValueError(f"{path} holds {array.dtype} {array.shape}; wanted uint8 "
                             "(N, T, H, W, 3)")
        return len(array), array.__getitem__
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is neither a folder of videos nor a .npy file")
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in VIDEO_SUFFIXES)
    if not files:
        raise FileNotFoundError(f"no video in {path}")
    return len(files), lambda i: read_video(files[i])


def rows_of_sets(metric: str, paths: list[str], sets: list, judges: dict[str, nn.Module],
                 batch: int, processes: Processes) -> list[Rows]:
    """The rows of each set. Metrics of pairs have one set of rows: of the fakes, each measured
    against the real video of the same place."""
    shape, rows = sets[0][1](0).shape, []

    def videos(which: int, chosen: range) -> Tensor:
        clips = [sets[which][1](i) for i in chosen]
        for i, clip in zip(chosen, clips):
            if clip.shape != shape:
                raise ValueError(f"video {i} of {paths[which]} is {clip.shape}, the first one is "
                                 f"{shape}; wanted one length and size")
        return to_float(np.stack(clips)).to(processes.device)

    for which in range(len(sets)) if metric in ("fvd", "is") else [1]:
        parts, count = [], sets[which][0]
        for first in tqdm(range(0, count, batch), desc=paths[which], mininterval=1.0):
            chosen = range(first, min(first + batch, count))
            real = None if metric in ("fvd", "is") else videos(0, chosen)
            parts.append(measure_videos(judges, [metric], videos(which, chosen), real))
        rows.append({key: torch.cat([part[key] for part in parts]).cpu() for key in parts[0]})
    return rows


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        random = np.random.default_rng(0)
        real = random.integers(0, 256, (4, 4, 16, 16, 3), dtype=np.uint8)
        for name, noise in (("real", 0), ("a little noise", 8), ("much noise", 64)):
            fake = np.clip(real + random.normal(0, 1, real.shape) * noise, 0, 255)
            np.save(Path(folder, f"{name}.npy"), fake.astype(np.uint8))
            compare("psnr", [f"{folder}/real.npy", f"{folder}/{name}.npy"])


if __name__ == "__main__":
    main()
