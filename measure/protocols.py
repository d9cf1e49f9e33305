"""Protocols: how many samples against which real clips, and what it is called if you do less.

Paper   App. B.3 (sampling protocols, the debiased FVD of BAIR), Sec. 4.4 (multi-task)

Shapes  source, Protocol -> real_clips -> one Clip (video, start, y, x) per sample, which
        ClipSource.clip_at reads as uint8 (T, H, W, 3) and a label

Read    Protocol and PROTOCOLS, the paper's page as a table; real_clips, which clip sample i is
        compared with and conditioned on; deviations, what was not done as the paper does it.

An FVD is a number and a protocol. The same model is 62 or 31 on BAIR, by which clips are real.

Not here: decoding (evaluate.py), rows and scores (judges.py), their mathematics (metrics.py).
"""
from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from commit import MT8, MT10, TASKS, mask_ratio
from data.clips import DataConfig, VideoFolder, open_source
from data.source import ClipSource, digest, fingerprint, shuffled, spare_frames
from measure.pretrained import resize_tf1


@dataclass(frozen=True)
class Protocol:
    """A row of App. B.3. Defaults are what it says of most data sets."""

    source: str                    # where the row is from
    split: str                     # "train" or "test": whose videos are real
    videos: int                    # how many the paper has of them
    tasks: tuple[str, ...]         # what is evaluated so; the first where none is asked for
    windows: int = 0               # clips per video: windows in time, evenly spread; 0: random
    crops: int = 0                 # x crops in space, evenly spread; 0: random
    only_window: float = 0.0       # how far along a video's only window begins: 0.5, the middle
    samples: int = 50_000          # generated per fold
    folds: int = 4
    resolution: int = 128          # of the generated video
    measured_at: int = 128         # centre crop and TF1's resize to this, before any metric
    frames: int = 16
    condition_frames: int = 1
    steps: int = 12
    schedule: str = "cosine"
    temperature: float = 4.5
    metrics: tuple[str, ...] = ("fvd",)
    best_of: int = 1               # trials per clip of which PSNR and SSIM take the best

    @property
    def rule(self) -> str:
        if not self.windows:
            return f"random clips of {self.split} videos"
        crop = "centre crop" if self.crops == 1 else f"{self.crops} crops"
        only = "middle" if self.only_window else "first"
        window = f"{only} window" if self.windows == 1 else f"{self.windows} windows"
        return f"{window} x {crop} of each {self.split} video"

    @property
    def decoding(self) -> dict:
        return dict(steps=self.steps, schedule=self.schedule, temperature=self.temperature)


_bair = dict(split="test", videos=256, crops=1, samples=25_600, resolution=64, measured_at=64)
PROTOCOLS = {
    "ucf101": Protocol("App. B.3, UCF-101; Tables 1 and 7", "train", 9_537, ("CG",),
                       samples=10_000, metrics=("fvd", "is")),
    "bair": Protocol("App. B.3, BAIR; Tables 2 and 3", tasks=("FP",), windows=1, schedule="exp",
                     temperature=400.0, metrics=("fvd", "psnr", "ssim", "lpips"), best_of=100,
                     **_bair),
    "bair-debiased": Protocol("App. B.3, Debiased FVD on BAIR; Tables 2, 4, 5 and 6", tasks=MT8,
                              windows=15, **_bair),
    "k600": Protocol("App. B.3, Kinetics-600; Table 2", "test", 29_000, ("FP",), windows=2,
                     crops=3, measured_at=64, condition_frames=5, schedule="uniform",
                     temperature=7.5),
    # The sequel says what is given, the schedule and the temperature; the rest is the row above.
    "k600-v2": Protocol("MAGVIT-v2, App. A.1; the real clips of App. B.3, Kinetics-600", "test",
                        29_000, ("FP",), windows=2, crops=3, measured_at=64, frames=17,
                        condition_frames=5, temperature=32.0),
    "ssv2": Protocol("App. B.3, SSv2, the CG task; Table 4", "train", 169_000, ("CG",)),
    "ssv2-mt": Protocol("App. B.3, SSv2, the other tasks; Table 4", "test", 24_000,
                        (*MT8, "CFP"), windows=2, crops=1),
    "nuscenes": Protocol("App. B.3, nuScenes", "test", 600, ("FP",), windows=16, crops=3),
    "objectron": Protocol("App. B.3, Objectron", "test", 3_600, ("FI",), windows=5, crops=1),
    "web": Protocol("App. B.3, Web videos", "test", 26_000, MT8),
    "toy": Protocol("ours; no benchmark", "test", 64, MT10, windows=1, crops=1, samples=512,
                    resolution=32, measured_at=32, steps=16, temperature=1.5,
                    metrics=("fvd", "psnr", "ssim")),
    # Ours, for anybody's data: what the run held out, or a data set that is given.
    "own": Protocol("ours; no benchmark", "held-out", 0, MT10, windows=1, crops=1,
                    only_window=0.5, samples=512, folds=1, metrics=("fvd", "psnr", "ssim")),
}
NO_BENCHMARK = ("toy", "own")
# The random streams of an evaluation: a function each of (seed, its number, what it is drawn for).
WINDOW, ORDER = 4, 5


