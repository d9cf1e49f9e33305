"""From sample numbers to rows of features on disk: resumable, and shared out to processes.

Paper   App. B.3 ("a single data loader", and conditions come from the real clips)

Shapes  sample i -> its real clip -> generate -> video (B, 3, T, H, W) in [0, 1]
          -> measure_videos -> a row per video: 400 logits for FVD, 101 for IS, one PSNR, ...
          -> rows_on_disk -> RUN/features/<what>-<settings>/000012.npz, a file per batch

Read    measure_videos; sample_videos (what sample i is); rows_on_disk (why a kill costs one batch
        at most).

Sample i, its clip and its noise are functions of (seed, i), and sample i is always decoded in
batch i // batch_size. So the rows do not depend on how many processes there are, nor on when
they were stopped. (Another device or number of threads may round otherwise and, rarely, draw
another token.)

Not here: scores of the rows (evaluate.py); which clips are real (protocols.py);
        two folders of videos (sets.py).

Run:    python -m measure.features [RUN]     who computes which sample, or what is stored there
"""
from __future__ import annotations

import os
import sys
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

from commit import MT10
from data.clips import DataConfig, open_source
from data.source import NO_LABEL, ClipSource, digest, to_float
from decode import generate, gumbel_noise
from measure.metrics import frames_of, psnr, ssim
from measure.pretrained import (C3D, I3D, LPIPS, c3d_input, i3d_input, load_c3d, load_i3d,
                                load_lpips, randomize)
from measure.protocols import NO_BENCHMARK, PROTOCOLS, Clip
from steps import autocast
from training.build import as_plain
from training.checkpoint import Run
from training.processes import Processes, start_processes

METRICS = {"fvd": "FVD", "is": "IS", "psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS"}
JUDGES = {"fvd": (I3D, load_i3d), "is": (C3D, load_c3d), "lpips": (LPIPS, load_lpips)}
Rows = dict[str, Tensor]
NOISE = 6                       # the random stream of decoding, beside those of protocols.py


def start_evaluation() -> Processes:
    """Processes that meet at barriers only, where the slowest may be hours behind: so wait long."""
    return start_processes("gloo", timeout=timedelta(days=7))


# ---------------------------------------------------------------------------------------------
# What the metrics see of videos

def open_judges(metrics: list[str], directory: str | Path | None, device: torch.device
                ) -> dict[str, nn.Module]:
    """The networks that the metrics need. FileNotFoundError says which file to put where.

    directory None: random weights, whose numbers mean nothing.
    """
    judges = {}
    for metric in (metric for metric in metrics if metric in JUDGES):
        network, load = JUDGES[metric]
        try:
            judge = load(directory) if directory else randomize(network(), 0)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}; or leave {METRICS[metric]} out (--metrics), or "
                                    "try the pipeline with --random-weights") from None
        judges[metric] = judge.to(device)
    return judges


