"""From sample numbers to rows of features on disk: resumable, and shared out to processes.

Paper   App. B.3 ("a single data loader", and conditions come from the real clips)

Shapes  sample i -> its real clip -> generate -> video (B, 3, T, H, W) in [0, 1]
          -> look -> a row per video: 400 logits for FVD, 101 for IS, one PSNR, ...
          -> stored -> RUN/features/<what>-<settings>/000012.npz, a file per batch

Read    look; sample_videos (what sample i is); stored (why a kill costs one batch at most).

Sample i, its clip and its noise are functions of (seed, i), and sample i is always decoded in
batch i // batch_size. So the rows do not depend on how many processes there are, nor on when
they were stopped. (Another device or number of threads may round otherwise and, rarely, draw
another token.)

Not here: scores of the rows (evaluate.py); which clips are real (protocols.py).

Run:    python features.py         a small computation, killed half way and started again
        python features.py RUN     what is stored there
"""
from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Callable

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from commit import TASKS, task_index
from data import NO_LABEL, ClipSource, open_source, read_video, to_float
from datasets import VIDEO_SUFFIXES
from decode import generate, gumbel_noise
from loop import Processes, start_processes
from metrics import psnr, ssim
from pretrained import (C3D, I3D, LPIPS, c3d_input, i3d_input, load_c3d, load_i3d, load_lpips,
                        randomize)
from presets import autocast
from protocols import PROTOCOLS, Clip, read_clip
from report import frames_of
from shapes import MovingShapes

METRICS = {"fvd": "FVD", "is": "IS", "psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS"}
JUDGES = {"fvd": (I3D, load_i3d), "is": (C3D, load_c3d), "lpips": (LPIPS, load_lpips)}
Rows = dict[str, Tensor]


def start_evaluation() -> Processes:
    """Processes that meet at barriers only, where the slowest may be hours behind: so wait long."""
    return start_processes("gloo", timeout=timedelta(days=7))


# ---------------------------------------------------------------------------------------------
# Looking at videos

def open_judges(metrics: list[str], directory: str | Path, random: bool,
                device: torch.device) -> dict[str, nn.Module]:
    """The networks that the metrics need. FileNotFoundError says which file to put where."""
    judges = {}
    for metric in metrics:
        if metric in JUDGES:
            network, load = JUDGES[metric]
            try:
                judges[metric] = randomize(network(), 0) if random else load(directory)
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{error}; or leave {METRICS[metric]} out (--metrics), or "
                                        "try the pipeline with --random-weights") from None
            judges[metric].to(device)
    return judges


@torch.no_grad()
def look(judges: dict[str, nn.Module], metrics: list[str], video: Tensor,
         real: Tensor | None = None) -> Rows:
    """What the metrics must know of videos (B, 3, T, H, W) in [0, 1], a row for each.

    "fvd" (B, 400) and "is" (B, 101): logits. "psnr", "ssim", "lpips" (B,): means over all frames,
    the given ones too (official), against `real` of the same shape; left out where it is None.
    """
    rows = {}
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):      # ten bits are too few
        if "fvd" in metrics:
            rows["fvd"] = judges["fvd"](i3d_input(video))
        if "is" in metrics:
            rows["is"] = judges["is"](c3d_input(video))
        for name, distance in dict(psnr=psnr, ssim=ssim, lpips=judges.get("lpips")).items():
            if real is not None and name in metrics:       # a video at a time: VGG is large
                rows[name] = torch.stack([distance(*pair).mean() for pair in
                                          zip(frames_of(video), frames_of(real))])
    return rows


# ---------------------------------------------------------------------------------------------
# Making the videos of samples

def open_real(name: str, data: dict, train: dict, run: Path) -> tuple[ClipSource, str]:
    """The real videos of a protocol, and a fingerprint that changes when they do.

    data: root, and, where they are needed, layout and split as data.open_source has them.
    """
    if name == "toy":
        source = MovingShapes("test")
        return source, digest([source.clip(i)[0].mean((0, 1)).tolist() for i in range(8)])
    if data.get("root") is None:
        raise ValueError(f"protocol {name} needs --data, the folder of its "
                         f"{PROTOCOLS[name].split} videos")
    index = run / "features" / f"videos-{digest(data)}.json"
    source = open_source(train | dict(dataset="folder", flip=False), data | dict(pad_short=False),
                         index)
    return source, digest([(str(path), frames, (path if path.exists() else path.parent).stat()
                            .st_size) for path, frames in source.videos])


