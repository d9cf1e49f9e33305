"""Video <-> tokens: the 3D-VQ autoencoder of MAGVIT, its 2D ancestor, and inflation.

Paper   Sec. 3.1 (Spatial-Temporal Tokenization), App. A.1 (architecture), App. B.2 (sizes)

Shapes  video (B, 3, T, H, W) in [0, 1]
          -> Encoder           -> latents (B, D, t, h, w)
          -> VectorQuantizer   -> tokens (B, t, h, w) in [0, K), one per 4x8x8 pixels at 128 px
          -> Decoder           -> reconstruction (B, 3, T, H, W), linear: clip it to look at it

Read    TokenizerConfig, the blocks, Encoder, Decoder, VectorQuantizer, VideoTokenizer, inflate.

Run:    python tokenizer.py        parameters and tokens of every size, beside the paper's
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class TokenizerConfig:
    """Sizes of a tokenizer. The defaults are the paper's B at 128 px (App. B.2)."""

    base_channels: int = 64                                          # App. B.2: 64 for B, 128 for L
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 4)              # App. B.2; (1, 2, 4) at 64 px
    temporal_downsample: tuple[bool, ...] = (True, True, False)      # 3D in the shallow stages
    num_res_blocks: int = 2                                          # per stage; official
    codebook_size: int = 1024                                        # K, App. B.2
    embedding_dim: int = 256                                         # D, App. B.2
    padding: str = "reflect"               # Sec. 3.1; "zeros" is what the released configs run
    kernel: tuple[int, int, int] = (3, 3, 3)                         # (1, 3, 3) makes it 2D
    norm_groups: int = 32                                            # official
    entropy_temperature: float = 0.01                                # official

    def __post_init__(self):
        if len(self.temporal_downsample) != len(self.channel_multipliers) - 1:
            raise ValueError(f"temporal_downsample has {len(self.temporal_downsample)} entries; "
                             f"give {len(self.channel_multipliers) - 1}, one between two stages")
        if self.padding not in ("reflect", "zeros"):
            raise ValueError(f"padding is {self.padding!r}; choose 'reflect' or 'zeros'")

    def build(self) -> VideoTokenizer:
        return VideoTokenizer(self)

    def image_twin(self) -> ImageTokenizerConfig:
        """The 2D-VQ of the same sizes: 1x3x3 kernels, and time is never pooled."""
        flat = dict(kernel=(1, 3, 3), temporal_downsample=(False,) * len(self.temporal_downsample))
        return ImageTokenizerConfig(**vars(self) | flat)

    @property
    def strides(self) -> list[tuple[int, int, int]]:
        """(time, height, width) factor of each down-sampler, shallow first."""
        return [(2 if temporal else 1, 2, 2) for temporal in self.temporal_downsample]

    @property
    def widths(self) -> list[int]:
        """Channels of each stage, shallow first."""
        return [self.base_channels * m for m in self.channel_multipliers]


@dataclass(frozen=True)
class ImageTokenizerConfig(TokenizerConfig):
    """Sizes of a 2D-VQ; TokenizerConfig.image_twin makes one."""

    def build(self) -> ImageTokenizer:
        return ImageTokenizer(self)


_64px = dict(channel_multipliers=(1, 2, 4), temporal_downsample=(True, True))
_small = dict(base_channels=16, num_res_blocks=1, embedding_dim=32, norm_groups=4)
TOKENIZERS = {
    "B": TokenizerConfig(),
    "L": TokenizerConfig(base_channels=128),
    "B-64px": TokenizerConfig(**_64px),
    "L-64px": TokenizerConfig(base_channels=128, **_64px),
    # Ours: a laptop trains "toy" in minutes and, on real videos, "clips" in an hour.
    "toy": TokenizerConfig(channel_multipliers=(1, 1, 2, 2), codebook_size=512, **_small),
    "clips": TokenizerConfig(channel_multipliers=(1, 1, 2), temporal_downsample=(True, False),
                             **_small),
}


# ---------------------------------------------------------------------------------------------
# Blocks (App. A.1, Fig. 1b)

def channels_last(x: Tensor) -> Tensor:
    """The layout in memory in which 3D convolutions are twice as fast; the values are the same."""
    return x.contiguous(memory_format=torch.channels_last_3d)


