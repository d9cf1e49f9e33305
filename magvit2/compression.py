"""Tokens as a video codec, beside the codecs that people use.

Paper   MAGVIT-v2, App. A.3 and Fig. 9 (there on MCL-JCV, with raters; here by numbers alone)

Shapes  clips (B, 3, T, H, W) in [0, 1] -> tokens -> clips; bits = tokens x log2 K
        the same clips -> x264, x265, AV1, VP9 at several CRF -> packets -> clips; bits = 8 x bytes

Read    run_point and codec_point, a row of the table each; coded_bits; ms_ssim.

A tokenizer has one rate, log2 K bits a token. An arithmetic coder that is driven by the masked
transformer would need fewer (coded_bits). Nothing is coded here: bits are only counted.

Of a codec, only the packets are counted, without a container, and each clip is a stream of its own,
as it is for the tokenizer. Such short streams cost a codec more: one frame of 16 is a whole picture.

Run:    python -m magvit2.compression RUN... [--videos DIR] [--size 128] [--out curve.png]
"""
from __future__ import annotations

import argparse
import math
import os
import sys
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from commit import task_index
from data.clips import VideoFolder
from data.moving_shapes import MovingShapes
from data.source import all_clips, to_float
from measure.metrics import check_pictures, frames_of, grey, mean_of_finite, psnr, ssim_terms
from measure.networks import LPIPS
from measure.pictures import canvas
from measure.pretrained import load_lpips
from measure.report import aligned
from training.checkpoint import is_there, load_run

# Encoder, decoder, and options that let CRF alone decide; medium or comparable effort.
CODECS = {"x264": ("libx264", "h264", {}),
          "x265": ("libx265", "hevc", {"x265-params": "log-level=none:info=0"}),
          "AV1": ("libsvtav1", "libdav1d", {"preset": "6"}),
          "VP9": ("libvpx-vp9", "vp9", {"b": "0", "cpu-used": "2"})}
CRFS = 20, 30, 40, 50
RATE = 25                                               # frames a second, which codecs ask for
FORMS = "%.4f", "%.4f", "%.2f", "%.4f", "%.4f"          # of a Point's numbers, in their order


class Point(NamedTuple):
    """What a codec or a tokenizer makes of the clips, and for how many bits."""

    name: str
    rate: float                         # bits per pixel
    coded: float | None                 # bits per pixel that an arithmetic coder would leave
    psnr: float
    ms_ssim: float
    lpips: float | None


def quality(name: str, bits: float, coded: float | None, video: Tensor, decoded: Tensor,
            lpips: LPIPS | None) -> Point:
    """The point of clips (B, 3, T, H, W) that took so many bits."""
    pair, pixels = (frames_of(decoded), frames_of(video)), video[:, 0].numel()
    return Point(name, bits / pixels, coded and coded / pixels,
                 mean_of_finite(psnr(*pair).flatten()).item(),
                 ms_ssim(*pair, scales=scales_for(video)).mean().item(),
                 lpips(*pair).mean().item() if lpips else None)


# ---------------------------------------------------------------------------------------------
# MS-SSIM

SCALE_WEIGHTS = 0.0448, 0.2856, 0.3001, 0.2363, 0.1333


def ms_ssim(a: Tensor, b: Tensor, scales: int = 5) -> Tensor:
    """Multi-scale structural similarity of (..., 3, H, W) in [0, 1] -> (...) (Wang et al. 2003).

    Each scale is half as fine as the one before. The mean contrasts of all scales and the SSIM of
    the coarsest are multiplied, each to the power of its weight; a negative one counts as 0. An odd
    side repeats its last pixel (TensorFlow). Five scales need 161 pixels a side. Fewer scales, with
    their weights divided by the sum, are another measure: say so.
    """
    check_pictures(a, b, smallest=10 * 2 ** (scales - 1) + 1)
    x, y = (rearrange(grey(picture), "... h w -> (...) 1 h w") for picture in (a, b))
    similarity = 1.0
    for scale in range(scales):
        luminance, contrast = ssim_terms(x, y)
        last = contrast * luminance if scale == scales - 1 else contrast
        power = SCALE_WEIGHTS[scale] / sum(SCALE_WEIGHTS[:scales])
        similarity = similarity * last.mean(dim=(-3, -2, -1)).clamp(min=0) ** power
        x, y = (F.avg_pool2d(F.pad(picture, (0, picture.shape[-1] % 2, 0, picture.shape[-2] % 2),
                                   mode="replicate"), 2) for picture in (x, y))
    return similarity.view(a.shape[:-3])


