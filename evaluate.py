"""Numbers with their protocol: FVD, IS, PSNR, SSIM, LPIPS of a run, or of two folders.

Paper   Sec. 4 (Tables 1-4 and 7), App. B.3

Shapes  samples and their real clips -> rows of features, one per video (measure/features.py)
          -> mean and deviation over the folds -> "FVD", or "FVD*" with what was not as in the paper

Read    Request; evaluate_protocol, which is App. B.3 in one function.

A number bears a star, in the table and in the JSON, where anything was not as in the paper:
fewer samples, other videos, other weights. The reasons stand beside it.

Not here, but in measure/: the mathematics (metrics.py), protocols.py, how videos become rows
        (features.py), rows numbers (numbers.py), report.py without judges, two folders (sets.py).

Run:    python evaluate.py                            what can be measured with the weights here
        python evaluate.py RUN                        numbers and pictures of a run
        python evaluate.py RUN --protocol own         FVD* and more, on the clips it held out
        python evaluate.py RUN --protocol bair --data DIR         (torchrun for several GPUs)
        python evaluate.py RUN --protocol ucf101 --data DIR --tasks reconstruction     (Table 7)
        python evaluate.py RUN --protocol bair-debiased --data DIR --tasks MT8         (Table 4)
        python evaluate.py RUN --speed                                                 (Fig. 5)
        python evaluate.py fvd REAL FAKE              also psnr, ssim, lpips; is FAKE
"""
from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from commit import TASKS
from data.clips import DataConfig
from data.source import ClipSource, digest
from measure.features import (METRICS, Rows, checkpoint_stamps, load_clips, measure_videos,
                              open_judges, open_real, rows_on_disk, run_labels, sample_videos,
                              start_evaluation, trained_on)
from measure.numbers import entry, print_abilities, print_numbers, print_tasks, print_trials, score
from measure.protocols import (PROTOCOLS, Clip, Protocol, decoding_in_words, deviations,
                               measured_size, real_clips, to_measure)
from measure.report import measurable_tasks, report
from measure.sets import compare
from measure.speed import measure_speed, print_speed
from training.checkpoint import Run, load_run
from training.processes import Processes
from training.presets import TASK_SETS


@dataclass(frozen=True)
class Request:
    """What to measure, where it is not simply what the protocol says."""

    tasks: list[str] | None = None      # of commit.TASKS or "reconstruction"; the protocol's first
    metrics: list[str] | None = None    # fewer than the protocol's
    samples: int | None = None          # in all folds
    decoding: dict = field(default_factory=dict)        # keywords of commit_decode
    batch: int = 16
    seed: int = 0
    infinity: bool = False              # FVD with endlessly many samples, too


class Job(NamedTuple):
    """What all tasks of one evaluation share."""

    run: Run
    protocol: Protocol
    source: ClipSource
    judges: dict[str, nn.Module]
    request: Request            # complete: nothing in it is left to the protocol
    size: int                   # pixels at which videos are judged
    settings: dict              # whatever the rows of the real clips depend on
    processes: Processes