# ---------------------------------------------------------------------------------------------
# What is asked for

# What may be asked for (evaluate.evaluate_protocol); None is what the protocol says.
ASKED = dict(tasks=None, metrics=None, samples=None, folds=None, decoding={}, batch=16, seed=0,
             precision="float32", save=None)


def complete(name: str, asked: dict) -> SimpleNamespace:
    """All of ASKED, with what the protocol says. ValueError where it makes no sense."""
    if name not in PROTOCOLS:
        raise ValueError(f"protocol {name!r} is unknown; choose from {', '.join(PROTOCOLS)}")
    if unknown := set(asked) - set(ASKED):
        raise ValueError(f"{min(unknown)!r} cannot be asked for; wanted some of {', '.join(ASKED)}")
    protocol, given = PROTOCOLS[name], {key: value for key, value in asked.items()
                                        if value is not None}
    asked = SimpleNamespace(**ASKED | dict(metrics=list(protocol.metrics), folds=protocol.folds)
                            | given)
    for field, least in (("folds", 1), ("batch", 1), ("seed", 0)):
        if getattr(asked, field) < least:
            raise ValueError(f"{field} {getattr(asked, field)}; wanted {least} or more")
    if asked.samples is None:
        asked.samples = protocol.samples * asked.folds
    least = asked.folds * (2 if "fvd" in asked.metrics else 1)
    if asked.samples < least or asked.samples % asked.folds:
        raise ValueError(f"{asked.samples} samples; the {asked.folds} folds of {name} need a "
                         f"multiple of {asked.folds}, at least {least}")
    for task in asked.tasks or ():
        if task not in TASKS and task != "reconstruction":
            raise ValueError(f"task {task!r} is unknown; choose from {' '.join(TASKS)} "
                             "reconstruction")
    return asked


def checked_decoding(decoding: dict) -> dict:
    """Keywords of commit_decode, without a guidance of 0. ValueError where one makes no sense."""
    known = dict(steps=1, temperature=0.0, guidance_scale=0.0)              # and their least values
    for name, value in decoding.items():
        if name == "schedule":
            mask_ratio(torch.ones(1), value)
        elif name not in known:
            raise ValueError(f"decoding has no {name!r}; it has schedule, {', '.join(known)}")
        elif not known[name] <= value < math.inf:
            raise ValueError(f"{name} {value}; wanted a number, {known[name]} or more")
    return {name: value for name, value in decoding.items() if name != "guidance_scale" or value}


# ---------------------------------------------------------------------------------------------
# Which clips are real

def open_real(name: str, data: DataConfig | ClipSource | None, run) -> ClipSource:
    """The real videos of a protocol: those that are given, else what the Run has held out.

    ValueError where the protocol is of a data set that has to be given.
    """
    shape, stride = run.config.clip_shape, run.config.stride
    if isinstance(data, DataConfig):
        index = run.folder / "evaluation" / f"videos-{digest(asdict(data))}.json"
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


def trained_on(run, data: DataConfig | ClipSource | None) -> bool:
    """Whether the real videos are those that the Run has learned from, as far as can be seen."""
    if data is None:
        return not run.data.has_held_out and not run.data.dataset.startswith("object")
    if not isinstance(data, DataConfig) or not data.root:
        return False
    given, learned = data.resolved(), run.data.resolved()
    return (given.root, given.split) == (learned.root, learned.split)


def content_of(source: ClipSource) -> str:
    """Ten letters that change when the real clips do: with a file's name, length, size or time."""
    files = [path for path, _ in source.videos] if isinstance(source, VideoFolder) else []
    return digest([fingerprint(source), [path.stat().st_mtime_ns for path in files]])


class Clip(NamedTuple):
    """A place in a data set. y and x in [0, 1]: how far the crop is moved, 1 is the far end."""

    video: int
    start: int
    y: float
    x: float


# The centre of an odd number of spare pixels lies between two places. Data sets take the one
# nearer to the start, and a fraction a little below one half makes the same choice here.
CENTRE = 0.5 - 1e-9


