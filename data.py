"""Clips in, pictures out.

Paper   Sec. 4.1 and App. B.2 (16 frames at stride 1), App. B.3 (windows and crops)

Shapes  a clip is uint8 (T, H, W, 3) and an int label, as files and pictures hold them;
        a batch is float (B, 3, T, H, W) in [0, 1] and int64 (B,), as networks want them.

Read    read_video, VideoFolder, load_batch (which clips make the batch of a step), write_grid.
        MovingShapes, the data set that is drawn instead of read, has its own room (shapes.py);
        so has the question what lies in a folder (datasets.py).

Run:    python data.py [FOLDER]          a contact sheet of the toy, or of a folder of videos
"""
from __future__ import annotations

import functools
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import av
import imageio.v3 as imageio
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from datasets import (NO_LABEL, Layout, find_layout, holds_pictures, inspect_pictures,
                      read_pictures, with_classes)
from shapes import MovingShapes


class ClipSource(Protocol):
    """What training needs of a data set."""

    class_names: list[str]

    def __len__(self) -> int: ...

    def clip(self, index: int, random: np.random.Generator | None) -> tuple[np.ndarray, int]:
        """Clip number index, uint8 (T, H, W, 3), and its label; random None: no augmentation."""


# ---------------------------------------------------------------------------------------------
# Files

def read_video(path: str | Path, start: int = 0, count: int | None = None,
               stride: int = 1) -> np.ndarray:
    """Frames start, start+stride, ... of a video file as uint8 (T, H, W, 3), turned upright.

    count None: all of them. Also reads .gif and .npy (uint8, same layout), and whatever else a
    clip of datasets.Layout is. Fewer frames than asked for, a broken file or one without frames
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
        frames = _decode(path, start, count, stride)
    if not frames or (count is not None and len(frames) < count):
        raise ValueError(f"{path} has only {len(frames)} frames from {start} at stride {stride}; "
                         f"wanted {count or 'at least one'}")
    return np.stack(frames)


def _decode(path: Path, start: int, count: int | None, stride: int) -> list[np.ndarray]:
    frames: list[np.ndarray] = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path} has no video in it")
            for number, frame in enumerate(container.decode(video=0)):
                if number >= start and (number - start) % stride == 0:
                    image = frame.to_ndarray(format="rgb24")
                    # phones store a sideways picture and a flag that says how to turn it
                    frames.append(np.rot90(image, frame.rotation // 90))
                    if len(frames) == count:
                        break
    except av.FFmpegError as error:
        raise ValueError(f"{path} cannot be decoded after {len(frames)} frames: "
                         f"{error.strerror}") from None
    return frames


def write_video(path: str | Path, frames: np.ndarray, fps: float = 8) -> None:
    """uint8 (T, H, W, 3) to .gif, .npy, or a video format by its suffix (.mp4: H.264)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, frames)
    elif path.suffix == ".gif":
        imageio.imwrite(path, frames, duration=1000 / fps, loop=0)
    else:
        imageio.imwrite(path, frames, plugin="pyav", codec="libx264", fps=fps)


def to_uint8(video: np.ndarray) -> np.ndarray:
    """[0, 1] to 0..255, rounded."""
    return (np.clip(video, 0, 1) * 255 + 0.5).astype(np.uint8)


def to_float(clips: np.ndarray) -> Tensor:
    """uint8 (B, T, H, W, 3) -> float (B, 3, T, H, W) in [0, 1]."""
    return rearrange(torch.from_numpy(clips), "b t h w c -> b c t h w").float() / 255


def to_frames(video: Tensor) -> np.ndarray:
    """float (3, T, H, W), clipped to [0, 1] -> uint8 (T, H, W, 3)."""
    return to_uint8(rearrange(video.detach().float().cpu(), "c t h w -> t h w c").numpy())


# ---------------------------------------------------------------------------------------------
# Folders of videos