def evaluate_protocol(run: str | Path, name: str, data: DataConfig | ClipSource | None = None, *,
                      weights: str | Path | None = "weights", processes: Processes = Processes(),
                      **request) -> dict | None:
    """App. B.3: what PROTOCOLS[name] asks for, on a run. Writes RUN/evaluation-NAME.json.

    data: the real videos; without any, those that the run held out. weights: the folder of the
    judges' files; None: random ones, to try it. request: fields of Request. Started again, it
    goes on where it stopped and ends with the same numbers. Returns what it wrote; None in
    processes other than the first.
    """
    job = open_job(Path(run), name, data, Request(**request), weights, processes)
    request, count, folds = job.request, job.request.samples, job.protocol.folds
    # Batches are always full, so that more samples, asked for later, change none of the first.
    clips = real_clips(job.source, job.protocol, -(-count // request.batch) * request.batch,
                       request.seed)
    # One clip may be the real one of many samples; its features are computed once.
    distinct = {clip: number for number, clip in enumerate(dict.fromkeys(clips[:count]))}
    which = torch.tensor([distinct[clip] for clip in clips[:count]])
    real = real_rows(job, list(distinct))[which] if "fvd" in request.metrics else None
    results = {}
    for task in request.tasks:
        fake = {key: rows[:count] for key, rows in fake_rows(job, task, clips).items()}
        if processes.rank == 0:
            best = which if job.protocol.best_of > 1 and task != "reconstruction" else None
            numbers = score(request.metrics, folds, dict(fvd=real), fake, best, request.infinity)
            reasons = deviations(name, task, job.run.config, samples=count,
                                 videos=len(job.source), decoding=request.decoding,
                                 trained_on=trained_on(job.run, data))
            results[task] = dict(entry(metric, number, count, folds, job.judges, reasons)
                                 for metric, number in numbers.items())
            if "used" in fake:
                used = fake["used"].any(0)
                results[task]["codes"] = dict(used=int(used.sum()), of=len(used))
    return conclude(job, name, len(distinct), results) if processes.rank == 0 else None


def open_job(folder: Path, name: str, data: DataConfig | ClipSource | None, request: Request,
             weights: str | Path | None, processes: Processes) -> Job:
    """Everything that can be refused is refused here, in one line, before anything is computed."""
    protocol = PROTOCOLS[name]
    metrics = request.metrics or list(protocol.metrics)
    count = request.samples or protocol.samples * protocol.folds
    least = protocol.folds * (2 if "fvd" in metrics else 1)
    if count < least or count % protocol.folds:
        raise ValueError(f"{count} samples; the {protocol.folds} folds of {name} need a multiple "
                         f"of {protocol.folds}, at least {least}")
    judges = open_judges(metrics, weights, processes.device)
    run = load_run(folder, processes.device)
    tasks = request.tasks or [protocol.tasks[0] if name != "own" else measurable_tasks(run)[0]]
    source = open_real(name, data, run)
    usual = run.config.decoding if name == "own" else protocol.decoding
    request = replace(request, tasks=tasks, metrics=metrics, samples=count,
                      decoding=usual | request.decoding)
    size = measured_size(protocol, run.config)
    settings = dict(data=source.fingerprint(), clips=(protocol.windows, protocol.crops),
                    seed=request.seed, batch=request.batch, device=processes.device.type,
                    size=(run.config.frames, run.config.stride, run.config.resolution, size),
                    weights={metric: judge.weights for metric, judge in judges.items()})
    return Job(run, protocol, source, judges, request, size, settings, processes)


def real_rows(job: Job, clips: list[Clip]) -> Tensor:
    """I3D's logits of real clips, (n, 400)."""
    def compute(part: list[Clip], first: int) -> Rows:
        video, _ = load_clips(job.source, part, job.processes.device)
        return measure_videos(job.judges, ["fvd"], to_measure(video, job.size))

    settings = job.settings | dict(weights=job.judges["fvd"].weights)
    folder = job.run.folder / "features" / f"real-{digest(settings)}"
    return rows_on_disk(folder, clips, job.request.batch, compute, job.processes,
                        "real clips")["fvd"]


def fake_rows(job: Job, task: str, clips: list[Clip]) -> Rows:
    """What the metrics must know of the samples that belong to these clips, in order."""
    run, request = job.run, job.request

    def compute(part: list[Clip], first: int) -> Rows:
        real, label = load_clips(job.source, part, job.processes.device)
        if task in TASKS and TASKS[task].class_conditional and run.class_names:
            label = run_labels(label, job.source, run.class_names)
        fake, used = sample_videos(run, task, real, label, request.decoding, request.seed, first)
        pair = to_measure(fake, job.size), to_measure(real, job.size)
        return measure_videos(job.judges, request.metrics, *pair) | used

    settings = job.settings | dict(decoding=request.decoding, metrics=sorted(request.metrics),
                                   precision=run.config.precision,
                                   checkpoints=checkpoint_stamps(run.folder))
    folder = run.folder / "features" / f"{task}-{digest(settings)}"
    return rows_on_disk(folder, clips, request.batch, compute, job.processes, task)


def conclude(job: Job, name: str, distinct: int, results: dict) -> dict:
    """The JSON and the table."""
    protocol, request = job.protocol, job.request
    outcome = dict(protocol=name, source=protocol.source, real=protocol.rule,
                   real_clips=distinct, real_videos=len(job.source), decoding=request.decoding,
                   seed=request.seed, results=results)
    path = job.run.folder / f"evaluation-{name}.json"
    path.write_text(json.dumps(outcome, indent=2) + "\n")
    print_numbers(f"protocol {name} ({protocol.source})\n"
                  f"real: {protocol.rule}; {distinct:,} clips, {len(job.source):,} videos\n"
                  f"decoding: {decoding_in_words(request.decoding)}", results)
    print_trials(results, protocol, request.samples / protocol.folds / distinct)
    print_tasks(results)
    print(f"wrote {path}")
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a run, or compare sets of videos.")
    parser.add_argument("what", nargs="?", help="folder of a run, or one of fvd is psnr ssim lpips")
    parser.add_argument("sets", nargs="*", help="folders of videos or .npy files: REAL FAKE")
    parser.add_argument("--protocol", choices=PROTOCOLS)
    parser.add_argument("--data", help="folder of the real videos of the protocol's split")
    parser.add_argument("--split", help="list of those that count (data set's own .txt or .json)")
    parser.add_argument("--layout", default="auto", help="what lies there")
    parser.add_argument("--tasks", nargs="+", choices=[*TASKS, "MT8", "MT10", "reconstruction"])
    parser.add_argument("--metrics", nargs="+", choices=METRICS, help="fewer than the protocol's")
    parser.add_argument("--samples", type=int, help="in all folds; fewer than the paper's: starred")
    parser.add_argument("--steps", type=int, help="of decoding; likewise")
    parser.add_argument("--schedule", help="of decoding; likewise")
    parser.add_argument("--temperature", type=float, help="of decoding; likewise")
    parser.add_argument("--folds", type=int, default=1, help="when comparing sets")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", default="weights", help="folder of the judges")
    parser.add_argument("--random-weights", action="store_true", help="try without weight files")
    parser.add_argument("--infinity", action="store_true", help="also FVD at endless samples")
    parser.add_argument("--speed", action="store_true", help="frames per second")
    parser.add_argument("--clips", type=int, default=64, help="of the report")
    try:
        dispatch(parser.parse_args())
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"evaluate.py: {error}")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def dispatch(options: argparse.Namespace) -> None:
    """Which of the five things of the opening map was asked for."""
    weights = None if options.random_weights else options.weights
    if options.what is None:
        print_abilities(options.weights)
    elif options.what in METRICS:
        compare(options.what, options.sets, folds=options.folds, weights=weights,
                infinity=options.infinity, batch=options.batch)
    elif options.protocol:
        tasks = options.tasks and [task for name in options.tasks
                                   for task in TASK_SETS.get(name, [name])]
        decoding = {name: getattr(options, name) for name in ("steps", "schedule", "temperature")
                    if getattr(options, name) is not None}
        data = options.data and DataConfig(options.data, split=options.split,
                                           layout=options.layout).resolved()
        evaluate_protocol(options.what, options.protocol, data, weights=weights,
                          processes=start_evaluation(), tasks=tasks, metrics=options.metrics,
                          samples=options.samples, seed=options.seed, decoding=decoding,
                          batch=options.batch, infinity=options.infinity)
    elif options.speed:
        rows = measure_speed(options.what)
        print_speed(rows)
        Path(options.what, "speed.json").write_text(json.dumps(rows, indent=2) + "\n")
    else:
        report(options.what, options.clips, options.samples or 256)


if __name__ == "__main__":
    main()
