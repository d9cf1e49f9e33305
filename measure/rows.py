"""Rows of features on disk: resumable, shared out to processes, kept once per machine.

Paper   App. B.3 ("a single data loader")

Files   FOLDER/000012.npz       the rows of a batch: "fvd-1f2e3d4c5b" (B, 400), "psnr" (B,), ...
        FEATURES.npz            features of a whole set and what they are of, to be passed on

Read    rows_on_disk (why a kill costs one batch at most); content_of (when rows are used again).

A row is kept under its metric and the weights that made it, whatever else was asked for beside
it: a metric that is added later reuses what is there, and computes itself alone.

Not here: what the rows hold (features.py), which clips they are of (protocols.py, sets.py).

Run:    python -m measure.rows     who computes which sample
"""
from __future__ import annotations

import hashlib
import json
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from data.source import ClipSource, digest
from training.processes import Processes

Rows = dict[str, Tensor]
Compute = Callable[[list, int, list[str]], Rows]


def rows_on_disk(folder: Path, items: list, batch: int, compute: Compute, processes: Processes,
                 title: str, wanted: dict[str, str], *,
                 made: Callable[[list, int], bool] = lambda part, first: True) -> Rows:
    """The wanted rows of all items, in order: from disk where they are there.

    compute(items of a batch, its first number, which rows are missing) returns those. wanted: a
    row's name -> the name that it is stored under. made(items of a batch, its first number) is
    False where a batch has to be computed again in any case, for what it leaves beside its rows.

    A file per batch, written under another name and then renamed: whatever is there is whole.
    Batches are dealt out to processes in turn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [(first, folder / f"{first // batch:06}.npz") for first in range(0, len(items), batch)]
    mine = files[processes.rank::processes.world]
    for first, path in tqdm(mine, desc=title, disable=processes.rank > 0, mininterval=1.0):
        part = items[first:first + batch]
        kept = read_rows(path, len(part))    # a last batch grows when more samples are asked for
        missing = [name for name, stored in wanted.items() if stored not in kept]
        if not made(part, first):
            missing = list(wanted)
        if missing:
            rows = compute(part, first, missing)
            kept |= {wanted[name]: rows[name] for name in missing}
            write_arrays(path, kept)
    if dist.is_initialized():
        dist.barrier()
    parts = [read_rows(path, len(items[first:first + batch])) for first, path in files]
    absent = [path for (_, path), part in zip(files, parts) if set(wanted.values()) - set(part)]
    if absent:
        raise FileNotFoundError(f"{absent[0]} lacks rows that another process should have made: "
                                "start the same command again")
    return {name: torch.cat([part[stored] for part in parts]) for name, stored in wanted.items()}


def read_rows(path: Path, count: int) -> Rows:
    """The rows of a file; none where it is missing or damaged, or not of so many videos."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            rows = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return {}
    return rows if all(len(row) == count for row in rows.values()) else {}


def write_arrays(path: Path, arrays: dict[str, Tensor | np.ndarray]) -> None:
    temporary = path.parent / f"{path.name}.{os.getpid()}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(temporary, "wb") as file:
        np.savez(file, **{key: torch.as_tensor(value).cpu().numpy() if not
                          isinstance(value, np.ndarray) else value
                          for key, value in arrays.items()})
    os.replace(temporary, path)


# ---------------------------------------------------------------------------------------------
# Once per machine

def machine_cache() -> Path:
    """Where features of real videos are kept for all runs: $XDG_CACHE_HOME, else ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "magvit-features"


def content_of(source: ClipSource) -> str:
    """Ten letters that change when any byte of the videos does, wherever they lie.

    Names, lengths and sizes (ClipSource.fingerprint) are not enough: generated videos stored as
    arrays are equal in all three. Files are read once for it, by threads.
    """
    if not hasattr(source, "videos"):
        return source.fingerprint()
    clips = [path for path, _ in source.videos]
    # A clip is a file, a folder of pictures, or a record within a file.
    files = {clip: sorted(path for path in clip.iterdir() if path.is_file()) if clip.is_dir()
             else [clip if clip.exists() else clip.parent] for clip in clips}
    distinct = list(dict.fromkeys(path for paths in files.values() for path in paths))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        hashes = dict(zip(distinct, pool.map(hash_of, distinct)))
    return digest([source.fingerprint(), [[hashes[path] for path in paths]
                                          for paths in files.values()]])


def hash_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------------
# Features to be passed on

def save_features(path: str | Path, features: Tensor, facts: dict) -> None:
    """A set's features (n, D) and what they are of: plain data, which open_features compares."""
    write_arrays(Path(path), dict(features=features, facts=np.array(json.dumps(facts))))


def open_features(path: str | Path, wanted: dict) -> tuple[Tensor, dict]:
    """What save_features has written. ValueError where it is of something else than wanted.

    wanted: facts that decide whether the features may be compared with others, such as weights,
    frames and size. Each of them must be in the file, and equal.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no features {path}; --save-features FILE writes them")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            features = torch.from_numpy(arrays["features"])
            facts = json.loads(str(arrays["facts"]))
    except (ValueError, KeyError, zipfile.BadZipFile):
        raise ValueError(f"{path} holds no features with their facts; wanted what "
                         "--save-features has written") from None
    for name, value in wanted.items():
        if facts.get(name) != value:
            raise ValueError(f"{path} is of {name} {facts.get(name)!r}; wanted {value!r}: "
                             "features of different things make no distance")
    return features, facts


def main() -> None:
    """Which of 14 samples is computed where."""
    for rank in range(3):
        print(f"process {rank} of 3 makes", *(f"{first // 4:06}.npz of samples {first}, ..."
                                              for first in range(0, 14, 4)[rank::3]))
    print(f"real videos: below {machine_cache()}")


if __name__ == "__main__":
    main()
