"""Numbers with their protocol: FVD, IS, PSNR, SSIM, LPIPS of a run, or of two folders.

Paper   Sec. 4 (Tables 1-4 and 7), App. B.3

Shapes  rows of features, one per video (features.py) -> score -> mean and deviation over the
        folds -> entry -> "FVD", or "FVD*" with what was not as in the paper

Read    score, entry; evaluate_protocol, which is App. B.3 in one function; compare, for people
        who only have two folders of videos.

A number bears a star, in the table and in the JSON, where anything was not as in the paper:
fewer samples, other videos, other weights. The reasons stand beside it.

Not here: the mathematics (metrics.py), the protocols (protocols.py), how videos become rows
        (features.py), what needs no foreign network (report.py).

Run:    python evaluate.py                            what can be measured with the weights here
        python evaluate.py RUN                        numbers and pictures of a run (report.py)
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
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from checkpoint import load_run
from commit import TASKS
from data import ClipSource
from features import (JUDGES, METRICS, Rows, digest, load_clips, look, open_judges, open_real,
                      open_set, rows_of_sets, run_labels, sample_videos, stamps,
                      start_evaluation, stored)
from loop import Processes
from metrics import (best_of_trials, frechet_distance, fvd, fvd_infinity, gaussian,
                     inception_score, over_folds, psnr, ssim)
from protocols import (MT8, PROTOCOLS, Clip, Protocol, deviations, measured_size, real_clips, say,
                       to_measure)
from report import (evaluate_reconstruction, evaluate_tasks, measure_classes, measure_speed,
                    print_speed, report)

__all__ = ["PROTOCOLS", "compare", "evaluate_protocol", "evaluate_reconstruction",
           "evaluate_tasks", "frechet_distance", "fvd", "fvd_infinity", "gaussian",
           "inception_score", "measure_classes", "over_folds", "psnr", "report", "ssim"]


# ---------------------------------------------------------------------------------------------
# From rows to numbers

def score(metrics: list[str], folds: int, real: Rows, fake: Rows, clips: Tensor | None = None,
          infinity: bool = False) -> dict[str, tuple[float, float]]:
    """Mean and deviation over folds of each metric, from rows in sample order.

    clips (n,): which real clip each sample tried to predict; if given, PSNR and SSIM are those
    of the best trial for each clip within a fold. infinity: also FVD_inf, over all samples.
    """
    def best(values: Tensor, which: Tensor) -> float:
        return best_of_trials(values, which).mean().item()

    numbers = {}
    if "fvd" in metrics:
        numbers["fvd"] = over_folds(fvd, folds, real["fvd"], fake["fvd"])
        if infinity:
            smallest = min(5000, max(2, len(fake["fvd"]) // 4))
            numbers["fvd_inf"] = fvd_infinity(real["fvd"], fake["fvd"], smallest), 0.0
    if "is" in metrics:
        numbers["is"] = over_folds(inception_score, folds, fake["is"])
    for name in ("psnr", "ssim", "lpips"):
        if name in metrics and clips is not None and name != "lpips":
            numbers[name] = over_folds(best, folds, fake[name], clips)
        elif name in metrics:                              # the official LPIPS is a plain mean
            numbers[name] = over_folds(lambda values: values.mean().item(), folds, fake[name])
    return numbers


def entry(metric: str, number: tuple[float, float], samples: int, folds: int,
          judges: dict[str, nn.Module], reasons: list[str]) -> tuple[str, dict]:
    """A number under the name it may bear: "FVD", or "FVD*" with what is not as it should be."""
    name, judge = METRICS.get(metric, "FVD_inf"), metric.removesuffix("_inf")
    weights = judges[judge].weights if judge in JUDGES else "none needed"
    if weights.startswith("random"):
        reasons = ["random weights: the number means nothing", *reasons]
    elif judge in JUDGES and ("verified" not in weights or "unverified" in weights):
        reasons = ["weights for which nobody published a hash: they may be others", *reasons]
    if metric == "fvd_inf":
        folds = 1
        if samples < 10_000:
            reasons = ["a line in 1/N needs N from 5,000 up to well above", *reasons]
    return f"{name}{'*' if reasons else ''}", dict(
        mean=number[0], deviation=number[1], samples=samples, folds=folds, weights=weights,
        not_as_wanted=reasons)


def print_numbers(title: str, results: dict[str, dict[str, dict]]) -> None:
    """results: task or sets -> name of the number -> its entry."""
    rows = [(subject, name, value) for subject, entries in results.items()
            for name, value in entries.items() if "mean" in value]
    print(f"\n{title}\n{'number':9} {'of':14} {'value':>20} {'samples':>13}   weights")
    reasons: dict[str, dict] = {}
    for subject, name, value in rows:
        number, samples = f"{value['mean']:.4f}", f"{value['samples']:,}"
        if value["folds"] > 1:
            number = f"{number} ± {value['deviation']:.4f}"
            samples = f"{value['samples'] // value['folds']:,} x {value['folds']}"
        print(f"{name:9} {subject:14} {number:>20} {samples:>13}   {value['weights']}")
        for reason in value["not_as_wanted"]:
            reasons.setdefault(reason, {})[name] = None
    if reasons:
        print("* not comparable with published numbers:")
    for reason, names in reasons.items():
        print(f"  - {', '.join(names)}: {reason}")


def print_tasks(results: dict[str, dict[str, dict]]) -> None:
    """Table 4: the FVDs of several tasks side by side, and their average."""
    names = {name for entries in results.values() for name in entries if name.strip("*") == "FVD"}
    means = {task: entries[name]["mean"] for name in names for task, entries in results.items()
             if task in TASKS and name in entries}
    if len(means) > 1:
        means["average"] = sum(means.values()) / len(means)
        print("\n      " + "".join(f"{task:>9}" for task in means))
        print(f"{max(names):6}" + "".join(f"{value:9.1f}" for value in means.values()))


# ---------------------------------------------------------------------------------------------
# A protocol, from beginning to end

class Job(NamedTuple):
    """What all tasks of one evaluation share."""

    run: Path
    row: Protocol
    config: dict
    tokenizer: nn.Module
    model: nn.Module
    source: ClipSource
    judges: dict[str, nn.Module]
    metrics: list[str]
    decoding: dict
    seed: int
    batch: int
    processes: Processes
    settings: dict              # whatever the rows of the real clips depend on


def evaluate_protocol(run: str | Path, name: str, *, data: str | Path | None = None,
                      split: str | None = None, layout: str | None = None,
                      tasks: list[str] | None = None, metrics: list[str] | None = None,
                      samples: int | None = None, batch: int = 16, seed: int = 0,
                      weights: str | Path = "weights", random_weights: bool = False,
                      infinity: bool = False, decoding: dict | None = None,
                      processes: Processes = Processes()) -> dict | None:
    """App. B.3: what PROTOCOLS[name] asks for, on a run. Writes RUN/evaluation-NAME.json.

    data, split, layout: the real videos, as in data.open_source. tasks: of commit.TASKS, or
    "reconstruction" (through the tokenizer and back). samples: in all folds. Started again, it
    goes on where it stopped and ends with the same numbers. Returns what it wrote; None in
    processes other than the first.
    """
    row = PROTOCOLS[name]
    tasks, metrics = tasks or [row.tasks[0]], metrics or list(row.metrics)
    count = row.samples * row.folds if samples is None else samples
    least = row.folds * (2 if "fvd" in metrics else 1)
    if count < least or count % row.folds:
        raise ValueError(f"{count} samples; the {row.folds} folds of {name} need a multiple of "
                         f"{row.folds}, at least {least}")
    judges = open_judges(metrics, weights, random_weights, processes.device)
    data = dict(root=data and str(Path(data).resolve()), split=split, layout=layout)
    job = open_job(Path(run), name, data, judges, metrics, decoding or {}, seed, batch, processes)
    # Batches are always full, so that more samples, asked for later, change none of the first.
    clips = real_clips(job.source, row, -(-count // batch) * batch, seed)
    # One clip may be the real one of many samples; it is looked at once.
    distinct = {clip: number for number, clip in enumerate(dict.fromkeys(clips[:count]))}
    which = torch.tensor([distinct[clip] for clip in clips[:count]])
    real = real_rows(job, list(distinct))[which] if "fvd" in metrics else None
    results = {}
    for task in tasks:
        fake = {key: rows[:count] for key, rows in fake_rows(job, task, clips).items()}
        if processes.rank == 0:
            best = which if row.best_of > 1 and task != "reconstruction" else None
            numbers = score(metrics, row.folds, dict(fvd=real), fake, best, infinity)
            reasons = deviations(name, task, samples=count, videos=len(job.source), data=data,
                                 config=job.config, decoding=job.decoding)
            results[task] = dict(entry(metric, number, count, row.folds, judges, reasons)
                                 for metric, number in numbers.items())
            if "codes" in fake:
                used = np.unpackbits(np.bitwise_or.reduce(fake["codes"].numpy())).sum()
                results[task]["codes"] = dict(used=int(used), of=job.tokenizer.codebook_size)
    return conclude(job, name, len(distinct), results) if processes.rank == 0 else None


def open_job(run: Path, name: str, data: dict, judges: dict[str, nn.Module],
             metrics: list[str], decoding: dict, seed: int, batch: int,
             processes: Processes) -> Job:
    """The run and the real videos; what evaluate_protocol says of the arguments holds here."""
    row = PROTOCOLS[name]
    tokenizer, model, config = load_run(run, processes.device)
    train = config["train"]
    source, fingerprint = open_real(name, data, train, run)
    settings = dict(data=fingerprint, clips=(row.windows, row.crops), seed=seed, batch=batch,
                    size=(train["frames"], train["stride"], train["resolution"],
                          measured_size(row, train)), device=processes.device.type,
                    weights={metric: judge.weights for metric, judge in judges.items()})
    return Job(run, row, config, tokenizer, model, source, judges, metrics,
               row.decoding | decoding, seed, batch, processes, settings)


def real_rows(job: Job, clips: list[Clip]) -> Tensor:
    """I3D's logits of real clips, (n, 400)."""
    def compute(part: list[Clip], first: int) -> Rows:
        video, _ = load_clips(job.source, part, job.processes.device)
        return look(job.judges, ["fvd"], to_measure(video, measured_size(
            job.row, job.config["train"])))

    settings = job.settings | dict(weights=job.judges["fvd"].weights)
    folder = job.run / "features" / f"real-{digest(settings)}"
    return stored(folder, clips, job.batch, compute, job.processes, "real clips")["fvd"]


