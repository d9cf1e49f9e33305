"""Two of the paper's choices for stage 1, tried on the toy. Curves and numbers, never a test.

    python tests/ablations.py inflation [steps]     Table 7's argument; writes assets/inflation.png
    python tests/ablations.py gan [steps]           what the adversary gives, and what it costs

Inflation: trains the 2D-VQ (--stage image), then three 3D-VQs with the same seed, clips and steps:
from scratch, inflated by averages, inflated centrally. The curve is the training PSNR, smoothed.
GAN: trains the 3D-VQ without and with the adversary; PSNR and edges are of held-out clips.
"""
from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from checkpoint import load_checkpoint, load_network  # noqa: E402
from data import load_batch  # noqa: E402
from metrics import psnr  # noqa: E402
from report import frames_of  # noqa: E402
from shapes import MovingShapes  # noqa: E402


def train(run: Path, *arguments: str) -> None:
    subprocess.run([sys.executable, str(ROOT / "train.py"), "toy", "--out", str(run), "--no-report",
                    *arguments], check=True, cwd=ROOT)


def curve(run: Path) -> tuple[list[int], list[float]]:
    """Steps and PSNR of stage 1, each value the mean of three logged ones."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["stage"] == "tokenizer"]
    windows = [lines[max(0, i - 1):i + 2] for i in range(len(lines))]
    return ([line["step"] for line in lines],
            [sum(line["psnr"] for line in window) / len(window) for window in windows])


def inflation(folder: Path, length: list[str]) -> None:
    figure, axis = plt.subplots(figsize=(5, 3))
    train(folder / "image", "--stage", "image", *length)
    for mode in ("scratch", "average", "central"):
        run = folder / mode
        if mode == "scratch":
            train(run, "--stage", "tokenizer", *length)
        else:
            shutil.copytree(folder / "image", run)
            train(run, "--stage", "tokenizer", *length, "--inflate", mode)
        steps, values = curve(run)
        axis.plot(steps, values, label=mode)
        print(f"{mode:8} PSNR at step", *(f"{step}: {value:.1f}" for step, value in
                                          zip(steps, values) if step % 50 == 0), flush=True)
    axis.set(xlabel="step of the 3D-VQ", ylabel="PSNR [dB], training clips")
    axis.legend()
    figure.tight_layout()
    figure.savefig(ROOT / "assets/inflation.png", dpi=90)


def sharpness(decoded: Tensor, real: Tensor) -> float:
    """How much of the step from pixel to pixel is left where the real clips have an edge."""
    steps = [(decoded.diff(dim=axis), real.diff(dim=axis)) for axis in (-1, -2)]
    kept = sum((d * r.sign())[r.abs() > 0.1].sum() for d, r in steps)
    return (kept / sum(r[r.abs() > 0.1].abs().sum() for _, r in steps)).item()


def gan(folder: Path, length: list[str]) -> None:
    source = MovingShapes("test")
    video, _, _ = load_batch(source, 0, len(source), seed=0, augment=False)
    print("adversarial weight   seconds   PSNR   edges left")
    for weight in ("0", "0.1"):
        begin = time.time()
        train(folder / weight, "--stage", "tokenizer", *length, "--adversarial-weight", weight)
        seconds = time.time() - begin
        tokenizer = load_network(load_checkpoint(folder / weight / "tokenizer.pt"))
        with torch.no_grad():
            decoded = tokenizer.decode(tokenizer.encode(video)).clamp(0, 1)
        quality = psnr(frames_of(decoded), frames_of(video)).mean()
        print(f"{weight:>18} {seconds:9.0f} {quality:6.2f} {sharpness(decoded, video):12.0%}",
              flush=True)


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in ("inflation", "gan"):
        sys.exit(__doc__)
    length = ["--tokenizer-steps", sys.argv[2] if len(sys.argv) > 2 else "300"]
    with tempfile.TemporaryDirectory() as folder:
        dict(inflation=inflation, gan=gan)[sys.argv[1]](Path(folder), length)


if __name__ == "__main__":
    main()
