"""The causal tokenizer: frame t moves nothing before it, and a picture is a video of one frame.

Paper   MAGVIT-v2, App. A.1 and A.2, Fig. 7; layers as in google/praxis (official)

Shapes  video (B, 3, 1 + 4k, H, W) -> Encoder -> latents (B, bits, 1 + k, H/8, W/8)
          -> LookupFreeQuantizer -> tokens (B, t, h, w), signs (B, bits, t, h, w)
          -> Decoder -> video (B, 3, 1 + 4k, H, W)

Read    CausalConv and FrameNorm, which make it causal; Encoder, Decoder, CausalTokenizer; inflate.

Not here: the quantizer (lookup_free.py), what differs from the first paper's network and why
        (docs/magvit2.md).
"""
from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from magvit2.lookup_free import LookupFreeQuantizer
from tokenizer import Layers, VideoTokenizer, inflate

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class CausalConfig:
    """Sizes of a causal tokenizer. The defaults are the appendix's."""

    base_channels: int = 128                                         # App. A.2
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 4)              # App. A.2
    temporal_downsample: tuple[bool, ...] = (False, True, True)      # official: in the deep stages
    num_res_blocks: int = 4                                          # App. A.2; per stage, and mid
    bits: int = 18                                                   # App. A.2: 2^18 codes
    norm_groups: int = 32                                            # official
    entropy_temperature: float = 0.01                                # official
    epsilon: float = 0.0                                             # 1e-5 official: lookup_free.py
    image: bool = False                                              # the 2D twin: kernels 1xhxw

    def build(self) -> CausalTokenizer:
        return CausalTokenizer(self)

    def image_twin(self) -> CausalConfig:
        """The 2D tokenizer of the same sizes."""
        return replace(self, image=True)

    def inflate(self, image_state: dict[str, Tensor], network: nn.Module, mode: str = "last"
                ) -> nn.Module:
        """Start a causal network from the weights of its 2D twin, in place (App. A.1).

        A 2D kernel becomes the last slice of a kernel of zeros, which is the present frame's. Where
        an up-sampler's channels become frames, each frame starts with the same channels.
        """
        if mode != "last":
            raise ValueError(f"inflation {mode!r}; a causal tokenizer knows 'last' alone")
        filled = {}
        for name, target in network.state_dict().items():
            if name in image_state:
                source = image_state[name]
                source = torch.cat([source] * max(1, len(target) // len(source)))
                if source.ndim == target.ndim == 5:
                    source = F.pad(source, (0, 0, 0, 0, target.shape[2] - source.shape[2], 0))
                filled[name] = source
        return inflate(filled, network)             # of equal shapes now: copied, or refused

    @property
    def kinds(self) -> tuple:
        """Convolution, norm, norm that is told the codes, up-sampler, kernel of the down-sampler."""
        return CausalConv, FrameNorm, AdaptiveNorm, Upsample, (4, 4, 4)

    @property
    def codebook_size(self) -> int:
        return 2 ** self.bits

    @property
    def widths(self) -> list[int]:
        """Channels of each stage, shallow first."""
        return [self.base_channels * m for m in self.channel_multipliers]

    @property
    def strides(self) -> list[Triple]:
        """(time, height, width) factor of each down-sampler, shallow first."""
        return [(2 if temporal and not self.image else 1, 2, 2)
                for temporal in self.temporal_downsample]


CAUSAL_TOKENIZERS = {
    "appendix": CausalConfig(),
    "base": CausalConfig(base_channels=64, num_res_blocks=2),        # official name, 58 M
    "toy": CausalConfig(base_channels=16, channel_multipliers=(1, 1, 2, 2), num_res_blocks=1,
                        bits=10, norm_groups=4, entropy_temperature=0.1),            # ours
    # Of pictures, App. A.1. The multipliers are Open-MAGVIT2's, and ours: the paper's are unknown.
    "16x": CausalConfig(channel_multipliers=(1, 1, 2, 2, 4), temporal_downsample=(False,) * 4,
                        image=True),
    "32x": CausalConfig(channel_multipliers=(1, 1, 1, 2, 2, 4), temporal_downsample=(False,) * 5,
                        image=True),
}


# ---------------------------------------------------------------------------------------------
# Blocks

class CausalConv(nn.Conv3d):
    """A convolution padded with copies of the edge: in time only before, in space on both sides.

    Output j of a kernel of 4 with stride 2 sees the frames 2j - 3 to 2j. In a stream (streaming.py)
    the last frames of the piece before replace the padding in time.
    """

    streaming = False
    past: Tensor | None = None                  # (B, C, kernel - stride, H, W), padded in space

    def __init__(self, channels_in: int, channels_out: int, config: CausalConfig, *,
                 kernel: Triple = (3, 3, 3), stride: Triple = (1, 1, 1), bias: bool = True):
        kernel = (1, *kernel[1:]) if config.image else kernel
        super().__init__(channels_in, channels_out, kernel, stride, bias=bias)
        # LeCun normal, truncated at two deviations, as in the first paper's code.
        deviation = math.sqrt(1 / (channels_in * math.prod(kernel))) / 0.87962566
        nn.init.trunc_normal_(self.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
        if bias:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        t, h, w = self.kernel_size
        before = t - 1 if self.past is None else 0
        sides = ((w - 1) // 2, w // 2, (h - 1) // 2, h // 2, before, 0)
        x = F.pad(x, sides, mode="replicate") if any(sides) else x
        if self.past is not None:
            x = torch.cat([self.past, x], dim=2)
        if self.streaming:
            self.past = x[:, :, x.shape[2] - (t - self.stride[0]):]
        return super().forward(x)


class FrameNorm(nn.GroupNorm):
    """Group norm of each frame alone: statistics over time would depend on later frames."""

    def __init__(self, channels: int, config: CausalConfig, affine: bool = True):
        groups = channels // max(channels // config.norm_groups, 1)
        super().__init__(groups, channels, eps=1e-6, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        frames = super().forward(rearrange(x, "b c t h w -> (b t) c h w"))
        return rearrange(frames, "(b t) c h w -> b c t h w", b=len(x))


class ResidualBlock(nn.Module):
    """Norm, Swish, convolution, twice; added to the input. Convolutions have no bias."""

    def __init__(self, channels_in: int, channels_out: int, config: CausalConfig):
        super().__init__()
        conv, norm, *_ = config.kinds
        self.main = nn.Sequential(
            norm(channels_in, config), nn.SiLU(),
            conv(channels_in, channels_out, config, bias=False),
            norm(channels_out, config), nn.SiLU(),
            conv(channels_out, channels_out, config, bias=False))
        self.skip = (nn.Identity() if channels_in == channels_out else
                     conv(channels_in, channels_out, config, kernel=(1, 1, 1), bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.main(x)


def residual_blocks(channels_in: int, channels_out: int, config: CausalConfig) -> Layers:
    """config.num_res_blocks of them; the first changes the width."""
    return Layers(*(ResidualBlock(channels_out if n else channels_in, channels_out, config)
                    for n in range(config.num_res_blocks)))


class AdaptiveNorm(nn.Module):
    """Group norm whose scale and shift are linear in the codes, at each position."""

    def __init__(self, channels: int, config: CausalConfig):
        super().__init__()
        self.norm = FrameNorm(channels, config, affine=False)
        self.scale = CausalConv(config.bits, channels, config, kernel=(1, 1, 1))
        self.shift = CausalConv(config.bits, channels, config, kernel=(1, 1, 1))

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        return self.norm(x) * (1 + self.scale(codes)) + self.shift(codes)


class Upsample(nn.Module):
    """A convolution to t * 4 times the channels, which become t x 2 x 2 places; codes are repeated.

    Of the first frame's t frames only the last is kept, so 1 + k frames become 1 + t k.
    """

    def __init__(self, channels: int, stride: Triple, config: CausalConfig):
        super().__init__()
        self.stride = stride
        conv, *_ = config.kinds
        self.conv = conv(channels, channels * math.prod(stride), config)

    def places(self, x: Tensor) -> Tensor:
        a, b, c = self.stride
        return rearrange(self.conv(x), "n (a b c d) t h w -> n d (t a) (h b) (w c)", a=a, b=b, c=c)

    def forward(self, x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        # A later piece of a stream has no first frame.
        dropped = self.stride[0] - 1 if self.conv.past is None else 0
        x = self.places(x)
        codes = F.interpolate(codes, scale_factor=tuple(map(float, self.stride)), mode="nearest")
        return x[:, :, dropped:], codes[:, :, dropped:]


# ---------------------------------------------------------------------------------------------
# Networks

class Encoder(nn.Module):
    """video (B, 3, 1 + 4k, H, W) -> latents (B, bits, 1 + k, h, w)."""

    def __init__(self, config: CausalConfig):
        super().__init__()
        widths, (conv, norm, *_, down_kernel) = config.widths, config.kinds
        self.first = conv(3, widths[0], config, bias=False)
        self.stages = nn.ModuleList(
            nn.ModuleDict(dict(blocks=residual_blocks(before, width, config)))
            for before, width in zip([widths[0], *widths], widths))
        for stage, width, stride in zip(self.stages, widths, config.strides):
            stage["down"] = conv(width, width, config, kernel=down_kernel, stride=stride)
        self.mid = residual_blocks(widths[-1], widths[-1], config)
        self.last = nn.Sequential(norm(widths[-1], config), nn.SiLU(),
                                  conv(widths[-1], config.bits, config, kernel=(1, 1, 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for stage in self.stages:
            for layer in stage.values():
                x = layer(x)
        return self.last(self.mid(x))


class Decoder(nn.Module):
    """codes (B, bits, 1 + k, h, w) -> video (B, 3, 1 + 4k, H, W), linear; the last stage first."""

    def __init__(self, config: CausalConfig):
        super().__init__()
        conv, norm, adaptive, upsample, _ = config.kinds
        widths = config.widths
        self.first = conv(config.bits, widths[-1], config)
        self.mid = residual_blocks(widths[-1], widths[-1], config)
        self.stages = nn.ModuleList(
            nn.ModuleDict(dict(norm=adaptive(before, config),
                               blocks=residual_blocks(before, width, config)))
            for before, width in zip([*widths[1:], widths[-1]], widths))
        for stage, width, stride in zip(self.stages[1:], widths[1:], config.strides):
            stage["up"] = upsample(width, stride, config)
        self.last = nn.Sequential(norm(widths[0], config), nn.SiLU(), conv(widths[0], 3, config))

    def forward(self, codes: Tensor) -> Tensor:
        x = self.mid(self.first(codes))
        for stage in reversed(self.stages):
            x = stage["blocks"](stage["norm"](x, codes))
            if "up" in stage:
                x, codes = stage["up"](x, codes)
        return self.last(x)


class CausalTokenizer(VideoTokenizer):
    """MAGVIT-v2's tokenizer, with the methods of the first paper's."""

    quantizer_type = LookupFreeQuantizer

    def __init__(self, config: CausalConfig):
        nn.Module.__init__(self)
        self.config, self.codebook_size = config, config.codebook_size
        self.encoder = Encoder(config)
        self.quantizer = self.quantizer_type(config.bits, config.entropy_temperature,
                                             config.epsilon)
        self.decoder = Decoder(config)

    @property
    def lead(self) -> int:
        """Frames that the first latent has fewer than the others: see commit.is_padding."""
        return math.prod(time for time, _, _ in self.config.strides) - 1

    def latent_shape(self, T: int, H: int, W: int) -> Triple:
        """(t, h, w) of a (T, H, W) video: T is 1 + a multiple. ValueError where it is not."""
        factors = [math.prod(axis) for axis in zip(*self.config.strides)]
        for name, size, factor, first in zip("THW", (T, H, W), factors, (1, 0, 0)):
            if size < 1 or (size - first) % factor:
                raise ValueError(f"{name}={size} frames or pixels; this tokenizer needs "
                                 f"{'1 more than ' * first}a multiple of {factor}: cut the video")
        return (T + self.lead) // factors[0], H // factors[1], W // factors[2]
