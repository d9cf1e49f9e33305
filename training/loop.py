"""The loop that trains either stage: resumable (on CPUs to the bit), on one process or many.

Paper   App. B.2 (learning rate); the rest is what keeps a long run alive

Shapes  none: a Stage knows its step and its batches, the loop neither videos nor tokens

Read    Stage and fit. Then what they lean on: Processes, StopSignal, prefetched, the refusals,
        TokenizerWatch.

Run:    python -m training.loop       the learning rate over a run, as a table
"""
from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Iterator, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from steps import STAGE_2, Trainee
from training.build import as_plain, differences, from_plain
from training.checkpoint import is_there, load_checkpoint, save_checkpoint
from training.presets import TrainConfig
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
    configs: dict[str, object]                      # network, train, data: saved with the weights
    watch: Callable[[int, dict], dict] = lambda step, terms: {}      # terms -> what to show
    origin: dict = field(default_factory=dict)      # the run that --init took weights from


class StageName(str):
    """A stage's name, a plain string, that also leads to the networks in training."""

    networks: dict[str, nn.Module]


def learning_rate(step: int, peak: float, warmup: int, total: int) -> float:
    """Linear warm-up from 0, then half a cosine to 0 (App. B.2; the first step has rate 0)."""
    progress = max(0, step - warmup) / max(1, total - warmup)
    return peak * min(1.0, step / warmup) * 0.5 * (1 + math.cos(math.pi * progress))


# ---------------------------------------------------------------------------------------------
# Processes. Data parallel training written out: each process has a share of the batch, and
# gradients are averaged once per step, after all backward passes (steps.average_gradients).

class Processes(NamedTuple):
    """This process among those that torchrun started; alone by default."""

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")


def start_processes(backend: str | None = None, **options) -> Processes:
    """One process, or what torchrun started: NCCL with GPUs, gloo without.

    options go to dist.init_process_group.
    """
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "WORLD_SIZE" not in os.environ:
        return Processes(device=device)
    join_processes(backend or ("nccl" if device.type == "cuda" else "gloo"), **options)
    return Processes(dist.get_rank(), dist.get_world_size(), device)


def join_processes(backend: str, **options) -> None:
    """dist.init_process_group among the processes that torchrun started.

    On one node torchrun keeps its store when it restarts killed workers (--max-restarts). Each
    attempt gets a name in it, or the new ones would find the addresses of the dead and wait.
    """
    # Optimizers import torch._dynamo, and some functions there have the process group that exists
    # when they are imported as the default of an argument. Imported after the group, they would
    # keep it and its threads alive at exit, which then aborts now and then. So it comes first.
    import torch._dynamo  # noqa: F401
    store, rank, world = next(dist.rendezvous("env://"))
    if os.environ.get("LOCAL_WORLD_SIZE") == str(world):
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, **options)


