"""The loop that trains either stage: resumable (on CPUs to the bit), on one process or many.

Paper   App. B.2 (learning rate); the rest is what keeps a long run alive

Files   RUN/STAGE.pt, the checkpoint; RUN/log.jsonl, a line every ten steps and for every checkpoint,
        with the stage, the step, the learning rate, every term of the loss, seconds since the
        start, clips a second, and the share of the time that was spent waiting for clips. Steps
        that a stop has undone are there twice

Read    Stage and fit; then resume, which decides where it starts, and what it refuses.

Not here: networks and batches (train.py), processes (processes.py), files (checkpoint.py).
"""
from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from data.source import digest
from steps import Trainee
from training.checkpoint import (as_plain, from_plain, is_there, load_checkpoint,
                                 save_checkpoint)
from training.presets import MAY_CHANGE, STAGE_2, TrainConfig
from training.processes import (Processes, StopSignal, average_terms, float32_as, from_first,
                                refuse_different)

LOG_EVERY = 10                  # steps between lines of the log


@dataclass
class Stage:
    """A stage as the loop sees it: the loop knows neither videos nor tokens."""

    name: str                                       # and the name of its checkpoint
    trainee: Trainee
    step: Callable[[Trainee, object, TrainConfig], dict[str, Tensor]]
    batch_of: Callable[[int], object]               # step -> batch
    close: Callable[[], None]                       # ends what batch_of keeps running
    steps: int
    warmup: int
    saved: dict                                     # config, facts and origin of its checkpoints
    watch: Callable[[int, dict], dict] = lambda step, terms: {}     # more terms, still as tensors
    look: Callable[[], dict] | None = None          # at held-out clips -> numbers for the log

    @property
    def networks(self) -> dict[str, nn.Module]:
        return self.trainee.networks


OnStep = Callable[[Stage, int, dict], dict | None]


def learning_rate(step: int, peak: float, warmup: int, total: int) -> float:
    """Linear warm-up from 0, then half a cosine to 0 (App. B.2; the first step has rate 0)."""
    progress = max(0, step - warmup) / max(1, total - warmup)
    return peak * min(1.0, step / warmup) * 0.5 * (1 + math.cos(math.pi * progress))


# ---------------------------------------------------------------------------------------------
# The loop

def fit(stage: Stage, config: TrainConfig, run: Path, processes: Processes = Processes(),
        on_step: OnStep | None = None) -> bool:
    """Train a stage from its last checkpoint to the end. True when the end was reached.

    Everything random in a step is a function of (seed, rank, step), so a run that was stopped
    anywhere resumes as if nothing had happened. on_step(stage, step, terms) is called in the first
    process after every step, before the checkpoint is saved; terms are tensors, and what it
    returns goes into the log. ValueError where another command trains in the folder, or where the
    checkpoint is of other settings; FloatingPointError where numbers are not finite; OSError where
    a checkpoint cannot be written: both name the last good one.
    """
    path, total, first = run / f"{stage.name}.pt", stage.steps, processes.rank == 0
    peak, batch_size = config.of(stage.name, "rate"), config.of(stage.name, "batch")
    with contextlib.closing(stage), locked(run, processes), StopSignal() as stop, float32_as(
            config.precision):
        start = saved = logged = resume(stage, path, processes)
        begun, since, waited = time.monotonic(), time.monotonic(), 0.0
        bar = tqdm(range(start, total), stage.name, total, initial=start, disable=not first,
                   mininterval=1.0)
        for step in bar:
            asked = time.monotonic()
            batch = stage.batch_of(step)
            waited += time.monotonic() - asked
            rate, done = learning_rate(step, peak, stage.warmup, total), step + 1
            set_rate(stage.trainee, rate)
            torch.manual_seed(seed_of(config.seed, processes.rank, step))            # dropout
            terms = stage.step(stage.trainee, batch, config)
            terms |= stage.watch(step, terms)
            terms["stop"] = torch.tensor(float(stop.received), device=processes.device)
            terms = average_terms(terms)
            heard = on_step(stage, step, terms) if first and on_step else None

            keeps, looks = divides(config.keep_every, done), divides(config.evaluate_every, done)
            saves = divides(config.save_every, done) or keeps or done == total
            reads = (step % LOG_EVERY == 0 or saves or looks
                     or stop.received and processes.world == 1)
            if not (reads or heard):
                continue
            # From here on, the host waits for the device, to read this step's numbers.
            numbers = read(terms)
            stopped = numbers.pop("stop") > 0 and reads          # then all processes leave
            refuse_not_finite(stage, step, numbers, path, saved)
            if first:
                bar.set_postfix(loss=f"{numbers['loss']:.3f}", refresh=False)
                numbers |= dict(held_out=stage.look()) if looks and stage.look else {}
                numbers |= heard or {}
                now = time.monotonic()
                write_log(run, dict(stage=stage.name, step=step, rate=rate) | numbers | dict(
                    seconds=now - begun, waiting=waited / (now - since), clips_per_second=(
                        done - logged) * batch_size / (now - since)))
                logged, since, waited = done, now, 0.0
            if first and (saves or stopped):
                save(stage, done, path, saved, keeps)
                saved = done
            if stopped and done < total:
                if first:
                    print(f"\nstopped after step {done} of {total} of the {stage.name}, saved in "
                          f"{path}; the same command resumes from here", file=sys.stderr)
                return False
    return True


def divides(every: int, done: int) -> bool:
    """Whether something that is due every so many steps (0: never) is due after `done`."""
    return every > 0 and done % every == 0


def set_rate(trainee: Trainee, rate: float) -> None:
    for optimizer in trainee.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = rate


