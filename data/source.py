"""What a data set is, which of its clips make the batch of a step, and batches made ahead.

Paper   Sec. 4.1; App. B.3 ("a single data loader")

Shapes  a clip is uint8 (T, H, W, 3) and an int label, as files and pictures hold them;
        a batch is float (B, 3, T, H, W) in [0, 1] and int64 (B,), as networks want them.
        BatchLoader gives the clips of a batch as uint8 (B, T, H, W, 3), so that bytes and not
        floats travel to a GPU; to_float makes the batch of them there.

Read    ClipSource, clip_of, load_batch, BatchLoader.

Not here: clips from files (clips.py), the clips of the toy (moving_shapes.py).
"""
from __future__ import annotations

import functools
import hashlib
import json
import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, Sequence

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

NO_LABEL = -1


class ClipSource(Protocol):
    """A data set: any object with these three. It need not inherit from this class.

    It may also have `held_out`, `parallel`, `spare_frames`, `clip_at` and `fingerprint`; the
    functions of those names below say what they are, and stand in where they are missing.
    """

    class_names: Sequence[str] = ()         # labels are indices into them; none: no classes

    def __len__(self) -> int:
        """How many clips, or videos to cut clips from, there are."""

    def clip(self, index: int, random: np.random.Generator | None = None
             ) -> tuple[np.ndarray, int]:
        """Clip number index, uint8 (T, H, W, 3), and its label, or NO_LABEL.

        With a generator the window, the crop and the flip may be random; with None the centre.
        """


# ---------------------------------------------------------------------------------------------
# What a data set may have besides

def held_out(source: ClipSource) -> ClipSource | None:
    """The clips that are kept from training, as a data set, or None."""
    return getattr(source, "held_out", None)


def parallel(source: ClipSource) -> bool:
    """Whether several threads may call source.clip at a time. By default they may not."""
    return getattr(source, "parallel", False)


def spare_frames(source: ClipSource, index: int) -> int:
    """How many frames video `index` is longer than a clip: a clip has one more start. Default 0."""
    return source.spare_frames(index) if hasattr(source, "spare_frames") else 0


def clip_at(source: ClipSource, index: int, start: int, y: float, x: float
            ) -> tuple[np.ndarray, int]:
    """The clip of video `index` from frame `start`, cropped at y, x in [0, 1] of what is spare.
    By default its central clip."""
    if hasattr(source, "clip_at"):
        return source.clip_at(index, start, y, x)
    return source.clip(index, None)


