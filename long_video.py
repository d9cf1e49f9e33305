"""Any length, any width: long videos as windows of tokens, and painting beyond the frame.

Paper   App. Figs. 4-5 (240x432, thousands of frames), Figs. 11-12 (ultrawide outpainting)

Shapes  frames uint8 (H, W, 3), one after another -> encode_long -> tokens (t, h, w) of each
          window of 16 -> decode_long -> frames again, as many and as large as before
        clip (1, 3, T, H, w) -> outpaint -> (1, 3, T, H, w + (left + right) W/4)
        clip (1, 3, n, H, W) -> extend -> (1, 3, frames, H, W)

Read    encode_long, decode_long; encode_file and read_tokens, a file of tokens; outpaint, extend.

Not here: one clip of a run's own size (decode.py); why windows (figures.py).

Run:    python long_video.py                  what tokens of a long video take on disk
        python long_video.py encode RUN in.mp4 out.tokens
        python long_video.py decode RUN out.tokens back.mp4 --compare in.mp4
        python long_video.py outpaint RUN in.mp4 wide.gif --right 5 --left 5
        python long_video.py extend RUN in.mp4 long.gif --frames 64
"""
from __future__ import annotations

import argparse
import json
import math
import os
import sys
import zlib
from functools import partial
from pathlib import Path
from typing import Callable, Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from data.clips import load_clip, open_stream, write_video
from data.source import to_float
from decode import generate
from measure.metrics import psnr, ssim
from pictures import to_frames
from tokenizer import TOKENIZERS, VideoTokenizer
from training.build import from_plain, without_weights
from training.checkpoint import Run, load_checkpoint, load_network, load_run, weights_hash
from training.presets import TrainConfig
from training.processes import device_of_this_process

HEADER = 1024                           # bytes: JSON, spaces, and the checksum of the whole file


# ---------------------------------------------------------------------------------------------
# Windows (App. Figs. 4-5)

def windows(frames: Iterable[np.ndarray], length: int, overlap: int) -> Iterator[np.ndarray]:
    """uint8 (length, H, W, 3), each sharing `overlap` frames with the one before; the last is
    filled up with copies of its last frame."""
    if not 0 <= overlap <= length // 2:
        raise ValueError(f"overlap {overlap}: windows of {length} frames share 0 to {length // 2}")
    held: list[np.ndarray] = []
    frame, fresh = None, 0                               # fresh: held, and in no window so far
    for frame in frames:
        held.append(frame)
        fresh += 1
        if len(held) == length:
            yield np.stack(held)
            held, fresh = held[length - overlap:], 0
    if frame is None:
        raise ValueError("the video has no frames")
    if fresh:
        yield np.stack(held + [frame] * (length - len(held)))


