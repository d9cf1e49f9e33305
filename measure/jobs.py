"""An evaluation's work: what was asked for, checked, and the rows of its real and made videos.

Paper   App. B.3

Shapes  Request -> open_job -> real_rows (n, 400) of the real clips, fake_rows of the samples

Read    Request; open_job, which refuses what cannot be done; fake_rows.

Not here: the scores (numbers.py) and what is written (evaluate.py).

Run:    python -m measure.jobs       what each protocol makes, and how long that takes
"""
from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from commit import TASKS
from data.clips import DataConfig, write_lossless
from data.source import ClipSource, digest
from measure.features import (load_clips, measure_videos, open_judges, open_real, rows_of,
                              run_labels, sample_videos, stored_names)
from measure.networks import I3D
from measure.protocols import PROTOCOLS, Clip, Protocol, measured_size, to_measure
from measure.report import measurable_tasks
from measure.rows import (Rows, content_of, machine_cache, open_features, rows_on_disk,
                          save_features)
from pictures import to_frames
from training.checkpoint import Run, load_run
from training.plan import Count, empty_networks, made_up
from training.presets import PRESETS, TrainConfig
from training.processes import Processes, from_first


@dataclass(frozen=True)
class Request:
    """What to measure, where it is not simply what the protocol says."""

    tasks: list[str] | None = None      # of commit.TASKS or "reconstruction"; the protocol's first
    metrics: list[str] | None = None    # the protocol's, or others
    samples: int | None = None          # in all folds
    folds: int | None = None
    decoding: dict = field(default_factory=dict)        # keywords of commit_decode
    precision: str = "float32"          # in which samples are made; of steps.autocast
    windows: str | None = None          # "random" for protocol "own", whose are the middle ones
    batch: int = 16
    seed: int = 0
    infinity: bool = False              # FVD with endlessly many samples, too
    save: str | None = None             # a folder for the generated videos
    pins: tuple[str, ...] = ()          # hashes of weight files for which you vouch
    real_features: str | None = None    # a file instead of the real videos' features
    save_features: str | None = None    # a file to write them to


class Job(NamedTuple):
    """What all tasks of one evaluation share."""

    run: Run
    name: str
    protocol: Protocol          # with the folds and windows that were asked for
    source: ClipSource
    judges: dict[str, nn.Module]
    request: Request            # complete: nothing in it is left to the protocol
    size: int                   # pixels at which videos are judged
    settings: dict              # whatever the rows of the real clips depend on
    processes: Processes


def open_job(folder: Path, name: str, data: DataConfig | ClipSource | None, request: Request,
             weights: str | Path | None, processes: Processes) -> Job:
    """Everything that can be refused is refused here, in one line, before anything is computed."""
    protocol = PROTOCOLS[name]
    if request.windows not in (None, "random") or request.windows and name != "own":
        raise ValueError(f"windows {request.windows!r} of protocol {name}; only own has a choice: "
                         "the middle of each video, or random")
    if request.windows:
        protocol = replace(protocol, windows=0, crops=0)
    metrics = request.metrics or list(protocol.metrics)
    folds = request.folds or protocol.folds
    count = request.samples or protocol.samples * folds
    least = folds * (2 if {"fvd", "kvd"} & set(metrics) else 1)
    if count < least or count % folds:
        raise ValueError(f"{count} samples; the {folds} folds of {name} need a multiple "
                         f"of {folds}, at least {least}")
    if request.batch < 1:
        raise ValueError(f"batch {request.batch}; wanted 1 or more")
    judges = open_judges(metrics, weights, processes.device, request.pins)
    run = load_run(folder, processes.device)
    tasks = request.tasks or [protocol.tasks[0] if name != "own" else measurable_tasks(run)[0]]
    source = open_real(name, data, run)
    usual = run.config.decoding if name == "own" else protocol.decoding
    request = replace(request, tasks=tasks, metrics=metrics, samples=count, folds=folds,
                      decoding=usual | request.decoding)
    size = measured_size(protocol, run.config)
    settings = dict(data=from_first(lambda: content_of(source), processes),
                    clips=(protocol.windows, protocol.crops, protocol.only_window),
                    seed=request.seed, batch=request.batch, device=processes.device.type,
                    size=(run.config.frames, run.config.stride, run.config.resolution, size))
    return Job(run, name, replace(protocol, folds=folds), source, judges, request, size, settings,
               processes)