def fingerprint(source: ClipSource) -> str:
    """Ten letters that change when the clips do, so that what was computed of other clips is not
    used. By default they are made of the content of eight clips or so."""
    if hasattr(source, "fingerprint"):
        return source.fingerprint()
    shown = range(0, len(source), max(1, len(source) // 8))
    clips = [source.clip(index, None) for index in shown]
    return digest([len(source), [[hashlib.sha256(np.ascontiguousarray(frames)).hexdigest(),
                                  int(label)] for frames, label in clips]])


def digest(settings: object) -> str:
    """Ten letters that change with any of the settings, which are plain data."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]


# ---------------------------------------------------------------------------------------------
# The batch of a step

@functools.lru_cache(maxsize=4)
def shuffled(length: int, *seed: int) -> np.ndarray:
    """0 .. length-1 in an order that the seed decides."""
    return np.random.default_rng(seed).permutation(length)


def clip_of(source: ClipSource, step: int, place: int, batch_size: int, seed: int,
            augment: bool = True) -> tuple[np.ndarray, int]:
    """The clip at a place in the batch of a step, and its label. No state anywhere.

    Clips come in a new order each epoch. Windows, crops, flips follow from (seed, step, place).
    ValueError where the label is neither NO_LABEL nor the index of a class.
    """
    epoch, position = divmod(step * batch_size + place, len(source))
    index = int(shuffled(len(source), seed, epoch)[position])
    random = np.random.default_rng([seed, step, place]) if augment else None
    frames, label = source.clip(index, random)
    if label != NO_LABEL and not 0 <= label < len(source.class_names):
        raise ValueError(f"clip {index} has the label {label}; wanted {NO_LABEL} (no class) or an "
                         f"index into the {len(source.class_names)} class_names of the data set")
    return frames, int(label)


def places_of(batch_size: int, rank: int, world: int) -> range:
    """A batch is shared out to `world` processes: together they see what one would."""
    share = batch_size // world
    return range(rank * share, (rank + 1) * share)


def load_batch(source: ClipSource, step: int, batch_size: int, seed: int, rank: int = 0,
               world: int = 1, augment: bool = True) -> tuple[Tensor, Tensor]:
    """The batch of a step, or a process's share of it: (B, 3, T, H, W) in [0, 1] and labels (B,).
    It is loaded here and now; a BatchLoader has the same clips ready before they are asked for."""
    clips, labels = zip(*(clip_of(source, step, place, batch_size, seed, augment)
                          for place in places_of(batch_size, rank, world)))
    return to_float(np.stack(clips)), torch.tensor(labels)


def all_clips(source: ClipSource) -> tuple[Tensor, Tensor]:
    """video (clips, 3, T, H, W) in [0, 1] and label (clips,), in the order of the source."""
    clips, labels = zip(*(source.clip(index, None) for index in range(len(source))))
    return to_float(np.stack(clips)), torch.tensor(labels)


def to_float(clips: np.ndarray | Tensor) -> Tensor:
    """uint8 (B, T, H, W, 3) -> float (B, 3, T, H, W) in [0, 1], on the device where clips are.

    The divisor is a tensor there: a GPU multiplies by 1/255 for a number, with other last bits.
    """
    clips = torch.as_tensor(clips)
    divisor = torch.full((), 255.0, device=clips.device)
    return rearrange(clips, "b t h w c -> b c t h w").float() / divisor


# ---------------------------------------------------------------------------------------------
# Batches ahead: while a network learns from one, threads load the next

class BatchLoader:
    """loader(step) -> the clips of load_batch(source, step, ...) as bytes, and their labels.

    Threads load clip by clip: decoders release Python's lock. threads None: one for each core
    that this process may use; processes that share a machine have to share its cores out. A
    source that is not `parallel` has one thread. The batches of the next two steps are begun, up
    to step `total`. Steps may be asked for in any order, since a clip follows from its step and
    place; what is not wanted any more is dropped. A clip that fails raises in loader(step), and
    is loaded again if it is asked for again. `pinned` clips lie in memory from which a GPU can
    fetch them by itself. Close the loader, or use it in a `with` statement.
    """

    ahead = 2

    def __init__(self, source: ClipSource, batch_size: int, seed: int, rank: int = 0,
                 world: int = 1, *, threads: int | None = None, total: int | None = None,
                 pinned: bool = False):
        self.source, self.batch_size, self.seed = source, batch_size, seed
        self.places = places_of(batch_size, rank, world)
        self.total, self.pinned = total, pinned
        self._pool = one_core_each((threads or cores()) if parallel(source) else 1)
        self._begun: dict[int, list[Future]] = {}

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Clips, uint8 (B, T, H, W, 3), and labels, int64 (B,)."""
        if self.total is not None and step >= self.total:
            raise ValueError(f"step {step} is beyond the last of {self.total}")
        last = step + self.ahead if self.total is None else min(step + self.ahead, self.total - 1)
        wanted = range(step, last + 1)
        for other in self._begun.keys() - set(wanted):
            self._drop(other)
        for each in wanted:
            if each not in self._begun:
                self._begun[each] = [
                    self._pool.submit(clip_of, self.source, each, place, self.batch_size, self.seed)
                    for place in self.places]
        try:
            clips, labels = zip(*(clip.result() for clip in self._begun[step]))
        finally:
            self._drop(step)
        batch = torch.empty((len(clips), *clips[0].shape), dtype=torch.uint8,
                            pin_memory=self.pinned)
        np.stack(clips, out=batch.numpy())
        return batch, torch.tensor(labels)

    def _drop(self, step: int) -> None:
        for clip in self._begun.pop(step):
            clip.cancel()

    def close(self) -> None:
        """Return as soon as the clips that are being loaded at this moment are."""
        self._begun.clear()
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> BatchLoader:
        return self

    def __exit__(self, *error) -> None:
        self.close()


def one_core_each(threads: int) -> ThreadPoolExecutor:
    """Threads that prepare while others compute: an operation of torch in one takes one core.

    Otherwise each would have a team of OpenMP threads as large as the machine, and every operation
    of the training step would wait for them (a third of the toy's time).
    """
    torch.get_num_threads()                 # fixes the caller's own number before it is changed
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))


def cores() -> int:
    """The cores that this process may use: `taskset -c 0` leaves one of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
