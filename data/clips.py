"""Clips in: from files and folders.

Paper   Sec. 4.1 and App. B.2 (16 frames at stride 1), App. B.3 (windows and crops)

Shapes  a video file of any size and length -> clips, uint8 (T, H, W, 3), and an int label

Read    DataConfig and open_source, which data set a run has; read_video; VideoFolder.

Not here: what a data set is, and batches (source.py, loader.py); the one that is drawn
        (moving_shapes.py); what lies in a folder (layouts.py), how long each file is (counts.py),
        and what is inside it (decoding.py).

Run:    python -m data.clips [FOLDER]     what a batch of the toy holds, or of a folder of videos
"""
from __future__ import annotations

import sys
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Iterable, Iterator, Sequence

import av
import imageio.v3 as imageio
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from data.counts import count_frames, open_array
from data.decoding import Spacing, decoded, opened, pictures, read_window
from data.layouts import (LAYOUTS, Layout, find_layout, holds_pictures, name_below,
                          read_pictures, with_classes)
from data.moving_shapes import MovingShapes
from data.source import ClipSource, ThreeMethods, digest, load_batch, to_float


def flag(name: str, default: str | bool | None, help: str, may_change: bool = False,
         choices: tuple[str, ...] | None = None):
    """A field of DataConfig: its flag, and whether a stopped run may go on with another value."""
    return field(default=default, metadata=dict(flag=name, help=help, may_change=may_change,
                                                choices=choices))


STAND_INS = 1000                        # where so many files in a row fail, the disk does
PATHS = ("root", "test_root", "split", "test_split")


@dataclass(frozen=True)
class DataConfig:
    """Which data set a run learns from, as plain data that a checkpoint keeps."""

    root: str | None = flag("--data", None, "folder of training videos: DIR/class/video, DIR/video")
    test_root: str | None = flag("--test-data", None, "folder of held-out videos", True)
    split: str | None = flag("--split", None, "official list of training videos: trainlist01.txt, "
                             "train.json")
    test_split: str | None = flag("--test-split", None, "likewise of held-out videos", True)
    layout: str = flag("--layout", "auto", "what lies in --data, where that is not plain; images: "
                       "each picture is a clip of one frame", choices=LAYOUTS)
    pad_short: bool = flag("--pad-short", False, "repeat the last frame of too short videos")
    dataset: str = "folder"                 # "shapes": drawn; "object Name": given from Python
    class_names: tuple[str, ...] = ()       # found in the data; a checkpoint records them

    def __post_init__(self):
        for name in PATHS:                                            # a Path is no plain data
            if getattr(self, name) is not None:
                object.__setattr__(self, name, str(getattr(self, name)))

    def resolved(self) -> DataConfig:
        """The same with absolute paths, which hold wherever the run is used from."""
        return replace(self, **{name: str(Path(path).resolve()) for name in PATHS
                                if (path := getattr(self, name))})

    @property
    def has_held_out(self) -> bool:
        return self.dataset == "shapes" or bool(self.test_root or self.test_split)


def open_source(data: DataConfig | ClipSource, shape: tuple[int, int, int], *, stride: int = 1,
                flip: bool = False, crop: float = 1.0, held_out: bool = False,
                index: str | Path | None = None) -> ClipSource:
    """The data set of a run, as clips of (T, H, W); an object is what it is.

    held_out: the clips kept from training: of the toy its own; of an object its `held_out`; of a
    folder test_root and test_split, one of which may be missing. Without any, the training data
    stands for itself. Labels are those of data.class_names, where it has some. index: a file
    that keeps the frame counts. Layout "images" has clips of one frame in any case.
    """
    if not isinstance(data, DataConfig):
        source = data if isinstance(data, ClipSource) else ThreeMethods(data)
        return source.held_out or source if held_out else source
    if data.dataset == "shapes":
        return MovingShapes("test" if held_out else "train", shape[0])
    if data.dataset != "folder":
        raise ValueError(f"this run was trained on {data.dataset!r}, which is not on disk; give "
                         "that object to the Python function, or videos with --data or --video")
    root, split = data.root, data.split
    if held_out and (data.test_root or data.test_split):
        root, split = data.test_root or root, data.test_split
    layout = find_layout(root, data.layout, split)
    if data.class_names:
        layout = with_classes(layout, list(data.class_names))
    return VideoFolder(root, (1 if layout.name == "images" else shape[0], *shape[1:]),
                       stride=stride, flip=flip, crop=crop, pad_short=data.pad_short, index=index,
                       layout=layout)


