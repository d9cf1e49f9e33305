"""MovingShapes: a data set small enough for a laptop, and measurable.

Paper   none: this stands in for a data set, so that the whole paper runs without a download.

Shapes  clip i -> uint8 (T, 32, 32, 3) and a label in 0..15, shape x direction; T is 16
        video (B, 3, T, 32, 32) in [0, 1] -> recognize -> shape (B,), direction (B,)

Read    MovingShapes.clip (how a clip is drawn), MovingShapes.recognize (how it is measured).
"""
from __future__ import annotations

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


class MovingShapes:
    """A coloured shape moves over a dark ground, two pixels a frame: `frames` of 32x32.

    Drawn, not downloaded. There are 384 clips: 4 shapes, 4 directions, 4 lanes, 2 starts, 3
    colours. The class is shape x direction, so that what a model generates can be measured by
    `recognize`. Places and motion are on the grid of the tokens (8 pixels, 4 frames): a clip moves
    by one token per latent frame. What leaves the frame comes in on the other side. A start leaves
    the direction open: frame prediction has to guess, class-conditional frame prediction need not.

    64 clips are held out for "test": four combinations of lane, start and colour, with every shape
    and direction. No training clip begins with one of their first frames, so whoever continues
    one has not learned the answer by heart.
    """

    shapes = ("square", "disc", "triangle", "cross")
    directions = ("right", "left", "down", "up")
    colours = np.array([[0.95, 0.25, 0.20], [0.20, 0.85, 0.30], [0.25, 0.45, 1.00]], np.float32)
    ground, size, cell, speed = 0.1, 16, 8, 2
    choices = 16, 4, 2, 3                                # classes, lanes, starts, colours
    # Lane, start, colour. The last two begin in one place, in a row and in a column: so, both.
    kept_back = (1, 0, 0), (3, 1, 1), (0, 1, 2), (2, 0, 2)
    H, W = 32, 32

    def __init__(self, split: str = "train", frames: int = 16):
        if split not in ("train", "test"):
            raise ValueError(f"split is {split!r}; choose 'train' or 'test'")
        self.split, self.T = split, frames
        self.class_names = [f"{shape} {direction}" for shape in self.shapes
                            for direction in self.directions]
        numbers = np.random.default_rng(0).permutation(math.prod(self.choices))
        places = np.stack(np.unravel_index(numbers, self.choices)[1:], 1)    # lane, start, colour
        kept = (places[:, None] == self.kept_back).all(2).any(1)
        self.numbers = numbers[kept == (split == "test")]

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def held_out(self) -> MovingShapes | None:
        return MovingShapes("test", self.T) if self.split == "train" else None

    def clip(self, index: int, random: np.random.Generator | None = None
             ) -> tuple[np.ndarray, int]:
        """Clip `index` of the split; `random` changes nothing here."""
        label, lane, start, colour = (int(i) for i in np.unravel_index(self.numbers[index],
                                                                       self.choices))
        alpha = self.masks()[label // 4][..., None]                          # (size, size, 1)
        picture = np.full((self.H, self.W, 3), self.ground, np.float32)
        picture[:self.size, :self.size] += alpha * (self.colours[colour] - self.ground)
        along, across = 2 * self.cell * start, self.cell * lane
        frames = []
        for moved in self.speed * np.arange(self.T):
            y, x = [(across, along + moved), (across, along - moved),
                    (along + moved, across), (along - moved, across)][label % 4]
            frames.append(np.roll(picture, (y, x), axis=(0, 1)))
        return (np.stack(frames) * 255 + 0.5).astype(np.uint8), label

    @classmethod
    @functools.cache
    def masks(cls) -> np.ndarray:
        """The shapes, (4, 16, 16) in [0, 1]; edges are soft, averages over 2x2 pixels."""
        half = cls.size / 2
        fine = (np.arange(cls.size * 4) + 0.5) / 4 - half
        y, x = np.meshgrid(fine, fine, indexing="ij")
        inside = np.stack([np.ones_like(x, bool), x * x + y * y < half * half,
                           abs(x) < (y + half) / 2, np.minimum(abs(x), abs(y)) < half / 3])
        fine = torch.from_numpy(inside).float()[:, None]                     # 4x4 samples a pixel
        return F.avg_pool2d(fine, 8, stride=4, padding=2)[:, 0].numpy()

    @classmethod
    def recognize(cls, video: Tensor) -> tuple[Tensor, Tensor]:
        """Read shape and direction from pixels by a plain rule: video (B, 3, T, 32, 32) in [0, 1].

        Colour is a pixel's largest channel minus its smallest (the ground is grey). A pixel is
        coloured above half of the clip's strongest colour, and 0.15 at least. In each frame every
        shape is laid everywhere, over the borders too; the overlap is intersection over union. The
        shape with the best mean over frames wins if that is at least 0.6; its steps from frame to
        frame, each the short way round, add up to the direction, if they reach 8 pixels. Returns
        shape (B,) and direction (B,), -1 where there is none.
        """
        B, _, T, H, W = video.shape
        colour = video.amax(1) - video.amin(1)                               # (B, T, H, W)
        strongest = colour.flatten(1).quantile(0.99, dim=1).view(-1, 1, 1, 1)
        coloured = (colour > (strongest / 2).clamp(min=0.15)).float()
        coloured = rearrange(coloured, "b t h w -> (b t) 1 h w")
        masks = (torch.from_numpy(cls.masks()) > 0.5)[:, None].float().to(video.device)
        around = F.pad(coloured, (0, cls.size - 1, 0, cls.size - 1), mode="circular")
        common = F.conv2d(around, masks)                                     # (B*T, 4, H, W)
        union = coloured.sum((1, 2, 3), keepdim=True) + masks.sum((1, 2, 3))[:, None, None] - common
        overlap, place = rearrange(common / union, "(b t) s y x -> b s t (y x)", b=B).max(-1)
        score, shape = overlap.mean(-1).max(1)
        place = place[torch.arange(B), shape]                                # (B, T)
        position = torch.stack([place // W, place % W])                      # y, x: (2, B, T)
        step = (position.diff() + W // 2) % W - W // 2
        down, right = moved = step.sum(-1)                                   # (2, B)
        direction = torch.where(right.abs() > down.abs(), (right < 0).long(), 2 + (down < 0).long())
        found = score >= 0.6
        travelled = moved.abs().amax(0) >= 8
        return torch.where(found, shape, -1), torch.where(found & travelled, direction, -1)