class VideoFolder:
    """The clips of a Layout below root, any sizes and lengths -> clips of (T, H, W).

    layout None: what datasets.find_layout finds, each class a folder. Each video's short side is
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
            facts, name = counts[str(path.relative_to(self.root))], path.relative_to(self.root)
            if facts["error"]:
                print(f"skipped {name}: {facts['error']}", file=sys.stderr)
            elif min(facts["height"], facts["width"]) < 8:
                print(f"skipped {name}: {facts['width']}x{facts['height']} pixels is no picture",
                      file=sys.stderr)
            elif facts["frames"] < self.needed and not pad_short:
                print(f"skipped {name}: {facts['frames']} frames, and a clip takes {self.needed} "
                      "(--pad-short repeats the last frame instead)", file=sys.stderr)
            else:
                if facts["frames"] < self.needed:
                    print(f"{name}: {facts['frames']} frames, the last one repeated to make "
                          f"{self.needed}", file=sys.stderr)
                self.videos.append((path, facts["frames"]))
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
        for attempt in range(len(self)):
            path, frames = self.videos[(index + attempt) % len(self)]
            if path in self._broken:
                continue
            start = max(0, frames - self.needed)
            start = start // 2 if random is None else int(random.integers(start + 1))
            try:
                video = self.window(path, start, min(frames, self.needed))
            except (ValueError, OSError) as error:
                self._broken.add(path)
                print(f"left out from now on: {error}", file=sys.stderr)
                continue
            return self._crop(video, random), self.labels[(index + attempt) % len(self)]
        raise ValueError(f"no video in {self.root} can be decoded any more")

    def window(self, path: Path, start: int, length: int) -> np.ndarray:
        """The T frames from start, short side resized; short videos end with copies."""
        count = (length - 1) // self.stride + 1
        if self._cache is None:
            video = resize_short_side(read_video(path, start, count, self.stride), self.H, self.W)
        else:
            if path not in self._cache:
                self._cache[path] = resize_short_side(read_video(path), self.H, self.W)
            video = self._cache[path][start::self.stride][:count]
        return np.concatenate([video, repeat(video[-1], "h w c -> t h w c", t=self.T - len(video))])

    def _crop(self, video: np.ndarray, random: np.random.Generator | None) -> np.ndarray:
        spare = np.array(video.shape[1:3]) - (self.H, self.W)
        y, x = spare // 2 if random is None else random.integers(spare + 1)
        video = video[:, y:y + self.H, x:x + self.W]
        mirrored = self.flip and random is not None and random.random() < 0.5
        return np.ascontiguousarray(video[:, :, ::-1] if mirrored else video)


def count_frames(paths: list[Path], root: Path, index: str | Path | None) -> dict[str, dict]:
    """Frames, height, width and error of each file, by its path below root; cached in index."""
    known: dict[str, dict] = {}
    if index is not None and Path(index).exists():
        known = json.loads(Path(index).read_text())
    stats = {path: (path.parent if path.parent.is_file() else path).stat() for path in paths}
    stamps = {str(path.relative_to(root)): [stat.st_size, stat.st_mtime_ns]
              for path, stat in stats.items()}
    unknown = [path for path in paths if known.get(str(path.relative_to(root)), {}).get("stamp")
               != stamps[str(path.relative_to(root))]]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for path, facts in zip(unknown, pool.map(_inspect, unknown)):
            name = str(path.relative_to(root))
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


def open_source(config: dict, data: dict, index: str | Path | None = None,
                split: str = "train") -> ClipSource:
    """The data set of a run. config, data: what a checkpoint holds as config["train"], ["data"].

    split "test": the toy's held-out clips, or data["test_root"] and data["test_split"], one of
    which may be missing; without both the training data stands for itself. Its labels are those
    of the run, data["class_names"]. data["layout"] "images": clips of one frame in any case.
    """
    if config["dataset"] == "shapes":
        return MovingShapes(split)
    if config["dataset"] != "folder":
        raise ValueError(f"dataset is {config['dataset']!r}; choose 'folder' or 'shapes'")
    root, chosen = data["root"], data.get("split")
    if split == "test" and (data.get("test_root") or data.get("test_split")):
        root, chosen = data.get("test_root") or root, data.get("test_split")
    layout = find_layout(root, data.get("layout") or "auto", chosen)
    if split == "test" and data.get("class_names"):
        layout = with_classes(layout, data["class_names"])
    frames = 1 if layout.name == "images" else config["frames"]
    return VideoFolder(root, (frames, config["resolution"], config["resolution"]),
                       stride=config["stride"], flip=config["flip"], pad_short=data["pad_short"],
                       index=index, layout=layout)


# ---------------------------------------------------------------------------------------------
# Batches

@functools.lru_cache(maxsize=2)
def _order(length: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(length)


def load_batch(source: ClipSource, step: int, batch_size: int, seed: int, rank: int = 0,
               world: int = 1, augment: bool = True) -> tuple[Tensor, Tensor, list[int]]:
    """The batch of a step: (B, 3, T, H, W) in [0, 1], labels (B,), indices. No state anywhere.

    Clips are visited in a new order each epoch. A batch of `batch_size` is shared out to `world`
    processes: together they see what one would. Windows, crops and flips follow from (seed,
    step, place in the batch).
    """
    share = batch_size // world
    clips, labels, indices = [], [], []
    for place in range(rank * share, (rank + 1) * share):
        epoch, position = divmod(step * batch_size + place, len(source))
        index = int(_order(len(source), seed, epoch)[position])
        random = np.random.default_rng([seed, step, place]) if augment else None
        clip, label = source.clip(index, random)
        clips.append(clip)
        labels.append(label)
        indices.append(index)
    return to_float(np.stack(clips)), torch.tensor(labels), indices


# ---------------------------------------------------------------------------------------------
# Pictures

def text_picture(text: str, height: int, width: int, size: float = 9) -> np.ndarray:
    """Words as uint8 (height, width, 3), black on white, drawn by matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    canvas = FigureCanvasAgg(figure)
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=size, wrap=True)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:height, :width, :3].copy()