def fake_rows(job: Job, task: str, clips: list[Clip]) -> Rows:
    """What the metrics must know of the samples that belong to these clips, in order."""
    train, names = job.config["train"], job.config["data"]["class_names"]
    classes = task in TASKS and TASKS[task].class_conditional

    def compute(part: list[Clip], first: int) -> Rows:
        real, label = load_clips(job.source, part, job.processes.device)
        label = run_labels(label, job.source, names) if classes else label
        fake, codes = sample_videos(job.tokenizer, job.model, task, real, label, job.config,
                                    job.decoding, job.seed, first)
        pair = (to_measure(video, measured_size(job.row, train)) for video in (fake, real))
        return look(job.judges, job.metrics, *pair) | codes

    settings = job.settings | dict(decoding=job.decoding, metrics=sorted(job.metrics),
                                   precision=train["precision"], checkpoints=stamps(job.run))
    folder = job.run / "features" / f"{task}-{digest(settings)}"
    return stored(folder, clips, job.batch, compute, job.processes, task)


def conclude(job: Job, name: str, distinct: int, results: dict) -> dict:
    """The JSON and the table."""
    outcome = dict(protocol=name, source=job.row.source, real=job.row.rule,
                   real_clips=distinct, real_videos=len(job.source), decoding=job.decoding,
                   seed=job.seed, results=results)
    path = job.run / f"evaluation-{name}.json"
    path.write_text(json.dumps(outcome, indent=2) + "\n")
    print_numbers(f"protocol {name} ({job.row.source})\nreal: {job.row.rule}; {distinct:,} clips, "
                  f"{len(job.source):,} videos\ndecoding: {say(job.decoding)}", results)
    for task, entries in results.items():
        if task in TASKS and job.row.best_of > 1 and {"psnr", "ssim"} & {*job.metrics}:
            samples = next(iter(entries.values()))["samples"] / job.row.folds
            print(f"{task}: PSNR and SSIM are of the best of {max(1, samples / distinct):.3g} "
                  f"trials; wanted {job.row.best_of}")
        if "codes" in entries:
            print(f"{task}: {entries['codes']['used']} of {entries['codes']['of']} codes used")
    print_tasks(results)
    print(f"wrote {path}")
    return outcome


