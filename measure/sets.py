"""Two sets of videos, whoever made them: one metric of them, as they are.

Paper   none: for people who have two folders and no run

Shapes  folders of videos, or .npy uint8 (N, T, H, W, 3) -> rows -> a number

Read    compare.

Run:    python -m measure.sets                   a metric of two sets that are made here
        python evaluate.py fvd REAL FAKE         also psnr, ssim, lpips; is FAKE
"""
from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Callable

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.clips import read_video
from data.layouts import VIDEO_SUFFIXES
from data.source import to_float
from measure.features import measure_videos, open_judges, start_evaluation
from measure.numbers import entry, print_numbers, score

Videos = list[Callable[[], np.ndarray]]         # each call reads one, uint8 (T, H, W, 3)


def compare(metric: str, paths: list[str], *, weights: str | Path | None = "weights",
            infinity: bool = False, folds: int = 1, batch: int = 16) -> dict:
    """One metric of two sets of videos, real and fake; IS of one. Videos of one size, as they are.

    fvd: any numbers of videos of at least 9 frames. psnr, ssim, lpips: video by video, in order.
    """
    if len(paths) != (1 if metric == "is" else 2):
        raise ValueError(f"{metric} of {len(paths)} sets; it takes "
                         + ("one, the fakes" if metric == "is" else "two, real and fake"))
    sets = [open_set(path) for path in paths]
    counts, shape = [len(videos) for videos in sets], sets[0][0]().shape
    least, pairs = folds * (2 if metric == "fvd" else 1), metric not in ("fvd", "is")
    if min(counts) < least or any(count % folds for count in counts):
        raise ValueError(f"{' and '.join(map(str, counts))} videos; {folds} folds of {metric} need "
                         f"a multiple of {folds}, at least {least}")
    if pairs and counts[0] != counts[1]:
        raise ValueError(f"{counts[0]} and {counts[1]} videos; {metric} compares pairs")
    if metric == "fvd" and shape[0] < 9:
        raise ValueError(f"videos of {shape[0]} frames; I3D needs at least 9")
    device = start_evaluation().device
    judges = open_judges([metric], weights, device)
    rows = []
    for number in [1] if pairs else range(len(sets)):       # of pairs, rows of the fakes alone
        parts = []
        for first in tqdm(range(0, counts[number], batch), desc=paths[number], mininterval=1.0):
            video, *real = (read_batch(paths[which], sets[which], first, batch, shape).to(device)
                            for which in ([number, 0] if pairs else [number]))
            parts.append(measure_videos(judges, [metric], video, *real)[metric])
        rows.append({metric: torch.cat(parts).cpu()})
    reasons = []
    if not pairs and min(counts) < 2048 * folds:
        reasons.append(f"{min(counts) // folds:,} videos a fold; below 2,048 it is mostly bias")
    if metric == "fvd" and shape[0] != 16:
        reasons.append(f"{shape[0]} frames; FVDs are published of 16")
    numbers = score([metric], folds, rows[0], rows[-1], infinity=infinity)
    entries = dict(entry(name, number, counts[-1], folds, judges, reasons)
                   for name, number in numbers.items())
    print_numbers(f"no protocol: {' against '.join(paths)}, as they are, "
                  f"{'x'.join(map(str, shape[:3]))}", {"sets": entries})
    return entries


def open_set(path: str | Path) -> Videos:
    """A folder of videos, in order of their names, or a .npy of uint8 (N, T, H, W, 3).

    FileNotFoundError where there is nothing.
    """
    path = Path(path)
    if path.suffix == ".npy" and path.is_file():
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.dtype != np.uint8 or array.ndim != 5 or array.shape[4] != 3:
            raise ValueError(f"{path} holds {array.dtype} {array.shape}; wanted uint8 "
                             "(N, T, H, W, 3)")
        return [partial(array.__getitem__, i) for i in range(len(array))]
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is neither a folder of videos nor a .npy file")
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in VIDEO_SUFFIXES)
    if not files:
        raise FileNotFoundError(f"no video in {path}")
    return [partial(read_video, file) for file in files]


def read_batch(path: str, videos: Videos, first: int, batch: int, shape: tuple) -> Tensor:
    """Videos first, first + 1, ... as (B, 3, T, H, W) in [0, 1], all of one shape (T, H, W, 3)."""
    clips = [read() for read in videos[first:first + batch]]
    for i, clip in enumerate(clips, first):
        if clip.shape != shape:
            raise ValueError(f"video {i} of {path} is {clip.shape}, the first one is {shape}; "
                             "wanted one length and size")
    return to_float(np.stack(clips))


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
