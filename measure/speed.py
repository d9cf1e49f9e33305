"""How fast a run generates, and where the time goes.

Paper   Fig. 5, Sec. 4.3

Shapes  none: sizes in, seconds out

Read    measure_speed, seconds_to_generate.

Run:    python -m measure.speed [RUN]      a row per resolution (assets/toy)
        python evaluate.py RUN --speed     the same, and RUN/speed.json
"""
from __future__ import annotations

import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Callable

import torch
from torch import nn

from decode import commit_decode
from steps import autocast
from training.build import build_transformer
from training.checkpoint import load_run
from training.processes import device_of_this_process


@torch.no_grad()
def measure_speed(run: str | Path, resolutions: tuple[int, ...] = (64, 128, 256),
                  repeats: int = 2, most_tokens: int = 4096) -> list[dict]:
    """Frames per second of generating one video, and where the time goes: a row per resolution.

    The tokenizer is the run's; it takes any size. The transformer is the run's where the number
    of tokens is; elsewhere one of its sizes with random weights, which takes the same time.
    """
    device = device_of_this_process()
    run, rows = load_run(run, device), []
    tokenizer, model, config = run.tokenizer, run.transformer, run.config
    for resolution in sorted({*resolutions, config.resolution}):
        latent = tokenizer.latent_shape(config.frames, resolution, resolution)
        N = math.prod(latent)
        more = model.config.sequence_length - model.config.num_tokens
        row = dict(resolution=resolution, sequence=N + more, steps=config.decoding["steps"])
        rows.append(row)
        if N > most_tokens:
            row["left_out"] = f"{N:,} tokens; attention over more than {most_tokens:,} is not tried"
            continue
        own = N == model.config.num_tokens
        if hasattr(model.config, "grid") and not own:
            row["left_out"] = "attention in windows is for the grid it was trained on"
            continue
        network = model if own else build_transformer(
            replace(model.config, num_tokens=N)).to(device).eval().requires_grad_(False)
        transformer, decoder = seconds_to_generate(tokenizer, network, latent, 1, repeats,
                                                   config.precision, **config.decoding)
        row |= dict(frames_per_second=round(config.frames / (transformer + decoder), 2),
                    weights="trained" if own else "random",
                    transformer_seconds=round(transformer, 4), tokenizer_seconds=round(decoder, 4))
    return rows


@torch.no_grad()
def seconds_to_generate(tokenizer: nn.Module, model: nn.Module, grid: tuple[int, int, int],
                        batch: int = 1, repeats: int = 1, precision: str = "auto",
                        **decoding) -> tuple[float, float]:
    """Seconds of the transformer and of the tokenizer, for `batch` videos of tokens (t, h, w)."""
    device = next(model.parameters()).device
    tokens = torch.zeros(batch, math.prod(grid), dtype=torch.long, device=device)
    decode = getattr(model, "decode", commit_decode)
    with autocast(precision, device):
        return seconds_of(repeats, lambda: list(decode(
            model, tokens[:, 0], tokens[:, 0], tokens, tokens[0] == 0, grid=grid, **decoding,
            generator=torch.Generator(device).manual_seed(0)))), seconds_of(
                repeats, lambda: tokenizer.decode(tokens.view(batch, *grid)))


def seconds_of(repeats: int, work: Callable[[], object]) -> float:
    """The fastest of `repeats` after one to warm up: others on the machine only slow it down."""
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def print_speed(rows: list[dict]) -> None:
    """What measure_speed returns, as a table."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else (
        f"CPU, {torch.get_num_threads()} threads")
    print(f"generating one video at a time on {device}")
    print("pixels  sequence  steps  frames/s   transformer     tokenizer   transformer weights")
    for row in rows:
        print(f"{row['resolution']:6} {row['sequence']:9,} {row['steps']:6}", end=" ")
        if "left_out" in row:
            print(f" left out: {row['left_out']}")
            continue
        seconds = row["transformer_seconds"], row["tokenizer_seconds"]
        shares = (f"{part:7.3f} s {part / sum(seconds):4.0%}" for part in seconds)
        print(f"{row['frames_per_second']:9.1f} {' '.join(shares)}   {row['weights']}")


def main() -> None:
    print_speed(measure_speed(sys.argv[1] if len(sys.argv) > 1 else "assets/toy", (64,)))


if __name__ == "__main__":
    main()