def seed_of(seed: int, rank: int, step: int) -> int:
    """A different 63-bit seed for each (seed, rank, step)."""
    return int(np.random.SeedSequence([seed, rank, step]).generate_state(1, np.uint64)[0] >> 1)


def read(terms: dict[str, Tensor]) -> dict[str, float]:
    """The single numbers among a step's terms, in one copy from the device."""
    single = {name: term for name, term in terms.items() if term.ndim == 0}
    values = torch.stack([term.detach().float() for term in single.values()]).tolist()
    return dict(zip(single, values))


def refuse_not_finite(stage: Stage, step: int, numbers: dict[str, float], path: Path, saved: int
                      ) -> None:
    """FloatingPointError, before anything is saved, where a number is not finite."""
    bad = [name for name, value in numbers.items() if not math.isfinite(value)]
    if bad:
        raise FloatingPointError(
            f"step {step} of the {stage.name}: {', '.join(bad)} not finite. {last_good(path, saved)}"
            "; resume from it with --precision float32, or start anew with a lower rate (and "
            "another --out)")


def last_good(path: Path, saved: int) -> str:
    if not is_there(path):
        return "Nothing was saved"
    return f"The last good checkpoint is {path} of step {saved}"


def save(stage: Stage, done: int, path: Path, saved: int, keep: bool) -> None:
    """Save a stage after `done` steps. OSError where the disk is full: the one before stays."""
    try:
        save_checkpoint(path, dict(stage=stage.name, step=done, finished=done == stage.steps)
                        | stage.saved | stage.trainee.state())
        if keep:
            kept = path.with_name(f"{path.stem}-step-{done}.pt")
            kept.unlink(missing_ok=True)
            os.link(path, kept)                      # the same file by a second name, no copy
    except OSError as error:
        raise OSError(f"{error}. {last_good(path, saved)}; the same command resumes from there"
                      ) from error


def write_log(run: Path, line: dict) -> None:
    """Add a line to log.jsonl. A line that a kill has cut short is ended first."""
    rounded = {name: round(value, 6) if isinstance(value, float) else value
               for name, value in line.items()}
    with open(run / "log.jsonl", "a+b") as file:
        if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            file.write(b"\n")
        file.write((json.dumps(rounded, default=float) + "\n").encode())


# ---------------------------------------------------------------------------------------------
# Where it starts

def resume(stage: Stage, path: Path, processes: Processes) -> int:
    """Bring a stage to where its checkpoint is: the steps done, all of them if it was finished.

    Process 0 reads the checkpoint, or has the weights to start with; the others receive them.
    ValueError where processes differ in what they must have by themselves, or where the
    configuration, or what the stage learns from, is not the checkpoint's.
    """
    config = stage.saved["config"]
    settings = {part: values for part, values in config.items() if part != "data"}
    refuse_different(stage.saved["facts"] | {"the settings with digest": digest(settings)},
                     processes)

    def read_state() -> dict:
        if not is_there(path):
            return dict(step=0, finished=False, origin=stage.saved["origin"]) | (
                stage.trainee.state() if processes.world > 1 else {})
        state = load_checkpoint(path)
        refuse_other_configuration(path, state, stage)
        if state["finished"]:
            if state["config"] != config:            # settings that may change are the last ones
                save_checkpoint(path, state | dict(config=config))
            return dict(step=stage.steps, finished=True, origin=state.get("origin", {}))
        missing = sorted(stage.trainee.state().keys() - state.keys())
        if missing:
            raise ValueError(f"{path} has weights but no {missing[0]}, and cannot be resumed; "
                             f"start another run from it with --init {path.parent}")
        return state

    state = from_first(read_state, processes)
    if stage.networks.keys() <= state.keys():
        stage.trainee.load(state)
    stage.saved["origin"] = state.get("origin", {})
    return state["step"]


def refuse_other_configuration(path: Path, state: dict, stage: Stage) -> None:
    """ValueError naming the settings, clips or losses in which a checkpoint is another run's.

    A setting that the checkpoint does not know had its default. Not compared: what may change on
    the way, the settings of stage 2 where stage 1 is resumed, and, once a stage is finished, what
    it learned from.
    """
    different = []
    free = {*MAY_CHANGE, "test_root", "test_split"} | (
        set() if stage.name == "transformer" else set(STAGE_2))
    for part, here in stage.saved["config"].items():
        there = as_plain(from_plain(state["config"][part]))
        different += [f"{part}.{name} {there.get(name)!r} there, {value!r} here"
                      for name, value in here.items()
                      if name not in free and there.get(name) != value]
    facts = {} if state["finished"] else state.get("facts", {})
    different += [f"{name} {facts[name]!r} there, {value!r} here"
                  for name, value in stage.saved["facts"].items()
                  if name in facts and facts[name] != value]
    if different:
        raise ValueError(f"{path} was trained with other things: {'; '.join(different)}. Give "
                         "--out another folder, or the old ones")


@contextlib.contextmanager
def locked(run: Path, processes: Processes) -> Iterator[None]:
    """ValueError, in all processes, where another command on this machine trains in the folder.

    Process 0 holds the lock. The system releases it when that process ends, by kill -9 as well.
    """
    with open(run / ".lock", "w") if processes.rank == 0 else contextlib.nullcontext() as file:
        from_first(lambda: take_lock(run, file), processes)
        yield


def take_lock(run: Path, file: IO) -> None:
    """Lock an open file of the folder, or ValueError. A disk that cannot lock is warned of."""
    if os.name != "posix":
        return
    import fcntl                                     # which only Unix has
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"another command is training in {run}; wait for it, or give --out "
                         "another folder") from None
    except OSError as error:                         # some network disks cannot lock
        print(f"warning: {run} cannot be locked ({error.strerror}); start no second command there",
              file=sys.stderr)
