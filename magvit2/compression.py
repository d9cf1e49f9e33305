"""Tokens as a video codec, beside the codecs that people use.

Paper   MAGVIT-v2, App. A.3 and Fig. 9 (there on MCL-JCV, with raters; here by numbers alone)

Shapes  clips (B, 3, T, H, W) in [0, 1] -> tokens -> clips; bits = tokens x log2 K
        the same clips -> x264, x265, AV1, VP9 at several CRF -> packets -> clips; bits = 8 x bytes
        bits / (T H W) against PSNR, MS-SSIM, LPIPS: a point for a tokenizer, a curve for a codec

Read    run_point, codec_point; coded_bits, what the transformer saves of the tokens' bits; ms_ssim.

A tokenizer has one rate. Its tokens as they are have log2 K bits each; an arithmetic coder that is
driven by the masked transformer needs fewer: its cross-entropy, of groups of tokens in a random
order, each given those before, as a decoder could follow. Nothing is coded here, only counted.

Packets alone are counted of the codecs, no container; each clip is a stream of its own, as for the
tokenizer. That is short for them: of 16 frames one is a whole picture.

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


class Point(NamedTuple):
    """What a codec gives for its bits."""

    name: str
    bits_per_pixel: float
    psnr: float
    ms_ssim: float
    lpips: float | None
    coded: float | None = None          # bits per pixel that the transformer would leave


def quality(name: str, bits: float, video: Tensor, decoded: Tensor, lpips: LPIPS | None,
            coded: float | None = None) -> Point:
    """The point of clips (B, 3, T, H, W) that took so many bits; coded: bits as well."""
    pair, pixels = (frames_of(decoded), frames_of(video)), video[:, 0].numel()
    return Point(name, bits / pixels, mean_of_finite(psnr(*pair).flatten()).item(),
                 ms_ssim(*pair, scales=scales_for(video)).mean().item(),
                 lpips(*pair).mean().item() if lpips else None, coded and coded / pixels)


# ---------------------------------------------------------------------------------------------
# MS-SSIM

SCALE_WEIGHTS = 0.0448, 0.2856, 0.3001, 0.2363, 0.1333


def ms_ssim(a: Tensor, b: Tensor, scales: int = 5) -> Tensor:
    """Multi-scale structural similarity of (..., 3, H, W) in [0, 1] -> (...) (Wang et al. 2003).

    The product of the mean contrasts of all scales, each half as fine as the one before, and of
    the coarsest one's SSIM, each to the power of its weight. On grey and with ssim's window. Five
    scales need 161 pixels a side; an odd side repeats its last pixel (TensorFlow). Fewer, with
    weights that make one again, are another measure: say so. Where structure is opposite (below
    0) it counts as none.
    """
    if not 1 <= scales <= 5:
        raise ValueError(f"{scales} scales; wanted 1 to 5")
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

def token_bits(tokens: int, codebook_size: int) -> float:
    return tokens * math.log2(codebook_size)


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
    tokens, coded = rearrange(torch.cat(parts), "b t h w -> b (t h w)"), None
    if whole and tokens.shape[1] == run.transformer.config.num_tokens:
        known = not videos and run.transformer.no_class == len(source.class_names)
        coded = coded_bits(run.transformer, tokens, label if known else None)
    bits = token_bits(tokens.numel(), tokenizer.codebook_size)
    return video, quality(run.folder.name, bits, video, decoded, lpips, coded)


@torch.no_grad()
def coded_bits(model: nn.Module, tokens: Tensor, label: Tensor | None = None, groups: int = 16,
               seed: int = 0) -> float:
    """Bits of tokens (B, N) under a masked transformer: cross-entropy of `groups` groups in an
    order drawn from seed, each given all before it, as generation without a condition.

    label (B,): classes that are sent along, log2 of their number more a clip; None: no class.
    """
    B, N = tokens.shape
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed)).to(tokens.device)
    classes = model.no_class
    sent = B * math.log2(classes) if label is not None and classes else 0.0
    given = label if sent else torch.full_like(tokens[:, 0], classes)
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
    return quality(f"{codec} {crf}", bits, video, to_float(np.stack(decoded)), lpips)


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
    """Bytes of a packet, without the text that x264 writes about itself into every stream: 700
    bytes, which nobody would send with a clip of a second."""
    units = packet.split(b"\0\0\1")
    texts = [unit for unit in units[1:] if codec == "x264" and unit[0] & 31 == 6]     # SEI
    return len(packet) - sum(len(unit) + 3 for unit in texts)


def decode(codec: str, packets: list[av.Packet]) -> np.ndarray:
    """The opposite: uint8 (T, H, W, 3)."""
    context = av.CodecContext.create(CODECS[codec][1], "r")
    frames = [frame for packet in (*packets, None) for frame in context.decode(packet)]
    return np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


# ---------------------------------------------------------------------------------------------
# The table and the picture

def draw(path: str, tokenizers: list[Point], curves: dict[str, list[Point]]) -> None:
    """PSNR and MS-SSIM against bits a pixel: tokenizers as dots, codecs as lines."""
    with canvas(path, 1, 2, (10, 4), ticks=True) as axes:
        for axis, number, title in zip(axes[0], ("psnr", "ms_ssim"), ("PSNR, dB", "MS-SSIM")):
            for name, points in curves.items():
                axis.plot([point.bits_per_pixel for point in points],
                          [getattr(point, number) for point in points], ".-", label=name)
            for point in tokenizers:
                rates = [rate for rate in (point.coded, point.bits_per_pixel) if rate]
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
    curves = {codec: [codec_point(codec, crf, video, lpips) for crf in CRFS] for codec in CODECS}
    print(f"{len(video)} clips of {'x'.join(map(str, video.shape[2:]))}; MS-SSIM of "
          f"{scales_for(video)} scales")
    print(aligned([("", "bits a pixel", "coded", "PSNR", "MS-SSIM", "LPIPS"), *(
        (point.name, f"{point.bits_per_pixel:.4f}", f"{point.coded:.4f}" if point.coded else "",
         f"{point.psnr:.2f}", f"{point.ms_ssim:.4f}", f"{point.lpips:.4f}" if point.lpips else "")
        for point in [*points, *sum(curves.values(), [])])]))
    if options.out:
        draw(options.out, points, curves)
        print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