def average_terms(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """The numbers of a step, averaged over processes: what one process would have logged."""
    if not dist.is_initialized():
        return terms
    names = [name for name, term in terms.items() if term.ndim == 0]
    numbers = torch.stack([terms[name].float() for name in names])
    dist.all_reduce(numbers)
    return terms | dict(zip(names, numbers / dist.get_world_size()))


class StopSignal:
    """Turns Ctrl-C and SIGTERM into "finish this step, save, leave"; all processes agree."""

    def __init__(self, device: torch.device):
        self.device = device                # where the processes exchange their word

    def __enter__(self) -> StopSignal:
        self.received, self.before = False, {}
        if threading.current_thread() is threading.main_thread():    # others may not set handlers
            self.before = {number: signal.signal(number, self._note)
                           for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number: int, frame: object) -> None:
        self.received = True

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        if not dist.is_initialized():
            return self.received
        anyone = torch.tensor([float(self.received)], device=self.device)
        dist.all_reduce(anyone)
        return bool(anyone.item())


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
    name.networks = stage.trainee.networks
    start = 0
    plain = {part: as_plain(each) for part, each in stage.configs.items()}
    if is_there(path):
        state = load_checkpoint(path)
        refuse_other_configuration(path, state["config"], stage.configs)
        stage.trainee.load(state)
        start, stage.origin = state["step"], state.get("origin", {})
        if state["finished"]:
            # Settings that may change, such as those of decoding, are those of the last command.
            if processes.rank == 0 and state["config"] != plain:
                save_checkpoint(path, state | dict(config=plain))
            return True

    def save(step: int) -> None:
        if processes.rank == 0:
            save_checkpoint(path, dict(stage=stage.name, step=step, finished=step == total,
                                       config=plain, origin=stage.origin, **stage.trainee.state()))

    saved, begin = start, time.time()
    batches = prefetched(stage.batch_of, start, total)
    with StopSignal(processes.device) as stop, contextlib.closing(batches), tqdm(
            total=total, initial=start, desc=stage.name, disable=processes.rank > 0,
            mininterval=1.0) as bar:
        for step, batch in enumerate(batches, start):
            rate = learning_rate(step, stage.peak_rate, stage.warmup, total)
            for optimizer in stage.trainee.optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"] = rate
            stage.trainee.step = step
            torch.manual_seed(seed_of(config.seed, processes.rank, step))            # dropout
            terms = average_terms(stage.step(stage.trainee, batch, config))
            refuse_nonfinite(stage.name, step, terms, saved, path)
            shown = stage.watch(step, terms)
            bar.set_postfix({"loss": f"{terms['loss'].item():.3f}", **shown}, refresh=False)
            bar.update()
            done = step + 1
            if processes.rank == 0:
                returned = on_step(name, step, terms) if on_step else None
                if step % 10 == 0 or done == total or returned:
                    write_log(run / "log.jsonl", dict(
                        stage=stage.name, step=step, rate=rate,
                        seconds=round(time.time() - begin, 2), **terms) | shown | (returned or {}))
            if done % config.save_every == 0 or done == total:
                save(done)
                saved = done
            if stop:
                save(done)
                if processes.rank == 0:
                    print(f"\nstopped after step {done} of {total} of the {name}, saved in {path};"
                          " the same command goes on from here", file=sys.stderr)
                return False
    return True


def seed_of(seed: int, rank: int, step: int) -> int:
    """A different 63-bit seed for each (seed, rank, step)."""
    return int(np.random.SeedSequence([seed, rank, step]).generate_state(1, np.uint64)[0] >> 1)


def prefetched(batch_of: Callable[[int], object], start: int, total: int) -> Iterator[object]:
    """The batches of steps start .. total-1; the next is prepared in a thread meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(batch_of, start)
        for step in range(start, total):
            batch = waiting.result()
            if step + 1 < total:
                waiting = pool.submit(batch_of, step + 1)
            yield batch


def write_log(path: Path, line: dict) -> None:
    """Add a line to log.jsonl, tensors as numbers. After a stop some steps are there twice."""
    plain = {name: round(value.item(), 6) if isinstance(value, Tensor) else value
             for name, value in line.items()
             if not isinstance(value, Tensor) or value.ndim == 0}
    with open(path, "a") as file:
        file.write(json.dumps(plain) + "\n")


def refuse_nonfinite(stage: str, step: int, terms: dict, saved: int, path: Path) -> None:
    """FloatingPointError where a loss or gradient is not finite: nothing is saved after it."""
    bad = [name for name, term in terms.items()
           if term.is_floating_point() and not torch.isfinite(term).all()]
    if bad:
        raise FloatingPointError(
            f"step {step} of the {stage}: {', '.join(bad)} not finite. The last good checkpoint is "
            f"{path} of step {saved}; go on from it with --precision float32, or start anew with a "
            "lower rate (and another --out)")


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


class TokenizerWatch:
    """Watches stage 1: PSNR, codes in use; names what users of VQ-GANs meet, with what to try."""

    window = 100

    def __init__(self, codebook_size: int):
        self.last_used = torch.full((codebook_size,), -self.window)
        self.warned: set[str] = set()
        self.wins = 0

    def __call__(self, step: int, terms: dict) -> dict:
        self.last_used[terms["tokens"].unique().cpu()] = step
        codes = int((self.last_used > step - self.window).sum())
        mse = terms["reconstruction"].item()
        if step >= 2 * self.window:
            if codes < 0.05 * len(self.last_used):
                self.warn("codes", f"only {codes} of {len(self.last_used)} codes in use: the "
                          "codebook collapses; raise --entropy-weight or lower --tokenizer-rate")
            if terms["contrast"].item() < 0.01:
                self.warn("colour", "reconstructions are of one colour; lower --tokenizer-rate, "
                          "or --adversarial-weight 0 until pictures appear")
            self.wins = self.wins + 1 if terms.get("discriminator", 1.0) < 0.05 else 0
            if self.wins > self.window:
                self.warn("adversary", "the discriminator wins outright; raise --r1-weight or "
                          "--lecam-weight")
        return dict(psnr=round(-10 * math.log10(max(mse, 1e-10)), 2), codes=codes)

    def warn(self, kind: str, words: str) -> None:
        if kind not in self.warned:
            self.warned.add(kind)
            print(f"\nwarning: {words}", file=sys.stderr)


def main() -> None:
    total, warmup = 74_000, 5_000
    print(f"learning rate of the transformer on UCF-101 (B): {total} steps, {warmup} of warm-up")
    for step in (0, 1, warmup // 2, warmup, total // 4, total // 2, total * 3 // 4, total - 1):
        rate = learning_rate(step, 1e-4, warmup, total)
        print(f"  step {step:6}  {rate:.3e}  {'#' * round(rate * 6e5)}")


if __name__ == "__main__":
    main()