# ---------------------------------------------------------------------------------------------
# Two sets of videos, whoever made them

def compare(metric: str, paths: list[str], *, weights: str | Path = "weights",
            random_weights: bool = False, infinity: bool = False, folds: int = 1,
            batch: int = 16) -> dict:
    """One metric of two sets of videos, real and fake; IS of one. Videos of one size, as they are.

    fvd: any numbers of videos of at least 9 frames. psnr, ssim, lpips: video by video, in order.
    """
    if len(paths) != (1 if metric == "is" else 2):
        raise ValueError(f"{metric} of {len(paths)} sets; it takes "
                         + ("one, the fakes" if metric == "is" else "two, real and fake"))
    sets = [open_set(path) for path in paths]
    counts, shape = [count for count, _ in sets], sets[0][1](0).shape
    least = folds * (2 if metric == "fvd" else 1)
    if min(counts) < least or any(count % folds for count in counts):
        raise ValueError(f"{' and '.join(map(str, counts))} videos; {folds} folds of {metric} need "
                         f"a multiple of {folds}, at least {least}")
    if metric not in ("fvd", "is") and counts[0] != counts[1]:
        raise ValueError(f"{counts[0]} and {counts[1]} videos; {metric} compares pairs")
    if metric == "fvd" and shape[0] < 9:
        raise ValueError(f"videos of {shape[0]} frames; I3D needs at least 9")
    processes = start_evaluation()
    judges = open_judges([metric], weights, random_weights, processes.device)
    rows = rows_of_sets(metric, paths, sets, judges, batch, processes)
    numbers = score([metric], folds, rows[0], rows[-1], infinity=infinity)
    reasons = []
    if metric in ("fvd", "is") and min(counts) < 2048 * folds:
        reasons.append(f"{min(counts) // folds:,} videos a fold; below 2,048 it is mostly bias")
    if metric == "fvd" and shape[0] != 16:
        reasons.append(f"{shape[0]} frames; FVDs are published of 16")
    entries = dict(entry(name, number, counts[-1], folds, judges, reasons)
                   for name, number in numbers.items())
    print_numbers(f"no protocol: {' against '.join(paths)}, as they are, "
                  f"{'x'.join(map(str, shape[:3]))}", {"sets": entries})
    return entries