# ---------------------------------------------------------------------------------------------
# Files

def read_video(path: str | Path, start: int = 0, count: int | None = None,
               stride: int = 1) -> np.ndarray:
    """Frames start, start+stride, ... of a video file as uint8 (T, H, W, 3), turned upright.

    count None: all of them. Also reads .gif and .npy (uint8, same layout), and whatever else a
    clip of layouts.Layout is. Fewer frames than asked for, a broken file or one without frames
    is a ValueError that names the file.
    """
    return np.stack(read_frames(Path(path), start, count, stride))


def read_frames(path: Path, start: int = 0, count: int | None = None, stride: int = 1,
                spacing: Spacing | None = None) -> Sequence[np.ndarray]:
    """As read_video, one by one. spacing: how a video is entered before `start`, where known."""
    stop = None if count is None else start + (count - 1) * stride + 1
    if not path.exists() and not path.parent.is_file():
        raise FileNotFoundError(f"no video {path}")
    if holds_pictures(path):
        frames = read_pictures(path, start, stop, stride)
    elif path.suffix.lower() == ".npy":
        frames = open_array(path)[start:stop:stride]
    else:
        frames = read_window(path, start, stop, stride, spacing)
    if not len(frames) or (count is not None and len(frames) < count):
        raise ValueError(f"{path} has only {len(frames)} frames from {start} at stride {stride}; "
                         f"wanted {count or 'at least one'}")
    return frames


def stream_frames(path: str | Path, start: int = 0) -> Iterator[np.ndarray]:
    """Frames of a video file from `start` on, uint8 (H, W, 3), turned upright: one at a time, so
    that memory does not depend on its length. A file that breaks is a ValueError."""
    return pictures(decoded(path, start))


def open_stream(path: str | Path, start: int = 0) -> tuple[float, Iterator[np.ndarray]]:
    """Frames per second of a video (8 where the file has none), and stream_frames of it."""
    if Path(path).suffix.lower() == ".npy":
        read_video(path, start, count=1)                        # says what is wrong with it
        return 8.0, (np.array(frame) for frame in np.load(path, mmap_mode="r")[start:])
    if not Path(path).is_file():
        raise FileNotFoundError(f"no video {path}")
    try:
        with opened(path) as (_, stream):
            rate = stream.average_rate
    except av.FFmpegError as error:
        raise ValueError(f"{path} cannot be decoded: {error.strerror}") from None
    return float(rate or 8), stream_frames(path, start)


def write_lossless(path: str | Path, video: np.ndarray, fps: int = 8) -> None:
    """uint8 (T, H, W, 3) to a video that gives back every pixel: H.264 of red, green and blue,
    without quantisation. Some players know only the lossy kind."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264rgb", rate=fps, options=dict(qp="0"))
        stream.height, stream.width, stream.pix_fmt = *video.shape[1:3], "rgb24"
        for frame in video:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        file.mux(stream.encode())


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: float = 8) -> None:
    """uint8 frames (H, W, 3), or (T, H, W, 3), to .gif, .npy, or a video by its suffix (H.264).
    Videos are written frame by frame, as long as may be; the other two take all in memory."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".npy", ".gif"):
        video = np.stack(list(frames))
        if path.suffix == ".npy":
            np.save(path, video)
        else:
            imageio.imwrite(path, video, duration=1000 / fps, loop=0)
        return
    with imageio.imopen(path, "w", plugin="pyav") as file:
        file.init_video_stream("libx264", fps=fps)
        for frame in frames:
            file.write_frame(frame)


# ---------------------------------------------------------------------------------------------
# Folders of videos

