"""How fast a clip is tokenized, generated and decoded, beside what the machine can do at most.

    python benchmarks/benchmark.py --inference             B and L, 1 and 4 clips, float32 and bfloat16
    python benchmarks/benchmark.py --inference B 1         one size, one number of clips
    python benchmarks/benchmark.py --inference operators   where the time of B goes

The limit is measured beside each row: one 3x3x3 convolution of 128 channels at 8x64x64 for the
tokenizer, one product of 2048x2048 matrices for the transformer. FLOP are those of convolutions,
products and attention alone (training/plan.py), so that the share says what everything else costs,
norms, padding, resizing and memory.
"""
from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import Callable

import torch
import torch.nn.functional as F

from commit import MT8
from decode import commit_decode, generate
from steps import autocast
from tokenizer import TOKENIZERS
from training.kernels import use
from training.plan import CountFlop
from training.processes import device_of_this_process
from transformer import TRANSFORMERS

DEVICE = device_of_this_process()
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
STEPS = 12                                                                     # App. B.3


def seconds_of(work: Callable[[], object]) -> float:
    """Of one call, with what a GPU still has to do."""
    begin = time.perf_counter()
    work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def limits(precision: str) -> dict[str, tuple[Callable[[], object], float]]:
    """For convolutions and products: something to run, and its FLOP."""
    kind = dict(dtype=DTYPES[precision], device=DEVICE)
    video = torch.randn(1, 128, 8, 64, 64, **kind).contiguous(
        memory_format=torch.channels_last_3d)
    kernel = torch.randn(128, 128, 3, 3, 3, **kind).contiguous(
        memory_format=torch.channels_last_3d)
    matrix = torch.randn(2048, 2048, **kind)
    return {"convolution": (lambda: F.conv3d(video, kernel, padding=1),
                            2.0 * 27 * 128 * 128 * 8 * 64 * 64),
            "product": (lambda: matrix @ matrix, 2.0 * 2048 ** 3)}


def works(size: str, clips: int) -> dict[str, tuple[Callable[[], object], str]]:
    """What is timed, untrained, on clips of 16x128x128; and whose limit is its."""
    torch.manual_seed(0)
    tokenizer = use(TOKENIZERS[size].build()).to(DEVICE).eval()
    model = use(replace(TRANSFORMERS[size], num_classes=101, tasks=MT8).build()).to(DEVICE).eval()
    video = torch.rand(clips, 3, 16, 128, 128, device=DEVICE)
    tokens = torch.randint(1024, (clips, 4, 16, 16), device=DEVICE)
    task = torch.zeros(clips, dtype=torch.long, device=DEVICE)
    label, flat = torch.full_like(task, model.no_class), tokens.flatten(1)
    is_pad = torch.arange(1024, device=DEVICE) >= 256
    return {
        "encode": (lambda: tokenizer.encode(video), "convolution"),
        "decode": (lambda: tokenizer.decode(tokens), "convolution"),
        "Algorithm 1": (lambda: list(commit_decode(model, task, label, flat, is_pad, steps=STEPS)),
                        "product"),
        "generate": (lambda: generate(tokenizer, model, video, "FP", steps=STEPS), "")}


@torch.no_grad()
def rows(size: str, clips: int, precision: str, times: int = 3) -> list[str]:
    """A row of the table for each of `works`."""
    table, machine, of_one = [], limits(precision), works(size, 1)
    for name, (work, limit) in (works(size, clips) if clips > 1 else of_one).items():
        with autocast(precision, DEVICE):
            with CountFlop() as count:                       # which warms up one clip, too
                of_one[name][0]()
            flop, taken, most = clips * count.flop, [], []
            while len(taken) < times and sum(taken) < 30:
                taken.append(seconds_of(work))           # by turns: a disturbance then meets both
                if limit:
                    most += [machine[limit][1] / seconds_of(machine[limit][0]) for _ in range(5)]
        rate = flop / min(taken)
        share = f"{rate / max(most):.0%} of {max(most) / 1e9:,.0f}" if most else "-"
        table.append(f"| {size} | {clips} | {precision} | {name} | {min(taken):.2f} s | "
                     f"{statistics.median(taken):.2f} s | {flop / 1e9:,.0f} | {rate / 1e9:,.0f} | "
                     f"{share} |")
    return table


@torch.no_grad()
def operators(precision: str, most: int = 8) -> list[str]:
    """Shares of the time of encoding, decoding, and one step of Algorithm 1, by operator."""
    found = works("B", 1)
    task = {name: found[name][0] for name in ("encode", "decode", "Algorithm 1")}
    table = []
    for name, work in task.items():
        with autocast(precision, DEVICE):
            work()
            with torch.profiler.profile() as profile:
                work()
        events = sorted(profile.key_averages(), key=lambda event: -event.self_cpu_time_total)
        total = sum(event.self_cpu_time_total for event in events)
        shares = (f"{event.key.removeprefix('aten::')} {event.self_cpu_time_total / total:.0%}"
                  for event in events[:most] if event.self_cpu_time_total > 0.01 * total)
        table.append(f"| {name} | {precision} | {', '.join(shares)} |")
    return table


def show(words: list[str]) -> None:
    """The tables that the command asks for."""
    if words == ["operators"]:
        print("| | precision | share of the time, by operator |\n|---|---|---|", flush=True)
        for precision in DTYPES:
            print("\n".join(operators(precision)), flush=True)
        return
    print("| size | clips | precision | | best | median | GFLOP | GFLOP/s | of the limit, GFLOP/s |"
          "\n|---|---|---|---|---|---|---|---|---|", flush=True)
    for size in words[:1] or ("B", "L"):
        for clips in map(int, words[1:2] or (1, 4)):
            for precision in DTYPES:
                print("\n".join(rows(size, clips, precision)), flush=True)