def real_clips(source: ClipSource, protocol: Protocol, count: int, seed: int = 0) -> list[Clip]:
    """The real clips of samples 0 .. count-1: compared with them, and what they are given.

    Without replacement: all clips are visited in a shuffled order, then again in another one
    ("a single data loader", App. B.3). Clip i depends on (seed, i) alone, whatever the count.
    """
    places = [place for video in range(len(source)) for place in (
        uniform_clips(video, spare_frames(source, video), protocol.windows, protocol.crops,
                      protocol.only_window)
        if protocol.windows else [Clip(video, 0, CENTRE, CENTRE)])]
    chosen = []
    for i in range(count):
        turn, place = divmod(i, len(places))
        clip = places[shuffled(len(places), seed, ORDER, turn)[place]]
        if not protocol.windows:
            random = np.random.default_rng([seed, WINDOW, i])
            start = int(random.integers(spare_frames(source, clip.video) + 1))
            clip = Clip(clip.video, start, *random.random(2).tolist())
        chosen.append(clip)
    return chosen


def uniform_clips(video: int, spare: int, windows: int, crops: int, only: float = 0.0
                  ) -> list[Clip]:
    """windows x crops of a video that is `spare` frames longer than a clip, evenly spread.

    One window is the first (or lies at the fraction `only` of what is spare), two are the first
    and the last. A video with fewer places than windows gives each of them once. Crops move along
    the longer side: the shorter has no room.
    """
    places = np.linspace(0, spare, windows) if windows > 1 else np.array([spare * only])
    starts = dict.fromkeys(places.round().astype(int).tolist())
    places = [CENTRE] if crops == 1 else np.linspace(0, 1, crops).tolist()
    places = [CENTRE if place == 0.5 else place for place in places]
    return [Clip(video, start, place, place) for start in starts for place in places]


def measured_size(protocol: Protocol, resolution: int) -> int:
    """Pixels at which videos are judged; a run of other pixels than the protocol's keeps them."""
    return protocol.measured_at if resolution == protocol.resolution else resolution


def to_measure(video: Tensor, size: int) -> Tensor:
    """(B, 3, T, H, W) -> (B, 3, T, size, size): central square, then TF1's bilinear resize.

    That is how all released code comes from 128 to 64 pixels for Kinetics-600, where it takes
    every second pixel. (MAGVIT's own configuration for Kinetics is not released.)
    """
    side = min(video.shape[-2:])
    y, x = ((length - side) // 2 for length in video.shape[-2:])
    video = video[..., y:y + side, x:x + side]
    return video if side == size else resize_tf1(video, (size, size))


# ---------------------------------------------------------------------------------------------
# What is not as in the paper

def deviations(name: str, task: str, config, *, samples: int, folds: int, videos: int,
               decoding: dict, trained_on: bool = False) -> list[str]:
    """Each departure from the protocol in words; none, and the number may bear the plain name.

    task: of commit.TASKS, or "reconstruction". config: the run's TrainConfig. samples: in all
    folds; videos: how many real ones there are; trained_on: the run has learned from these very
    videos.
    """
    protocol, reasons = PROTOCOLS[name], []
    if name in NO_BENCHMARK:
        reasons.append(f"protocol {name} is no benchmark: nobody publishes numbers of such videos")
    if protocol.split != "train" and trained_on:
        reasons.append("the real videos are those the run was trained on; wanted test videos")
    if name == "own":                                   # whatever the run does, it is right for it
        return reasons
    if samples != protocol.samples * protocol.folds:
        reasons.append(f"{samples:,} samples; wanted {protocol.samples:,} x {protocol.folds}")
    if folds != protocol.folds:
        reasons.append(f"{folds} folds; wanted {protocol.folds}")
    if abs(videos - protocol.videos) > 0.05 * protocol.videos:     # papers round, videos vanish
        reasons.append(f"{videos:,} {protocol.split} videos; wanted about {protocol.videos:,}")
    for field, wanted in (("resolution", protocol.resolution), ("frames", protocol.frames),
                          ("stride", 1)):
        if getattr(config, field) != wanted:
            reasons.append(f"{field} {getattr(config, field)}; wanted {wanted}")
    if task == "reconstruction":
        reasons += [] if name == "ucf101" else ["reconstruction is reported on UCF-101 (Table 7)"]
        return reasons
    if task not in protocol.tasks:
        reasons.append(f"task {task}; this protocol is for {' '.join(protocol.tasks)}")
    if TASKS[task].counts_frames and config.condition_frames != protocol.condition_frames:
        reasons.append(f"{config.condition_frames} frames given; wanted "
                       f"{protocol.condition_frames}")
    if decoding != protocol.decoding:
        reasons.append(f"decoding with {decoding_in_words(decoding)}; wanted "
                       f"{decoding_in_words(protocol.decoding)}")
    return reasons


def decoding_in_words(decoding: dict) -> str:
    guidance = decoding.get("guidance_scale", 0)
    return (f"{decoding['schedule']}, {decoding['steps']} steps, temperature "
            f"{decoding['temperature']:g}" + (f", guidance {guidance:g}" if guidance else ""))
