"""Step time and peak memory of both stages: a table for the README, never a pass or fail.

    python tests/benchmark.py            toy, B, L and H on this machine (a GPU, if there is one)
    python tests/benchmark.py entropies  MAGVIT-v2's entropy loss over 2^18 codes, by halves and not

Each row runs in a process of its own, so that peak memory is its own. Made-up clips; the time is
the median of the steps after the first (one, where there are two). Beside the memory that the
process took stands what training/plan.py counts for its tensors, as on a CPU: the one is measured,
the other predicts what larger batches need.
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

from training.build import build  # noqa: E402
from training.plan import amount, count_step, step_on  # noqa: E402
from training.presets import PRESETS  # noqa: E402

ROWS = [("toy", "tokenizer", 4, 12), ("toy", "transformer", 16, 12),
        ("ucf101-B", "tokenizer", 1, 3), ("ucf101-B", "transformer", 1, 4),
        ("ucf101-L", "tokenizer", 1, 2), ("ucf101-L", "transformer", 1, 3),
        ("web-H", "transformer", 1, 3)]


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
    return (f"| {way} | {1000 * seconds:,.0f} ms | {amount(peak)} | {position:.4f} | {mean:.4f} | "
            f"{latents.grad.norm():.4f} |")


def measure(preset: str, stage: str, batch: int, steps: int) -> str:
    """One row: seconds a step, and peak memory as measured and as counted."""
    config = replace(PRESETS[preset], recompute=preset.endswith(("L", "H")))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    trainee = build(config, stage, num_classes=config.num_classes, device=device)
    step = step_on(trainee, config, stage, batch)
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
    return (f"| {preset} | {how} | {batch} | {statistics.median(seconds[1:]):.2f} s | "
            f"{amount(peak)} | {amount(count_step(config, stage, batch)[1])} |")


if __name__ == "__main__":
    if sys.argv[1:] == ["entropies"]:
        print("| entropies | forward, backward | more memory | of a position | of the mean | "
              "gradient |\n|---|---|---|---|---|---|", flush=True)
        for way in ("by halves", "over all codes"):
            subprocess.run([sys.executable, __file__, "entropies", way], check=True)
    elif sys.argv[1:2] == ["entropies"]:
        print(measure_entropies(sys.argv[2]))
    elif len(sys.argv) > 1:
        print(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
    else:
        print("| preset | stage | batch | step | peak memory | counted |", flush=True)
        print("|---|---|---|---|---|---|", flush=True)
        for row in ROWS:
            subprocess.run([sys.executable, __file__, *map(str, row)], check=True)
