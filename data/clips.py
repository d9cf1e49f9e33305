"""Clips in: from files and folders.

Paper   Sec. 4.1 and App. B.2 (16 frames at stride 1), App. B.3 (windows and crops)

Shapes  a video file of any size and length -> clips, uint8 (T, H, W, 3), and an int label

Read    DataConfig and open_source, which data set a run has; read_video; VideoFolder.

Not here: what a data set is, and batches (source.py); the one that is drawn (moving_shapes.py);
        what lies in a folder (layouts.py).

Run:    python -m data.clips [FOLDER]     what a batch of the toy holds, or of a folder of videos
"""
from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain, dropwhile, islice
from pathlib import Path
from typing import Iterable, Iterator

import av
import imageio.v3 as imageio
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from data.layouts import (LAYOUTS, Layout, find_layout, holds_pictures, inspect_pictures,
                          read_pictures, with_classes)
from data.moving_shapes import MovingShapes
from data.source import ClipSource, ThreeMethods, digest, load_batch, to_float


def flag(name: str, default: str | bool | None, help: str, may_change: bool = False,
         choices: tuple[str, ...] | None = None):
    """A field of DataConfig: its flag on the command line, and whether a stopped run may go on
    with another value."""
    return field(default=default, metadata=dict(flag=name, help=help, may_change=may_change,
                                                choices=choices))


PATHS = ("root", "test_root", "split", "test_split")


@dataclass(frozen=True)
class DataConfig:
    """Which data set a run learns from, as plain data that a checkpoint keeps."""

    root: str | None = flag("--data", None, "folder of training videos: DIR/class/video, DIR/video")
    test_root: str | None = flag("--test-data", None, "folder of held-out videos", True)
    split: str | None = flag("--split", None, "official list of training videos: trainlist01.txt, "
                             "train.json")
    test_split: str | None = flag("--test-split", None, "likewise of held-out videos", True)
    layout: str = flag("--layout", "auto", "what lies in --data, where that is not plain; images "
                       "is for --stage image", choices=LAYOUTS)
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
                flip: bool = False, held_out: bool = False,
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
                       stride=stride, flip=flip, pad_short=data.pad_short, index=index,
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
    path = Path(path)
    stop = None if count is None else start + (count - 1) * stride + 1
    if not path.exists() and not path.parent.is_file():
        raise FileNotFoundError(f"no video {path}")
    if holds_pictures(path):
        frames = read_pictures(path, start, stop, stride)
    elif path.suffix.lower() == ".npy":
        video = np.load(path, mmap_mode="r", allow_pickle=False)
        if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3:
            raise ValueError(f"{path} holds {video.dtype} {video.shape}; wanted uint8 (T, H, W, 3)")
        frames = list(video[start:stop:stride])
    else:
        frames = list(map(_upright, islice(_decoded(path), start, stop, stride)))
    if not frames or (count is not None and len(frames) < count):
        raise ValueError(f"{path} has only {len(frames)} frames from {start} at stride {stride}; "
                         f"wanted {count or 'at least one'}")
    return np.stack(frames)


def stream_frames(path: str | Path, start: int = 0) -> Iterator[np.ndarray]:
    """Frames of a video file from `start` on, uint8 (H, W, 3), turned upright: one at a time, so
    that memory does not depend on its length. A file that breaks is a ValueError."""
    return map(_upright, _decoded(path, start))


def _upright(frame: av.VideoFrame) -> np.ndarray:
    # Phones store a sideways picture and a flag that says how to turn it.
    return np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)


def _decoded(path: str | Path, start: int = 0) -> Iterator[av.VideoFrame]:
    count = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path} has no video in it")
            stream = container.streams.video[0]
            frames = _enter(container, stream, start) if start else container.decode(stream)
            for frame in islice(_decoded(path), start, None) if frames is None else frames:
                yield frame
                count += 1
    except av.FFmpegError as error:
        raise ValueError(f"{path} cannot be decoded after {count} frames: "
                         f"{error.strerror}") from None


