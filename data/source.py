"""What a data set is, and which of its clips make the batch of a step.

Paper   Sec. 4.1; App. B.3 ("a single data loader")

Shapes  a clip is uint8 (T, H, W, 3) and an int label, as files and pictures hold them;
        a batch is float (B, 3, T, H, W) in [0, 1] and int64 (B,), as networks want them.

Read    ClipSource, clip_of, load_batch.

Not here: batches that are prepared while another is learned from (loader.py).

Run:    python -m data.source          the order in which clips are visited
"""
from __future__ import annotations

import functools
import hashlib
import json

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

NO_LABEL = -1


class ClipSource:
    """A data set. Training needs the first three, evaluation the others too, which have defaults.

    Any subclass can be given to train.train and evaluate.evaluate_protocol in place of a folder.
    """

    class_names: list[str] = []             # labels are indices into them; none: no classes
    held_out: ClipSource | None = None      # clips kept from training, which the report shows
    parallel = False                        # whether several threads may call `clip` at a time

    def __len__(self) -> int:
        raise NotImplementedError

    def clip(self, index: int, random: np.random.Generator | None = None
             ) -> tuple[np.ndarray, int]:
        """Clip number index, uint8 (T, H, W, 3), and its label, or NO_LABEL.

        With a generator the window, the crop and the flip may be random; with None the centre.
        """
        raise NotImplementedError

    def spare_frames(self, index: int) -> int:
        """How many frames video index is longer than a clip: a clip has one more start."""
        return 0

    def clip_at(self, index: int, start: int, y: float, x: float) -> tuple[np.ndarray, int]:
        """The clip of a video from frame `start`, cropped at y, x in [0, 1] of what is spare."""
        return self.clip(index, None)

    def fingerprint(self) -> str:
        """Ten letters that change when the clips do: stored features of others are never used."""
        shown = range(0, len(self), max(1, len(self) // 8))
        clips = [self.clip(i, None) for i in shown]
        return digest([len(self), [[hashlib.sha256(np.ascontiguousarray(frames)).hexdigest(),
                                    int(label)] for frames, label in clips]])


def digest(settings: object) -> str:
    """Ten letters that change with any of the settings, which are plain data."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]


class ThreeMethods(ClipSource):
    """An object that has no more than len, clip and class_names, as a ClipSource."""

    def __init__(self, source):
        self.clip, self.class_names, self._length = source.clip, source.class_names, len(source)
        self.held_out = getattr(source, "held_out", None)
        self.parallel = getattr(source, "parallel", False)

    def __len__(self) -> int:
        return self._length


@functools.lru_cache(maxsize=4)
def shuffled(length: int, *seed: int) -> np.ndarray:
    """0 .. length-1 in an order that the seed decides."""
    return np.random.default_rng(seed).permutation(length)


def clip_of(source: ClipSource, step: int, place: int, batch_size: int, seed: int,
            augment: bool = True) -> tuple[np.ndarray, int]:
    """The clip at a place in the batch of a step, and its label. No state anywhere.

    Clips come in a new order each epoch. Windows, crops, flips follow from (seed, step, place).
    """
    epoch, position = divmod(step * batch_size + place, len(source))
    random = np.random.default_rng([seed, step, place]) if augment else None
    return source.clip(int(shuffled(len(source), seed, epoch)[position]), random)


def places_of(batch_size: int, rank: int, world: int) -> range:
    """A batch is shared out to `world` processes: together they see what one would."""
    share = batch_size // world
    return range(rank * share, (rank + 1) * share)


def load_batch(source: ClipSource, step: int, batch_size: int, seed: int, rank: int = 0,
               world: int = 1, augment: bool = True) -> tuple[Tensor, Tensor]:
    """The batch of a step, or a process's share of it: (B, 3, T, H, W) in [0, 1] and labels (B,).
    Loaded here and now; loader.BatchLoader has the same clips ready before they are asked for."""
    clips, labels = zip(*(clip_of(source, step, place, batch_size, seed, augment)
                          for place in places_of(batch_size, rank, world)))
    return to_float(np.stack(clips)), torch.tensor(labels)


def all_clips(source: ClipSource) -> tuple[Tensor, Tensor]:
    """video (clips, 3, T, H, W) in [0, 1] and label (clips,), in the order of the source."""
    clips, labels = zip(*(source.clip(index, None) for index in range(len(source))))
    return to_float(np.stack(clips)), torch.tensor(labels)


def to_float(clips: np.ndarray | Tensor) -> Tensor:
    """uint8 (B, T, H, W, 3) -> float (B, 3, T, H, W) in [0, 1], on the device where clips are.

    The divisor is a tensor there: a GPU multiplies with 1/255 for a number, to other bits.
    """
    clips = torch.as_tensor(clips)
    divisor = torch.full((), 255.0, device=clips.device)
    return rearrange(clips, "b t h w c -> b c t h w").float() / divisor


def main() -> None:
    """The order in which two epochs visit six clips, and how two processes share a batch."""
    print("step   clips of a batch of four   shared by two processes")
    for step in range(4):
        places = range(4 * step, 4 * step + 4)
        clips = [int(shuffled(6, 0, place // 6)[place % 6]) for place in places]
        print(f"{step:4}   {clips!s:24}   {clips[:2]} {clips[2:]}")


if __name__ == "__main__":
    main()