@torch.no_grad()
def measure_videos(judges: dict[str, nn.Module], metrics: list[str], video: Tensor,
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

def open_real(name: str, data: DataConfig | ClipSource | None, run: Run) -> ClipSource:
    """The real videos of a protocol: those that are given, else what the run has held out.

    ValueError where the protocol is of a data set that has to be given.
    """
    shape, stride = run.config.clip_shape, run.config.stride
    if isinstance(data, DataConfig):
        index = run.folder / "features" / f"videos-{digest(as_plain(data))}.json"
        return open_source(data, shape, stride=stride, index=index)
    if data is not None:
        return open_source(data, shape)
    if name == "toy" and run.data.dataset != "shapes":
        raise ValueError(f"protocol toy is for runs on the drawn clips; {run.folder} was trained "
                         f"on {run.data.dataset!r}: take --protocol own")
    if name not in NO_BENCHMARK:
        raise ValueError(f"protocol {name} needs --data, the folder of its "
                         f"{PROTOCOLS[name].split} videos")
    return run.held_out(run.folder / "videos-test.json")


def trained_on(run: Run, data: DataConfig | ClipSource | None) -> bool:
    """Whether the real videos are those that the run has learned from, as far as can be seen."""
    if data is None:
        return not run.data.has_held_out and not run.data.dataset.startswith("object")
    return isinstance(data, DataConfig) and bool(data.root) and (
        (data.resolved().root, data.resolved().split) == (run.data.root, run.data.split))


def load_clips(source: ClipSource, clips: list[Clip], device: torch.device
               ) -> tuple[Tensor, Tensor]:
    """Real clips as (B, 3, T, H, W) in [0, 1] and their labels (B,)."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        frames, labels = zip(*pool.map(lambda clip: source.clip_at(*clip), clips))
    return to_float(np.stack(frames)).to(device), torch.tensor(labels, device=device)


def sample_videos(run: Run, task: str, video: Tensor, label: Tensor, decoding: dict, seed: int,
                  first: int) -> tuple[Tensor, Rows]:
    """Samples first, first + 1, ... given their real clips (B, 3, T, H, W) and labels (B,).

    task "reconstruction" takes them through the tokenizer and back, and returns beside the video
    which codes each has used, (B, K) bool. label: of the run's classes.
    """
    tokenizer = run.tokenizer
    with autocast(run.config.precision, video.device):
        if task == "reconstruction":
            tokens = tokenizer.encode(video)
            used = torch.zeros(len(video), tokenizer.codebook_size, dtype=torch.bool)
            used.scatter_(1, tokens.flatten(1).cpu(), True)
            return tokenizer.decode(tokens).float().clamp(0, 1), {"used": used}
        noise = noise_of(seed, task, range(first, first + len(video)), video.device)
        return generate(tokenizer, run.transformer, video, task, noise=noise,
                        condition_frames=run.config.condition_frames, **run.how(task, label),
                        **decoding).float(), {}


def noise_of(seed: int, task: str, samples: range, device: torch.device
             ) -> Callable[[torch.Size], Tensor]:
    """commit_decode's `noise`: one stream of random numbers for each sample."""
    number = MT10.index(task) if task in MT10 else int(digest(task), 16)      # not by its place
    generators = []
    for i in samples:
        state = np.random.SeedSequence([seed, NOISE, number, i]).generate_state(2)
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


# ---------------------------------------------------------------------------------------------
# Rows on disk

def rows_on_disk(folder: Path, items: list, batch: int, compute: Callable[[list, int], Rows],
                 processes: Processes, title: str) -> Rows:
    """compute(items of a batch, its first number), for all batches: from disk where it is there.

    A file per batch, written under another name and then renamed: whatever is there is whole.
    Batches are dealt out to processes in turn. Returns all rows, in order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [(first, folder / f"{first // batch:06}.npz")
             for first in range(0, len(items), batch)]
    mine = files[processes.rank::processes.world]
    for first, path in tqdm(mine, desc=title, disable=processes.rank > 0, mininterval=1.0):
        part = items[first:first + batch]
        if len(part) != rows_in(path):       # a last batch grows when more samples are asked for
            rows = compute(part, first)
            temporary = folder / f"{path.name}.{os.getpid()}"
            with open(temporary, "wb") as file:
                np.savez(file, **{key: value.cpu().numpy() for key, value in rows.items()})
            os.replace(temporary, path)
    if dist.is_initialized():
        dist.barrier()
    parts = [read_rows(path) for _, path in files]
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def read_rows(path: Path) -> Rows:
    with np.load(path, allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def rows_in(path: Path) -> int:
    """How many videos a file has rows for; 0 where it is missing or damaged."""
    try:
        return len(next(iter(read_rows(path).values())))
    except (OSError, ValueError, EOFError, StopIteration, zipfile.BadZipFile):
        return 0


def checkpoint_stamps(run: Path) -> list:
    """Changes when the run's checkpoints do."""
    return [(name, (run / name).stat().st_size, (run / name).stat().st_mtime_ns)
            for name in ("tokenizer.pt", "transformer.pt") if (run / name).exists()]


def main() -> None:
    """What is stored below a run; without one, which of 14 samples is computed where."""
    for rank in range(3) if len(sys.argv) == 1 else ():
        print(f"process {rank} of 3 makes", *(f"{first // 4:06}.npz of samples {first}, ..."
                                              for first in range(0, 14, 4)[rank::3]))
    for folder in sorted(Path(*sys.argv[1:], "features").glob("*/")):
        files = sorted(folder.glob("*.npz"))
        print(f"{folder}: {sum(rows_in(path) for path in files):,} videos in {len(files)} files")


if __name__ == "__main__":
    main()
