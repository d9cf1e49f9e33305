"""Numbers with their protocol: FVD, IS, PSNR, SSIM, LPIPS of a run, or of two folders.

Paper   Sec. 4 (Tables 1-4 and 7), App. B.3

Shapes  samples and their real clips -> rows of features, one per video (measure/features.py)
          -> mean and deviation over the folds -> "FVD", or "FVD*" with what was not as in the paper

Read    evaluate_protocol, which is App. B.3 in one function.

A number bears a star, in the table and in the JSON, where anything was not as in the paper:
fewer samples, other videos, other weights. The reasons stand beside it.

Not here, but in measure/: the mathematics (metrics.py), protocols.py, the work (jobs.py), how
        videos become rows (features.py, rows.py), rows numbers (numbers.py), two folders (sets.py),
        and a report that needs no judges (report.py).

Run:    python evaluate.py                            what can be measured with the weights here
        python evaluate.py RUN                        numbers and pictures of a run
        python evaluate.py RUN --protocol own         FVD* and more, on the clips it held out
        python evaluate.py RUN --protocol bair --data DIR         (torchrun for several GPUs)
        python evaluate.py RUN --protocol ucf101 --data DIR --tasks reconstruction     (Table 7)
        python evaluate.py RUN --protocol bair-debiased --data DIR --tasks MT8         (Table 4)
        python evaluate.py RUN --protocol ssv2-mt --data DIR --split validation.json \
            --train-split train.json --tasks MT10                                      (Table 4)
        python evaluate.py RUN --speed                                                 (Fig. 5)
        python evaluate.py fvd REAL FAKE     also fvd,kvd,psnr,ssim,lpips; is FAKE (docs/numbers.md)
"""
from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from commit import TASKS
from data.clips import DataConfig
from data.source import ClipSource
from measure.features import METRICS, in_bfloat16, start_evaluation, trained_on
from measure.jobs import Job, Request, checkpoint_stamps, fake_rows, open_job, real_rows
from measure.numbers import entry, print_abilities, print_numbers, print_tasks, print_trials, score
from measure.protocols import PROTOCOLS, decoding_in_words, deviations, real_clips
from measure.report import report
from measure.sets import compare
from measure.speed import measure_speed, print_speed
from training.processes import Processes
from training.presets import TASK_SETS


