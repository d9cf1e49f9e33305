"""Does the suite notice? Forty small mistakes, one after the other, in a copy of the project.

    python benchmarks/mutations.py [FIRST LAST]     half an hour on two cores; never a test

Each row is a file, what stands there, the mistake, and the tests that should fail by it. Printed is
what no test has noticed.
"""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MISTAKES = [
    # Sec. 3.1: quantization, networks, inflation
    ("tokenizer.py", "-distances / temperature", "distances / temperature", "tokenizer"),
    ("tokenizer.py", "return entropy_each - entropy_mean", "return entropy_each", "tokenizer"),
    ("tokenizer.py", "F.mse_loss(latents, codes.detach())", "F.mse_loss(latents, codes)",
     "tokenizer"),
    ("tokenizer.py", "latents + (codes - latents).detach()", "codes", "tokenizer"),
    ("tokenizer.py", "- 2 * z @", "- z @", "parity"),
    ("tokenizer.py", "[*reversed(config.strides), None]", "[*config.strides, None]", "tokenizer"),
    ("tokenizer.py", "length // 2] = source", "-1] = source", "tokenizer"),
    ("tokenizer.py", "(source / length)", "source", "tokenizer"),
    ("tokenizer.py", "low >= -1 / 16", "low >= -1 / 8", "tokenizer"),
    # Sec. 3.1: the adversary
    ("discriminator.py", "F.softplus(-real_logits).mean() +", "F.softplus(real_logits).mean() +",
     "discriminator"),
    ("discriminator.py", ".sum(dim=(1, 2, 3, 4)).mean()", ".mean()", "discriminator"),
    ("discriminator.py", "F.relu(self.average_real - fake_mean)",
     "F.relu(fake_mean - self.average_real)", "discriminator"),
    ("discriminator.py", " / math.sqrt(2)", "", "parity"),
    # Sec. 3.2: tasks, Eq. (2), Eq. (3), Eq. (4)
    ("commit.py", "masked = scores <= cutoff[:, None]\n    return",
     "masked = scores < cutoff[:, None]\n    return", "commit"),
    ("commit.py", "(masked & ~is_pad, masked & is_pad, ~masked)",
     "(masked & is_pad, masked & ~is_pad, ~masked)", "commit"),
    ("commit.py", "(losses * case).mean()", "losses[case].mean()", "commit"),
    ("commit.py", "exact.ceil()", "exact.floor()", "commit"),
    ("commit.py", "count[:, None] - 1)", "count[:, None])", "commit"),
    ("commit.py", "return ~rearrange(valid", "return rearrange(valid", "commit"),
    ("commit.py", "t=t, h=h, w=w).any(-1)", "t=t, h=h, w=w).all(-1)", "commit"),
    ("transformer.py", "x[:, -tokens.shape[1]:]", "x[:, :tokens.shape[1]]", "parity"),
    ("transformer.py", "self.no_class + 1 + task", "self.no_class + task", "transformer"),
    ("transformer.py", ", label_smoothing=label_smoothing)", ")", "transformer"),
    # Algorithm 1
    ("decode.py", "(logits - baseline)", "(baseline - logits)", "decode"),
    ("decode.py", "torch.where(masked, sampled, tokens)", "sampled", "decode"),
    ("decode.py", "1 - (t + 1) / steps", "1 - t / steps", "decode parity"),
    ("decode.py", "torch.where(masked, confidence, scores)", "confidence", "decode"),
    ("decode.py", "scores > cutoff[:, None], torch.inf", "scores >= cutoff[:, None], torch.inf",
     "decode"),
    # one step of training
    ("steps.py", "1 - config.tokenizer_ema", "config.tokenizer_ema", "train"),
    ("steps.py", "+ config.entropy_weight *", "- config.entropy_weight *", "train"),
    ("steps.py", "config.r1_weight * terms", "terms", "train parity"),
    ("steps.py", "flat /= dist.get_world_size()", "pass", "loop"),
    # App. B.3: numbers
    ("measure/metrics.py", "2 * trace)", "trace)", "metrics"),
    ("measure/metrics.py", "features.T.cov()", "features.T.cov(correction=0)", "metrics"),
    ("measure/metrics.py", "0.2125, 0.7154, 0.0721", "0.299, 0.587, 0.114",
     "compression"),
    ("measure/metrics.py", '"amax")', '"amin")', "metrics"),
    # the loop
    ("training/loop.py", "0.5 * (1 + math.cos(math.pi * progress))", "(1 - progress)", "loop"),
    ("training/loop.py", "max(0, step - warmup)", "step", "loop parity"),
    ("training/loop.py", "seed_of(config.seed, processes.rank, step)", "step", "loop"),
    ("training/loop.py", "if name not in free and there.get(name) != value",
     "if name not in free and name not in there", "loop"),
]


def main() -> None:
    first, last = map(int, sys.argv[1:3]) if len(sys.argv) > 2 else (0, len(MISTAKES))
    noticed, rows = 0, MISTAKES[first:last]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "runs", "__pycache__"))
        if (ROOT.parent / "shared").exists():                 # the official arrays
            (copy.parent / "shared").symlink_to(ROOT.parent / "shared")
        for number, (name, right, wrong, tests) in enumerate(rows, first):
            path = copy / name
            text = path.read_text()
            if text.count(right) < 1:
                raise ValueError(f"mistake {number}: {right!r} is not in {name} any more")
            path.write_text(text.replace(right, wrong, 1))
            done = subprocess.run(
                [sys.executable, "-m", "pytest", "-q", "-x",
                 *(f"tests/test_{test}.py" for test in tests.split())],
                cwd=copy, capture_output=True, env=os.environ | dict(PYTHONDONTWRITEBYTECODE="1"))
            path.write_text(text)
            noticed += done.returncode == 1
            if done.returncode != 1:
                print(f"mistake {number} was not noticed (pytest ended with {done.returncode}): "
                      f"{name}, {right!r} -> {wrong!r}", flush=True)
    print(f"{noticed} of {len(rows)} mistakes were noticed")


if __name__ == "__main__":
    main()
