"""Clips in, videos out: which data set a run has, windows and crops of a folder's videos.

Paper   Sec. 4.1 and App. B.2 (16 frames at stride 1), App. B.3 (windows and crops)

Shapes  a video file of any size and length -> clips, uint8 (T, H, W, 3), and an int label

Read    DataConfig and open_source, which data set a run has; VideoFolder; read_video, write_video.

Not here: what a data set is, and batches (source.py); the one that is drawn (moving_shapes.py);
        what lies in a folder, and how long each file is (files.py); what is inside it
        (decoding.py).
"""
from __future__ import annotations

import os
import sys
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Iterable, Iterator

import av
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from PIL import GifImagePlugin, Image
from torch import Tensor

from data.decoding import Keys, frame_rate
from data.files import Layout, count_frames, find_layout, name_below, read_frames, with_classes
from data.moving_shapes import MovingShapes
from data.source import ClipSource, digest, held_out as held_out_of, to_float

STAND_INS = 1000                        # where so many files in a row fail, the disk does
KEPT_FRAMES = 512                       # longer videos are not kept decoded in memory
NAMED = 20                              # files that are named one by one
PATHS = ("root", "test_root", "split", "test_split")


@dataclass(frozen=True)
class DataConfig:
    """Which data set a run learns from, as plain data that a checkpoint keeps."""

    root: str | None = None         # folder of training videos: DIR/class/video, DIR/video
    test_root: str | None = None    # folder of held-out videos
    split: str | None = None        # official list of training videos: trainlist01.txt, train.json
    test_split: str | None = None   # likewise of held-out videos
    layout: str = "auto"            # images: each picture is a clip of one frame
    pad_short: bool = False         # repeat the last frame of too short videos
    dataset: str = "folder"         # "shapes": drawn; "object Name": given from Python
    class_names: tuple[str, ...] = ()   # found in the data; a checkpoint records them

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
    that keeps the frame counts. Layout "images" has clips of one frame in any case. ValueError
    where training videos would also be held out.
    """
    if not isinstance(data, DataConfig):
        return held_out_of(data) or data if held_out else data
    if data.dataset == "shapes":
        return MovingShapes("test" if held_out else "train", shape[0])
    if data.dataset != "folder":
        raise ValueError(f"this run was trained on {data.dataset!r}, which is not on disk; give "
                         "that object to the Python function, or videos with --data or --video")
    refuse_overlap(data)
    root, split = data.root, data.split
    if held_out and (data.test_root or data.test_split):
        root, split = data.test_root or root, data.test_split
    layout = find_layout(root, data.layout, split)
    if data.class_names:
        layout = with_classes(layout, list(data.class_names))
    return VideoFolder(root, (1 if layout.name == "images" else shape[0], *shape[1:]),
                       stride=stride, flip=flip, crop=crop, pad_short=data.pad_short, index=index,
                       layout=layout)


def refuse_overlap(data: DataConfig) -> None:
    """ValueError where held-out videos are trained on: the folders are one, or one lies inside of
    the other, and no two lists tell their videos apart."""
    if not data.root or not (data.test_root or data.test_split):
        return
    if data.split and data.test_split:
        if os.path.realpath(data.split) == os.path.realpath(data.test_split):
            raise ValueError(f"--split and --test-split are the same list, {data.split}; give the "
                             "test list to --test-split")
        return
    train, test = (os.path.realpath(path) for path in (data.root, data.test_root or data.root))
    inner, outer = sorted((train, test), key=len, reverse=True)
    if os.path.commonpath([inner, outer]) == outer:
        how = "is" if inner == outer else "lies inside of" if inner == test else "contains"
        raise ValueError(f"--test-data {test} {how} --data {train}, so that its videos would be "
                         "trained on; give two folders beside each other, or a list to each of "
                         "--split and --test-split")


# ---------------------------------------------------------------------------------------------
# Reading a file

def read_video(path: str | Path, start: int = 0, count: int | None = None,
               stride: int = 1) -> np.ndarray:
    """Frames start, start+stride, ... of a video as uint8 (T, H, W, 3), as they are shown.

    count None: all of them. Reads whatever a clip can be: a video, a .gif, a .npy (uint8, same
    shape), a picture, a folder of frames. Fewer frames than asked for, a broken file or one
    without frames is a ValueError that names the file.
    """
    return np.stack(list(_window(path, start, count, stride)))


def load_clip(path: str | Path, shape: tuple[int, int, int], start: int = 0,
              stride: int = 1) -> Tensor:
    """One video as (1, 3, T, H, W) in [0, 1]: short side resized, centre crop."""
    T, H, W = shape
    video = resize_short_side(_window(path, start, T, stride), H, W)
    y, x = (video.shape[1] - H) // 2, (video.shape[2] - W) // 2
    return to_float(np.ascontiguousarray(video[None, :, y:y + H, x:x + W]))


def open_stream(path: str | Path, start: int = 0) -> tuple[float, Iterator[np.ndarray]]:
    """Frames per second of a video (8 where it has no rate), and its frames from `start` on,
    uint8 (H, W, 3): one at a time, so that memory does not depend on its length."""
    frames = _window(path, start, None, 1)
    first = next(frames)                                         # says what is wrong with it
    rate = 8.0 if Path(path).is_dir() else frame_rate(path)
    return rate, chain([first], frames)


def _window(path: str | Path, start: int, count: int | None, stride: int, keys: Keys | None = None
            ) -> Iterator[np.ndarray]:
    """Frames start, start+stride, ..., one at a time; ValueError where there are not `count`."""
    path = Path(path)
    if start < 0 or stride < 1 or (count is not None and count < 1):
        raise ValueError(f"{count or 'all'} frames from {start} at stride {stride}; wanted a start "
                         "of 0 or more, a count and a stride of 1 or more")
    if not path.exists():
        raise FileNotFoundError(f"no video {path}")
    stop = None if count is None else start + (count - 1) * stride + 1
    number = 0
    for number, frame in enumerate(read_frames(path, start, stop, stride, keys), 1):
        yield frame
    if number < (count or 1):
        raise ValueError(f"{path} has only {number} frames from {start} at stride {stride}; "
                         f"wanted {count or 'at least one'}")


def resize_short_side(frames: Iterable[np.ndarray], H: int, W: int) -> np.ndarray:
    """uint8 frames (h, w, 3) -> (T, H', W', 3): the smallest size that covers (H, W), antialiased
    bilinear. Each frame is resized as it comes, so that memory does not depend on the file."""
    resized = []
    for frame in frames:
        height, width = frame.shape[:2]
        scale = max(H / height, W / width)
        size = (max(H, round(height * scale)), max(W, round(width * scale)))
        if size == (height, width):
            resized.append(frame)
            continue
        picture = torch.from_numpy(np.require(frame, requirements="CW"))     # turned, or on disk
        picture = rearrange(picture, "h w c -> 1 c h w")
        picture = F.interpolate(picture, size, mode="bilinear", antialias=True)
        resized.append(rearrange(picture, "1 c h w -> h w c").numpy())
    return np.stack(resized)


# ---------------------------------------------------------------------------------------------
# Folders of videos

class VideoFolder:
    """The clips of a Layout below root, any sizes and lengths -> clips of (T, H, W).

    layout None: what files.find_layout finds, each class a folder. Each video's short side is
    resized to H (bilinear, antialiased), then (H, W) is cropped and T frames are taken at
    `stride`: at random places where `clip` gets a generator, else at the centre. crop below 1: at
    random it is crop to 1 of the short side that becomes (H, W). What cannot be used is named once
    on stderr and left out. `index` (a JSON file) keeps the frame counts, which may mean decoding.
    The videos of small folders are kept decoded in memory (up to cache_bytes), unless they are
    long or resized at random.
    """

    parallel = True
    cache_bytes = 1 << 30

    def __init__(self, root: str | Path, shape: tuple[int, int, int], *, stride: int = 1,
                 flip: bool = False, crop: float = 1.0, pad_short: bool = False,
                 index: str | Path | None = None, layout: Layout | None = None):
        self.root, (self.T, self.H, self.W), self.stride = Path(root), shape, stride
        self.flip, self.crop, self.pad_short = flip, crop, pad_short
        layout = layout or find_layout(self.root)
        self.needed = (self.T - 1) * stride + 1
        counts = count_frames(layout.clips, self.root, index)
        self.videos: list[tuple[Path, int]] = []
        self.labels: list[int] = []
        self.class_names = layout.class_names
        self._facts: list[dict] = []                # of each video, as count_frames has them
        said = []
        for path, label in zip(layout.clips, layout.labels):
            name = name_below(self.root, path)
            facts = counts[name]
            if problem := self._problem(facts):
                said.append(f"skipped {name}: {problem}")
                continue
            if facts["frames"] < self.needed:
                said.append(f"{name}: {facts['frames']} frames, the last one repeated to make "
                            f"{self.needed}")
            self.videos.append((path, facts["frames"]))
            self.labels.append(label)
            self._facts.append(facts)
        _say(said, layout, self.labels)
        if not self.videos:
            raise ValueError(f"none of the {len(layout.clips)} videos in {self.root} can be used")
        pixels = sum(frames for _, frames in self.videos) * self.H * self.W * 3 * 16 // 9
        self._small = crop == 1 and pixels <= self.cache_bytes
        self._cache: dict[Path, np.ndarray] = {}
        self._named: set[int] = set()
        self._naming = threading.Lock()

    def _problem(self, facts: dict) -> str:
        """Why clips cannot be taken from a video, or ""."""
        if facts["error"]:
            return facts["error"]
        if min(facts["height"], facts["width"]) < 8:
            return f"{facts['width']}x{facts['height']} pixels is no picture"
        if facts["frames"] < self.needed and not self.pad_short:
            return (f"{facts['frames']} frames, and a clip takes {self.needed} "
                    "(train.py --pad-short repeats the last frame instead)")
        return ""

    def __len__(self) -> int:
        return len(self.videos)

    def clip(self, index: int, random: np.random.Generator | None = None
             ) -> tuple[np.ndarray, int]:
        """A clip of video `index`; where that fails twice, of the next that does not.

        Where to begin and to crop, and whether to mirror, is drawn before any file is opened, and
        holds for whichever video stands in. A failing one is named once, and tried again at each
        turn: a clip follows from index, random and the files alone, in a resumed run as well.
        """
        start, y, x, coin = (None, None, None, 1.0) if random is None else random.random(4)
        part = 1.0 if random is None or self.crop == 1 else random.uniform(self.crop, 1.0)
        for number in range(index, index + min(len(self), STAND_INS)):
            its = number % len(self)
            for _ in range(2):
                try:
                    video = self._frames(its, place_of(start, self.spare_frames(its)), part)
                except (ValueError, OSError) as error:
                    failure = error
                    continue
                video = self._crop(video, y, x)
                mirrored = self.flip and coin < 0.5
                video = np.ascontiguousarray(video[:, :, ::-1] if mirrored else video)
                return video, self.labels[its]
            with self._naming:
                if its not in self._named:
                    self._named.add(its)
                    print(f"another clip stands in: {failure}", file=sys.stderr)
        raise ValueError(f"no video in {self.root} can be decoded any more; the last: {failure}")

    def spare_frames(self, index: int) -> int:
        """How many frames video `index` is longer than a clip."""
        return max(0, self.videos[index][1] - self.needed)

    def clip_at(self, index: int, start: int, y: float, x: float) -> tuple[np.ndarray, int]:
        """The clip from frame `start`, cropped at y, x. ValueError where the file no longer
        decodes: were another clip to stand in, an evaluation's numbers would depend on when the
        disk failed."""
        return self._crop(self._frames(index, start), y, x), self.labels[index]

    def _frames(self, index: int, start: int, part: float = 1.0) -> np.ndarray:
        """T frames from start, copies where they end; `part` of their short side is (H, W)."""
        path, frames = self.videos[index]
        count = (min(frames, self.needed) - 1) // self.stride + 1
        if self._small and frames <= KEPT_FRAMES:
            if path not in self._cache:    # two threads may both decode it: the same frames twice
                self._cache[path] = resize_short_side(_window(path, 0, frames, 1), self.H, self.W)
            video = self._cache[path][start::self.stride][:count]
        else:
            window = _window(path, start, count, self.stride, self._facts[index]["keys"])
            video = resize_short_side(window, round(self.H / part), round(self.W / part))
        if len(video) == self.T:
            return video
        return np.concatenate([video, repeat(video[-1], "h w c -> t h w c", t=self.T - len(video))])

    def _crop(self, video: np.ndarray, y: float | None, x: float | None) -> np.ndarray:
        y, x = (place_of(place, size - wanted) for place, size, wanted in
                zip((y, x), video.shape[1:3], (self.H, self.W)))
        return video[:, y:y + self.H, x:x + self.W]

    def fingerprint(self) -> str:
        """Of the names below root, lengths and sizes of files: a folder may move."""
        return digest([(name_below(self.root, path), frames, facts["stamp"][0])
                       for (path, frames), facts in zip(self.videos, self._facts)])


def place_of(fraction: float | None, spare: int) -> int:
    """One of spare + 1 places, at a fraction in [0, 1] of the way; None is the middle."""
    return spare // 2 if fraction is None else min(int(fraction * (spare + 1)), spare)


def _say(files: list[str], layout: Layout, labels: list[int]) -> None:
    """Name on stderr the files that cannot be used, and in one line what else was left out."""
    used = {*labels}
    empty = [name for number, name in enumerate(layout.class_names) if number not in used]
    notes = [f"left out: {', '.join(layout.left_out)}"] if layout.left_out else []
    if empty:
        others = f" and {len(empty) - NAMED} more" if len(empty) > NAMED else ""
        notes.append(f"classes without a clip: {', '.join(empty[:NAMED])}{others}")
    lines = files[:NAMED]
    if len(files) > NAMED:
        lines.append(f"and {len(files) - NAMED} more files like these")
    if notes:
        lines.append("; ".join(notes))
    for line in lines:
        print(line, file=sys.stderr)


# ---------------------------------------------------------------------------------------------
# Writing a file

WRITTEN = (".mp4", ".mkv", ".mov", ".m4v", ".avi", ".gif", ".npy")


def check_output(path: str | Path, suffixes: tuple[str, ...] = WRITTEN) -> None:
    """ValueError where a file of that name cannot be written, before the work for it is done: by
    its suffix, a folder in its place, or a folder above it that takes no files. Nothing is made
    and nothing is emptied."""
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path} has the suffix {path.suffix!r}; choose from {' '.join(suffixes)}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give a file of a new name in it")
    parent = next(each for each in path.absolute().parents if each.exists())
    try:
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from None


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary name of the same suffix, which becomes path at the end; an error leaves what
    was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix.lower()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: float = 8) -> None:
    """uint8 frames (H, W, 3), or (T, H, W, 3), to .gif, .npy, or a video by its suffix (H.264).

    All but .npy are written frame by frame, as long as may be. Odd sizes keep every pixel: colour
    is then stored at full resolution (4:4:4), which some players do not show. ValueError as of
    check_output, or where there are no frames; the file is written whole or not at all.
    """
    path = Path(path)
    check_output(path)
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"no frames to write to {path}")
    with written_whole(path) as temporary:
        every = chain([first], frames)
        if temporary.suffix == ".npy":
            np.save(temporary, np.stack(list(every)))
        elif temporary.suffix == ".gif":
            write_gif(temporary, every, fps)
        else:
            odd = first.shape[0] % 2 or first.shape[1] % 2
            _encode(temporary, every, fps, "libx264", "yuv444p" if odd else "yuv420p")


def write_lossless(path: str | Path, video: Iterable[np.ndarray], fps: float = 8) -> None:
    """uint8 (T, H, W, 3) to a video that gives back every pixel: H.264 of red, green and blue,
    without quantisation. Some players know only the lossy kind."""
    with written_whole(Path(path)) as temporary:
        _encode(temporary, video, fps, "libx264rgb", "rgb24", qp="0")


def _encode(path: Path, frames: Iterable[np.ndarray], fps: float, codec: str, pixels: str,
            **options: str) -> None:
    with av.open(str(path), "w") as file:
        rate = Fraction(fps).limit_denominator(1001)
        stream = file.add_stream(codec, rate=rate, options=options)
        stream.pix_fmt = pixels
        for number, frame in enumerate(frames):
            if not number:
                stream.height, stream.width = frame.shape[:2]
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")
            file.mux(stream.encode(picture))
        file.mux(stream.encode())


def write_gif(path: str | Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """uint8 frames (H, W, 3) to a GIF that loops and has as many frames as it is given: Pillow's
    own writer merges equal ones. Delays are hundredths of a second that add up to the right time;
    below two, which players do not keep, they are two: 50 frames a second."""
    shown, ended = None, 0
    with open(path, "wb") as file:
        for number, frame in enumerate(frames, 1):
            picture = Image.fromarray(frame).convert("P", palette=Image.Palette.ADAPTIVE)
            colours = np.asarray(picture.convert("RGB"))
            if shown is None:
                height, width = frame.shape[:2]
                file.write(b"GIF89a" + width.to_bytes(2, "little") + height.to_bytes(2, "little")
                           + b"\0\0\0" + b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0")
                y, x, bottom, right = 0, 0, height, width
            else:                                       # only what has changed, at least a pixel
                rows, columns = np.nonzero((colours != shown).any(2))
                y, bottom = (rows.min(), rows.max() + 1) if len(rows) else (0, 1)
                x, right = (columns.min(), columns.max() + 1) if len(rows) else (0, 1)
            delay = max(2, round(100 * number / fps) - ended)
            ended += delay
            part = picture.crop((int(x), int(y), int(right), int(bottom)))
            for block in GifImagePlugin.getdata(part, (int(x), int(y)), duration=10 * delay,
                                                include_color_table=True):
                file.write(block)
            shown = colours
        file.write(b";")
