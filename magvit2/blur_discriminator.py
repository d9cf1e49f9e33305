"""The sequel's adversary: the first paper's, with a blur before every halving.

Paper   MAGVIT-v2, App. A.2 (multipliers, R1, LeCam); blur pooling as in google/praxis (official)

Shapes  video (B, 3, 1 + 4k, H, W) -> logits (B,); 17 frames become 9, 5, 3, 2, 1

Read    blur_pool, BlurBlock.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from discriminator import (Discriminator2d, Discriminator3d, DiscriminatorBlock,
                           DiscriminatorConfig)


@dataclass(frozen=True)
class BlurConfig(DiscriminatorConfig):
    """Sizes of a discriminator that blurs."""

    base_channels: int = 128                                                         # App. A.2

    def build(self) -> Discriminator3d:
        """The 2D twin for clips of one frame, too: in 3D each blur would halve their signal."""
        flat = 1 in (self.kernel[0], self.resolution[0])
        return BlurDiscriminator2d(self) if flat else BlurDiscriminator3d(self)

    def image_twin(self) -> BlurConfig:
        """The 2D discriminator of the same sizes."""
        return replace(self, kernel=(1, 3, 3))

    def inflate(self, image_state: dict[str, Tensor], network: Discriminator3d, mode: str
                ) -> Discriminator3d:
        """Leave it as it is: the paper trains it from scratch (App. A.1)."""
        return network


BLUR_DISCRIMINATORS = {
    "appendix": BlurConfig(),
    "base": BlurConfig(base_channels=64),
    "toy": BlurConfig(base_channels=16, channel_multipliers=(1, 2, 2, 2)),           # ours
}


def blur_pool(x: Tensor, axes: tuple[bool, bool, bool] = (True, True, True)) -> Tensor:
    """Every second element along the marked axes of (B, C, T, H, W) after a blur by [1, 2, 1] / 4.

    Zeros around, one at each end of an odd length, one at the end of an even one (JAX's SAME).
    Twice the mean of two neighbours is that blur, without a kernel that R1 would have to pass.
    """
    sides, two = [], tuple(1 + pooled for pooled in axes)
    for size, pooled in zip(x.shape[2:], axes):
        sides = [*((size % 2, 1) if pooled else (0, 0)), *sides]
    return F.avg_pool3d(F.avg_pool3d(F.pad(x, sides), two, stride=1), two)


class BlurBlock(DiscriminatorBlock):
    """The first paper's block with another pool."""

    pool = staticmethod(blur_pool)


class BlurDiscriminator3d(Discriminator3d):
    """video (B, 3, T, H, W) -> logits (B,)."""

    block_type = BlurBlock


class BlurDiscriminator2d(Discriminator2d):
    """Each frame alone: video (B, 3, T, H, W) -> logits (B, T)."""

    block_type = BlurBlock