def _enter(container: av.container.InputContainer, stream: av.VideoStream, start: int
           ) -> Iterator[av.VideoFrame] | None:
    """The frames from `start` on: the file is entered once, at the key frame before it.

    Frames are numbered by their time stamps: not for files of a changing rate. None where the
    file cannot be entered so (some formats find no key frame).
    """
    stamps = [frame.pts for frame in islice(container.decode(stream), 2)]
    if len(stamps) < 2 or None in stamps or not stream.average_rate:
        return None
    first, distance = stamps[0], stamps[1] - stamps[0]
    length = 1 / (stream.average_rate * stream.time_base)      # finer than stamps, if it is true
    length = length if abs(length - distance) < 1 else distance
    wanted = first + int((start - 0.5) * length)
    container.seek(wanted, stream=stream)
    frames = container.decode(stream)
    entered = next(frames, None)
    if entered is None or not entered.key_frame or entered.pts > wanted:
        return None
    return dropwhile(lambda frame: frame.pts < wanted, chain([entered], frames))


def open_stream(path: str | Path, start: int = 0) -> tuple[float, Iterator[np.ndarray]]:
    """Frames per second of a video (8 where the file has none), and stream_frames of it."""
    if Path(path).suffix.lower() == ".npy":
        read_video(path, start, count=1)                        # says what is wrong with it
        return 8.0, (np.array(frame) for frame in np.load(path, mmap_mode="r")[start:])
    if not Path(path).is_file():
        raise FileNotFoundError(f"no video {path}")
    try:
        with av.open(str(path)) as container:
            rate = container.streams.video[0].average_rate if container.streams.video else None
    except av.FFmpegError as error:
        raise ValueError(f"{path} cannot be decoded: {error.strerror}") from None
    return float(rate or 8), stream_frames(path, start)


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
    `stride`: at random places where `clip` gets a generator, else at the centre. What cannot be
    used is named once on stderr and left out. `index` (a JSON file) keeps the frame counts, since
    counting means decoding. Small folders are kept decoded in memory (cache_bytes).
    """

    def __init__(self, root: str | Path, shape: tuple[int, int, int], *, stride: int = 1,
                 flip: bool = False, pad_short: bool = False, index: str | Path | None = None,
                 cache_bytes: int = 1 << 30, layout: Layout | None = None):
        self.root, (self.T, self.H, self.W), self.stride = Path(root), shape, stride
        self.flip, self.pad_short = flip, pad_short
        layout = layout or find_layout(self.root)
        self.needed = (self.T - 1) * stride + 1
        counts = count_frames(layout.clips, self.root, index)
        self.videos: list[tuple[Path, int]] = []
        self.labels: list[int] = []
        self.class_names = layout.class_names
        for path, label in zip(layout.clips, layout.labels):
            name = str(path.relative_to(self.root))
            facts = counts[name]
            frames, error = facts["frames"], facts["error"]
            if not error and min(facts["height"], facts["width"]) < 8:
                error = f"{facts['width']}x{facts['height']} pixels is no picture"
            if not error and frames < self.needed and not pad_short:
                error = (f"{frames} frames, and a clip takes {self.needed} "
                         "(--pad-short repeats the last frame instead)")
            if error:
                print(f"skipped {name}: {error}", file=sys.stderr)
                continue
            if frames < self.needed:
                print(f"{name}: {frames} frames, the last one repeated to make {self.needed}",
                      file=sys.stderr)
            self.videos.append((path, frames))
            self.labels.append(label)
        if not self.videos:
            raise ValueError(f"none of the {len(layout.clips)} videos in {self.root} can be used")
        pixels = sum(frames for _, frames in self.videos) * self.H * self.W * 3 * 16 // 9
        self._cache: dict[Path, np.ndarray] | None = {} if pixels <= cache_bytes else None
        self._broken: set[Path] = set()

    def __len__(self) -> int:
        return len(self.videos)

    def clip(self, index: int, random: np.random.Generator | None = None
             ) -> tuple[np.ndarray, int]:
        """A clip of video `index`. One that no longer decodes is named once and the next taken."""
        for place in range(index, index + len(self)):
            path, frames = self.videos[place % len(self)]
            if path in self._broken:
                continue
            spare = self.spare_frames(place % len(self))
            start = spare // 2 if random is None else int(random.integers(spare + 1))
            try:
                video = self._window(path, start, min(frames, self.needed))
            except (ValueError, OSError) as error:
                self._broken.add(path)
                print(f"left out from now on: {error}", file=sys.stderr)
            else:
                return self._crop(video, random), self.labels[place % len(self)]
        raise ValueError(f"no video in {self.root} can be decoded any more")

    def _window(self, path: Path, start: int, length: int) -> np.ndarray:
        """The T frames from start, short side resized; short videos end with copies."""
        count = (length - 1) // self.stride + 1
        if self._cache is None:
            video = resize_short_side(read_video(path, start, count, self.stride), self.H, self.W)
        else:
            if path not in self._cache:
                self._cache[path] = resize_short_side(read_video(path), self.H, self.W)
            video = self._cache[path][start::self.stride][:count]
        return np.concatenate([video, repeat(video[-1], "h w c -> t h w c", t=self.T - len(video))])

    def spare_frames(self, index: int) -> int:
        return max(0, self.videos[index][1] - self.needed)

    def clip_at(self, index: int, start: int, y: float, x: float) -> tuple[np.ndarray, int]:
        """As ClipSource has it. ValueError where the file no longer decodes: were another clip to
        stand in, an evaluation's numbers would depend on when the disk failed."""
        path, frames = self.videos[index]
        video = self._window(path, start, min(frames, self.needed))
        y, x = (min(int(place * (size - wanted + 1)), size - wanted) for place, size, wanted in
                zip((y, x), video.shape[1:3], (self.H, self.W)))
        return video[:, y:y + self.H, x:x + self.W], self.labels[index]

    def fingerprint(self) -> str:
        return digest([(str(path), frames, _stamp(path)[0]) for path, frames in self.videos])

    def _crop(self, video: np.ndarray, random: np.random.Generator | None) -> np.ndarray:
        spare = np.array(video.shape[1:3]) - (self.H, self.W)
        y, x = spare // 2 if random is None else random.integers(spare + 1)
        video = video[:, y:y + self.H, x:x + self.W]
        mirrored = self.flip and random is not None and random.random() < 0.5
        return np.ascontiguousarray(video[:, :, ::-1] if mirrored else video)


