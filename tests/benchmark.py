"""Step time and peak memory of both stages: a table for the README, never a pass or fail.

    python tests/benchmark.py            toy and B on this machine (a GPU, if there is one)

Each row runs in a process of its own, so that peak memory is its own. Random clips; the figures
are the median of the steps after the first two.
"""
from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from discriminator import Discriminator3d, LeCam  # noqa: E402
from loop import Trainee  # noqa: E402
from presets import PRESETS  # noqa: E402
from tokenizer import VideoTokenizer  # noqa: E402
from train import TokenBatch, tokenizer_step, transformer_step  # noqa: E402
from transformer import MaskedTransformer  # noqa: E402

ROWS = [("toy", "tokenizer", 4, 12), ("toy", "transformer", 16, 12),
        ("ucf101-B", "tokenizer", 1, 3), ("ucf101-B", "transformer", 1, 5)]


def measure(preset: str, stage: str, batch: int, steps: int) -> str:
    """One row: seconds a step and peak memory."""
    config = PRESETS[preset]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    if stage == "tokenizer":
        networks = dict(model=VideoTokenizer(config.tokenizer_config()))
        networks["ema"] = VideoTokenizer(config.tokenizer_config()).requires_grad_(False)
        if config.adversarial_weight:
            networks |= dict(discriminator=Discriminator3d(config.discriminator_config()),
                             lecam=LeCam())
        video = torch.rand(batch, 3, config.frames, config.resolution, config.resolution)

        def step(trainee: Trainee) -> None:
            tokenizer_step(trainee, video.to(device), config)
    else:
        model = MaskedTransformer(config.transformer_config(config.num_classes))
        networks, N = dict(model=model), model.config.num_tokens
        tokens = torch.randint(model.config.codebook_size, (batch, N), device=device)
        data = TokenBatch("CG", tokens, tokens, torch.ones(N, dtype=torch.bool, device=device),
                          torch.zeros(batch, dtype=torch.long, device=device),
                          torch.rand(batch, N, device=device), torch.rand(batch, device=device))

        def step(trainee: Trainee) -> None:
            transformer_step(trainee, data, config)
    networks = {name: network.to(device) for name, network in networks.items()}
    trainee = Trainee(networks, {name: torch.optim.Adam(networks[name].parameters(), lr=1e-4)
                                 for name in ("model", "discriminator") if name in networks})
    seconds = []
    for _ in range(steps):
        begin = time.perf_counter()
        step(trainee)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    peak = (torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
    adversary = ", GAN" if "discriminator" in networks else ""
    return (f"| {preset} | {stage}{adversary} | {batch} | {statistics.median(seconds[2:]):.2f} s | "
            f"{peak:.1f} GiB |")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
    else:
        print("| preset | stage | batch | step | peak memory |\n|---|---|---|---|---|", flush=True)
        for row in ROWS:
            subprocess.run([sys.executable, __file__, *map(str, row)], check=True)
