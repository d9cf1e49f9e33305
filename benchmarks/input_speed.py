"""Clips per second and core: as it was, as it is, and what FFmpeg alone can do. Never a test.

    python benchmarks/input_speed.py DIR    a table of the videos below DIR, clips of 16x128x128

FFmpeg alone opens each file, goes to the key frame before the window, and decodes up to the
window's end: nothing is turned into colours, resized or kept. Which clips are read is drawn once;
each way reads the same. "As it was" decodes from frame 0, and makes a converter for each frame.
"""
from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.clips import VideoFolder, place_of  # noqa: E402
from data.decoding import Keys, inspect_file, opened  # noqa: E402
from data.source import BatchLoader, clip_of, shuffled  # noqa: E402

SHAPE, BATCH, SEED = (16, 128, 128), 8, 0


class Uncached(VideoFolder):
    """A folder of videos that are decoded each time, small as they may be."""

    cache_bytes = 0


def as_it_was(path: Path, start: int, count: int, H: int, W: int) -> np.ndarray:
    """A window as it was read before: from the file's first frame, at its whole size."""
    with av.open(str(path)) as container:
        frames = islice(container.decode(video=0), start, start + count)
        video = np.stack([np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                          for frame in frames])
    height, width = video.shape[1:3]
    scale = max(H / height, W / width)
    size = (max(H, round(height * scale)), max(W, round(width * scale)))
    if size == (height, width):
        return video
    resized = F.interpolate(rearrange(torch.from_numpy(video), "t h w c -> t c h w"), size,
                            mode="bilinear", antialias=True)
    return rearrange(resized, "t c h w -> t h w c").numpy()


def only_decoded(path: Path, keys: Keys, start: int) -> int:
    """FFmpeg's part of a clip: how many frames it decodes, from the key frame before `start`."""
    number, stamp = max((key for key in keys if key[0] <= start), default=(0, None))
    with opened(path) as (container, stream):
        if number:
            container.seek(stamp, stream=stream)
        return sum(1 for _ in islice(container.decode(stream), start + SHAPE[0] - number))


def windows(source: VideoFolder, steps: int) -> list[tuple[int, int]]:
    """(video, first frame) of each clip of the steps, as data.source and VideoFolder draw them."""
    drawn = []
    for number in range(steps * BATCH):
        epoch, position = divmod(number, len(source))
        index = int(shuffled(len(source), SEED, epoch)[position])
        fraction = np.random.default_rng([SEED, *divmod(number, BATCH)]).random(4)[0]
        drawn.append((index, place_of(fraction, source.spare_frames(index))))
    return drawn


def measure(source: VideoFolder, steps: int) -> dict[str, float]:
    """Clips a second of each way over the same clips, the best of three in turn."""
    drawn, (T, H, W) = windows(source, steps), SHAPE
    keys = [inspect_file(path)["keys"] for path, _ in source.videos]

    def decode_alone(clip: tuple[int, int]) -> int:
        index, start = clip
        return only_decoded(source.videos[index][0], keys[index], start)

    def two_decoders() -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(decode_alone, drawn))

    def loader(threads: int) -> None:
        with BatchLoader(source, BATCH, SEED, threads=threads, total=steps) as batches:
            for step in range(steps):
                batches(step)

    ways = {
        "as it was": lambda: [as_it_was(source.videos[index][0], start, T, H, W)
                              for index, start in drawn],
        "now": lambda: [clip_of(source, *divmod(number, BATCH), BATCH, SEED)
                        for number in range(len(drawn))],
        "1 thread": lambda: loader(1), "2 threads": lambda: loader(2),
        "FFmpeg": lambda: [decode_alone(each) for each in drawn],
        "FFmpeg, 2 threads": two_decoders}
    best = dict.fromkeys(ways, 0.0)
    for _ in range(3):
        for name, way in ways.items():
            begin = time.perf_counter()
            way()
            best[name] = max(best[name], len(drawn) / (time.perf_counter() - begin))
    return best


def table(folder: str | Path, steps: int = 8) -> str:
    """Markdown: clips of 16x128x128 a second, of the videos below a folder."""
    source = Uncached(folder, SHAPE)
    rates = measure(source, steps)
    rows = [f"{len(source)} videos, {os.cpu_count()} cores, {steps * BATCH} clips of "
            f"{'x'.join(map(str, SHAPE))}", "", "| | clips/s | of FFmpeg's own |", "|---|---|---|"]
    for name, rate in rates.items():
        own = rates["FFmpeg, 2 threads" if "2" in name else "FFmpeg"]
        rows.append(f"| {name} | {rate:,.1f} | {rate / own:.0%} |")
    return "\n".join(rows)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(table(sys.argv[1]))