def _stamp(path: Path) -> list[int]:
    """Size and time of a clip's file, which for a record is the file that it lies in."""
    stat = (path.parent if path.parent.is_file() else path).stat()
    return [stat.st_size, stat.st_mtime_ns]


def count_frames(paths: list[Path], root: Path, index: str | Path | None) -> dict[str, dict]:
    """Frames, height, width and error of each file, by its path below root; cached in index."""
    known: dict[str, dict] = {}
    if index is not None and Path(index).exists():
        known = json.loads(Path(index).read_text())
    names = {str(path.relative_to(root)): path for path in paths}
    stamps = {name: _stamp(path) for name, path in names.items()}
    unknown = [name for name in names if known.get(name, {}).get("stamp") != stamps[name]]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, facts in zip(unknown, pool.map(_inspect, map(names.get, unknown))):
            known[name] = dict(stamp=stamps[name], **facts)
    if index is not None and unknown:
        Path(index).parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(f"{index}.{os.getpid()}")
        temporary.write_text(json.dumps(known))
        os.replace(temporary, index)
    return {name: known[name] for name in stamps}


def _inspect(path: Path) -> dict:
    """Decode a whole video, keep nothing but its size."""
    facts = dict(frames=0, height=0, width=0, error="")
    try:
        if holds_pictures(path):
            facts["frames"], facts["height"], facts["width"] = inspect_pictures(path)
        elif path.suffix.lower() == ".npy":
            facts["frames"], facts["height"], facts["width"] = read_video(path).shape[:3]
        else:
            with av.open(str(path)) as container:
                for frame in container.decode(video=0):
                    facts["frames"] += 1
                    facts["height"], facts["width"] = frame.height, frame.width
    except (av.FFmpegError, ValueError, OSError, IndexError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        facts["error"] = f"breaks after {facts['frames']} frames ({reason})"
    if not facts["frames"] and not facts["error"]:
        facts["error"] = "holds no frames"
    return facts


def resize_short_side(video: np.ndarray, H: int, W: int) -> np.ndarray:
    """uint8 (T, h, w, 3): the smallest size that covers (H, W), antialiased bilinear."""
    height, width = video.shape[1:3]
    scale = max(H / height, W / width)
    size = (max(H, round(height * scale)), max(W, round(width * scale)))
    if size == (height, width):
        return video
    frames = rearrange(torch.from_numpy(np.ascontiguousarray(video)), "t h w c -> t c h w")
    frames = F.interpolate(frames, size, mode="bilinear", antialias=True)
    return rearrange(frames, "t c h w -> t h w c").numpy()


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