def scales_for(video: Tensor) -> int:
    """The most scales of MS-SSIM that clips of this size have room for: five from 161 pixels."""
    return max(1, min(5, 1 + int(math.log2((min(video.shape[-2:]) - 1) / 10))))


# ---------------------------------------------------------------------------------------------
# Tokenizers

@torch.no_grad()
def run_point(folder: str, videos: str | None, size: int | None, clips: int, lpips: LPIPS | None
              ) -> tuple[Tensor, Point]:
    """The clips that a run's tokenizer is shown, and what it makes of them.

    videos: a folder, or None for drawn clips; size in pixels, or None for that of its training.
    """
    whole = is_there(Path(folder, "transformer.pt"))
    run = load_run(folder, stages=("tokenizer", "transformer") if whole else ("tokenizer",))
    side, frames, tokenizer = size or run.config.resolution, run.config.frames, run.tokenizer
    source = VideoFolder(videos, (frames, side, side)) if videos else MovingShapes("test", frames)
    video, label = (each[:clips] for each in all_clips(source))
    parts = [tokenizer.encode(part) for part in video.split(4)]
    decoded = torch.cat([tokenizer.decode(part).clamp(0, 1) for part in parts])
    tokens, coded = torch.cat(parts).flatten(1), None
    if whole and tokens.shape[1] == run.transformer.config.num_tokens:
        known = not videos and run.transformer.no_class == len(source.class_names)
        coded = coded_bits(run.transformer, tokens, label if known else None)
    bits = tokens.numel() * math.log2(tokenizer.codebook_size)
    return video, quality(run.folder.name, bits, coded, video, decoded, lpips)


@torch.no_grad()
def coded_bits(model: nn.Module, tokens: Tensor, label: Tensor | None = None, groups: int = 16
               ) -> float:
    """Bits of tokens (B, N) under a masked transformer: the cross-entropy of groups of tokens in a
    random order, each group given all before it, so that a decoder could follow.

    label (B,): classes that are sent along, log2 of their number more a clip; None: no class.
    """
    B, N = tokens.shape
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0)).to(tokens.device)
    sent = B * math.log2(model.no_class) if label is not None and model.no_class else 0.0
    given = label if sent else torch.full_like(tokens[:, 0], model.no_class)
    task = torch.full_like(given, task_index("CG", model.config.tasks))
    inputs, bits = torch.full_like(tokens, model.mask_id), 0.0
    for group in order.chunk(groups):
        losses = model.cross_entropy(model(inputs, task, given), tokens)
        bits += losses[:, group].double().sum().item() / math.log(2)
        inputs[:, group] = tokens[:, group]
    return bits + sent


# ---------------------------------------------------------------------------------------------
# Codecs

def codec_point(codec: str, crf: int, video: Tensor, lpips: LPIPS | None) -> Point:
    """Clips (B, 3, T, H, W), H and W even, through one of CODECS and back, each by itself."""
    bits, decoded = 0, []
    for clip in video:
        packets = encode(codec, crf, rearrange(clip, "c t h w -> t h w c"))
        bits += 8 * sum(payload(codec, bytes(packet)) for packet in packets)
        decoded.append(decode(codec, packets))
    return quality(f"{codec} {crf}", bits, None, video, to_float(np.stack(decoded)), lpips)


