"""Numbers with their protocol: FVD, IS, PSNR, SSIM, LPIPS of a run, or of two folders.

Paper   Sec. 4 (Tables 1-4 and 7), App. B.3

Shapes  real clips (B, 3, T, H, W) in [0, 1] -> their conditions -> generate -> as many samples
          -> rows of features, one per video -> mean and deviation over the folds
          -> "FVD", or "FVD*" with what was not as in the paper

Files   RUN/evaluation/NAME-real-x/000012.npz    rows of a batch of real clips
        RUN/evaluation/NAME-TASK-x/000012.npz    rows of a batch of samples; x stands for whatever
                                                 they depend on: settings, clips and weights
        RUN/evaluation-NAME.json                 the numbers, and why they bear a star

Read    evaluate_protocol, which is App. B.3 in one function; then refuse_impossible.

A number bears a star, in the table and in the JSON, where anything was not as in the paper: fewer
samples, other videos, other weights. The reasons stand beside it. A file of rows is written whole
and never made twice. Sample i, its clip and its noise are functions of (seed, i), and sample i is
always decoded in batch i // batch. So the numbers do not depend on how many processes there are,
nor on when they were stopped. (Another device or number of threads may round otherwise and,
rarely, draw another token.)

Not here: the table of protocols (measure/protocols.py), from videos to numbers
        (measure/judges.py), two folders (measure/folders.py), the report (measure/report.py).

Run:    python evaluate.py RUN                        numbers and pictures of a run
        python evaluate.py RUN --protocol own         FVD* and more, on the clips it held out
        python evaluate.py RUN --protocol bair --data DIR         (torchrun for several GPUs)
        python evaluate.py RUN --protocol ucf101 --data DIR --tasks reconstruction     (Table 7)
        python evaluate.py RUN --protocol bair-debiased --data DIR --tasks MT8         (Table 4)
        python evaluate.py fvd REAL FAKE         also fvd,psnr,ssim,lpips; is FAKE (docs/numbers.md)
"""
from __future__ import annotations

import argparse
import os
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Callable, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from commit import MT10, TASKS, make_condition, task_index
from data.clips import DataConfig, VideoFolder, check_output, write_lossless
from data.source import NO_LABEL, ClipSource, digest
from decode import Noise, generate, seeded_noise
from measure.folders import compare
from measure.judges import (METRICS, claim, entry, load_clips, measure_videos, open_judges,
                            print_numbers, read_all, read_json, read_rows, refuse_clips,
                            sample_name, score, shared_out, stored_name, write_json, write_rows)
from measure.pictures import to_frames
from measure.protocols import (PROTOCOLS, Clip, checked_decoding, complete, content_of,
                               decoding_in_words, deviations, measured_size, open_real,
                               real_clips, to_measure, trained_on)
from measure.report import report
from steps import autocast
from training.checkpoint import Run, is_there, load_run, weights_hash
from training.kernels import resolve_precision
from training.presets import TASK_SETS
from training.processes import Processes, from_first, start_processes

NOISE = 6                       # the random stream of decoding, beside those of protocols.py