def load_clips(source: ClipSource, clips: list[Clip], device: torch.device
               ) -> tuple[Tensor, Tensor]:
    """Real clips as (B, 3, T, H, W) in [0, 1] and their labels (B,)."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        frames, labels = zip(*pool.map(lambda clip: read_clip(source, clip), clips))
    return to_float(np.stack(frames)).to(device), torch.tensor(labels, device=device)


def sample_videos(tokenizer: nn.Module, model: nn.Module, task: str, video: Tensor,
                  label: Tensor, config: dict, decoding: dict, seed: int, first: int
                  ) -> tuple[Tensor, Rows]:
    """Samples first, first + 1, ... given their real clips (B, 3, T, H, W) and labels (B,).

    task "reconstruction" takes them through the tokenizer and back, and returns beside the video
    which codes each has used, (B, K / 8) bits. label: of the run's classes.
    """
    train = config["train"]
    with autocast(train["precision"], video.device):
        if task == "reconstruction":
            tokens = tokenizer.encode(video).flatten(1)
            used = torch.zeros(len(video), tokenizer.codebook_size, dtype=torch.bool)
            used.scatter_(1, tokens.cpu(), True)
            shape = tokenizer.latent_shape(*video.shape[2:])
            decoded = tokenizer.decode(tokens.view(-1, *shape)).float().clamp(0, 1)
            return decoded, {"codes": torch.from_numpy(np.packbits(used.numpy(), axis=1))}
        noise = noise_of(seed, task, range(first, first + len(video)), video.device)
        return generate(tokenizer, model, video, task,
                        label if TASKS[task].class_conditional else None,
                        frames=train["condition_frames"], noise=noise, **decoding).float(), {}


def noise_of(seed: int, task: str, samples: range, device: torch.device
             ) -> Callable[[torch.Size], Tensor]:
    """commit_decode's `noise`: one stream of random numbers for each sample."""
    generators = []
    for i in samples:
        state = np.random.SeedSequence([seed, 6, task_index(task), i]).generate_state(2)
        generators.append(torch.Generator(device).manual_seed(int(state[0]) << 31 | int(state[1])
                                                              >> 1))
    return lambda shape: torch.stack([gumbel_noise(shape[1:], generator, device)
                                      for generator in generators])


def run_labels(label: Tensor, source: ClipSource, names: list[str]) -> Tensor:
    """Labels of the real videos -> those of the run, by name. ValueError where it has no such."""
    if (label == NO_LABEL).any():
        raise ValueError("the real videos have no classes; a class-conditional task needs folders "
                         "of the classes' names, DIR/class/video")
    unknown = [name for name in source.class_names if name not in names]
    if unknown:
        raise ValueError(f"class {unknown[0]!r} of the real videos is unknown to the run, which "
                         f"has {len(names)} classes: {', '.join(names[:5]) or 'none'}, ...")
    table = torch.tensor([names.index(name) for name in source.class_names], device=label.device)
    return table[label]


def open_set(path: str | Path) -> tuple[int, Callable[[int], np.ndarray]]:
    """A folder of videos, in order of their names, or a .npy -> how many, and video number i.

    A .npy is uint8 (N, T, H, W, 3). FileNotFoundError where there is nothing.
    """
    path = Path(path)
    if path.suffix == ".npy" and path.is_file():
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.dtype != np.uint8 or array.ndim != 5 or array.shape[4] != 3:
            raise ValueError(f"{path} holds {array.dtype} {array.shape}; wanted uint8 "
                             "(N, T, H, W, 3)")
        return len(array), array.__getitem__
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is neither a folder of videos nor a .npy file")
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in VIDEO_SUFFIXES)
    if not files:
        raise FileNotFoundError(f"no video in {path}")
    return len(files), lambda i: read_video(files[i])


