"""The loop that trains either stage: resumable (on CPUs to the bit), on one process or many.

Paper   App. B.2 (learning rate); the rest is what keeps a long run alive

Shapes  none: a Stage knows its step and its batches, the loop neither videos nor tokens

Read    Stage and fit; resume, which decides where it starts. Then prefetched, and the refusals.

Not here: processes (processes.py), what is told on the way (watch.py), files (checkpoint.py).

Run:    python -m training.loop       the learning rate over a run, as a table
"""
from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from data.loader import one_core_each
from data.source import digest
from steps import STAGE_2, Trainee
from training.build import as_plain, differences, from_plain
from training.checkpoint import Writer, is_there, load_checkpoint, save_checkpoint
from training.presets import TrainConfig
from training.processes import (Numbers, Processes, StopSignal, average_terms, float32_as,
                                from_first, refuse_different)
from training.watch import Pace, Teller
from transformer import TransformerConfig


@dataclass
class Stage:
    """A stage as the loop sees it: it knows neither videos nor tokens."""

    name: str                                       # and the name of its checkpoint
    trainee: Trainee
    step: Callable[[Trainee, object, TrainConfig], dict[str, Tensor]]
    batch_of: Callable[[int], object]               # step -> batch
    peak_rate: float
    steps: int
    warmup: int
    clips: int                                      # of a step, in all processes together
    configs: dict[str, object]                      # network, train, data: saved with the weights
    facts: dict[str, object]                        # what else must be so again to go on: its clips
    measure: Callable[[int, dict], dict] = lambda step, terms: {}    # terms -> more of them
    watch: Callable[[int, dict], dict] = lambda step, terms: {}      # numbers -> what to show
    origin: dict = field(default_factory=dict)      # the run that --init took weights from
    close: Callable[[], None] = lambda: None        # ends what batch_of keeps running

    @property
    def plain(self) -> dict[str, dict]:
        return {part: as_plain(each) for part, each in self.configs.items()}


class StageName(str):
    """A stage's name, a plain string, that also leads to the networks in training."""

    networks: dict[str, nn.Module]


def learning_rate(step: int, peak: float, warmup: int, total: int) -> float:
    """Linear warm-up from 0, then half a cosine to 0 (App. B.2; the first step has rate 0)."""
    progress = max(0, step - warmup) / max(1, total - warmup)
    return peak * min(1.0, step / warmup) * 0.5 * (1 + math.cos(math.pi * progress))


# ---------------------------------------------------------------------------------------------
# The loop

def fit(stage: Stage, config: TrainConfig, run: Path, processes: Processes,
        on_step: Callable[[str, int, dict], dict | None] | None = None) -> bool:
    """Train a stage from its last checkpoint to the end. True when the end was reached.

    Everything random in a step is a function of (seed, rank, step), so that a run that was
    stopped anywhere goes on as if nothing had happened. on_step(stage, step, terms) is called in
    the first process after every step, before the checkpoint is saved. stage is the name, and
    stage.networks the networks; numbers in a dict that it returns go into the log.
    """
    path, total, name = run / f"{stage.name}.pt", stage.steps, StageName(stage.name)
    name.networks, first, begin = stage.trainee.networks, processes.rank == 0, time.time()
    start, finished = resume(stage, path, processes)
    if finished:
        return True
    pace = Pace(stage.clips, processes.world, processes.device, first and not config.compile)
    batches = prefetched(stage.batch_of, start, total)
    with Writer(path, start, config) as writer, StopSignal() as stop, contextlib.closing(
            stage), contextlib.closing(batches), float32_as(config.precision), tqdm(
            total=total, initial=start, desc=stage.name, disable=not first,
            mininterval=1.0) as bar:
        tell = Teller(stage.name, run / "log.jsonl" if first else None, stage.watch,
                      lambda shown: bar.set_postfix(shown, refresh=False), pace)
        for step, batch in enumerate(pace.waiting(batches), start):
            rate = learning_rate(step, stage.peak_rate, stage.warmup, total)
            for optimizer in stage.trainee.optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"] = rate
            stage.trainee.step, done = step, step + 1
            torch.manual_seed(seed_of(config.seed, processes.rank, step))            # dropout
            with pace.counted():
                terms = stage.step(stage.trainee, batch, config)
            heard = torch.full((), float(stop.received), device=processes.device)
            terms = average_terms(terms | stage.measure(step, terms) | dict(stop=heard))
            returned = on_step(name, step, terms) if first and on_step else None
            logged = step % 10 == 0 or done == total or returned
            tell(Numbers(step, terms), dict(rate=rate) | (returned or {}) if logged else None)
            bar.update()
            leaves = step >= tell.ends or stop.received and processes.world == 1
            if done == total or leaves or first and writer.is_due(done):
                tell.catch_up()
                if first and not tell.trouble:
                    writer.save(done, dict(stage=stage.name, step=done, finished=done == total,
                                           config=stage.plain, origin=stage.origin,
                                           facts=stage.facts, **stage.trainee.state()))
            if tell.trouble and (leaves or done == total):
                raise FloatingPointError(
                    f"{tell.trouble}. The last good checkpoint is {path} of step {writer.saved}; go"
                    " on from it with --precision float32, or start anew with a lower rate (and "
                    "another --out)")
            if leaves and done < total:
                writer.wait()
                if first:
                    print(f"\nstopped after step {done} of {total} of the {name}, saved in {path};"
                          " the same command goes on from here", file=sys.stderr)
                return False
    if first:
        print(f"{name} done in {time.time() - begin:.0f} s", file=sys.stderr)
    return True


