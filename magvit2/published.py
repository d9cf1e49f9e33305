"""Weights that exist: Open-MAGVIT2's tokenizers, read into a twin of their architecture.

Paper   MAGVIT-v2 as rebuilt by TencentARC (SEED-Voken, formerly Open-MAGVIT2, Apache-2.0);
        Google published no weights

Shapes  a checkpoint, or its state dict -> load -> PublishedTokenizer, with VideoTokenizer's methods

Read    the four layers that differ from causal_tokenizer.py; THEIRS, load.

Not here: which files there are, and where (docs/magvit2.md).

Run:    python -m magvit2.published FILE video in.mp4 out.mp4    through the tokenizer and back
"""
from __future__ import annotations

import pickle
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from data.clips import check_output, read_video, write_video
from data.source import to_float
from magvit2.causal_tokenizer import CausalConfig, CausalConv, CausalTokenizer, Upsample
from magvit2.lookup_free import LookupFreeQuantizer
from measure.metrics import frames_of, psnr
from measure.pictures import to_frames


class ZeroConv(CausalConv):
    """Zeros around: in time before only, in space half a kernel on both sides."""

    def forward(self, x: Tensor) -> Tensor:
        t, h, w = self.kernel_size
        return nn.Conv3d.forward(self, F.pad(x, (w // 2, w // 2, h // 2, h // 2, t - 1, 0)))


class JointNorm(nn.GroupNorm):
    """Group norm over (T, H, W) jointly: every frame moves every other."""

    def __init__(self, channels: int, config: CausalConfig, affine: bool = True):
        super().__init__(config.norm_groups, channels, eps=1e-6, affine=affine)


class StyleNorm(nn.Module):
    """Group norm scaled by the deviation of the clip's codes and shifted by their mean.

    The deviation is of N - 1, as theirs, so a clip of a single code has none (NaN).
    """

    def __init__(self, channels: int, config: CausalConfig):
        super().__init__()
        self.norm = JointNorm(channels, config, affine=False)
        self.scale = nn.Linear(config.bits, channels)
        self.shift = nn.Linear(config.bits, channels)

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        codes = codes.flatten(2)
        scale, shift = self.scale((codes.var(2) + 1e-6).sqrt()), self.shift(codes.mean(2))
        return self.norm(x) * scale[:, :, None, None, None] + shift[:, :, None, None, None]


class SecondFrameDropped(Upsample):
    """Of the two frames that the first one becomes, the first is kept; codes stay as they are."""

    def forward(self, x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        x = self.places(x)
        return torch.cat([x[:, :, :1], x[:, :, self.stride[0]:]], dim=2), codes


@dataclass(frozen=True)
class PublishedConfig(CausalConfig):
    """Sizes of a published tokenizer; load reads them from the weights."""

    def build(self) -> PublishedTokenizer:
        return PublishedTokenizer(self)

    @property
    def kinds(self) -> tuple:
        return ZeroConv, JointNorm, StyleNorm, SecondFrameDropped, (3, 3, 3)


class PublishedQuantizer(LookupFreeQuantizer):
    """A latent of exactly 0 is negative."""

    def positive(self, latents: Tensor) -> Tensor:
        return latents > 0


class PublishedTokenizer(CausalTokenizer):
    """Open-MAGVIT2's tokenizer, for use: encode and decode. Videos in [0, 1], as everywhere."""

    quantizer_type = PublishedQuantizer

    def _run(self, network: nn.Module, x: Tensor) -> Tensor:
        B, image = len(x), self.config.image
        x = 2 * x - 1 if network is self.encoder else x
        x = rearrange(x, "b c t h w -> (b t) c 1 h w") if image else x
        x = super()._run(network, x)
        x = rearrange(x, "(b t) c 1 h w -> b c t h w", b=B) if image else x
        return (x + 1) / 2 if network is self.decoder else x


# Parts of our parameters' names -> theirs, in this order.
THEIRS = [(r"stages\.(\d)\.norm\.scale", r"adaptive.\1.gamma"),
          (r"stages\.(\d)\.norm\.shift", r"adaptive.\1.beta"),
          (r"stages\.(\d)\.up\.conv", r"up.\1.upsample.conv1"),
          (r"stages\.(\d)\.down", r"down.\1.downsample"),
          (r"encoder\.stages\.(\d)\.blocks", r"encoder.down.\1.block"),
          (r"decoder\.stages\.(\d)\.blocks", r"decoder.up.\1.block"),
          (r"\.mid\.", ".mid_block."), (r"\.first\.", ".conv_in."), (r"last\.0", "norm_out"),
          (r"last\.2", "conv_out"), (r"main\.0", "norm1"), (r"main\.2", "conv1"),
          (r"main\.3", "norm2"), (r"main\.5", "conv2"), (r"skip", "nin_shortcut")]


def their_name(name: str, video: bool) -> str:
    """A parameter's name in their state dict."""
    for ours, theirs in THEIRS:
        name = re.sub(ours, theirs, name)
    layer, _, kind = name.rpartition(".")
    within = ".conv_1" if video and not re.search(r"norm|gamma|beta", name) else ""
    return f"{layer}{within}.{kind}"


def sizes(state: dict[str, Tensor], video: bool) -> PublishedConfig:
    """The sizes that a state dict has."""
    conv = ".conv_1" if video else ""
    try:
        base, bits = (len(state[f"encoder.{name}{conv}.weight"]) for name in ("conv_in", "conv_out"))
    except KeyError as missing:
        raise ValueError(f"no {missing} among {len(state)} names: these are no weights of an "
                         f"Open-MAGVIT2 {'video' if video else 'image'} tokenizer") from None
    firsts = (f"encoder.down.{n}.block.0.conv1{conv}.weight" for n in range(16))
    multipliers = tuple(len(state[name]) // base for name in firsts if name in state)
    blocks = sum(f"encoder.mid_block.{n}.norm1.weight" in state for n in range(16))
    return PublishedConfig(base_channels=base, channel_multipliers=multipliers,
                           temporal_downsample=tuple(m != 1 for m in multipliers[:-1]),
                           num_res_blocks=blocks, bits=bits, image=not video)


def load(path_or_state: str | Path | dict, kind: str) -> PublishedTokenizer:
    """A published tokenizer, in eval mode. kind: "video" or "image".

    A file is read as plain tensors (weights_only). Averaged weights, model_ema.* with the dots of
    the names removed, are preferred where they are. ValueError names what is missing or has
    another shape.
    """
    if kind not in ("video", "image"):
        raise ValueError(f"kind {kind!r} is unknown; choose video or image")
    state = path_or_state if isinstance(path_or_state, dict) else torch.load(
        path_or_state, map_location="cpu", weights_only=True)
    state, video = state.get("state_dict", state), kind == "video"
    config = sizes(state, video)
    with torch.device("meta"):
        tokenizer = PublishedTokenizer(config)
    read = {}
    for name, parameter in tokenizer.state_dict().items():
        theirs = their_name(name, video)
        found = state.get("model_ema." + theirs.replace(".", ""), state.get(theirs))
        if found is None:
            raise ValueError(f"{theirs} is missing: this is no Open-MAGVIT2 {kind} tokenizer")
        if not video and found.ndim == 4:
            found = found[:, :, None]
        if found.shape != parameter.shape:
            raise ValueError(f"{theirs} is {tuple(found.shape)}; wanted {tuple(parameter.shape)}")
        read[name] = found
    tokenizer.load_state_dict(read, assign=True)
    return tokenizer.eval().requires_grad_(False)


def through(file: str, kind: str, video_in: str, video_out: str) -> None:
    """A video through a published tokenizer and back, in pieces of 17 frames, each alone (theirs).

    The last piece is cut to 1 + 4k frames, and each side to a multiple of 16 pixels.
    """
    check_output(video_out)
    tokenizer = load(file, kind)
    video = to_float(read_video(video_in)[None])
    H, W = (size // 16 * 16 for size in video.shape[3:])
    made = []
    for piece in video[..., :H, :W].split(17, dim=2):
        piece = piece[:, :, :(piece.shape[2] - 1) // 4 * 4 + 1]
        made.append(tokenizer.decode(tokenizer.encode(piece)).clamp(0, 1))
        print(f"{psnr(frames_of(made[-1]), frames_of(piece)).mean():.2f} dB")
    write_video(video_out, to_frames(torch.cat(made, dim=2)[0]))
    print(f"wrote {video_out}")


def main() -> None:
    if len(sys.argv) != 5:
        sys.exit(__doc__.split("\n\n")[-1])
    try:
        through(*sys.argv[1:])
    except pickle.UnpicklingError:
        sys.exit(f"published.py: {sys.argv[1]} holds no checkpoint of plain tensors; not loaded")
    except (ValueError, OSError) as error:
        sys.exit(f"published.py: {error}")


if __name__ == "__main__":
    main()
