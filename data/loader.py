"""Batches ahead: while one is learned from, threads decode the next.

Paper   none: App. B.3 has "a single data loader"; this is what keeps eight GPUs busy with one.

Shapes  step -> clips, uint8 (B, T, H, W, 3), and labels, int64 (B,); source.to_float makes them
        float (B, 3, T, H, W) in [0, 1] where they are, so that bytes go to the GPU, not floats

Read    BatchLoader; one_core_each.

Not here: which clips make the batch of a step (source.py), how one is cut out (clips.py).

Run:    python -m data.loader [FOLDER]    clips a second, one after the other and by threads
"""
from __future__ import annotations

import os
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from data.clips import VideoFolder
from data.moving_shapes import MovingShapes
from data.source import ClipSource, clip_of, load_batch, places_of, to_float


class BatchLoader:
    """loader(step) -> load_batch(source, step, batch_size, seed, rank, world) as bytes, and labels.

    Threads load clip by clip: decoders let go of Python's lock. threads None: a thread for each
    core that this process may use; processes that share a machine have to share its cores out.
    A source that is not `parallel` has one thread, which no other should disturb meanwhile.
    The batches of the next `ahead` steps are begun, up to `total`. Steps may be asked for in any
    order, for what a clip holds follows from its step and place; what is not wanted any more is
    forgotten. A clip that fails raises in loader(step), and is loaded anew if asked for again.
    `pinned` clips are in memory from which a GPU fetches them on its own. Close it, or use `with`.
    """

    def __init__(self, source: ClipSource, batch_size: int, seed: int, rank: int = 0,
                 world: int = 1, *, threads: int | None = None, ahead: int = 2,
                 total: int | None = None, pinned: bool = False):
        self.source, self.batch_size, self.seed = source, batch_size, seed
        self.places = places_of(batch_size, rank, world)
        self.ahead, self.total, self.pinned = ahead, total, pinned
        threads = threads or os.cpu_count() or 1
        self._pool = one_core_each(threads if source.parallel else 1)
        self._begun: dict[int, list[Future]] = {}

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        if self.total is not None and step >= self.total:
            raise ValueError(f"step {step} is beyond the last of {self.total}")
        last = step + self.ahead if self.total is None else min(step + self.ahead, self.total - 1)
        wanted = range(step, last + 1)
        for other in self._begun.keys() - set(wanted):
            self._forget(other)
        for each in wanted:
            if each not in self._begun:
                self._begun[each] = [
                    self._pool.submit(clip_of, self.source, each, place, self.batch_size, self.seed)
                    for place in self.places]
        try:
            clips, labels = zip(*(clip.result() for clip in self._begun[step]))
        finally:
            self._forget(step)
        return self._together(clips), torch.tensor(labels)

    def _together(self, clips: tuple[np.ndarray, ...]) -> Tensor:
        batch = torch.empty((len(clips), *clips[0].shape), dtype=torch.uint8,
                            pin_memory=self.pinned)
        np.stack(clips, out=batch.numpy())
        return batch

    def _forget(self, step: int) -> None:
        for clip in self._begun.pop(step):
            clip.cancel()

    def close(self) -> None:
        """Return as soon as the clips that are being decoded at this moment are."""
        self._begun.clear()
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> BatchLoader:
        return self

    def __exit__(self, *error) -> None:
        self.close()


def one_core_each(threads: int) -> ThreadPoolExecutor:
    """Threads that prepare while others compute: an operation of torch in one takes one core.

    Otherwise each would have a team of OpenMP's as large as the machine, and where there are more
    threads than cores, those no longer wait awake for their share: every operation of the step that
    goes on meanwhile pays for it (a third of the toy's time).
    """
    torch.get_num_threads()                 # the caller keeps the number that it has by then
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))


def main() -> None:
    source = (VideoFolder(sys.argv[1], (16, 64, 64), cache_bytes=0) if len(sys.argv) > 1
              else MovingShapes())
    steps, size = 8, 8
    source.clip(0)                                        # what a first call loads
    begin = time.perf_counter()
    for step in range(steps):
        expected, _ = load_batch(source, step, size, seed=0)
    print(f"one after the other: {steps * size / (time.perf_counter() - begin):6.0f} clips/s")
    begin = time.perf_counter()
    with BatchLoader(source, size, seed=0, total=steps) as loader:
        for step in range(steps):
            clips, _ = loader(step)
    print(f"ahead, by threads:   {steps * size / (time.perf_counter() - begin):6.0f} clips/s\n"
          f"the last batch is {tuple(clips.shape)}, {clips.dtype}; the same: "
          f"{torch.equal(to_float(clips), expected)}")


if __name__ == "__main__":
    main()
