"""How many frames each file of a folder has: counted once, kept in an index.

Files   INDEX.json      {"class/one.mp4": {"stamp": [size, time], "frames": 300, "height": 240,
                         "width": 320, "first": 0, "distance": 512.0, "error": ""}, ...}

Read    count_frames; inspect, which says of one file what is wrong with it.

Not here: the inside of a video file (decoding.py).

Run:    python -m data.counts [FOLDER]    the frames of each file, and which can be entered anywhere
"""
from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Iterable, Iterator

import av
import numpy as np
from tqdm import tqdm

from data import bair
from data.decoding import inspect_video
from data.layouts import find_layout, holds_pictures, inspect_pictures, name_below

BLOCK = 1024                             # files that are handed to the threads at a time
SHOWN_FROM, SAVED_EVERY = 200, 30.0      # files that are worth a progress bar; seconds
# What a disk or a network says that fails, not a file that is damaged. Decoders use other numbers.
FAILURES = {getattr(errno, name) for name in (
    "EIO ESTALE ETIMEDOUT EACCES ENOENT EMFILE ENFILE EINTR EAGAIN EBUSY EHOSTDOWN EHOSTUNREACH "
    "ENETDOWN ENETUNREACH ENETRESET ENOTCONN ECONNRESET ECONNABORTED ECONNREFUSED").split()
    if hasattr(errno, name)}
FACTS = dict(frames=0, height=0, width=0, first=None, distance=None, error="")


def count_frames(paths: list[Path], root: Path, index: str | Path | None) -> dict[str, dict]:
    """What inspect says of each file, and its stamp, by its path below root; kept in `index`.

    Each file is asked once for its size and time, many at once, since a network answers late:
    were it not, a file that was replaced would be read with the counts of another. Only what is
    new is opened. The index is saved as counting goes on, and at its end, however it ends. A file
    that the disk fails to give is tried again after all others; if it fails again it is named on
    stderr, left out of this run, and not in the index: there it would be taken for damaged.
    """
    known: dict[str, dict] = {}
    if index is not None and Path(index).exists():
        known = json.loads(Path(index).read_text())
    names = {name_below(root, path): path for path in paths}
    new, failed = {}, []
    for name, stamp in _in_threads(stamp_of, names, list(names), threads=32, at_once=16):
        if isinstance(stamp, OSError):
            failed.append(name)
        elif known.get(name, {}).get("stamp") != stamp or (
                "distance" not in known[name]):                  # older lists have no Spacing
            new[name] = stamp
    saved, pause = time.monotonic(), SAVED_EVERY
    try:
        for name, facts in tqdm(_in_threads(inspect, names, list(new), os.cpu_count() or 1),
                                "counting frames", len(new), unit=" files", mininterval=1.0,
                                disable=len(new) <= SHOWN_FROM):
            if isinstance(facts, OSError):
                failed.append(name)
                continue
            known[name] = dict(stamp=new[name], **facts)
            if index is not None and time.monotonic() - saved > pause:
                saved = time.monotonic()
                _save(known, Path(index))                   # a long list is long to write: seldom
                pause = max(SAVED_EVERY, 10 * (time.monotonic() - saved))
        lost = _try_again(failed, names, known)
    finally:
        if index is not None and (new or failed):
            _save(known, Path(index))
    return {name: known[name] for name in names if name not in lost}


def _try_again(failed: list[str], names: dict[str, Path], known: dict[str, dict]) -> set[str]:
    """Inspect what the disk failed to give, a second time. Names of those that it still keeps."""
    lost = set()
    for name in failed:
        try:
            known[name] = dict(stamp=stamp_of(names[name]), **inspect(names[name]))
        except OSError as error:
            lost.add(name)
            print(f"left out of this run {name}: {error.strerror}", file=sys.stderr)
    return lost


def _in_threads(function: Callable, paths: dict[str, Path], names: list[str], threads: int,
                at_once: int = 1) -> Iterator[tuple[str, object]]:
    """(name, function of its path) of all, in order; the OSError where it raised one.

    at_once: how many a thread takes together; handing over one takes longer than a look at it.
    """
    def outcome(name: str) -> object:
        try:
            return function(paths[name])
        except OSError as error:
            return error

    pool = ThreadPoolExecutor(threads)
    try:
        for begin in range(0, len(names), BLOCK):          # millions at once would fill the memory
            block = names[begin:begin + BLOCK]
            parts = [block[start:start + at_once] for start in range(0, len(block), at_once)]
            for part, done in zip(parts, pool.map(lambda part: list(map(outcome, part)), parts)):
                yield from zip(part, done)
    finally:
        pool.shutdown(cancel_futures=True)


def stamp_of(path: Path) -> list[int]:
    """Size and time of a clip's file, which for a record is the file that it lies in."""
    stat = (path.parent if bair.holds_records(path.parent) else path).stat()
    return [stat.st_size, stat.st_mtime_ns]


def inspect(path: Path) -> dict:
    """Frames, height, width, Spacing, and what is wrong with a file, or nothing ("").

    OSError where that is the disk's fault. Pictures and records are told by their headers.
    """
    facts = dict(FACTS)
    try:
        if holds_pictures(path):
            facts["frames"], facts["height"], facts["width"] = inspect_pictures(path)
        elif path.suffix.lower() == ".npy":
            facts["frames"], facts["height"], facts["width"] = open_array(path).shape[:3]
        else:
            inspect_video(path, facts)
    except (av.FFmpegError, ValueError, OSError, EOFError) as error:
        if isinstance(error, OSError) and error.errno in FAILURES:
            raise
        reason = getattr(error, "strerror", None) or str(error)
        facts["error"] = f"breaks after {facts['frames']} frames ({reason})"
    if not facts["frames"] and not facts["error"]:
        facts["error"] = "holds no frames"
    return facts


def open_array(path: Path) -> np.ndarray:
    """A video as numpy stores it, uint8 (T, H, W, 3), on disk until it is looked at."""
    video = np.load(path, mmap_mode="r", allow_pickle=False)
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3:
        raise ValueError(f"{path} holds {video.dtype} {video.shape}; wanted uint8 (T, H, W, 3)")
    return video


def _save(known: dict[str, dict], index: Path) -> None:
    index.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(f"{index}.{os.getpid()}")
    temporary.write_text(json.dumps(known))
    os.replace(temporary, index)


def _show(counts: Iterable[tuple[str, dict]]) -> None:
    for name, facts in counts:
        entered = "from any key frame" if facts["distance"] else "from its first frame"
        size = f"{facts['width']}x{facts['height']}"
        print(f"{facts['frames']:6} frames of {size:9} read {entered:20} {name} {facts['error']}")


def main() -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else made)
        if len(sys.argv) == 1:
            for frames in (16, 0):
                np.save(folder / f"of_{frames}.npy", np.zeros((frames, 8, 8, 3), np.uint8))
        _show(count_frames(find_layout(folder).clips, folder, None).items())


if __name__ == "__main__":
    main()
