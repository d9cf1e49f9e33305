"""Any length, any width: long videos as windows of tokens, and painting beyond the frame.

Paper   App. Figs. 4-5 (240x432, thousands of frames), Figs. 11-12 (ultrawide outpainting)

Shapes  frames uint8 (H, W, 3), one after another -> encode_long -> tokens (t, h, w) of each
          window of 16 -> decode_long -> frames again, as many and as large as before
        clip (1, 3, T, H, w) -> outpaint -> (1, 3, T, H, w + (left + right) W/4)
        clip (1, 3, n, H, W) -> extend -> (1, 3, frames, H, W)

Read    encode_long, decode_long; encode_file and read_tokens, a file of tokens; outpaint, extend.

Not here: one clip of a run's own size (decode.py).

Run:    python long_video.py encode RUN in.mp4 tokens.npz
        python long_video.py decode RUN tokens.npz back.mp4
        python long_video.py outpaint RUN in.mp4 wide.gif --right 5 --left 5
        python long_video.py extend RUN in.mp4 long.gif --frames 64
"""
from __future__ import annotations

import argparse
import math
import sys
import zipfile
import zlib
from functools import partial
from pathlib import Path
from typing import Callable, Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from data.clips import check_output, load_clip, open_stream, write_video, written_whole
from data.source import to_float
from decode import generate, seeded_noise
from measure.pictures import to_frames
from training.checkpoint import Run, load_run, weights_hash
from training.kernels import give_back_memory
from training.processes import device_of_this_process


# ---------------------------------------------------------------------------------------------
# Windows (App. Figs. 4-5)

def windows(frames: Iterable[np.ndarray], length: int, overlap: int) -> Iterator[np.ndarray]:
    """uint8 (length, H, W, 3), each sharing `overlap` frames with the one before; the last is
    filled up with copies of its last frame. All are one array, filled anew for each."""
    if not 0 <= overlap <= length // 2:
        raise ValueError(f"overlap {overlap}: windows of {length} frames share 0 to {length // 2}")
    window, shared, count = None, 0, 0
    for frame in frames:
        if window is None:
            window = np.empty((length, *frame.shape), np.uint8)
        window[count] = frame
        count += 1
        if count == length:
            yield window
            window[:overlap] = window[length - overlap:]
            shared = count = overlap
    if window is None:
        raise ValueError("the video has no frames")
    if count > shared:
        window[count:] = window[count - 1]
        yield window


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
# A file of tokens: an .npz, whole or absent

def encode_file(tokenizer: nn.Module, frames: Iterable[np.ndarray], path: str | Path, *,
                rate: float = 8.0, window: int = 16, overlap: int = 0) -> dict:
    """Write the tokens (windows, t, h, w) of frames to path, and what decoding must know of them,
    which is returned."""
    facts = dict(frames=0, rate=rate, overlap=overlap, codes=tokenizer.codebook_size,
                 tokenizer=weights_hash(tokenizer))

    def noted() -> Iterator[np.ndarray]:
        for frame in frames:
            facts.update(frames=facts["frames"] + 1, height=frame.shape[0], width=frame.shape[1])
            yield frame

    kind = np.uint16 if tokenizer.codebook_size <= 2**16 else np.int64
    tokens = np.stack([ids.numpy().astype(kind)
                       for ids in encode_long(tokenizer, noted(), window, overlap)])
    with written_whole(Path(path)) as temporary:
        np.savez_compressed(temporary, tokens=tokens, **facts)
    return facts | dict(tokens=tokens)


def read_tokens(path: str | Path, tokenizer: nn.Module) -> dict:
    """The same, from a file. ValueError, in one line, where it is cut or damaged, or another
    tokenizer's."""
    try:
        with np.load(path) as arrays:                # checks a checksum of each array
            facts = {name: arrays[name] if name == "tokens" else arrays[name].item()
                     for name in arrays.files}
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {path}; make one with: python long_video.py encode"
                                ) from None
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is no file of tokens, or is cut or damaged ({error})") from None
    if facts.get("tokenizer") != weights_hash(tokenizer):
        raise ValueError(f"{path} is of another tokenizer: give the run that encoded it")
    return facts