def real_rows(job: Job, clips: list[Clip]) -> Tensor:
    """I3D's logits of real clips, (n, 400): from a file, from this machine's store, or made."""
    def compute(part: list[Clip], first: int, missing: list[str]) -> Rows:
        video, _ = load_clips(job.source, part, job.processes.device)
        return measure_videos(job.judges, missing, to_measure(video, job.size))

    request, config = job.request, job.run.config
    facts = dict(source=f"the real clips of protocol {job.name}, seed {request.seed}",
                 weights=job.judges["fvd"].weights, frames=config.frames, stride=config.stride,
                 size=f"{job.size}x{job.size}", clips=len(clips))
    if request.real_features:
        return open_features(request.real_features, facts)[0]
    rows = rows_on_disk(machine_cache() / f"real-{digest(job.settings)}", clips, request.batch,
                        compute, job.processes, "real clips",
                        stored_names(["fvd"], job.judges))["fvd"]
    if request.save_features and job.processes.rank == 0:
        save_features(request.save_features, rows, facts)
    return rows


def fake_rows(job: Job, task: str, clips: list[Clip]) -> Rows:
    """What the metrics must know of the samples that belong to these clips, in order.

    With request.save, each sample is also written there: TASK/000012.mp4, without any loss.
    """
    run, request = job.run, job.request
    wanted = rows_of(request.metrics) + ["used"] * (task == "reconstruction")

    def path_of(sample: int) -> Path:
        return Path(request.save, task, f"{sample:06}.mp4")

    def compute(part: list[Clip], first: int, missing: list[str]) -> Rows:
        real, label = load_clips(job.source, part, job.processes.device)
        if task in TASKS and TASKS[task].class_conditional and run.class_names:
            label = run_labels(label, job.source, run.class_names)
        fake, used = sample_videos(run, task, real, label, request.decoding, request.seed, first,
                                   request.precision)
        for sample, video in enumerate(fake if request.save else (), first):
            write_lossless(path_of(sample), to_frames(video))
        pair = to_measure(fake, job.size), to_measure(real, job.size)
        return measure_videos(job.judges, missing, *pair) | used

    def made(part: list[Clip], first: int) -> bool:
        return not request.save or all(path_of(first + i).exists() for i in range(len(part)))

    settings = job.settings | dict(decoding=request.decoding, precision=request.precision,
                                   checkpoints=checkpoint_stamps(run.folder))
    folder = run.folder / "features" / f"{task}-{digest(settings)}"
    return rows_on_disk(folder, clips, request.batch, compute, job.processes, task,
                        stored_names(wanted, job.judges), made=made)


def checkpoint_stamps(run: Path) -> list:
    """Changes when the run's checkpoints do."""
    return [[name, (run / name).stat().st_size, (run / name).stat().st_mtime_ns]
            for name in ("tokenizer.pt", "transformer.pt") if (run / name).exists()]


# ---------------------------------------------------------------------------------------------
# How long

PRESET_OF = {"bair-debiased": "bair-B", "ssv2-mt": "ssv2-B", "toy": "toy", "own": "toy"}


def flop_of_sample(protocol: Protocol, config: TrainConfig) -> float:
    """Of making a sample and judging it: condition in, all steps, video out, and I3D."""
    sizes = ("tokenizer", "transformer", "frames", "resolution")
    once, step = flop_of_parts(TrainConfig(**{name: getattr(config, name) for name in sizes}))
    return once + protocol.steps * step


@functools.cache
def flop_of_parts(config: TrainConfig) -> tuple[float, float]:
    """What is done once for a sample, and a step of decoding."""
    tokenizer, model = (empty_networks(config, stage)[stage].to_empty(device="cpu")
                        for stage in ("tokenizer", "transformer"))
    zero = torch.zeros(1, dtype=torch.long)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        with Count() as once:
            tokens = tokenizer(made_up(config, 1)).tokens       # as much as the condition's tokens
            I3D()(torch.rand(1, 3, config.frames, 224, 224))    # and the video of the sample's
        with Count() as step:
            model(tokens.flatten(1), zero, zero)
    return once.flop, step.flop


def main() -> None:
    """Float32 on one H200, which gives 67 TFLOP/s; that 40 % of them are reached is assumed."""
    print(f"{'protocol':14} {'samples':>9} {'TFLOP each':>11} {'hours a task':>13}  numbers")
    for name, protocol in PROTOCOLS.items():
        samples = protocol.samples * protocol.folds
        config = PRESETS[PRESET_OF.get(name, f"{name}-B" if f"{name}-B" in PRESETS else "web-H")]
        flop = flop_of_sample(protocol, config)
        print(f"{name:14} {samples:>9,} {flop / 1e12:>11.2f} "
              f"{samples * flop / (0.4 * 67e12) / 3600:>13.1f}  {' '.join(protocol.metrics)}")


if __name__ == "__main__":
    main()