class VideoFolder(ClipSource):
    """The clips of a Layout below root, any sizes and lengths -> clips of (T, H, W).

    layout None: what layouts.find_layout finds, each class a folder. Each video's short side is
    resized to H (bilinear, antialiased), then (H, W) is cropped and T frames are taken at
    `stride`: at random places where `clip` gets a generator, else at the centre. crop below 1: at
    random it is crop to 1 of the short side that becomes (H, W). What cannot be used is named once
    on stderr and left out. `index` (a JSON file) keeps the frame counts, which may mean decoding.
    Small folders are kept decoded in memory (cache_bytes), if they are not resized at random.
    """

    parallel = True

    def __init__(self, root: str | Path, shape: tuple[int, int, int], *, stride: int = 1,
                 flip: bool = False, crop: float = 1.0, pad_short: bool = False,
                 index: str | Path | None = None, cache_bytes: int = 1 << 30,
                 layout: Layout | None = None):
        self.root, (self.T, self.H, self.W), self.stride = Path(root), shape, stride
        self.flip, self.crop, self.pad_short = flip, crop, pad_short
        layout = layout or find_layout(self.root)
        self.needed = (self.T - 1) * stride + 1
        counts = count_frames(layout.clips, self.root, index)
        self.videos: list[tuple[Path, int]] = []
        self.labels: list[int] = []
        self.class_names = layout.class_names
        self.spacings: list[Spacing | None] = []
        self._sizes: list[int] = []
        for path, label in zip(layout.clips, layout.labels):
            name = name_below(self.root, path)
            if name not in counts or not self._can_be_used(name, counts[name]):
                continue
            facts = counts[name]
            self.videos.append((path, facts["frames"]))
            self.labels.append(label)
            self._sizes.append(facts["stamp"][0])
            self.spacings.append(Spacing(facts["first"], facts["distance"])
                                  if facts["distance"] else None)
        if not self.videos:
            raise ValueError(f"none of the {len(layout.clips)} videos in {self.root} can be used")
        pixels = sum(frames for _, frames in self.videos) * self.H * self.W * 3 * 16 // 9
        kept = crop == 1 and pixels <= cache_bytes
        self._cache: dict[Path, np.ndarray] | None = {} if kept else None
        self._named: set[Path] = set()
        self._naming = threading.Lock()

    def _can_be_used(self, name: str, facts: dict) -> bool:
        """Whether clips can be taken from a video; what stands against it is said."""
        frames, error = facts["frames"], facts["error"]
        if not error and min(facts["height"], facts["width"]) < 8:
            error = f"{facts['width']}x{facts['height']} pixels is no picture"
        if not error and frames < self.needed and not self.pad_short:
            error = (f"{frames} frames, and a clip takes {self.needed} "
                     "(train.py --pad-short repeats the last frame instead)")
        if error:
            print(f"skipped {name}: {error}", file=sys.stderr)
        elif frames < self.needed:
            print(f"{name}: {frames} frames, the last one repeated to make {self.needed}",
                  file=sys.stderr)
        return not error

    def __len__(self) -> int:
        return len(self.videos)

    def clip(self, index: int, random: np.random.Generator | None = None
             ) -> tuple[np.ndarray, int]:
        """A clip of video `index`; where that fails twice, of the next that does not.

        Where to begin and to crop, and whether to mirror, is drawn before any file is opened, and
        holds for whichever video stands in. A failing one is named once, and tried again at each
        turn: a clip follows from index, random and the files alone, in a resumed run as well.
        """
        *places, coin = (None, None, None, 1.0) if random is None else random.random(4)
        part = 1.0 if random is None or self.crop == 1 else random.uniform(self.crop, 1.0)
        for number in range(index, index + min(len(self), STAND_INS)):
            for _ in range(2):
                try:
                    video, label = self._cut(number % len(self), *places, part)
                except (ValueError, OSError) as error:
                    failure = error
                else:
                    mirrored = self.flip and coin < 0.5
                    return np.ascontiguousarray(video[:, :, ::-1] if mirrored else video), label
            self._name_once(self.videos[number % len(self)][0], failure)
        raise ValueError(f"no video in {self.root} can be decoded any more; the last: {failure}")

    def _name_once(self, path: Path, failure: Exception) -> None:
        with self._naming:
            if path not in self._named:
                self._named.add(path)
                print(f"another clip stands in: {failure}", file=sys.stderr)

    def spare_frames(self, index: int) -> int:
        return max(0, self.videos[index][1] - self.needed)

    def clip_at(self, index: int, start: int, y: float, x: float) -> tuple[np.ndarray, int]:
        """As ClipSource has it. ValueError where the file no longer decodes: were another clip to
        stand in, an evaluation's numbers would depend on when the disk failed."""
        return self._crop(self._window(index, start), y, x), self.labels[index]

    def _cut(self, index: int, start: float | None, y: float | None, x: float | None,
             part: float) -> tuple[np.ndarray, int]:
        """A clip of a video and its label; all three places are of what is spare (place_of)."""
        video = self._window(index, place_of(start, self.spare_frames(index)), part)
        return self._crop(video, y, x), self.labels[index]

    def _window(self, index: int, start: int, part: float = 1.0) -> np.ndarray:
        """T frames from start, copies where they end; `part` of their short side is (H, W)."""
        path, frames = self.videos[index]
        count = (min(frames, self.needed) - 1) // self.stride + 1
        if self._cache is None:
            window = read_frames(path, start, count, self.stride, self.spacings[index])
            video = resize_short_side(window, round(self.H / part), round(self.W / part))
        else:
            if path not in self._cache:    # two threads may both decode it: the same frames twice
                self._cache[path] = resize_short_side(read_frames(path), self.H, self.W)
            video = self._cache[path][start::self.stride][:count]
        if len(video) == self.T:
            return video
        return np.concatenate([video, repeat(video[-1], "h w c -> t h w c", t=self.T - len(video))])

    def _crop(self, video: np.ndarray, y: float | None, x: float | None) -> np.ndarray:
        y, x = (place_of(place, size - wanted) for place, size, wanted in
                zip((y, x), video.shape[1:3], (self.H, self.W)))
        return video[:, y:y + self.H, x:x + self.W]

    def fingerprint(self) -> str:
        """Of the names below root, lengths and sizes of files: a folder may move."""
        names = (path.relative_to(self.root).as_posix() for path, _ in self.videos)
        return digest([(name, frames, size) for name, (_, frames), size in
                       zip(names, self.videos, self._sizes)])