@torch.no_grad()
def encode_long(tokenizer: nn.Module, frames: Iterable[np.ndarray], window: int = 16,
                overlap: int = 0) -> Iterator[Tensor]:
    """Tokens (t, h, w) of each window of uint8 frames (H, W, 3). One window is held at a time.

    Sizes that do not divide are padded by their right and lower edge (decode_long crops).
    """
    device = next(tokenizer.parameters()).device
    factors = [64 // size for size in tokenizer.latent_shape(window, 64, 64)[1:]]
    for clip in windows(frames, window, overlap):
        video = to_float(clip[None]).to(device)                              # (1, 3, T, H, W)
        down, right = (max(2 * factor, math.ceil(size / factor) * factor) - size
                       for size, factor in zip(video.shape[3:], factors))
        yield tokenizer.encode(F.pad(video, (0, right, 0, down, 0, 0), mode="replicate"))[0].cpu()


@torch.no_grad()
def decode_long(tokenizer: nn.Module, tokens: Iterable[Tensor], overlap: int = 0,
                size: tuple[int | None, int | None] = (None, None), count: int = sys.maxsize
                ) -> Iterator[np.ndarray]:
    """Frames uint8 (H, W, 3) of windows of tokens (t, h, w); shared frames are cross-faded.

    Of `overlap` shared frames the k-th takes k / overlap from the later window (official).
    size: (H, W) to crop to; count: how many frames there were.
    """
    device, before = next(tokenizer.parameters()).device, torch.empty(3, 0, 1, 1)
    later = torch.arange(overlap)[:, None, None] / max(1, overlap)
    for ids in tokens:
        video = tokenizer.decode(ids[None].to(device))[0, :, :, :size[0], :size[1]].clamp(0, 1)
        video = video.cpu()                                                  # (3, T, H, W)
        if before.shape[1]:
            video[:, :overlap] = before.lerp(video[:, :overlap], later)
        ready = video.shape[1] - overlap
        before, frames = video[:, ready:].clone(), to_frames(video[:, :ready])
        del video                                 # or it is there while the next one is decoded
        yield from frames[:count]
        count = max(0, count - ready)
    yield from to_frames(before)[:count]


# ---------------------------------------------------------------------------------------------
# A file of tokens

def pack(tokens: Tensor, bits: int) -> bytes:
    """int64 tokens in [0, 2^bits) as so many bits each, high ones first; filled to a byte."""
    places = np.arange(bits - 1, -1, -1)
    return np.packbits(tokens.flatten().numpy()[:, None] >> places & 1).tobytes()


def unpack(data: np.ndarray, bits: int, shape: tuple[int, int, int]) -> Tensor:
    """The tokens (t, h, w) at the beginning of uint8 data that pack has packed."""
    size = math.prod(shape)
    flat = np.unpackbits(data[:math.ceil(size * bits / 8)], count=size * bits).reshape(size, bits)
    return torch.from_numpy(flat @ (1 << np.arange(bits - 1, -1, -1))).view(*shape)


def encode_file(tokenizer: nn.Module, frames: Iterable[np.ndarray], path: str | Path, *,
                rate: float = 8.0, window: int = 16, overlap: int = 0) -> dict:
    """Write the tokens of frames to path, window by window; returns the header.

    Until everything is written and on disk, the file has another name: path is whole or absent.
    """
    bits = (tokenizer.codebook_size - 1).bit_length()
    header = dict(format="magvit tokens 1", frames=0, rate=rate, windows=0, window=window,
                  overlap=overlap, bits=bits, tokenizer=weights_hash(tokenizer))

    def noted() -> Iterator[np.ndarray]:
        for frame in frames:
            header.update(frames=header["frames"] + 1, height=frame.shape[0], width=frame.shape[1])
            yield frame

    temporary, checksum = Path(f"{path}.writing"), 0
    with open(temporary, "wb") as file:
        file.write(bytes(HEADER))
        for tokens in encode_long(tokenizer, noted(), window, overlap):
            packed = pack(tokens, bits)
            checksum = zlib.crc32(packed, checksum)
            file.write(packed)
            header.update(windows=header["windows"] + 1, latent=list(tokens.shape))
        text = json.dumps(header).encode().ljust(HEADER - 4)
        file.seek(0)
        file.write(text + zlib.crc32(text, checksum).to_bytes(4, "big"))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return header


def read_tokens(path: str | Path, tokenizer: nn.Module) -> tuple[dict, Iterator[Tensor]]:
    """The header of a file of tokens, and the tokens (t, h, w) of its windows, read as they are
    asked for. ValueError, in one line, where the file is cut or damaged, or another tokenizer's."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}; make one with: python long_video.py encode")
    data = np.fromfile(path, np.uint8, HEADER)
    text, stored = data[:-4].tobytes(), data[-4:].tobytes()
    if not text.startswith(b'{"format": "magvit tokens 1"'):
        raise ValueError(f"{path} is no file of tokens, or its first bytes are damaged")
    data = np.memmap(path, np.uint8, "r")
    if zlib.crc32(text, zlib.crc32(data[HEADER:])).to_bytes(4, "big") != stored:
        raise ValueError(f"{path} is cut or damaged: its checksum does not match")
    header, ours = json.loads(text), weights_hash(tokenizer)
    if header["tokenizer"] != ours:
        raise ValueError(f"{path} is of another tokenizer (hash {header['tokenizer'][:8]}, this "
                         f"one's is {ours[:8]}): give the run that encoded it")
    return header, (unpack(data[start:], header["bits"], header["latent"]) for start in range(
        HEADER, len(data), (len(data) - HEADER) // header["windows"]))


def size_in_words(header: dict) -> str:
    """Frames, tokens, bits per pixel and compression against 8-bit RGB, the header not counted."""
    pixels = header["frames"] * header["height"] * header["width"]
    tokens = header["windows"] * math.prod(header["latent"])
    bits = tokens * header["bits"]
    return (f"{header['frames']:,} frames of {header['height']}x{header['width']}, {tokens:,} "
            f"tokens of {header['bits']} bits: {bits / pixels:.4f} bits per pixel, "
            f"{24 * pixels / bits:.1f} times smaller")


# ---------------------------------------------------------------------------------------------
# Beyond the frame (App. Figs. 11-12), and beyond the end

def outpaint(generate: Callable[..., Tensor], video: Tensor, width: int, *, right: int = 0,
             left: int = 0, task: str = "OPV", fade: int | None = None) -> Tensor:
    """Repeat vertical outpainting: (1, 3, T, H, w) grows by width/4 columns each time.

    generate(clip, task): decode.generate of a run that knows clips of this width. The task gives
    their centre half, so the outer width/2 columns are put there, and what is made beyond them is
    kept. What was there stays, but for `fade` columns (width/16) that blend into what was made
    anew of them. Task "OPH" does the same with rows: right is down, left is up.
    """
    turn = partial(torch.transpose, dim0=-1, dim1=-2 if task == "OPH" else -1)
    wide, new = turn(video), width // 4
    half, fade = 2 * new, new // 4 if fade is None else fade
    if wide.shape[-1] < half:
        raise ValueError(f"{wide.shape[-1]} pixels; {task} starts from at least {half}")
    ramp = (torch.arange(half, device=video.device) - (half - fade) + 1).clamp(min=0) / (fade + 1)
    for number in range(right + left):
        # Left is right in a mirror, for the canvas alone: the model sees no mirrored clip.
        mirrored = [-1] if number >= right else []
        wide = wide.flip(mirrored)
        clip = turn(F.pad(wide[..., -half:], (new, new)).flip(mirrored))
        made = turn(generate(clip, task)).flip(mirrored)
        seam = wide[..., -half:].lerp(made[..., new:-new], ramp)
        wide = torch.cat([wide[..., :-half], seam, made[..., -new:]], dim=-1).flip(mirrored)
    return turn(wide)


def extend(generate: Callable[..., Tensor], video: Tensor, frames: int, length: int = 16,
           condition_frames: int = 1) -> Tensor:
    """Repeat frame prediction until (1, 3, n, H, W) has `frames` frames: of each clip of `length`
    frames the first condition_frames are those made last, and what is made after them is added."""
    while video.shape[2] < frames:
        clip = F.pad(video[:, :, -condition_frames:], (0, 0, 0, 0, 0, length - condition_frames))
        made = generate(clip, "FP", condition_frames=condition_frames)
        video = torch.cat([video, made[:, :, condition_frames:]], dim=2)
    return video[:, :, :frames]


def generate_with(run: Run, seed: int = 0) -> Callable[..., Tensor]:
    """decode.generate with a run's networks and settings: what outpaint and extend repeat."""
    noise = torch.Generator(next(run.transformer.parameters()).device).manual_seed(seed)
    return partial(generate, run.tokenizer, run.transformer, generator=noise, **run.config.decoding)


def do_video(options: argparse.Namespace, device: torch.device) -> None:
    """outpaint and extend, on a clip of the run's size."""
    run = load_run(options.run, device)
    clip = load_clip(options.video, run.config.clip_shape, options.start, run.config.stride)
    clip, do = clip.to(device), generate_with(run, options.seed)
    if options.command == "extend":
        out = extend(do, clip, options.frames, run.config.frames, options.condition_frames)
    else:
        out = outpaint(do, clip, run.config.resolution, right=options.right,
                       left=options.left, task=options.task)
    write_video(options.out, to_frames(out[0]))
    print(f"wrote {options.out}, {'x'.join(map(str, out.shape[2:]))} (T x H x W)")


def do_file(options: argparse.Namespace, device: torch.device) -> None:
    """encode and decode, frame by frame."""
    state = load_checkpoint(Path(options.run) / "tokenizer.pt")
    tokenizer, values = load_network(state, device), []
    if options.command == "encode":
        rate, frames = open_stream(options.video, options.start)
        header = encode_file(tokenizer, tqdm(frames, "encoding", unit=" frames", mininterval=1.0),
                             options.out, rate=rate, overlap=options.overlap,
                             window=from_plain(state["config"]["train"], TrainConfig).frames)
    else:
        header, tokens = read_tokens(options.video, tokenizer)
        frames = decode_long(tokenizer, tokens, header["overlap"],
                             (header["height"], header["width"]), header["frames"])
        frames = tqdm(frames, "decoding", header["frames"], unit=" frames", mininterval=1.0)
        if options.compare:
            frames = compared(frames, open_stream(options.compare, options.start)[1], values)
        write_video(options.out, frames, header["rate"])
    print(f"wrote {options.out}: {size_in_words(header)}")
    if values:
        print("{:.2f} dB PSNR, {:.4f} SSIM, {} frames".format(*np.mean(values, 0), len(values)))


def compared(frames: Iterable[np.ndarray], real: Iterator[np.ndarray], values: list) -> Iterator:
    """The frames as they come, all of them; PSNR and SSIM against the real ones go into values."""
    for frame in frames:
        if (other := next(real, None)) is not None:
            pair = [to_float(each[None, None])[:, :, 0] for each in (frame, other)]
            values.append((psnr(*pair).item(), ssim(*pair).item()))
        yield frame


def print_sizes() -> None:
    print("4,096 frames of 240x432, in windows of 16 without overlap")
    for name, config in TOKENIZERS.items():
        latent = without_weights(lambda: VideoTokenizer(config)).latent_shape(16, 240, 432)
        bits = (config.codebook_size - 1).bit_length()
        print(f"{name:7}", size_in_words(dict(frames=4096, height=240, width=432, windows=256,
                                              latent=latent, bits=bits)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Videos of any length and width.")
    parser.add_argument("command", nargs="?", choices=["encode", "decode", "outpaint", "extend"])
    parser.add_argument("run", nargs="?", default="assets/toy", help="folder of a run")
    parser.add_argument("video", nargs="?", help="video file, or for decode the file of tokens")
    parser.add_argument("out", nargs="?", default="out.gif")
    parser.add_argument("--start", type=int, default=0, help="first frame taken from the video")
    parser.add_argument("--overlap", type=int, default=0, help="encode: frames that windows share")
    parser.add_argument("--compare", help="decode: the video that was encoded, for PSNR and SSIM")
    parser.add_argument("--right", type=int, default=0, help="outpaint: strips; down in OPH")
    parser.add_argument("--left", type=int, default=0, help="outpaint: strips; up in OPH")
    parser.add_argument("--task", default="OPV", choices=["OPV", "OPH"], help="outpaint")
    parser.add_argument("--frames", type=int, default=64, help="extend: how long it shall be")
    parser.add_argument("--condition-frames", type=int, default=1, help="extend: given each time")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.command is None:
        return print_sizes()
    if options.video is None:
        parser.error(f"{options.command} needs a run and a file")
    work = do_file if options.command in ("encode", "decode") else do_video
    try:
        work(options, device_of_this_process())
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"long_video.py: {error}")


if __name__ == "__main__":
    main()
