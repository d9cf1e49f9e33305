"""The sequel's adversary: the first paper's, with a blur before every halving.

Paper   MAGVIT-v2, App. A.2 (multipliers, R1, LeCam); blur pooling as in google/praxis (official)

Shapes  video (B, 3, 1 + 4k, H, W) -> logits (B,); 17 frames become 9, 5, 3, 2, 1

Read    blur_pool, BlurDiscriminator3d.

Halving by a mean over pairs lets a shift by one pixel change what the next layer sees; a wider,
smooth window does so less. Nothing else differs: not causal, zeros around.

Run:    python -m magvit2.blur_discriminator     parameters, and what a shift by one pixel changes
"""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from discriminator import Discriminator3d, DiscriminatorBlock, DiscriminatorConfig, pool_by_two


def blur_pool(x: Tensor) -> Tensor:
    """Every second element along T, H and W of (B, C, T, H, W) after a blur by [1, 2, 1] / 4.

    Zeros around, one at each end of an odd length, one at the end of an even one (JAX's SAME).
    """
    taps = torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype, device=x.device) / 4
    window = taps[:, None, None] * taps[:, None] * taps                              # (3, 3, 3)
    sides = [side for size in reversed(x.shape[2:]) for side in (size % 2, 1)]
    kernel = window.expand(x.shape[1], 1, 3, 3, 3)
    return F.conv3d(F.pad(x, sides), kernel, stride=2, groups=x.shape[1])


class BlurBlock(DiscriminatorBlock):
    """conv, blur pool, conv beside blur pool, 1x1x1 conv; their sum, by 1/sqrt(2)."""

    def forward(self, x: Tensor) -> Tensor:
        main = blur_pool(F.leaky_relu(self.conv1(x), 0.2))
        main = F.leaky_relu(self.conv2(main), 0.2)
        return (main + self.skip(blur_pool(x))) / math.sqrt(2)


class BlurDiscriminator3d(Discriminator3d):
    """discriminator.Discriminator3d with BlurBlock."""

    block_type = BlurBlock


def main() -> None:
    config = DiscriminatorConfig(base_channels=128, resolution=(17, 128, 128))
    with torch.device("meta"):
        count = sum(p.numel() for p in BlurDiscriminator3d(config).parameters())
    print(f"at 17x128x128: {count:,} parameters")
    video = torch.rand(1, 3, 17, 64, 64, generator=torch.Generator().manual_seed(0))
    for name, pool in (("pairs", lambda x: pool_by_two(x, (True,) * 3)), ("blur", blur_pool)):
        change = (pool(video) - pool(video.roll(1, -1)))[..., 1:-1].std() / pool(video).std()
        print(f"{name:5}  a shift by one pixel changes {change:.0%} of what is left")


if __name__ == "__main__":
    main()
