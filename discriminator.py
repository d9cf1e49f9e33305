"""The adversary: a StyleGAN discriminator inflated to 3D, and its losses.

Paper   Sec. 3.1 Training (StyleGAN discriminator in 3D, LeCam), App. A.1, App. B.2 (sizes,
        non-saturating loss, R1 with cost 10)

Shapes  video (B, 3, T, H, W) -> logits (B,): how real the clip looks (2D: (B, T), per frame)
        At 128 px: 16x128x128 -> 8x64x64 -> 4x32x32 -> 2x16x16 -> 1x8x8 -> 1x4x4 -> a number.

Read    DiscriminatorConfig, DiscriminatorBlock, Discriminator3d, Discriminator2d; then the losses:
        generator_loss, discriminator_loss, r1_penalty, LeCam.

Not here: who is updated with what, and the weights of the terms (steps.py, tokenizer_step).

Run:    python discriminator.py      parameter counts, beside the paper's
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tokenizer import channels_last


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Sizes of a discriminator. The defaults are the paper's B at 128 px (App. B.2)."""

    base_channels: int = 64                                       # as the tokenizer's; official
    channel_multipliers: tuple[int, ...] = (2, 4, 4, 4, 4)        # App. B.2; (2, 4, 4, 4) at 64 px
    resolution: tuple[int, int, int] = (16, 128, 128)             # T, H, W: sizes the dense layer
    kernel: tuple[int, int, int] = (3, 3, 3)                      # (1, 3, 3) makes it 2D

    def build(self) -> Discriminator3d:
        return Discriminator3d(self)

    def image_twin(self) -> ImageDiscriminatorConfig:
        """The 2D discriminator of the same sizes."""
        return ImageDiscriminatorConfig(**vars(self) | dict(kernel=(1, 3, 3)))


@dataclass(frozen=True)
class ImageDiscriminatorConfig(DiscriminatorConfig):
    """Sizes of a 2D discriminator; DiscriminatorConfig.image_twin makes one."""

    def build(self) -> Discriminator2d:
        return Discriminator2d(self)


_64px = dict(channel_multipliers=(2, 4, 4, 4), resolution=(16, 64, 64))
DISCRIMINATORS = {
    "B": DiscriminatorConfig(),
    "L": DiscriminatorConfig(base_channels=128),
    "B-64px": DiscriminatorConfig(**_64px),
    "L-64px": DiscriminatorConfig(base_channels=128, **_64px),
    "toy": DiscriminatorConfig(base_channels=16, channel_multipliers=(1, 2, 2, 2),     # ours
                               resolution=(16, 32, 32)),
}


def pool_by_two(x: Tensor, axes: tuple[bool, bool, bool]) -> Tensor:
    """Average pairs of neighbours along the marked axes of (B, C, T, H, W).

    Where a length is odd, its last element has no partner and is kept as it is, which is what
    TensorFlow's SAME pooling does (official). A length of one stays one.
    """
    window = [2 if pooled and size > 1 else 1 for pooled, size in zip(axes, x.shape[2:])]
    return F.avg_pool3d(x, window, ceil_mode=True)