def resume(stage: Stage, path: Path, processes: Processes) -> tuple[int, bool]:
    """Bring a stage to where its checkpoint is: (steps done, whether it was finished).

    Process 0 reads the checkpoint, or has the weights to start with; the others receive them.
    ValueError where processes differ in what they must have by themselves, or where the
    configuration, or what the stage learns from, is not the checkpoint's.
    """
    settings = {part: values for part, values in stage.plain.items() if part != "data"}
    refuse_different(stage.facts | {"the settings with digest": digest(settings)}, processes)

    def read() -> dict:
        if not is_there(path):
            return dict(step=0, finished=False, origin=stage.origin) | (
                stage.trainee.state() if processes.world > 1 else {})
        state = load_checkpoint(path)
        refuse_other_configuration(path, state["config"], stage.configs)
        if not state["finished"]:
            refuse_other_facts(path, state.get("facts", {}), stage.facts)
        elif state["config"] != stage.plain:
            # Settings that may change, such as those of decoding, are those of the last command.
            save_checkpoint(path, state | dict(config=stage.plain))
        return state

    state = from_first(read, processes)
    if stage.trainee.networks.keys() <= state.keys():
        stage.trainee.load(state)
    stage.origin = state.get("origin", {})
    return state["step"], state["finished"]


def seed_of(seed: int, rank: int, step: int) -> int:
    """A different 63-bit seed for each (seed, rank, step)."""
    return int(np.random.SeedSequence([seed, rank, step]).generate_state(1, np.uint64)[0] >> 1)


def prefetched(batch_of: Callable[[int], object], start: int, total: int) -> Iterator[object]:
    """The batches of steps start .. total-1; the next is prepared in a thread meanwhile.

    The first is made here, by all cores, for it may have to tokenize a pool.
    """
    with one_core_each(1) as pool:
        for step in range(start, total):
            batch = batch_of(step) if step == start else waiting.result()
            if step + 1 < total:
                waiting = pool.submit(batch_of, step + 1)
            yield batch


def refuse_other_facts(path: Path, there: dict[str, object], here: dict[str, object]) -> None:
    """ValueError where a half-done stage would go on with other clips, tokens or losses.

    What a checkpoint of an older version does not know is not compared.
    """
    other = [f"{name} {there[name]!r} there, {value!r} here" for name, value in here.items()
             if name in there and there[name] != value]
    if other:
        raise ValueError(f"{path} is half done and was trained with other things: "
                         f"{'; '.join(other)}. Bring them back, or give --out another folder")


def refuse_other_configuration(path: Path, plain: dict[str, dict], configs: dict[str, object]
                               ) -> None:
    """ValueError naming the settings in which a checkpoint differs from the run to be resumed.

    A setting that the checkpoint does not know had its default. Not compared: what may change on
    the way (each field says so), and stage 2's settings where stage 1 is resumed.
    """
    stage_2, different = isinstance(configs["network"], TransformerConfig), []
    for part, new in configs.items():
        groups = {field.name: field.metadata.get("group") for field in dataclasses.fields(new)}
        for name, (there, here) in differences(from_plain(plain[part], type(new)), new).items():
            if stage_2 or groups[name] != STAGE_2.args[0]:
                different.append(f"{part}.{name} {there!r} there, {here!r} here")
    if different:
        raise ValueError(f"{path} was trained with another configuration: {'; '.join(different)}. "
                         "Give --out another folder, or the old settings")


def main() -> None:
    total, warmup = 74_000, 5_000
    print(f"learning rate of the transformer on UCF-101 (B): {total} steps, {warmup} of warm-up")
    for step in (0, 1, warmup // 2, warmup, total // 4, total // 2, total * 3 // 4, total - 1):
        rate = learning_rate(step, 1e-4, warmup, total)
        print(f"  step {step:6}  {rate:.3e}  {'#' * round(rate * 6e5)}")


if __name__ == "__main__":
    main()