def size_in_words(facts: dict) -> str:
    """Frames, tokens, bits per pixel and compression against 8-bit RGB, all tokens alike."""
    pixels, each = facts["frames"] * facts["height"] * facts["width"], math.log2(facts["codes"])
    bits = facts["tokens"].size * each
    return (f"{facts['frames']:,} frames of {facts['height']}x{facts['width']}, "
            f"{facts['tokens'].size:,} tokens of {each:.0f} bits: {bits / pixels:.4f} bits per "
            f"pixel, {24 * pixels / bits:.1f} times smaller")


# ---------------------------------------------------------------------------------------------
# Beyond the frame (App. Figs. 11-12), and beyond the end

def outpaint(generate: Callable[..., Tensor], video: Tensor, width: int, *, right: int = 0,
             left: int = 0, task: str = "OPV") -> Tensor:
    """Repeat vertical outpainting: (1, 3, T, H, w) grows by width/4 columns each time.

    generate(clip, task): decode.generate of a run that knows clips of this width. The task gives
    their centre half, so the outer width/2 columns are put there, and what is made beyond them is
    kept. What was there stays, but for width/16 columns that blend into what was made anew of
    them. Task "OPH" does the same with rows: right is down, left is up.
    """
    turn = partial(torch.transpose, dim0=-1, dim1=-2 if task == "OPH" else -1)
    wide, new, half, fade = turn(video), width // 4, 2 * (width // 4), width // 16
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
    noise = seeded_noise(seed, next(run.transformer.parameters()).device)
    return lambda video, task, **more: generate(
        run.tokenizer, run.transformer, video, task, noise=noise, **run.how(task),
        **run.config.decoding, **more)


# ---------------------------------------------------------------------------------------------
# The commands

def do_video(options: argparse.Namespace, device: torch.device) -> None:
    """outpaint and extend, on a clip of the run's size."""
    check_output(options.out)
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
    """encode and decode, window by window."""
    give_back_memory()
    check_output(options.out, *([(".npz",)] if options.command == "encode" else []))
    run = load_run(options.run, device, stages=("tokenizer",))
    progress = partial(tqdm, desc=options.command, unit=" frames", mininterval=1.0)
    if options.command == "encode":
        rate, frames = open_stream(options.video, options.start)
        facts = encode_file(run.tokenizer, progress(frames), options.out, rate=rate,
                            overlap=options.overlap, window=run.config.frames)
    else:
        facts = read_tokens(options.video, run.tokenizer)
        tokens = (torch.from_numpy(ids.astype(np.int64)) for ids in facts["tokens"])
        frames = decode_long(run.tokenizer, tokens, facts["overlap"],
                             (facts["height"], facts["width"]), facts["frames"])
        write_video(options.out, progress(frames, total=facts["frames"]), facts["rate"])
    print(f"wrote {options.out}: {size_in_words(facts)}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Videos of any length and width.")
    parser.add_argument("command", choices=["encode", "decode", "outpaint", "extend"])
    parser.add_argument("run", help="folder of a run")
    parser.add_argument("video", help="video file, or for decode the file of tokens")
    parser.add_argument("out", help="video file, or for encode the file of tokens, .npz")
    parser.add_argument("--start", type=int, default=0, help="first frame taken from the video")
    parser.add_argument("--overlap", type=int, default=0, help="encode: frames that windows share")
    parser.add_argument("--right", type=int, default=0, help="outpaint: strips; down in OPH")
    parser.add_argument("--left", type=int, default=0, help="outpaint: strips; up in OPH")
    parser.add_argument("--task", default="OPV", choices=["OPV", "OPH"], help="outpaint")
    parser.add_argument("--frames", type=int, default=64, help="extend: how long it shall be")
    parser.add_argument("--condition-frames", type=int, default=1, help="extend: given each time")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name, least in dict(start=0, right=0, left=0, frames=1, condition_frames=1).items():
        if getattr(options, name) < least:
            parser.error(f"--{name.replace('_', '-')}: wanted at least {least}")
    work = do_file if options.command in ("encode", "decode") else do_video
    try:
        work(options, device_of_this_process())
    except (ValueError, OSError) as error:
        sys.exit(f"long_video.py: {error}")


if __name__ == "__main__":
    main()
