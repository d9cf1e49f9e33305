"""Rows of features: what the metrics see of videos, and how the video of a sample is made.

Paper   App. B.3 ("a single data loader", and conditions come from the real clips)

Shapes  sample i -> its real clip -> generate -> video (B, 3, T, H, W) in [0, 1]
          -> measure_videos -> a row per video: 400 logits for FVD, 101 for IS, one PSNR, ...

Read    measure_videos; sample_videos (what sample i is); noise_of.

Sample i, its clip and its noise are functions of (seed, i), and sample i is always decoded in
batch i // batch_size. So the rows do not depend on how many processes there are, nor on when
they were stopped. (Another device or number of threads may round otherwise and, rarely, draw
another token.)

Not here: rows on disk (rows.py); an evaluation's order of work (jobs.py); scores (numbers.py);
        which clips are real (protocols.py); two folders of videos (sets.py).

Run:    python -m measure.features     the rows of two videos, by random weights
"""
from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from commit import MT10
from data.clips import DataConfig, open_source
from data.source import NO_LABEL, ClipSource, digest, to_float
from decode import generate, gumbel_noise
from measure.metrics import frames_of, mean_of_finite, psnr, ssim
from measure.networks import C3D, I3D, LPIPS, randomize
from measure.pretrained import (PINNED, UNKNOWN, c3d_input, i3d_input, load_c3d, load_i3d,
                                load_lpips)
from measure.protocols import NO_BENCHMARK, PROTOCOLS, Clip
from steps import autocast
from training.build import as_plain
from training.checkpoint import Run
from training.processes import Processes, start_processes

METRICS = {"fvd": "FVD", "kvd": "KVD", "is": "IS", "psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS"}
PAIRED = ("psnr", "ssim", "lpips")          # of a video and its real one; the others are of sets
# What metrics are computed from, where that is not a row of their own name.
ROWS_OF = {"kvd": ("fvd",), "psnr": ("psnr", "identical")}
JUDGES = {"fvd": (I3D, load_i3d), "is": (C3D, load_c3d), "lpips": (LPIPS, load_lpips)}
NOISE = 6                       # the random stream of decoding, beside those of protocols.py


def start_evaluation() -> Processes:
    """Processes that meet at barriers only, where the slowest may be hours behind: so wait long."""
    return start_processes("gloo", timeout=timedelta(days=7))


# ---------------------------------------------------------------------------------------------
# What the metrics see of videos

def rows_of(metrics: Iterable[str]) -> list[str]:
    """The rows that metrics are computed from, each once."""
    return list(dict.fromkeys(row for metric in metrics for row in ROWS_OF.get(metric, (metric,))))


def stored_names(rows: Iterable[str], judges: dict[str, nn.Module]) -> dict[str, str]:
    """A row -> the name that it is stored under: by which weights, not who vouches for them."""
    label = {row: judge.weights.replace(PINNED, UNKNOWN) for row, judge in judges.items()}
    return {row: f"{row}-{digest(label[row])}" if row in judges else row for row in rows}


def open_judges(metrics: list[str], directory: str | Path | None, device: torch.device,
                pins: Sequence[str] = ()) -> dict[str, nn.Module]:
    """The networks that the metrics need. FileNotFoundError says which file to put where.

    directory None: random weights, whose numbers mean nothing. pins: of load_weights.
    """
    judges = {}
    for metric in (row for row in rows_of(metrics) if row in JUDGES):
        network, load = JUDGES[metric]
        try:
            judge = load(directory, pins) if directory else randomize(network(), 0)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}; or leave {METRICS[metric]} out, or try the "
                                    "pipeline with --random-weights") from None
        judges[metric] = judge.to(device)
    return judges


@torch.no_grad()
def measure_videos(judges: dict[str, nn.Module], wanted: list[str], video: Tensor,
                   real: Tensor | None = None) -> dict[str, Tensor]:
    """What the metrics must know of videos (B, 3, T, H, W) in [0, 1], a row for each.

    wanted: of rows_of. "fvd" (B, 400) and "is" (B, 101): logits. "psnr", "ssim", "lpips" (B,):
    means over all frames, the given ones too (official), against `real` of the same shape; left
    out where it is None. A frame that is identical with the real one has no finite PSNR: it is
    counted in "identical" (B,) and is not in the mean, which is NaN where all are identical.
    """
    rows = {}
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):      # ten bits are too few
        if "fvd" in wanted:
            rows["fvd"] = judges["fvd"](i3d_input(video))
        if "is" in wanted:
            rows["is"] = judges["is"](c3d_input(video))
        pairs = [] if real is None else list(zip(frames_of(video), frames_of(real)))
        for name, distance in dict(ssim=ssim, lpips=judges.get("lpips")).items():
            if pairs and name in wanted:                   # a video at a time: VGG is large
                rows[name] = torch.stack([distance(*pair).mean() for pair in pairs])
    if pairs and "psnr" in wanted:
        of_frames = torch.stack([psnr(*pair) for pair in pairs])
        rows["identical"] = of_frames.isinf().sum(1)
        rows["psnr"] = mean_of_finite(of_frames)
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
    if not isinstance(data, DataConfig) or not data.root:
        return False
    given, learned = data.resolved(), run.data.resolved()
    return (given.root, given.split) == (learned.root, learned.split)


def load_clips(source: ClipSource, clips: list[Clip], device: torch.device
               ) -> tuple[Tensor, Tensor]:
    """Real clips as (B, 3, T, H, W) in [0, 1] and their labels (B,)."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        frames, labels = zip(*pool.map(lambda clip: source.clip_at(*clip), clips))
    return to_float(np.stack(frames)).to(device), torch.tensor(labels, device=device)


def sample_videos(run: Run, task: str, video: Tensor, label: Tensor, decoding: dict, seed: int,
                  first: int, precision: str = "float32") -> tuple[Tensor, dict[str, Tensor]]:
    """Samples first, first + 1, ... given their real clips (B, 3, T, H, W) and labels (B,).

    task "reconstruction" takes them through the tokenizer and back, and returns beside the video
    which codes each has used, (B, K) bool. label: of the run's classes.
    """
    tokenizer = run.tokenizer
    with autocast(precision, video.device):
        if task == "reconstruction":
            tokens = tokenizer.encode(video)
            used = torch.zeros(len(video), tokenizer.codebook_size, dtype=torch.bool)
            used.scatter_(1, tokens.flatten(1).cpu(), True)
            return tokenizer.decode(tokens).float().clamp(0, 1), {"used": used}
        noise = noise_of(seed, task, range(first, first + len(video)), video.device)
        return generate(tokenizer, run.transformer, video, task, noise=noise,
                        condition_frames=run.config.condition_frames, **run.how(task, label),
                        **decoding).float(), {}


def in_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether samples of this precision are made in bfloat16 on this device."""
    with autocast(precision, device):
        return torch.is_autocast_enabled(device.type)


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


def main() -> None:
    """The rows of two made-up videos against themselves and with noise, by random weights."""
    generator = torch.Generator().manual_seed(0)
    real = torch.rand(2, 3, 9, 32, 32, generator=generator)
    noisy = (real + 0.1 * torch.randn(real.shape, generator=generator)).clamp(0, 1)
    rows = measure_videos(open_judges(["fvd"], None, torch.device("cpu")),
                          ["fvd", "psnr", "identical", "ssim"], noisy, real)
    for name, row in rows.items():
        first = ", ".join(f"{value:.3f}" for value in row.flatten()[:3].tolist())
        print(f"{name:10} {tuple(row.shape)!s:10} {first}, ...")


if __name__ == "__main__":
    main()
