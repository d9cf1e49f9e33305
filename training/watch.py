"""What a run tells of itself while it trains: its log, its pace, and what goes wrong.

Paper   none; Sec. 3.1's codebook is what goes wrong most often

Files   RUN/log.jsonl: a line every ten steps, with the stage, the step, the rate, every term of the
        loss, and under "pace" how fast it goes. Steps that a stop has undone are there twice

Read    Teller, which reads a step's numbers; Pace; TokenizerWatch.

Run:    python -m training.watch           the pace of a few steps that only wait
        python -m training.watch RUN       the pace of a run as its log has it
"""
from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections import deque
from pathlib import Path
from typing import Callable, Iterable, Iterator, TypeVar

import torch
from torch import Tensor

from training.plan import Count
from training.processes import Numbers

Item = TypeVar("Item")

# Dense bfloat16 arithmetic by the makers' data sheets, in FLOP/s, by a part of the card's name.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12,
         "V100": 125e12}


class Teller:
    """Reads each step's numbers when they have arrived: refuses, warns, logs.

    A step's numbers are read during the next one, or by catch_up. `ends` is the step after which
    to leave, in all processes the same: the one after that which said so.
    """

    def __init__(self, stage: str, log: Path | None, watch: Callable[[int, dict], dict],
                 show: Callable[[dict], None], pace: Pace):
        self.stage, self.log, self.watch, self.show, self.pace = stage, log, watch, show, pace
        self.begin, self.ends, self.trouble = time.time(), math.inf, ""
        self.unread: deque[tuple[Numbers, dict | None]] = deque()

    def __call__(self, numbers: Numbers, line: dict | None) -> None:
        """Take a step's numbers, and read those of the step before. line: what the log has too,
        None where the step is not logged."""
        self.unread.append((numbers, line))
        if len(self.unread) > 1:
            self._read(*self.unread.popleft())

    def catch_up(self) -> None:
        """Read what there is, and wait for it."""
        while self.unread:
            self._read(*self.unread.popleft())

    def _read(self, numbers: Numbers, line: dict | None) -> None:
        terms = numbers.read()
        if terms.pop("stop"):
            self.ends = min(self.ends, numbers.step + 1)
        bad = [name for name, value in terms.items() if not math.isfinite(value)]
        if bad and not self.trouble:
            self.ends = min(self.ends, numbers.step + 1)
            self.trouble = f"step {numbers.step} of the {self.stage}: {', '.join(bad)} not finite"
        elif not bad:
            shown = self.watch(numbers.step, terms)
            self.show({"loss": f"{terms['loss']:.3f}", **shown})
            if line is not None and self.log:
                rounded = {name: round(value, 6) for name, value in terms.items()}
                write_log(self.log, dict(
                    stage=self.stage, step=numbers.step, rate=line.pop("rate"),
                    seconds=round(time.time() - self.begin, 2)) | rounded | shown | line
                    | dict(pace=self.pace.since_last()))


def write_log(path: Path, line: dict) -> None:
    """Add a line to log.jsonl, tensors as numbers."""
    plain = {name: round(value.item(), 6) if isinstance(value, Tensor) else value
             for name, value in line.items()
             if not isinstance(value, Tensor) or value.ndim == 0}
    with open(path, "a") as file:
        file.write(json.dumps(plain) + "\n")


class Pace:
    """How fast a stage goes: clips, waiting, arithmetic, memory."""

    def __init__(self, clips: int, world: int, device: torch.device, count: bool):
        self.clips, self.world, self.device = clips, world, device
        self.flop, self.count = 0.0, count
        self.name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        self._again()

    def _again(self) -> None:
        self.steps, self.waited, self.begin = 0, 0.0, time.perf_counter()

    def waiting(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The same batches; the time until each is there counts as waiting."""
        arrives = iter(batches)
        while True:
            begin = time.perf_counter()
            try:
                batch = next(arrives)
            except StopIteration:
                return
            self.waited += time.perf_counter() - begin
            yield batch
            self.steps += 1

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Counts the FLOP of what is done inside, the first time, if it is to count at all."""
        if not self.count:
            yield
            return
        self.count = False
        with Count() as count:
            yield
        self.flop = float(count.flop)

    def since_last(self) -> dict[str, float]:
        """The pace since this was asked last; FLOP/s are of one process, its tokens apart."""
        seconds = max(time.perf_counter() - self.begin, 1e-9)
        steps = self.steps + 1                                            # with the one in progress
        pace = dict(clips_per_second=round(steps * self.clips / seconds, 2),
                    waiting=round(self.waited / seconds, 4))
        if self.flop:
            rate = steps * self.flop / seconds
            pace["tflops"] = round(rate / 1e12, 4)
            peak = [PEAKS[card] for card in PEAKS if card in self.name]
            if peak:
                pace["share_of_peak"] = round(rate / peak[0], 4)
        if self.device.type == "cuda":
            pace["memory_gib"] = round(torch.cuda.max_memory_allocated(self.device) / 2**30, 2)
        self._again()
        return pace


class TokenizerWatch:
    """Watches stage 1: PSNR, codes in use; names what users of VQ-GANs meet, with what to try."""

    window = 100

    def __init__(self, codebook_size: int):
        self.codebook_size = codebook_size
        self.last_used = torch.full((codebook_size,), -self.window)
        self.warned: set[str] = set()
        self.wins = 0

    def measure(self, step: int, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """One more term, still on the device: the codes that this process's clips used lately."""
        self.last_used = self.last_used.to(terms["tokens"].device)
        self.last_used[terms["tokens"].flatten()] = step
        return dict(codes=(self.last_used > step - self.window).sum().float())

    def __call__(self, step: int, terms: dict[str, float]) -> dict:
        if step >= 2 * self.window:
            if terms["codes"] < 0.05 * self.codebook_size:
                self.warn("codes", f"only {terms['codes']:.0f} of {self.codebook_size} codes in "
                          "use: the codebook collapses; raise --entropy-weight or lower "
                          "--tokenizer-rate")
            if terms["contrast"] < 0.01:
                self.warn("colour", "reconstructions are of one colour; lower --tokenizer-rate, "
                          "or --adversarial-weight 0 until pictures appear")
            self.wins = self.wins + 1 if terms.get("discriminator", 1.0) < 0.05 else 0
            if self.wins > self.window:
                self.warn("adversary", "the discriminator wins outright; raise --r1-weight or "
                          "--lecam-weight")
        return dict(psnr=round(-10 * math.log10(max(terms["reconstruction"], 1e-10)), 2),
                    codes=round(terms["codes"]))

    def warn(self, kind: str, words: str) -> None:
        if kind not in self.warned:
            self.warned.add(kind)
            print(f"\nwarning: {words}", file=sys.stderr)


def main() -> None:
    if not sys.argv[1:]:
        pace = Pace(8, 1, torch.device("cpu"), count=True)
        for batch in pace.waiting(time.sleep(0.01) or torch.rand(256, 256) for _ in range(3)):
            with pace.counted():
                batch @ batch
            print(pace.since_last())
        return
    log = Path(sys.argv[1]) / "log.jsonl"
    if not log.exists():
        sys.exit(f"watch.py: no {log}; train first: python train.py")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    lines = [line for line in lines if "pace" in line]
    for line in lines[::max(1, len(lines) // 20)]:
        print(f"{line['stage']:12} step {line['step']:7}  loss {line['loss']:8.4f}  ",
              "  ".join(f"{name} {value:g}" for name, value in line["pace"].items()))


if __name__ == "__main__":
    main()