@torch.no_grad()
def evaluate_protocol(run: str | Path, name: str, data: DataConfig | ClipSource | None = None, *,
                      weights: str | Path | None = "weights", processes: Processes = Processes(),
                      decode: Callable | None = None, **asked) -> dict | None:
    """App. B.3: what PROTOCOLS[name] asks for, on a run. Writes RUN/evaluation-NAME.json.

    data: the real videos; without any, those that the run held out. weights: the folder of the
    judges' files; None: random ones, to try it. decode: a function in the place of
    decode.commit_decode. asked, where it is not simply what the protocol says:
      tasks      of commit.TASKS, or "reconstruction" (through the tokenizer and back, which needs
                 stage 1 alone); by default the protocol's first
      metrics    of METRICS
      samples    in all folds; and folds
      decoding   keywords of commit_decode: steps, schedule, temperature, guidance_scale
      batch      samples at a time (16); and seed (0)
      precision  in which samples are made: float32 (the default), bf16 or auto
      save       a folder for the samples, without loss: TASK/000012.mp4
    Started again, it resumes and ends with the same numbers. Returns what it wrote; None in
    processes other than the first. ValueError or FileNotFoundError where the run cannot do it,
    before the first sample is made.
    """
    asked = complete(name, asked)
    protocol, device = PROTOCOLS[name], processes.device
    judges = open_judges(asked.metrics, weights, device)
    run = open_run(Path(run), asked.tasks, device)
    asked.tasks = asked.tasks or [run.tasks[0] if name == "own" else protocol.tasks[0]]
    usual = run.config.decoding if name == "own" else protocol.decoding
    asked.decoding, asked.decode = checked_decoding(usual | asked.decoding), decode
    asked.precision = resolve_precision(asked.precision, device)
    asked.size = measured_size(protocol, run.config.resolution)
    if processes.world > 1:              # one counts the videos' frames; then they are on the disk
        from_first(lambda: len(open_real(name, data, run)), processes)
    source = open_real(name, data, run)
    refuse_impossible(run, source, asked)

    # Which clips are real. Batches of samples are always full, so that more samples, asked for
    # later, change none of the first. One clip may be the real one of many samples; its features
    # are computed once.
    clips = real_clips(source, protocol, -(-asked.samples // asked.batch) * asked.batch, asked.seed)
    distinct = {clip: number for number, clip in enumerate(dict.fromkeys(clips[:asked.samples]))}
    which = torch.tensor([distinct[clip] for clip in clips[:asked.samples]])
    about = dict(data=from_first(lambda: content_of(source), processes), seed=asked.seed,
                 clips=[protocol.windows, protocol.crops, protocol.only_window], batch=asked.batch,
                 size=[run.config.frames, run.config.stride, run.config.resolution, asked.size],
                 device=device.type)

    # Rows of features: of the real clips, then of the samples of each task.
    settings = {task: about | what_decides(run, task, asked) for task in asked.tasks}
    for task in asked.tasks if asked.save else ():
        whose = dict(run=str(run.folder.resolve()), task=task, settings=settings[task])
        from_first(lambda: claim(Path(asked.save, task), asked.samples, whose), processes)
    if "fvd" in asked.metrics:
        settings = dict(real=about) | settings
    rows = {}
    for task in settings:
        folder = run.folder / "evaluation" / f"{name}-{task}-{digest(settings[task])}"
        rows[task] = measure_samples(run, task, source, list(distinct) if task == "real" else clips,
                                     judges, asked, folder, processes)
    if processes.rank:
        return None

    # Numbers, under the names that they may bear.
    results, real = {}, rows["real"]["fvd"][which] if "real" in rows else None
    for task in asked.tasks:
        made = {row: values[:asked.samples] for row, values in rows[task].items()}
        best = which if protocol.best_of > 1 and task != "reconstruction" else None
        reasons = deviations(name, task, run.config, samples=asked.samples, folds=asked.folds,
                             videos=len(source), decoding=asked.decoding,
                             trained_on=trained_on(run, data))
        if asked.precision == "bf16":
            reasons.append("generated in bfloat16, which draws some other tokens than float32")
        results[task] = dict(
            entry(metric, number, asked.samples, asked.folds, judges, reasons) for metric, number
            in score(asked.metrics, asked.folds, real, made, best).items())
        if "psnr" in asked.metrics and made["identical"].any():
            results[task]["identical_frames"] = dict(count=int(made["identical"].sum()))
        if task == "reconstruction":
            results[task]["codes"] = dict(used=len(made["tokens"].unique()),
                                          of=run.tokenizer.codebook_size)
    return conclude(run, results, dict(
        protocol=name, source=protocol.source, real=protocol.rule, real_clips=len(distinct),
        real_videos=len(source), decoding=asked.decoding, samples=asked.samples,
        folds=asked.folds, seed=asked.seed, precision=asked.precision,
        checkpoints=checkpoint_stamps(run.folder)))


# ---------------------------------------------------------------------------------------------
# Samples and their rows, a file for each batch

def measure_samples(run: Run, task: str, source: ClipSource, clips: list[Clip],
                    judges: dict[str, nn.Module], asked: SimpleNamespace, folder: Path,
                    processes: Processes) -> dict[str, Tensor]:
    """What the metrics must know of the samples that belong to these clips, in order.

    task "real": of the clips themselves. Of a reconstruction also its "tokens". Batches whose
    file in `folder` is whole are not made again. With asked.save each sample is also saved.
    """
    wanted = (["fvd"] if task == "real" else
              [*asked.metrics, *(["identical"] if "psnr" in asked.metrics else []),
               *(["tokens"] if task == "reconstruction" else [])])
    keys = {row: stored_name(row, judges) for row in wanted}
    for path, part, first in shared_out(folder, clips, asked.batch, processes):
        rows = read_rows(path, len(part))
        missing = [row for row, key in keys.items() if key not in rows]
        numbers = range(first, min(first + len(part), asked.samples))
        files = [Path(asked.save, task, sample_name(number)) for number in numbers
                 if asked.save and task != "real"]
        if missing or not all(file.exists() for file in files):
            real, label = load_clips(source, part, processes.device)
            fake, made = make_samples(run, task, real, label, source.class_names, first, asked)
            for file, video in zip(files, fake):
                write_lossless(file, to_frames(video))
            made |= measure_videos(judges, missing, to_measure(fake, asked.size),
                                   to_measure(real, asked.size))
            write_rows(path, rows | {stored_name(row, judges): made[row] for row in made})
    return read_all(folder, len(clips), asked.batch, keys)


def make_samples(run: Run, task: str, video: Tensor, label: Tensor, class_names: Sequence[str],
                 first: int, asked: SimpleNamespace) -> tuple[Tensor, dict[str, Tensor]]:
    """Samples first, first + 1, ... given their real clips (B, 3, T, H, W) in [0, 1].

    label (B,): of class_names, those of the real videos. Task "reconstruction" takes the clips
    through the tokenizer and back, and returns its tokens (B, N) beside the videos; "real" leaves
    them as they are.
    """
    if task == "real":
        return video, {}
    with autocast(asked.precision, video.device):
        if task == "reconstruction":
            tokens = run.tokenizer.encode(video)
            return run.tokenizer.decode(tokens).float().clamp(0, 1), dict(tokens=tokens.flatten(1))
        if TASKS[task].class_conditional and run.transformer.no_class:
            label = run_labels(label, class_names, run.class_names)
        noise = noise_of(asked.seed, task, range(first, first + len(video)), video.device)
        return generate(run.tokenizer, run.transformer, video, task, noise=noise,
                        condition_frames=run.config.condition_frames,
                        **run.how(task, label, asked.decode), **asked.decoding).float(), {}


def noise_of(seed: int, task: str, samples: range, device: torch.device) -> Noise:
    """commit_decode's `noise`: one stream of random numbers for each sample."""
    number = MT10.index(task) if task in MT10 else int(digest(task), 16)      # not by its place
    streams = []
    for i in samples:
        state = np.random.SeedSequence([seed, NOISE, number, i]).generate_state(2)
        streams.append(seeded_noise(int(state[0]) << 31 | int(state[1]) >> 1, device))
    return lambda shape: torch.stack([stream(shape[1:]) for stream in streams])


# ---------------------------------------------------------------------------------------------
# A run, and whether it can do what is asked for

def open_run(folder: Path, tasks: list[str] | None, device: torch.device) -> Run:
    """The run; where reconstruction alone is asked for, its stage 1, or its 2D-VQ, is enough."""
    stages = ("tokenizer", "transformer")
    if tasks and {*tasks} == {"reconstruction"}:
        stages = ("tokenizer",) if is_there(folder / "tokenizer.pt") else ("image",)
    return load_run(folder, device, stages)


def refuse_impossible(run: Run, source: ClipSource, asked: SimpleNamespace) -> None:
    """ValueError where a metric, a task or the data set is not for this run: now, not in hours."""
    T, H, W = shape = run.config.clip_shape
    refuse_clips(asked.metrics, T, asked.size, asked.size)
    frames, label = source.clip(0, None)
    if frames.shape != (*shape, 3):
        raise ValueError(f"the real clips are {frames.shape}; this run takes {(*shape, 3)}")
    for task in asked.tasks:
        if task == "reconstruction":
            continue
        how, classes = run.how(task, None, asked.decode), run.transformer.no_class
        task_index(how.get("prompt", task), run.transformer.config.tasks)
        make_condition(torch.zeros(1, 3, T, 16, 16), task, run.config.condition_frames)
        if TASKS[task].needs_classes and not classes:
            raise ValueError(f"{task} needs classes, and {run.folder} was trained without any")
        if TASKS[task].class_conditional and classes:
            labels = source.labels if isinstance(source, VideoFolder) else [label]
            run_labels(torch.as_tensor(labels), source.class_names, run.class_names)


def run_labels(label: Tensor, real_names: Sequence[str], names: list[str]) -> Tensor:
    """Labels of the real videos -> those of the run, by name. ValueError where it has no such."""
    if not real_names or (label == NO_LABEL).any():
        raise ValueError("the real videos have no classes; a class-conditional task needs folders "
                         "of the classes' names, DIR/class/video")
    unknown = [name for name in real_names if name not in names]
    if unknown:
        raise ValueError(f"class {unknown[0]!r} of the real videos is unknown to the run, which "
                         f"has {len(names)} classes: {', '.join(names[:5]) or 'none'}, ...")
    table = torch.tensor([names.index(name) for name in real_names], device=label.device)
    return table[label]


def what_decides(run: Run, task: str, asked: SimpleNamespace) -> dict:
    """Whatever a sample depends on beside its real clip, as plain data."""
    facts = dict(tokenizer=weights_hash(run.tokenizer)[:10], precision=asked.precision)
    if task == "reconstruction":
        return facts
    decode = asked.decode and f"{asked.decode.__module__}.{asked.decode.__qualname__}"
    return facts | dict(transformer=weights_hash(run.transformer)[:10], decode=decode,
                        decoding=asked.decoding, condition_frames=run.config.condition_frames)


def checkpoint_stamps(run: Path) -> list:
    """Changes when the run's checkpoints do."""
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in (
        run / f"{stage}.pt" for stage in ("image", "tokenizer", "transformer")) if path.exists()]


# ---------------------------------------------------------------------------------------------
# What is written and printed

def conclude(run: Run, results: dict, about: dict) -> dict:
    """The JSON and the table. Results of the same samples that the JSON has already stay in it."""
    path = run.folder / f"evaluation-{about['protocol']}.json"
    before = read_json(path)
    known = before.pop("results", {})
    if before == about:
        for task, entries in known.items():
            new = {key.strip("*") for key in results.get(task, {})}
            results[task] = {key: value for key, value in entries.items() if
                             key.strip("*") not in new} | results.get(task, {})
    outcome = about | dict(results=results)
    write_json(path, outcome)
    print_numbers("protocol {protocol} ({source})\nreal: {real}; {real_clips:,} clips, "
                  "{real_videos:,} videos\n".format(**about)
                  + f"decoding: {decoding_in_words(about['decoding'])}", results)
    for task, entries in results.items():
        if "codes" in entries:
            print(f"{task}: {entries['codes']['used']} of {entries['codes']['of']} codes used")
    print_tasks(results)
    print(f"wrote {path}")
    return outcome


def print_tasks(results: dict[str, dict[str, dict]]) -> None:
    """Table 4: the FVDs of several tasks side by side, and their average."""
    names = {name for entries in results.values() for name in entries if name.strip("*") == "FVD"}
    means = {task: results[task][name]["mean"] for name in names for task in TASKS
             if name in results.get(task, {})}
    if len(means) > 1:
        means["average"] = sum(means.values()) / len(means)
        print("\n      " + "".join(f"{task:>9}" for task in means))
        print(f"{max(names):6}" + "".join(f"{value:9.1f}" for value in means.values()))


# ---------------------------------------------------------------------------------------------
# The command

FLAGS = {                                # what for -> flag -> argparse's words
    "a report": {"--samples": dict(type=int, help="by class, of the toy")},
    "a protocol": {
        "--protocol": dict(choices=PROTOCOLS),
        "--data": dict(metavar="DIR", help="folder of the real videos of the protocol's split"),
        "--split": dict(help="list of those that count (data set's own .txt, .csv or .json)"),
        "--layout": dict(help="what lies there: images, if each picture is a clip"),
        "--tasks": dict(nargs="+", choices=[*TASKS, *TASK_SETS, "reconstruction"], metavar="TASK",
                        help="a task, MT8, MT10 or reconstruction"),
        "--metrics": dict(nargs="+", choices=METRICS, help="others than the protocol's"),
        "--samples": dict(type=int, help="in all folds; fewer than the protocol's: starred"),
        "--folds": dict(type=int, help="others than the protocol's: starred"),
        "--steps": dict(type=int, help="of decoding; likewise"),
        "--schedule": dict(help="of decoding; likewise"),
        "--temperature": dict(type=float, help="of decoding; likewise"),
        "--guidance-scale": dict(type=float, help="of decoding; likewise"),
        "--precision": dict(choices=("float32", "bf16", "auto"), help="of samples; likewise"),
        "--save": dict(metavar="DIR", help="folder for the samples, lossless .mp4"),
        "--batch": dict(type=int, help="samples at a time (16)"),
        "--seed": dict(type=int, help="of clips and samples (0)"),
        "--weights": dict(metavar="DIR", help="folder of the judges' files (weights)"),
        "--random-weights": dict(action="store_true", help="try without weight files")},
    "two folders": {
        "--frames": dict(type=int, help="the first so many of each video"),
        "--stride": dict(type=int, help="every so-many-th frame (1)"),
        "--size": dict(type=int, help="short side, then centre crop"),
        "--save-features": dict(metavar="FILE.npz", help="the real set's, to stand for it later"),
        "--json": dict(metavar="FILE.json", help="for the numbers")},
}
FLAGS["two folders"] |= {flag: FLAGS["a protocol"][flag] for flag in ("--weights",
                                                                      "--random-weights")}


def main(arguments: list[str] | None = None, decode: Callable | None = None) -> None:
    """The command. decode: as of evaluate_protocol."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s RUN [FLAGS], or %(prog)s fvd REAL FAKE [FLAGS]",
        description="Measure a run, or compare folders of videos.",
        argument_default=argparse.SUPPRESS)
    parser.add_argument("what", help="folder of a run, or numbers: fvd or fvd,psnr,ssim")
    parser.add_argument("sets", nargs="*", help="folders of videos, .npy or .npz: REAL FAKE")
    words = {flag: words for flags in FLAGS.values() for flag, words in flags.items()}
    for heading, flags in FLAGS.items():
        group = parser.add_argument_group(heading)
        for flag in flags:
            if flag in words:                                          # some are of two headings
                group.add_argument(flag, **words.pop(flag))
    sys.stdout.reconfigure(errors="replace")                           # for an ASCII terminal
    try:
        dispatch(vars(parser.parse_args(arguments)), decode)
        sys.stdout.flush()
    except BrokenPipeError:                                            # `| head` has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        sys.exit(f"evaluate.py: {error}")
    except KeyboardInterrupt:
        sys.exit("evaluate.py: stopped; the same command resumes")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def dispatch(given: dict, decode: Callable | None) -> None:
    """Which of the three things of the opening map was asked for. given: the flags that were."""
    what, sets = given.pop("what"), given.pop("sets", [])
    folders = bool(sets) or {*what.split(",")} <= {*METRICS}
    kind = "two folders" if folders else "a protocol" if "protocol" in given else "a report"
    for flag in (f"--{name.replace('_', '-')}" for name in given):
        if flag not in FLAGS[kind]:
            raise ValueError(f"{flag} says nothing of {kind}; it is for " + " and ".join(
                heading for heading, flags in FLAGS.items() if flag in flags))
    weights = None if given.pop("random_weights", False) else given.pop("weights", "weights")
    if kind == "a report":
        report(what, **given)
    elif kind == "two folders":
        json_file = given.pop("json", None)
        if json_file:
            check_output(json_file, (".json",))
        numbers = compare(what.split(","), sets, weights=weights, processes=start_evaluation(),
                          **given)
        if json_file and numbers:
            write_json(Path(json_file), dict(sets=sets, numbers=numbers))
    else:
        decoding = {name: given.pop(name) for name in ("steps", "schedule", "temperature",
                                                       "guidance_scale") if name in given}
        lists = {name: given.pop(name) for name in ("split", "layout") if name in given}
        root = given.pop("data", None)
        if lists and not root:
            raise ValueError(f"--{min(lists)} needs --data, the folder that it is about")
        data = DataConfig(root, **lists).resolved() if root else None
        tasks = [task for name in given.pop("tasks", []) for task in TASK_SETS.get(name, [name])]
        evaluate_protocol(what, given.pop("protocol"), data, weights=weights, decode=decode,
                          processes=start_evaluation(), tasks=tasks or None, decoding=decoding,
                          **given)


def start_evaluation() -> Processes:
    """Processes that meet at barriers only, where the slowest may be hours behind: so wait long."""
    return start_processes("gloo", timeout=timedelta(days=7))


if __name__ == "__main__":
    main()