def rows_of_sets(metric: str, paths: list[str], sets: list, judges: dict[str, nn.Module],
                 batch: int, processes: Processes) -> list[Rows]:
    """The rows of each set; of the fakes alone, seen beside their real videos, for pairs."""
    shape, rows = sets[0][1](0).shape, []

    def videos(which: int, chosen: range) -> Tensor:
        clips = [sets[which][1](i) for i in chosen]
        for i, clip in zip(chosen, clips):
            if clip.shape != shape:
                raise ValueError(f"video {i} of {paths[which]} is {clip.shape}, the first one is "
                                 f"{shape}; wanted one length and size")
        return to_float(np.stack(clips)).to(processes.device)

    for which in range(len(sets)) if metric in ("fvd", "is") else [1]:
        parts, count = [], sets[which][0]
        for first in tqdm(range(0, count, batch), desc=paths[which], mininterval=1.0):
            chosen = range(first, min(first + batch, count))
            real = None if metric in ("fvd", "is") else videos(0, chosen)
            parts.append(look(judges, [metric], videos(which, chosen), real))
        rows.append({key: torch.cat([part[key] for part in parts]).cpu() for key in parts[0]})
    return rows


# ---------------------------------------------------------------------------------------------
# Rows on disk

def stored(folder: Path, items: list, batch: int, compute: Callable[[list, int], Rows],
           processes: Processes, title: str) -> Rows:
    """compute(items of a batch, its first number), for all batches: from disk where it is there.

    A file per batch, written under another name and then renamed: whatever is there is whole.
    Batches are dealt out to processes in turn. Returns all rows, in order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(items), batch)
    mine = starts[processes.rank::processes.world]
    for first in tqdm(mine, desc=title, disable=processes.rank > 0, mininterval=1.0):
        part = items[first:first + batch]
        path = folder / f"{first // batch:06}.npz"
        if len(part) != rows_in(path):       # a last batch grows when more samples are asked for
            rows = compute(part, first)
            temporary = folder / f"{path.name}.{os.getpid()}"
            with open(temporary, "wb") as file:
                np.savez(file, **{key: value.cpu().numpy() for key, value in rows.items()})
            os.replace(temporary, path)
    if dist.is_initialized():
        dist.barrier()
    parts = []
    for first in starts:
        with np.load(folder / f"{first // batch:06}.npz", allow_pickle=False) as arrays:
            parts.append({key: torch.from_numpy(arrays[key]) for key in arrays.files})
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def rows_in(path: Path) -> int:
    """How many videos a file has rows for; 0 where it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return len(arrays[arrays.files[0]])
    except (OSError, ValueError, EOFError, IndexError, zipfile.BadZipFile):
        return 0


def digest(settings: object) -> str:
    """Ten letters that change with any of the settings: rows of others are never mixed in."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]


def stamps(run: Path) -> list:
    """Changes when the run's checkpoints do."""
    return [(name, (run / name).stat().st_size, (run / name).stat().st_mtime_ns)
            for name in ("tokenizer.pt", "transformer.pt") if (run / name).exists()]


def show_resuming() -> None:
    """stored, killed after two batches of four and started again: who is computed when."""
    with tempfile.TemporaryDirectory() as folder:
        for left in (2, 100):
            print("batches computed:", end="")

            def compute(part: list, first: int) -> Rows:
                nonlocal left
                if not left:
                    raise KeyboardInterrupt
                left -= 1
                print(f" [{part[0]}..{part[-1]}]", end="")
                return dict(square=torch.tensor(part) ** 2)

            try:
                with contextlib.redirect_stderr(io.StringIO()):          # no progress bar
                    rows = stored(Path(folder), list(range(14)), 4, compute, Processes(), "")
                print(f"\nall rows, in order: {rows['square'].tolist()}")
            except KeyboardInterrupt:
                print("  killed; on disk:", *sorted(path.name for path in Path(folder).iterdir()))
    print("of four processes, each computes every fourth batch; all read all files at the end")


def main() -> None:
    if len(sys.argv) != 2:
        show_resuming()
        return
    for folder in sorted(Path(sys.argv[1], "features").glob("*/")):
        files = sorted(folder.glob("*.npz"))
        print(f"{folder}: {sum(rows_in(path) for path in files):,} videos in {len(files)} files")


if __name__ == "__main__":
    main()
