"""Painting: arrays in, GIFs and PNGs out. Knows no model and no data set.

Paper   the looks of Fig. 2 and Fig. 3: green for given, black for [MASK], blue for the video's own

Shapes  videos (3, T, H, W) in [0, 1] -> frames uint8 (T, H, W, 3) -> a GIF, or a PNG contact sheet
        ids or kinds of tokens (t, h, w) -> cells of one colour each

Read    write_grid (videos in rows and columns), canvas (a figure), strip, draw_ids, draw_curves.

Not here: what is painted.
"""
from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Iterator

import imageio.v3 as imageio
import numpy as np
import torch
from einops import rearrange, repeat
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

# Where a token is from, as a colour (Fig. 2 and Fig. 3).
GIVEN, MASKED, DECIDED, PADDED, WRONG = range(5)
COLOURS = torch.tensor([[0.2, 0.7, 0.3], [0.0, 0.0, 0.0], [0.35, 0.6, 0.95], [1.0, 1.0, 1.0],
                        [1.0, 0.6, 0.2]])


def to_frames(video: Tensor) -> np.ndarray:
    """float (3, T, H, W), clipped to [0, 1] -> uint8 (T, H, W, 3), rounded."""
    video = rearrange(video.detach().float().cpu(), "c t h w -> t h w c").numpy()
    return (np.clip(video, 0, 1) * 255 + 0.5).astype(np.uint8)


def text_picture(text: str, height: int, width: int, size: float = 9) -> np.ndarray:
    """Words as uint8 (height, width, 3), black on white; what is not Unicode becomes "?"."""
    text = text.encode("utf-8", "replace").decode()
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    drawing = FigureCanvasAgg(figure)
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=size, wrap=True,
                parse_math=False)
    drawing.draw()
    return np.asarray(drawing.buffer_rgba())[:height, :width, :3].copy()


def write_grid(path: str | Path, rows: list[tuple[str, list[Tensor]]], titles: list[str],
               scale: int | None = None, fps: float = 6) -> None:
    """Videos in named rows under named columns: a GIF, or a PNG with four frames of each.

    rows: (name, videos (3, T, H, W) in [0, 1]), all of one shape. scale: screen pixels per pixel.
    """
    T, H, W = rows[0][1][0].shape[1:]
    scale = scale or max(1, 96 // H)
    still = Path(path).suffix.lower() == ".png"
    border, left, top = 4, 150, 24
    lines = []
    for name, videos in rows:
        line = []
        for video in videos:
            frames = to_frames(video).repeat(scale, axis=1).repeat(scale, axis=2)
            if still:
                frames = rearrange(frames[np.linspace(0, T - 1, 4).round().astype(int)],
                                   "t h w c -> 1 h (t w) c")
            line.append(np.pad(frames, ((0, 0), (border, border), (border, border), (0, 0)),
                               constant_values=255))
        label = text_picture(name, line[0].shape[1], left)
        lines.append(np.concatenate([repeat(label, "h w c -> t h w c", t=len(line[0])), *line],
                                    axis=2))
    width = (lines[0].shape[2] - left) // len(titles)
    header = np.concatenate([np.full((top, left, 3), 255, np.uint8),
                             *(text_picture(title, top, width) for title in titles)], axis=1)
    header = repeat(header, "h w c -> t h w c", t=len(lines[0]))
    picture = np.concatenate([header, *lines], axis=1)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if still:
        imageio.imwrite(path, picture[0])
    else:
        imageio.imwrite(path, picture, duration=1000 / fps, loop=0)


@contextlib.contextmanager
def canvas(path: str | Path, rows: int, columns: int, size: tuple[float, float], *,
           ticks: bool = False, dpi: int = 80, **options) -> Iterator[np.ndarray]:
    """axes (rows, columns) to draw on; at the end of the block they are saved to path.

    size in inches. options go to matplotlib's subplots.
    """
    figure = Figure(figsize=size)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    if not ticks:
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[])
    yield axes
    figure.tight_layout(h_pad=0.4)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)


def strip(video: Tensor) -> np.ndarray:
    """(3, t, h, w) in [0, 1] -> (h, t w, 3): frames side by side, a grey line around each."""
    framed = torch.nn.functional.pad(video.detach().float().cpu(), (1, 1, 1, 1), value=0.8)
    return rearrange(framed, "c t h w -> h (t w) c").clamp(0, 1).numpy()


def cells(kinds: Tensor) -> Tensor:
    """GIVEN, MASKED, DECIDED, PADDED (t, h, w) -> their colours (3, t, h, w)."""
    return rearrange(COLOURS[kinds.cpu()], "t h w c -> c t h w")


def draw_ids(axis, ids: Tensor, kinds: Tensor, size: float = 7) -> None:
    """Token ids (h, w) written into cells of their kinds' colours (h, w); negative: nothing."""
    axis.imshow(COLOURS[kinds.cpu()].numpy(), interpolation="nearest", alpha=0.75)
    for (y, x), number in np.ndenumerate(ids.cpu().numpy()):
        if number >= 0:
            axis.text(x, y, str(number), ha="center", va="center", fontsize=size)


def draw_curves(path: str | Path, panels: list[tuple[str, str, str, dict]],
                size: tuple[float, float] = (6, 3.5)) -> None:
    """Panels side by side: (title, x label, y label, {name: (x values, y values)})."""
    with canvas(path, 1, len(panels), (size[0] * len(panels), size[1]), ticks=True) as axes:
        for axis, (title, x_label, y_label, curves) in zip(axes[0], panels):
            for name, (x, y) in curves.items():
                axis.plot(x, y, label=name)
            axis.set(title=title, xlabel=x_label, ylabel=y_label)
            axis.legend()
            axis.grid(alpha=0.3)