def encode(codec: str, crf: int, frames: Tensor) -> list[av.Packet]:
    """Frames (T, H, W, 3) in [0, 1] -> packets; colours at half the resolution, as is usual."""
    encoder, _, options = CODECS[codec]
    context = av.CodecContext.create(encoder, "w")
    context.height, context.width, context.pix_fmt = *frames.shape[1:3], "yuv420p"
    context.time_base, context.framerate = Fraction(1, RATE), Fraction(RATE)
    context.options = options | {"crf": str(crf)}
    packets = []
    for number, frame in enumerate((frames * 255).round().byte().numpy()):
        picture = av.VideoFrame.from_ndarray(frame, "rgb24").reformat(format="yuv420p")
        picture.pts = number
        packets += context.encode(picture)
    return packets + context.encode(None)


def payload(codec: str, packet: bytes) -> int:
    """Bytes of a packet without x264's 700 bytes of text about itself, which nobody would send."""
    units = packet.split(b"\0\0\1")
    texts = [unit for unit in units[1:] if codec == "x264" and unit[0] & 31 == 6]     # SEI
    return len(packet) - sum(len(unit) + 3 for unit in texts)


def decode(codec: str, packets: list[av.Packet]) -> np.ndarray:
    """Packets -> uint8 (T, H, W, 3)."""
    context = av.CodecContext.create(CODECS[codec][1], "r")
    frames = [frame for packet in (*packets, None) for frame in context.decode(packet)]
    return np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


# ---------------------------------------------------------------------------------------------
# The table and the picture

def draw(path: str, tokenizers: list[Point], codecs: list[list[Point]]) -> None:
    """PSNR and MS-SSIM against bits a pixel: tokenizers as dots, codecs as lines."""
    with canvas(path, 1, 2, (10, 4), ticks=True) as axes:
        for axis, number, title in zip(axes[0], ("psnr", "ms_ssim"), ("PSNR, dB", "MS-SSIM")):
            for name, points in zip(CODECS, codecs):
                axis.plot([point.rate for point in points],
                          [getattr(point, number) for point in points], ".-", label=name)
            for point in tokenizers:
                rates = [rate for rate in (point.coded, point.rate) if rate]
                axis.plot(rates, [getattr(point, number)] * len(rates), "o--", label=point.name)
            axis.set(xscale="log", xlabel="bits a pixel", ylabel=title)
            axis.grid(alpha=0.3)
        axes[0][1].legend(fontsize=7)


def main() -> None:
    parser = argparse.ArgumentParser(description="Tokenizers beside codecs.")
    parser.add_argument("runs", nargs="+", help="folders with a tokenizer.pt")
    parser.add_argument("--videos", help="folder of clips; without it, held-out drawn ones")
    parser.add_argument("--size", type=int, help="pixels; without it, those of the run's training")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--weights", help="folder of the weights of LPIPS")
    parser.add_argument("--out", help="picture of the curves")
    options = parser.parse_args()
    os.environ.setdefault("SVT_LOG", "1")               # else AV1's encoder talks, to stderr
    try:
        lpips = load_lpips(options.weights) if options.weights else None
        shown = [run_point(run, options.videos, options.size, options.clips, lpips)
                 for run in options.runs]
    except (ValueError, OSError) as error:
        sys.exit(f"compression.py: {error}")
    video, points = shown[-1][0], [point for _, point in shown]
    codecs = [[codec_point(codec, crf, video, lpips) for crf in CRFS] for codec in CODECS]
    print(f"{len(video)} clips of {'x'.join(map(str, video.shape[2:]))}; MS-SSIM of "
          f"{scales_for(video)} scales")
    print(aligned([("", "bits a pixel", "coded", "PSNR", "MS-SSIM", "LPIPS"), *(
        (name, *("" if number is None else form % number for form, number in zip(FORMS, numbers)))
        for name, *numbers in sum(codecs, points))]))
    if options.out:
        draw(options.out, points, codecs)
        print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