def place_of(fraction: float | None, spare: int) -> int:
    """One of spare + 1 places, at a fraction in [0, 1] of the way; None is the middle."""
    return spare // 2 if fraction is None else min(int(fraction * (spare + 1)), spare)


def resize_short_side(video: Sequence[np.ndarray], H: int, W: int) -> np.ndarray:
    """uint8 (T, h, w, 3): the smallest size that covers (H, W), antialiased bilinear.

    Frame by frame, since a stack of whole frames would only be copied.
    """
    height, width = video[0].shape[:2]
    scale = max(H / height, W / width)
    size = (max(H, round(height * scale)), max(W, round(width * scale)))
    if size == (height, width):
        return np.stack(video)
    resized = np.empty((len(video), *size, 3), np.uint8)
    for t, frame in enumerate(video):
        if frame.shape[:2] != (height, width):
            raise ValueError(f"frame {t} is {frame.shape[1]}x{frame.shape[0]} pixels, the first is "
                             f"{width}x{height}")
        picture = torch.from_numpy(np.require(frame, requirements="CW"))     # turned, or on disk
        picture = rearrange(picture, "h w c -> 1 c h w")
        picture = F.interpolate(picture, size, mode="bilinear", antialias=True)
        resized[t] = rearrange(picture, "1 c h w -> h w c").numpy()
    return resized


def load_clip(path: str | Path, shape: tuple[int, int, int], start: int = 0,
              stride: int = 1) -> Tensor:
    """One video file as (1, 3, T, H, W) in [0, 1]: short side resized, centre crop."""
    T, H, W = shape
    video = resize_short_side(read_video(path, start, T, stride), H, W)
    y, x = (video.shape[1] - H) // 2, (video.shape[2] - W) // 2
    return to_float(np.ascontiguousarray(video[None, :, y:y + H, x:x + W]))


def main() -> None:
    source = VideoFolder(sys.argv[1], (16, 64, 64)) if len(sys.argv) > 1 else MovingShapes()
    video, label = load_batch(source, step=0, batch_size=4, seed=0)
    print(f"{len(source)} clips of {len(source.class_names)} classes, fingerprint "
          f"{source.fingerprint()}\nbatch 0: {tuple(video.shape)} from {video.min():.2f} to "
          f"{video.max():.2f}, labels {label.tolist()}")


if __name__ == "__main__":
    main()