# ---------------------------------------------------------------------------------------------

def print_abilities(directory: str) -> None:
    """Without a run: which protocol could give which number with the weights at hand."""
    names = {}
    for metric, title in METRICS.items():
        try:
            judges = open_judges([metric], directory, False, torch.device("cpu"))
            names[metric] = entry(metric, (0.0, 0.0), 0, 1, judges, [])[0]
        except (FileNotFoundError, ValueError) as error:
            names[metric] = f"({title})"
            print(f"({title}) {str(error).split('; or leave')[0]}")
    print(f"\n{'protocol':14} numbers; in brackets: no weights; *: nothing vouches for them")
    for name, row in PROTOCOLS.items():
        print(f"{name:14} {' '.join(names[metric] for metric in row.metrics)}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a run, or compare sets of videos.")
    parser.add_argument("what", nargs="?", help="folder of a run, or one of fvd is psnr ssim lpips")
    parser.add_argument("sets", nargs="*", help="folders of videos or .npy files: REAL FAKE")
    parser.add_argument("--protocol", choices=PROTOCOLS)
    parser.add_argument("--data", help="folder of the real videos of the protocol's split")
    parser.add_argument("--split", help="list of those that count (data set's own .txt or .json)")
    parser.add_argument("--layout", help="what lies in the folder, if that is not plain to see")
    parser.add_argument("--tasks", nargs="+", choices=[*TASKS, "MT8", "MT10", "reconstruction"])
    parser.add_argument("--metrics", nargs="+", choices=METRICS, help="fewer than the protocol's")
    parser.add_argument("--samples", type=int, help="in all folds; fewer than the paper's: starred")
    parser.add_argument("--steps", type=int, help="of decoding; likewise")
    parser.add_argument("--schedule", help="of decoding; likewise")
    parser.add_argument("--temperature", type=float, help="of decoding; likewise")
    parser.add_argument("--folds", type=int, default=1, help="when comparing sets")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", default="weights", help="folder, see python pretrained.py")
    parser.add_argument("--random-weights", action="store_true", help="try without weight files")
    parser.add_argument("--infinity", action="store_true", help="also FVD at endless samples")
    parser.add_argument("--speed", action="store_true", help="frames per second")
    parser.add_argument("--clips", type=int, default=64, help="of the report")
    options = parser.parse_args()
    try:
        dispatch(options)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"evaluate.py: {error}")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def dispatch(options: argparse.Namespace) -> None:
    """Which of the five things of the opening map was asked for."""
    judging = dict(weights=options.weights, random_weights=options.random_weights,
                   infinity=options.infinity, batch=options.batch)
    if options.what is None:
        print_abilities(options.weights)
    elif options.what in METRICS:
        compare(options.what, options.sets, folds=options.folds, **judging)
    elif options.protocol:
        groups = dict(MT8=MT8, MT10=TASKS)
        tasks = options.tasks and [task for name in options.tasks
                                   for task in groups.get(name, [name])]
        decoding = {name: getattr(options, name) for name in ("steps", "schedule", "temperature")
                    if getattr(options, name) is not None}
        evaluate_protocol(options.what, options.protocol, data=options.data, split=options.split,
                          layout=options.layout, tasks=tasks, metrics=options.metrics,
                          samples=options.samples, seed=options.seed, decoding=decoding,
                          processes=start_evaluation(), **judging)
    elif options.speed:
        rows = measure_speed(options.what)
        print_speed(rows)
        Path(options.what, "speed.json").write_text(json.dumps(rows, indent=2) + "\n")
    else:
        report(options.what, options.clips, options.samples or 256)


if __name__ == "__main__":
    main()
