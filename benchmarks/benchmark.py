"""Step time and peak memory of both stages: a table for the README, never a pass or fail.

    python benchmarks/benchmark.py            toy, B, L and H on this machine (a GPU, if there is one),
                                         then whole generation
    python benchmarks/benchmark.py --input DIR    clips a second out of your videos (input_speed.py)
    python benchmarks/benchmark.py --inference    encode, decode, Algorithm 1, generate, beside the limit
                                             of this machine (inference_speed.py)
    python benchmarks/benchmark.py entropies  MAGVIT-v2's entropy loss over 2^18 codes, by halves and not

Each row runs in a process of its own, so that peak memory is its own. Made-up clips; the time is
the median of the steps after the first (one, where there are two).
"""
from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import inference_speed  # noqa: E402
import input_speed  # noqa: E402

from decode import generate  # noqa: E402
from steps import autocast  # noqa: E402
from training.kernels import resolve_precision  # noqa: E402
from training.plan import flop_of_step, made_up, made_up_step  # noqa: E402
from training.presets import PRESETS  # noqa: E402
from training.processes import device_of_this_process  # noqa: E402
from training.start import build  # noqa: E402

# Dense bfloat16 arithmetic by the makers' data sheets, in FLOP/s, by a part of the card's name.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12,
         "V100": 125e12}

ROWS = [("toy", "tokenizer", 4, 12), ("toy", "transformer", 16, 12),
        ("ucf101-B", "tokenizer", 1, 3), ("ucf101-B", "transformer", 1, 4),
        ("ucf101-L", "tokenizer", 1, 2), ("ucf101-L", "transformer", 1, 3),
        ("web-H", "transformer", 1, 3)]
GPU_ROWS = [("toy", "tokenizer", 64, 12), ("toy", "transformer", 256, 12),
            ("ucf101-B", "tokenizer", 8, 6), ("ucf101-B", "transformer", 32, 6),
            ("ucf101-L", "tokenizer", 8, 5), ("ucf101-L", "transformer", 32, 5),
            ("web-H", "transformer", 32, 5)]
GENERATED = {"toy": (1, 4, 16, 64), "ucf101-B": (1, 4, 16, 64)}               # clips at once


def entropies_over_all_codes(latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What magvit2.lookup_free.entropies is, as it is written down: positions x 2^bits."""
    bits = latents.shape[1]
    cube = 2.0 * (torch.arange(2 ** bits)[:, None] >> torch.arange(bits) & 1) - 1
    flat = latents.movedim(1, -1).reshape(-1, bits)
    log_probability = (2 / 0.01 * flat @ cube.T).log_softmax(1)
    probability = log_probability.exp()
    mean = probability.mean(0)
    return -(probability * log_probability).sum(1).mean(), torch.special.entr(mean).sum()


def measure_entropies(way: str) -> str:
    """One row: forward and backward for a clip of 17x128x128, 1,280 tokens of 18 bits."""
    from magvit2.lookup_free import entropies
    generator = torch.Generator().manual_seed(0)
    latents = (0.01 * torch.randn(1, 18, 5, 16, 16, generator=generator)).requires_grad_()
    entropy = entropies if way == "by halves" else entropies_over_all_codes
    sum(entropy(latents[..., :2])).backward()                     # what a first call loads
    latents.grad = None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    position, mean = entropy(latents)
    (position - mean).backward()
    seconds = time.perf_counter() - begin
    peak = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return (f"| {way} | {1000 * seconds:,.0f} ms | {peak / 2**20:,.0f} MiB | "
            f"{position:.4f} | {mean:.4f} | "
            f"{latents.grad.norm():.4f} |")


def measure_generation(preset: str, batch: int) -> str:
    """One row: Algorithm 1's steps and the decoder, untrained, for clips without a condition."""
    device = device_of_this_process()
    config = PRESETS[preset]
    tokenizer = build(config, "tokenizer", device=device).networks["tokenizer"].eval()
    model = build(config, "transformer", num_classes=config.num_classes, tokenizer=tokenizer,
                  device=device).networks["transformer"].eval()
    video = made_up(config, batch, device)
    label = torch.full((batch,), model.no_class, device=device)
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        with torch.no_grad(), autocast(resolve_precision("auto", device), device):
            generate(tokenizer, model, video, "CG", label, steps=12)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    frames = batch * config.frames / min(seconds)
    return f"| {preset} | {batch} | {min(seconds):.2f} s | {frames:,.1f} |"


def measure(preset: str, stage: str, batch: int, steps: int) -> str:
    """One row: seconds a step, its arithmetic, and peak memory."""
    device = device_of_this_process()
    config = replace(PRESETS[preset], recompute=preset.endswith(("L", "H")),
                     precision=resolve_precision("auto", device))
    torch.manual_seed(0)
    trainee = build(config, stage, num_classes=config.num_classes, device=device)
    step = made_up_step(trainee, config, stage, batch)
    seconds = []
    for _ in range(steps):
        begin = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    peak = (torch.cuda.max_memory_allocated() if device.type == "cuda" else
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    how = ", ".join(filter(None, [
        stage, "GAN" if stage == "tokenizer" and config.adversarial_weight else "",
        "recompute" if config.recompute else ""]))
    flop, median = batch * flop_of_step(config, stage), statistics.median(seconds[1:])
    card = torch.cuda.get_device_name() if device.type == "cuda" else ""
    share = [f"{flop / median / most:.0%}" for name, most in PEAKS.items() if name in card]
    return (f"| {preset} | {how} | {batch} | {median:.2f} s | {flop / median / 1e12:.2f} | "
            f"{(share or ['-'])[0]} | {peak / 2**30:.2f} GiB |")


if __name__ == "__main__":
    if sys.argv[1:] == ["entropies"]:
        print("| entropies | forward, backward | more memory | of a position | of the mean | "
              "gradient |\n|---|---|---|---|---|---|", flush=True)
        for way in ("by halves", "over all codes"):
            subprocess.run([sys.executable, __file__, "entropies", way], check=True)
    elif sys.argv[1:2] == ["entropies"]:
        print(measure_entropies(sys.argv[2]))
    elif sys.argv[1:2] == ["--input"]:
        print(input_speed.table(Path(sys.argv[2])))
    elif sys.argv[1:2] == ["--inference"]:
        inference_speed.show(sys.argv[2:])
    elif sys.argv[1:2] == ["generation"]:
        print(measure_generation(sys.argv[2], int(sys.argv[3])))
    elif len(sys.argv) > 1:
        print(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
    else:
        on_gpu = torch.cuda.is_available()
        print("| preset | stage | batch | step | TFLOP/s | of peak | peak memory |\n"
              "|---|---|---|---|---|---|---|", flush=True)
        for row in GPU_ROWS if on_gpu else ROWS:
            subprocess.run([sys.executable, __file__, *map(str, row)], check=True)
        print("\n| generation | clips at once | time | frames/s |\n|---|---|---|---|", flush=True)
        for preset, batches in GENERATED.items():
            for batch in batches if on_gpu else batches[:2 if preset == "toy" else 1]:
                subprocess.run([sys.executable, __file__, "generation", preset, str(batch)],
                               check=True)