def write_grid(path: str | Path, rows: list[tuple[str, list[Tensor]]], titles: list[str],
               scale: int | None = None, fps: float = 6) -> None:
    """Videos in named rows under named columns: a GIF, or a PNG with four frames of each.

    rows: (name, videos (3, T, H, W) in [0, 1]), all of one shape. scale: pixels per pixel.
    """
    T, H, W = rows[0][1][0].shape[1:]
    scale = scale or max(1, 96 // H)
    still = Path(path).suffix == ".png"
    pad, left, top = 4, 150, 24
    lines = []
    for name, videos in rows:
        cells = []
        for video in videos:
            frames = to_frames(video).repeat(scale, axis=1).repeat(scale, axis=2)
            if still:
                frames = rearrange(frames[np.linspace(0, T - 1, 4).round().astype(int)],
                                   "t h w c -> 1 h (t w) c")
            cells.append(np.pad(frames, ((0, 0), (pad, pad), (pad, pad), (0, 0)),
                                constant_values=255))
        label = text_picture(name, cells[0].shape[1], left)
        lines.append(np.concatenate([np.broadcast_to(label, (len(cells[0]), *label.shape)), *cells],
                                    axis=2))
    width = (lines[0].shape[2] - left) // len(titles)
    header = np.concatenate([np.full((top, left, 3), 255, np.uint8),
                             *(text_picture(title, top, width) for title in titles)], axis=1)
    header = np.broadcast_to(header, (len(lines[0]), *header.shape))
    picture = np.concatenate([header, *lines], axis=1)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if still:
        imageio.imwrite(path, picture[0])
    else:
        write_video(path, picture, fps)


def main() -> None:
    """A contact sheet: eight clips of the toy, or of the folder on the command line."""
    if len(sys.argv) > 1:
        source: ClipSource = VideoFolder(sys.argv[1], (16, 64, 64))
    else:
        source = MovingShapes()
    rows = []
    for index in range(0, len(source), max(1, len(source) // 8)):
        clip, label = source.clip(index)
        name = source.class_names[label] if label != NO_LABEL else "no class"
        rows.append((name, [to_float(clip[None])[0]]))
    write_grid("assets/clips.png", rows[:8], ["four of the frames"])
    print(f"{len(source)} clips, {len(source.class_names)} classes; wrote assets/clips.png")
    if isinstance(source, MovingShapes):
        videos, labels, _ = load_batch(source, 0, len(source), seed=0)
        shape, direction = MovingShapes.recognize(videos)
        right = ((shape == labels // 4) & (direction == labels % 4)).float().mean()
        print(f"the plain rule reads shape and direction right in {right:.1%} of them")


if __name__ == "__main__":
    main()