def conv(channels_in: int, channels_out: int, config: TokenizerConfig, *,
         kernel: tuple[int, int, int] | None = None, bias: bool) -> nn.Conv3d:
    """A convolution that keeps (T, H, W): half a kernel of padding on every side (Sec. 3.1)."""
    kernel = kernel or config.kernel
    layer = nn.Conv3d(channels_in, channels_out, kernel, padding=tuple(k // 2 for k in kernel),
                      padding_mode=config.padding, bias=bias)
    # LeCun normal, truncated at two deviations (official); 0.8796 restores the lost variance.
    deviation = math.sqrt(1 / (channels_in * math.prod(kernel))) / 0.87962566
    nn.init.trunc_normal_(layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class NormSwish(nn.Sequential):
    """Group normalization over (T, H, W) jointly, then Swish (App. A.1)."""

    def __init__(self, channels: int, config: TokenizerConfig):
        super().__init__(nn.GroupNorm(config.norm_groups, channels, eps=1e-6), nn.SiLU())


class ResidualBlock(nn.Module):
    """Pre-activation: norm, Swish, conv, twice; added to the input. Convolutions have no bias."""

    def __init__(self, channels_in: int, channels_out: int, config: TokenizerConfig):
        super().__init__()
        self.main = nn.Sequential(
            NormSwish(channels_in, config), conv(channels_in, channels_out, config, bias=False),
            NormSwish(channels_out, config), conv(channels_out, channels_out, config, bias=False))
        self.skip = (nn.Identity() if channels_in == channels_out else
                     conv(channels_in, channels_out, config, kernel=(1, 1, 1), bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.main(x)


class Upsample(nn.Module):
    """Nearest resizing, then a convolution that keeps the channels (App. A.1)."""

    def __init__(self, channels: int, stride: tuple[int, int, int], config: TokenizerConfig):
        super().__init__()
        self.stride = stride
        self.conv = conv(channels, channels, config, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=self.stride, mode="nearest"))


class Layers(nn.Sequential):
    """A sequence that can recompute its activations in the backward pass, to save memory."""

    recompute = False

    def forward(self, x: Tensor) -> Tensor:
        again = self.recompute and torch.is_grad_enabled()
        for layer in self:
            x = checkpoint(layer, x, use_reentrant=False) if again else layer(x)
        return x


class Encoder(Layers):
    """video (B, 3, T, H, W) -> latents (B, D, t, h, w): deeper, smaller, wider.

    At 128 px, size B:      3 x 16 x 128 x 128    video
        conv               64 x 16 x 128 x 128
        2 blocks, pool     64 x  8 x  64 x  64    time, height and width are halved
        2 blocks, pool    128 x  4 x  32 x  32    likewise
        2 blocks, pool    128 x  4 x  16 x  16    height and width alone: 2D in the deep stages
        4 blocks, conv    256 x  4 x  16 x  16    latents
    """

    def __init__(self, config: TokenizerConfig):
        channels = config.base_channels
        layers: list[nn.Module] = [conv(3, channels, config, bias=False)]
        for width, stride in zip(config.widths, [*config.strides, None]):
            for _ in range(config.num_res_blocks):
                layers.append(ResidualBlock(channels, width, config))
                channels = width
            if stride is not None:                  # pooled, not a strided convolution (App. A.1)
                layers.append(nn.AvgPool3d(stride))
        layers += [ResidualBlock(channels, channels, config) for _ in range(config.num_res_blocks)]
        layers += [NormSwish(channels, config),
                   conv(channels, config.embedding_dim, config, kernel=(1, 1, 1), bias=True)]
        super().__init__(*layers)


class Decoder(Layers):
    """embeddings (B, D, t, h, w) -> video (B, 3, T, H, W): the encoder mirrored, 2D first.

    At 128 px, size B:    256 x  4 x  16 x  16    embeddings
        4 blocks, resize  256 x  4 x  32 x  32    height and width are doubled
        2 blocks, resize  128 x  8 x  64 x  64    time, height and width are doubled
        2 blocks, resize  128 x 16 x 128 x 128    likewise
        2 blocks, conv      3 x 16 x 128 x 128    video, linear
    """

    def __init__(self, config: TokenizerConfig):
        channels = config.widths[-1]
        layers: list[nn.Module] = [conv(config.embedding_dim, channels, config, bias=True)]
        layers += [ResidualBlock(channels, channels, config) for _ in range(config.num_res_blocks)]
        for width, stride in zip(reversed(config.widths), [*reversed(config.strides), None]):
            for _ in range(config.num_res_blocks):
                layers.append(ResidualBlock(channels, width, config))
                channels = width
            if stride is not None:
                layers.append(Upsample(channels, stride, config))
        layers += [NormSwish(channels, config), conv(channels, 3, config, bias=True)]
        super().__init__(*layers)


# ---------------------------------------------------------------------------------------------
# Quantization

def average_over_processes(x: Tensor) -> Tensor:
    """Mean over all processes. Each passes on a gradient of 1; a step averages them later."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return x
    mean = x.detach().clone()
    torch.distributed.all_reduce(mean)
    return mean / torch.distributed.get_world_size() + (x - x.detach())


def entropy_loss(distances: Tensor, temperature: float) -> Tensor:
    """Mean entropy of each position's code minus entropy of the mean code (official).

    Low when every position is sure of its code and all codes are in use: what keeps the codebook
    from collapsing. distances: (N, K) squared distances. The paper does not mention this term.
    """
    log_probability = F.log_softmax(-distances / temperature, dim=-1)              # (N, K)
    probability = log_probability.exp()
    entropy_each = -(probability * log_probability).sum(-1).mean()
    mean_code = average_over_processes(probability.mean(0))                        # (K,)
    entropy_mean = -(mean_code * (mean_code + 1e-5).log()).sum()
    return entropy_each - entropy_mean


class Quantized(NamedTuple):
    embeddings: Tensor          # (B, D, t, h, w); their gradient goes straight to the latents
    tokens: Tensor              # (B, t, h, w) int64 in [0, K)
    commitment_loss: Tensor     # pulls the latents to their codes; reaches the encoder only
    codebook_loss: Tensor       # pulls the codes to their latents; reaches the codebook only
    entropy_loss: Tensor        # reaches both


class VectorQuantizer(nn.Module):
    """Nearest code in squared Euclidean distance; the codebook is an ordinary parameter."""

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.temperature = config.entropy_temperature
        self.codebook = nn.Parameter(torch.empty(config.codebook_size, config.embedding_dim))
        bound = math.sqrt(3 / config.codebook_size)           # official: fan-in counted as K
        nn.init.uniform_(self.codebook, -bound, bound)

    def distances(self, latents: Tensor) -> Tensor:
        """(B, D, t, h, w) -> (B*t*h*w, K) squared distances, in float32: they differ by little."""
        with torch.autocast(latents.device.type, enabled=False):
            z = rearrange(latents.float(), "b d t h w -> (b t h w) d")
            return (z.square().sum(1, keepdim=True) - 2 * z @ self.codebook.T
                    + self.codebook.square().sum(1))

    def lookup(self, tokens: Tensor) -> Tensor:
        """tokens (B, t, h, w) -> embeddings (B, D, t, h, w)."""
        return rearrange(F.embedding(tokens, self.codebook), "b t h w d -> b d t h w")

    def tokens(self, latents: Tensor) -> Tensor:
        """latents (B, D, t, h, w) -> tokens (B, t, h, w), the first of equally near codes."""
        return self.distances(latents).argmin(1).view(latents[:, 0].shape)

    def forward(self, latents: Tensor) -> Quantized:
        distances = self.distances(latents)                                        # (N, K)
        tokens = distances.argmin(1).view(latents[:, 0].shape)
        codes = self.lookup(tokens)
        return Quantized(
            embeddings=latents + (codes - latents).detach(),                 # straight-through
            tokens=tokens,
            commitment_loss=F.mse_loss(latents, codes.detach()),
            codebook_loss=F.mse_loss(codes, latents.detach()),
            entropy_loss=entropy_loss(distances, self.temperature))


class TokenizerOutput(NamedTuple):
    reconstruction: Tensor      # (B, 3, T, H, W), linear, not clipped
    tokens: Tensor              # (B, t, h, w)
    commitment_loss: Tensor     # the three quantizer losses, unweighted
    codebook_loss: Tensor
    entropy_loss: Tensor


class VideoTokenizer(nn.Module):
    """3D-VQ: f_T and its inverse (Sec. 3.1)."""

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config, self.codebook_size = config, config.codebook_size
        self.encoder = Encoder(config)
        self.quantizer = VectorQuantizer(config)
        self.decoder = Decoder(config)

    def latent_shape(self, T: int, H: int, W: int) -> tuple[int, int, int]:
        """(t, h, w) of a (T, H, W) video. ValueError where a size does not divide."""
        factors = [math.prod(axis) for axis in zip(*self.config.strides)]
        for name, size, factor, kernel in zip("THW", (T, H, W), factors, self.config.kernel):
            if size % factor or size == 0:
                raise ValueError(f"{name}={size} frames or pixels; this tokenizer needs a multiple "
                                 f"of {factor}: crop or resize the video")
            if self.config.padding == "reflect" and size // factor <= kernel // 2:
                raise ValueError(f"latent {name.lower()}={size // factor}; reflect padding needs "
                                 f"at least {kernel // 2 + 1}: use a longer or larger video")
        return T // factors[0], H // factors[1], W // factors[2]

    def latents(self, video: Tensor) -> Tensor:
        """video (B, 3, T, H, W) in [0, 1] -> float32 latents (B, D, t, h, w), not yet codes.

        ValueError where the shape or the dtype is another; encode checks the values, too.
        """
        if video.ndim != 5 or video.shape[1] != 3 or not video.is_floating_point():
            raise ValueError(f"video is {video.dtype} {tuple(video.shape)}; wanted floats "
                             "(B, 3, T, H, W) in [0, 1]")
        self.latent_shape(*video.shape[2:])
        return self._run(self.encoder, video)

    def forward(self, video: Tensor) -> TokenizerOutput:
        """One training pass. video (B, 3, T, H, W) in [0, 1]."""
        quantized = self.quantizer(self.latents(video))
        reconstruction = self._run(self.decoder, quantized.embeddings)
        return TokenizerOutput(reconstruction, quantized.tokens, quantized.commitment_loss,
                               quantized.codebook_loss, quantized.entropy_loss)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """f_T: video (B, 3, T, H, W) in [0, 1] -> tokens (B, t, h, w), without gradient.

        ValueError where pixels are outside of [0, 1] by more than a sixteenth, or not floats.
        """
        refuse_other_pixels(video)
        return self.quantizer.tokens(self.latents(video))

    def decode(self, tokens: Tensor) -> Tensor:
        """f_T inverse: tokens (B, t, h, w) -> video (B, 3, T, H, W), linear, not clipped."""
        if tokens.min() < 0 or tokens.max() >= self.codebook_size:
            raise ValueError(f"token ids from {tokens.min()} to {tokens.max()}; the codebook has "
                             f"0 to {self.codebook_size - 1} ([MASK] cannot be decoded)")
        return self._run(self.decoder, self.quantizer.lookup(tokens))

    def _run(self, network: Layers, x: Tensor) -> Tensor:
        """Encoder or decoder on x (B, C, T, H, W); in float32 from there on."""
        return network(channels_last(x)).float()


class ImageTokenizer(VideoTokenizer):
    """2D-VQ: the same networks with 1x3x3 kernels and no pooling of time, each frame alone.

    Videos are (B, 3, T, H, W) here, too, an image has T = 1, and tokens are (B, T, h, w).
    config may also be that of the 3D-VQ.
    """

    def __init__(self, config: TokenizerConfig):
        super().__init__(config.image_twin())

    def _run(self, network: Layers, x: Tensor) -> Tensor:
        frames = super()._run(network, rearrange(x, "b c t h w -> (b t) c 1 h w"))
        return rearrange(frames, "(b t) c 1 h w -> b c t h w", b=len(x))


def refuse_other_pixels(video: Tensor) -> None:
    """ValueError where pixels are not floats in [0, 1], with a sixteenth of slack for resampling."""
    low, high = (float(value) for value in video.aminmax())
    if not (video.is_floating_point() and low >= -1 / 16 and high <= 1 + 1 / 16):
        raise ValueError(f"pixels are {video.dtype} from {low:.4g} to {high:.4g}; wanted floats in "
                         "[0, 1]: divide bytes by 255, or map [-1, 1] with (x + 1) / 2")


def inflate(image_state: dict[str, Tensor], video_network: nn.Module,
            mode: str = "central") -> nn.Module:
    """Start a 3D tokenizer or discriminator from its 2D twin, in place (Sec. 3.1, Table 7).

    Layers of equal shape are copied. A 2D kernel becomes, with k the length of the new time axis:
      "central"   the middle slice of a kernel of zeros, so at first each frame is alone;
      "average"   k copies divided by k, so at first frames are blurred together.
    """
    if mode not in ("central", "average"):
        raise ValueError(f"inflation {mode!r}; choose 'central' or 'average'")
    inflated = {}
    for name, target in video_network.state_dict().items():
        source = image_state.get(name, torch.empty(0))
        if source.shape == target.shape:
            inflated[name] = source
        elif source.ndim == target.ndim == 5 and source[:, :, 0].shape == target[:, :, 0].shape:
            length = target.shape[2]
            if mode == "average":
                inflated[name] = (source / length).expand_as(target)
            else:
                inflated[name] = torch.zeros_like(target)
                inflated[name][:, :, length // 2] = source[:, :, 0]
        else:
            raise ValueError(f"{name} is {tuple(target.shape)} in 3D and " + (
                f"{tuple(source.shape)} in 2D: give both networks the same sizes"
                if name in image_state else "missing in 2D: that network is not its twin"))
    video_network.load_state_dict(inflated)
    return video_network


def main() -> None:
    print("size            3D-VQ        2D-VQ   16x128x128 ->   (the paper: 41 M, 158 M and 53 M)")
    for name, config in TOKENIZERS.items():
        with torch.device("meta"):
            networks = config.build(), config.image_twin().build()
        print(f"{name:8}", *(f"{sum(p.numel() for p in network.parameters()):>12,}"
                             for network in networks), " ", networks[0].latent_shape(16, 128, 128))


if __name__ == "__main__":
    main()