class DiscriminatorBlock(nn.Module):
    """conv, pool, conv beside pool, 1x1x1 conv; their sum keeps its variance by 1/sqrt(2).

    Pooling always includes time, until one frame is left (official).
    """

    pool = staticmethod(pool_by_two)        # a variant pools in another way

    def __init__(self, channels_in: int, channels_out: int, kernel: tuple[int, int, int]):
        super().__init__()
        padding = tuple(k // 2 for k in kernel)
        self.axes = tuple(k > 1 for k in kernel)
        self.conv1 = nn.Conv3d(channels_in, channels_in, kernel, padding=padding)
        self.conv2 = nn.Conv3d(channels_in, channels_out, kernel, padding=padding)
        self.skip = nn.Conv3d(channels_in, channels_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        main = self.pool(F.leaky_relu(self.conv1(x), 0.2), self.axes)
        main = F.leaky_relu(self.conv2(main), 0.2)
        return (main + self.skip(self.pool(x, self.axes))) / math.sqrt(2)


class Discriminator3d(nn.Module):
    """StyleGAN2's residual discriminator, simplified: no blur, no norm, no minibatch statistics.

    Convolutions are padded with zeros whatever the tokenizer does (official).
    """

    block_type = DiscriminatorBlock

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        self.config = config
        widths = [config.base_channels * multiplier for multiplier in config.channel_multipliers]
        self.conv_in = nn.Conv3d(3, config.base_channels, config.kernel,
                                 padding=tuple(k // 2 for k in config.kernel))
        self.blocks = nn.Sequential(*(
            self.block_type(channels_in, channels_out, config.kernel)
            for channels_in, channels_out in zip([config.base_channels, *widths], widths)))
        self.conv_out = nn.Conv3d(widths[-1], widths[-1], config.kernel,
                                  padding=tuple(k // 2 for k in config.kernel))
        left = [math.ceil(size / 2 ** len(widths)) if k > 1 else 1
                for size, k in zip(config.resolution, config.kernel)]
        self.dense = nn.Linear(widths[-1] * math.prod(left), widths[-1])
        self.logit = nn.Linear(widths[-1], 1)
        for module in self.modules():
            if isinstance(module, (nn.Conv3d, nn.Linear)):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, video: Tensor) -> Tensor:
        """video (B, 3, T, H, W) in [0, 1], of config.resolution -> logits (B,)."""
        if video.shape[2:] != self.config.resolution:
            raise ValueError(f"clip of {tuple(video.shape[2:])}; this discriminator's dense layer "
                             f"is for {self.config.resolution}: set its resolution")
        return self._logits(video)

    def _logits(self, video: Tensor) -> Tensor:
        # In float32: R1 differentiates twice, for which bfloat16 is too coarse.
        with torch.autocast(video.device.type, enabled=False):
            x = F.leaky_relu(self.conv_in(channels_last(video)), 0.2)
            x = F.leaky_relu(self.conv_out(self.blocks(x)), 0.2)
            x = F.leaky_relu(self.dense(rearrange(x, "b c t h w -> b (t h w c)")), 0.2)
            return self.logit(x)[:, 0]                                                  # (B,)


class Discriminator2d(Discriminator3d):
    """The 2D twin: 1x3x3 kernels, each frame alone. video (B, 3, T, H, W) -> logits (B, T)."""

    def __init__(self, config: DiscriminatorConfig):
        super().__init__(config.image_twin())

    def forward(self, video: Tensor) -> Tensor:
        logits = self._logits(rearrange(video, "b c t h w -> (b t) c 1 h w"))
        return rearrange(logits, "(b t) -> b t", b=len(video))


# ---------------------------------------------------------------------------------------------
# Losses: each takes the logits of a whole batch and returns a number

def generator_loss(fake_logits: Tensor) -> Tensor:
    """Non-saturating: -log sigmoid(D(fake)) (App. B.2)."""
    return F.softplus(-fake_logits).mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Non-saturating: -log sigmoid(D(real)) - log(1 - sigmoid(D(fake)))."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def r1_penalty(real_logits: Tensor, real: Tensor) -> Tensor:
    """R1 (App. B.2, cost 10): squared gradient of D at real clips, summed over pixels.

    Mean over the batch, without the half that other codes have (official), so that cost 10 is
    StyleGAN's gamma of 20. real (B, 3, T, H, W) must require grad and have led to real_logits.
    """
    gradient, = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3, 4)).mean()


class LeCam(nn.Module):
    """LeCam regularization (Sec. 3.1): keep D near the running averages of its own outputs.

        relu(mean D(real) - average of D(fake))^2 + relu(average of D(real) - mean D(fake))^2

    The averages decay by 0.999 a step from 0, without bias correction, and carry no gradient.
    `forward` reads them; `update` moves them, after the loss was taken (official). Both take means
    of logits over all processes, so that one process and many compute the same (ours).
    """

    def __init__(self, decay: float = 0.999):
        super().__init__()
        self.decay = decay
        self.register_buffer("average_real", torch.zeros(()))
        self.register_buffer("average_fake", torch.zeros(()))

    def forward(self, real_mean: Tensor, fake_mean: Tensor) -> Tensor:
        return (F.relu(real_mean - self.average_fake).square()
                + F.relu(self.average_real - fake_mean).square())

    @torch.no_grad()
    def update(self, real_mean: Tensor, fake_mean: Tensor) -> None:
        self.average_real.lerp_(real_mean, 1 - self.decay)
        self.average_fake.lerp_(fake_mean, 1 - self.decay)


# ---------------------------------------------------------------------------------------------

def main() -> None:
    print(f"{'size':8} {'3D':>12} {'2D':>12}   (the paper: 15 M and 61 M)")
    for name, config in DISCRIMINATORS.items():
        with torch.device("meta"):
            counts = [sum(p.numel() for p in size.build().parameters())
                      for size in (config, config.image_twin())]
        print(f"{name:8} {counts[0]:>12,} {counts[1]:>12,}")


if __name__ == "__main__":
    main()