def evaluate_protocol(run: str | Path, name: str, data: DataConfig | ClipSource | None = None, *,
                      weights: str | Path | None = "weights", processes: Processes = Processes(),
                      **request) -> dict | None:
    """App. B.3: what PROTOCOLS[name] asks for, on a run. Writes RUN/evaluation-NAME.json.

    data: the real videos; without any, those that the run held out. weights: the folder of the
    judges' files; None: random ones, to try it. request: fields of measure.jobs.Request. Started
    again, it goes on where it stopped and ends with the same numbers. Returns what it wrote; None
    in processes other than the first.
    """
    job = open_job(Path(run), name, data, Request(**request), weights, processes)
    request, count, folds = job.request, job.request.samples, job.request.folds
    # Batches are always full, so that more samples, asked for later, change none of the first.
    clips = real_clips(job.source, job.protocol, -(-count // request.batch) * request.batch,
                       request.seed)
    # One clip may be the real one of many samples; its features are computed once.
    distinct = {clip: number for number, clip in enumerate(dict.fromkeys(clips[:count]))}
    which = torch.tensor([distinct[clip] for clip in clips[:count]])
    real = real_rows(job, list(distinct))[which] if "fvd" in job.judges else None
    results = {}
    for task in request.tasks:
        fake = {key: rows[:count] for key, rows in fake_rows(job, task, clips).items()}
        if processes.rank == 0:
            best = which if job.protocol.best_of > 1 and task != "reconstruction" else None
            numbers = score(request.metrics, folds, dict(fvd=real), fake, best, request.infinity)
            reasons = deviations(name, task, job.run.config, samples=count, folds=folds,
                                 videos=len(job.source), decoding=request.decoding,
                                 trained_on=trained_on(job.run, data), bfloat16=in_bfloat16(
                                     request.precision, processes.device))
            results[task] = dict(entry(metric, number, count, folds, job.judges, reasons)
                                 for metric, number in numbers.items())
            if "identical" in fake and fake["identical"].any():
                results[task]["identical_frames"] = dict(count=int(fake["identical"].sum()))
            if "used" in fake:
                used = fake["used"].any(0)
                results[task]["codes"] = dict(used=int(used.sum()), of=len(used))
    return conclude(job, len(distinct), results) if processes.rank == 0 else None


def conclude(job: Job, distinct: int, results: dict) -> dict:
    """The JSON and the table. Results of the same samples that the JSON has already stay in it."""
    protocol, request = job.protocol, job.request
    path = job.run.folder / f"evaluation-{job.name}.json"
    outcome = dict(protocol=job.name, source=protocol.source, real=protocol.rule,
                   real_clips=distinct, real_videos=len(job.source), decoding=request.decoding,
                   samples=request.samples, folds=request.folds, seed=request.seed,
                   precision=request.precision, checkpoints=checkpoint_stamps(job.run.folder))
    before = json.loads(path.read_text()) if path.exists() else {}
    if outcome == {key: value for key, value in before.items() if key != "results"}:
        for task, entries in before["results"].items():
            new = {key.strip("*") for key in results.get(task, {})}
            results[task] = {key: value for key, value in entries.items() if
                             key.strip("*") not in new} | results.get(task, {})
    outcome["results"] = results
    path.write_text(json.dumps(outcome, indent=2, allow_nan=False) + "\n")
    print_numbers(f"protocol {job.name} ({protocol.source})\n"
                  f"real: {protocol.rule}; {distinct:,} clips, {len(job.source):,} videos\n"
                  f"decoding: {decoding_in_words(request.decoding)}", results)
    print_trials(results, protocol, request.samples / request.folds / distinct)
    print_tasks(results)
    print(f"wrote {path}")
    return outcome


def evaluate_ssv2(run: str | Path, test: DataConfig, train: DataConfig, *, tasks: list[str],
                  **options) -> None:
    """Table 4's SSv2 column in one call: CG against train videos, all other tasks against test's.

    options: of evaluate_protocol. The JSON of each half is its protocol's own.
    """
    halves = [("ssv2", train, [task for task in tasks if task == "CG"]),
              ("ssv2-mt", test, [task for task in tasks if task != "CG"])]
    outcomes = [evaluate_protocol(run, name, data, tasks=chosen, **options)
                for name, data, chosen in halves if chosen]
    if all(outcomes):
        print("\nTable 4, SSv2, of both protocols:")
        print_tasks({task: entries for outcome in outcomes
                     for task, entries in outcome["results"].items()})


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a run, or compare sets of videos.")
    parser.add_argument("what", nargs="?", help="folder of a run, or numbers: fvd or fvd,kvd,psnr")
    parser.add_argument("sets", nargs="*", help="folders of videos or .npy files: REAL FAKE")
    parser.add_argument("--protocol", choices=PROTOCOLS)
    parser.add_argument("--data", help="folder of the real videos of the protocol's split")
    parser.add_argument("--split", help="list of those that count (data set's own .txt or .json)")
    parser.add_argument("--train-split", help="of ssv2-mt: the train videos' list, for task CG")
    parser.add_argument("--layout", default="auto", help="what lies there")
    parser.add_argument("--tasks", nargs="+", choices=[*TASKS, "MT8", "MT10", "reconstruction"])
    parser.add_argument("--metrics", nargs="+", choices=METRICS, help="others than the protocol's")
    parser.add_argument("--samples", type=int, help="in all folds; fewer than the paper's: starred")
    parser.add_argument("--steps", type=int, help="of decoding; likewise")
    parser.add_argument("--schedule", help="of decoding; likewise")
    parser.add_argument("--temperature", type=float, help="of decoding; likewise")
    parser.add_argument("--folds", type=int, help="likewise; of two sets: 1")
    parser.add_argument("--precision", default="float32", choices=("float32", "bf16", "auto"),
                        help="in which samples are made; others than float32 are starred")
    parser.add_argument("--windows", choices=("random",), help="of own: not each video's middle")
    parser.add_argument("--frames", type=int, help="of two sets: the first so many of each video")
    parser.add_argument("--stride", type=int, default=1, help="of two sets: every so-many-th")
    parser.add_argument("--size", type=int, help="of two sets: short side, then centre crop")
    parser.add_argument("--real-features", help="file of the real set's features, instead of it")
    parser.add_argument("--save-features", help="write that file")
    parser.add_argument("--save", help="folder for the generated videos, lossless .mp4")
    parser.add_argument("--json", help="of two sets: file for the numbers")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", default="weights", help="folder of the judges")
    parser.add_argument("--pin", dest="pins", nargs="+", default=(), help="sha256 of C3D's files, "
                        "for which you vouch: IS loses its star")
    parser.add_argument("--random-weights", action="store_true", help="try without weight files")
    parser.add_argument("--infinity", action="store_true", help="also FVD at endless samples")
    parser.add_argument("--speed", action="store_true", help="frames per second")
    parser.add_argument("--clips", type=int, default=64, help="of the report")
    try:
        dispatch(parser.parse_args())
    except (ValueError, OSError) as error:
        sys.exit(f"evaluate.py: {error}")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def dispatch(options: argparse.Namespace) -> None:
    """Which of the five things of the opening map was asked for."""
    weights = None if options.random_weights else options.weights
    if options.what is None:
        print_abilities(options.weights)
    elif options.sets or set(options.what.split(",")) <= set(METRICS):
        compare(options.what.split(","), options.sets, weights=weights, json_file=options.json,
                folds=options.folds or 1, processes=start_evaluation(), **{name: getattr(
                    options, name) for name in ("frames", "stride", "size", "infinity", "batch",
                                                "pins", "real_features", "save_features")})
    elif options.protocol:
        tasks = options.tasks and [task for name in options.tasks
                                   for task in TASK_SETS.get(name, [name])]
        decoding = {name: getattr(options, name) for name in ("steps", "schedule", "temperature")
                    if getattr(options, name) is not None}
        data = options.data and DataConfig(options.data, split=options.split,
                                           layout=options.layout).resolved()
        request = dict(tasks=tasks, decoding=decoding, **{name: getattr(options, name) for name in (
            "metrics", "samples", "folds", "seed", "batch", "infinity", "precision", "windows",
            "save", "pins", "real_features", "save_features")})
        processes = start_evaluation()
        if options.train_split:
            if options.protocol != "ssv2-mt" or not data:
                raise ValueError(f"--train-split with protocol {options.protocol}; it is for "
                                 "ssv2-mt with --data and --split, and --tasks MT10")
            train = replace(data, split=options.train_split).resolved()
            evaluate_ssv2(options.what, data, train, weights=weights, processes=processes,
                          **request | dict(tasks=tasks or list(TASK_SETS["MT10"])))
        else:
            evaluate_protocol(options.what, options.protocol, data, weights=weights,
                              processes=processes, **request)
    elif options.speed:
        rows = measure_speed(options.what)
        print_speed(rows)
        Path(options.what, "speed.json").write_text(json.dumps(rows, indent=2) + "\n")
    else:
        report(options.what, options.clips, options.samples or 256)


if __name__ == "__main__":
    main()
