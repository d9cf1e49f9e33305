"""Damaged files of every kind that is read, beside whole ones. Never a test: it takes minutes.

    python benchmarks/fuzz.py [FILES] [SEED]      2,000 files by default

A small file of each kind is cut short, has bytes changed (anywhere, or in its header), or has a
piece replaced. Then it is read as the commands read it. Wanted: no error but a ValueError or an
OSError of one line, where the file was asked for by name; none at all where it is one of a folder;
and the clip of the whole video beside it as it is without the damaged one.
"""
from __future__ import annotations

import contextlib
import io
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import av
import imageio.v3 as imageio
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.clips import DataConfig, open_source, write_video  # noqa: E402
from measure.report import draw_losses  # noqa: E402
from training.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402

SHAPE = (4, 16, 16)
PICTURES = ".png", ".jpg", ".bmp"


def main() -> None:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    random = np.random.default_rng(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    failures, named, slowest = Counter(), 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        seeds = make_seeds(folder / "seeds")
        for place in range(number):
            seed, work = seeds[place % len(seeds)], folder / "work"
            shutil.rmtree(work, ignore_errors=True)
            damaged = damage(seed.read_bytes(), random)
            begin, said = time.monotonic(), io.StringIO()
            try:
                with contextlib.redirect_stderr(said):
                    read(seed, damaged, work, seeds)
            except Exception as error:
                failures[f"{seed.name}: {type(error).__name__}: {str(error)[:120]}"] += 1
            named += seed.name in said.getvalue()
            slowest = max(slowest, time.monotonic() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"{number} damaged files: {failures.total()} failures; {named} were named on the error "
          f"stream; the slowest took {slowest:.1f} s; peak {peak:.0f} MiB")
    for words, count in failures.most_common():
        print(f"{count:5} {words}")


def make_seeds(folder: Path) -> list[Path]:
    """A small whole file of each kind."""
    video = np.random.default_rng(0).integers(0, 256, (20, 3, 4, 3), np.uint8)
    video = video.repeat(8, axis=1).repeat(8, axis=2)
    for name in ("a.npy", "a.mp4", "a.avi", "a.mkv", "a.mov", "a.gif"):
        write_video(folder / name, video)
    with av.open(str(folder / "a.webm"), "w") as file:
        stream = file.add_stream("libvpx", 10)
        stream.height, stream.width = video.shape[1:3]
        for frame in video:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        file.mux(stream.encode(None))
    for suffix in PICTURES:
        imageio.imwrite(folder / f"p{suffix}", video[0])
    (folder / "list.txt").write_text("".join(f"c/a{number}.npy 1\n" for number in range(20)))
    (folder / "log.jsonl").write_text("".join(
        f'{{"stage": "tokenizer", "step": {step}, "psnr": 20.5}}\n' for step in range(20)))
    source = open_source(DataConfig(folder), SHAPE, index=folder / "videos.json")
    assert len(source) and (folder / "videos.json").exists()
    save_checkpoint(folder / "run.pt", dict(stage="tokenizer", step=3, weight=torch.zeros(99)))
    return sorted(folder.iterdir())


def damage(content: bytes, random: np.random.Generator) -> bytes:
    """Cut short, with changed bytes anywhere or among the first 120, or with a piece replaced."""
    changed, kind = bytearray(content), random.integers(4)
    if kind == 0:
        return bytes(changed[:random.integers(len(changed))])
    if kind == 3:
        begin = random.integers(len(changed))
        changed[begin:begin + random.integers(1, 200)] = random.bytes(random.integers(100))
        return bytes(changed)
    reach = len(changed) if kind == 1 else min(len(changed), 120)
    for _ in range(random.integers(1, 20)):
        changed[random.integers(reach)] = random.integers(256)
    return bytes(changed)


def read(seed: Path, damaged: bytes, work: Path, seeds: list[Path]) -> None:
    """Read a damaged file where a command would. Raises where something is not as wanted."""
    videos, kind = work / "videos", seed.suffix
    (videos / "c").mkdir(parents=True)
    if kind == ".jsonl":
        (work / seed.name).write_bytes(damaged)
        draw_losses(work / seed.name, work / "loss.png")
    elif kind == ".pt":
        (work / seed.name).write_bytes(damaged)
        with contextlib.suppress(ValueError):
            load_checkpoint(work / seed.name)
    elif kind in (".txt", ".json"):
        for number in range(3):
            shutil.copy(seeds[0].with_name("a.npy"), videos / "c" / f"a{number}.npy")
        (work / seed.name).write_bytes(damaged)
        listed = dict(split=work / seed.name) if kind == ".txt" else {}
        with contextlib.suppress(*[ValueError, FileNotFoundError] if listed else []):
            clip_of_last(videos, work / "videos.json", **listed)
    else:
        whole = "z.png" if kind in PICTURES else "z.npy"
        shutil.copy(seed.with_name("p.png" if kind in PICTURES else "a.npy"), videos / "c" / whole)
        layout = "images" if kind in PICTURES else "auto"
        alone = clip_of_last(videos, None, layout=layout)
        (videos / "c" / seed.name).write_bytes(damaged)
        assert np.array_equal(alone, clip_of_last(videos, None, layout=layout)), "another clip"


def clip_of_last(videos: Path, index: Path | None, **options) -> np.ndarray:
    """Every clip of a folder is read; returned is that of the last file by name."""
    source = open_source(DataConfig(videos, **options), SHAPE, index=index)
    return [source.clip(number)[0] for number in range(len(source))][-1]


if __name__ == "__main__":
    main()
