"""Choices of the paper and of the toy, tried on the toy. Numbers and a curve, never a test.

    python tests/ablations.py inflation [steps]     Table 7's argument; writes assets/inflation.png
    python tests/ablations.py gan [steps]           what the adversary gives, and what it costs
    python tests/ablations.py tokenizer [steps]     what lets the toy's stage 1 learn in minutes
    python tests/ablations.py transformer [steps]   likewise stage 2, on the tokens of assets/toy
    python tests/ablations.py decoding              steps and temperatures, on assets/toy

Each row trains with the seed, clips and steps of the first and one choice undone. PSNR, codes and
edges are of held-out clips, except the curve's, which is smoothed training PSNR.
"""
from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

import train  # noqa: E402
from checkpoint import load_checkpoint, load_network, load_run  # noqa: E402
from data import load_batch  # noqa: E402
from metrics import psnr  # noqa: E402
from report import decoding_of, evaluate_reconstruction, frames_of, measure_classes  # noqa: E402
from shapes import MovingShapes  # noqa: E402
from tokenizer import TOKENIZERS, VideoTokenizer  # noqa: E402

TOY = ROOT / "assets/toy"


def train_toy(run: Path, stage: str, steps: int, *flags: str) -> float:
    """Train a stage of the toy in `run`; returns the seconds it took."""
    name = "transformer" if stage == "transformer" else "tokenizer"
    sys.argv = ["train.py", "toy", "--out", str(run), "--no-report", "--stage", stage,
                f"--{name}-steps", str(steps), *flags]
    begin = time.time()
    train.main()
    return time.time() - begin


def tokenizer_of(run: Path) -> VideoTokenizer:
    return load_network(load_checkpoint(run / "tokenizer.pt"))


def inflation(folder: Path, steps: int) -> None:
    figure, axis = plt.subplots(figsize=(5, 3))
    train_toy(folder / "image", "image", steps)
    for mode in ("scratch", "average", "central"):
        run = folder / mode
        if mode == "scratch":
            train_toy(run, "tokenizer", steps)
        else:
            shutil.copytree(folder / "image", run)
            train_toy(run, "tokenizer", steps, "--inflate", mode)
        places, values = curve(run)
        axis.plot(places, values, label=mode)
        print(f"{mode:8} PSNR at step", *(f"{place}: {value:.1f}" for place, value in
                                          zip(places, values) if place % 50 == 0), flush=True)
    axis.set(xlabel="step of the 3D-VQ", ylabel="PSNR [dB], training clips")
    axis.legend()
    figure.tight_layout()
    figure.savefig(ROOT / "assets/inflation.png", dpi=90)


def curve(run: Path) -> tuple[list[int], list[float]]:
    """Steps and PSNR of stage 1, each value the mean of three logged ones."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["stage"] == "tokenizer"]
    windows = [lines[max(0, i - 1):i + 2] for i in range(len(lines))]
    return ([line["step"] for line in lines],
            [sum(line["psnr"] for line in window) / len(window) for window in windows])


def gan(folder: Path, steps: int) -> None:
    source = MovingShapes("test")
    video, _, _ = load_batch(source, 0, len(source), seed=0, augment=False)
    print("adversarial weight   seconds   PSNR   edges left")
    for weight in ("0", "0.1"):
        seconds = train_toy(folder / weight, "tokenizer", steps, "--adversarial-weight", weight)
        tokenizer = tokenizer_of(folder / weight)
        with torch.no_grad():
            decoded = tokenizer.decode(tokenizer.encode(video)).clamp(0, 1)
        quality = psnr(frames_of(decoded), frames_of(video)).mean()
        print(f"{weight:>18} {seconds:9.0f} {quality:6.2f} {sharpness(decoded, video):12.0%}",
              flush=True)


def sharpness(decoded: Tensor, real: Tensor) -> float:
    """How much of the step from pixel to pixel is left where the real clips have an edge."""
    steps = [(decoded.diff(dim=axis), real.diff(dim=axis)) for axis in (-1, -2)]
    kept = sum((d * r.sign())[r.abs() > 0.1].sum() for d, r in steps)
    return (kept / sum(r[r.abs() > 0.1].abs().sum() for _, r in steps)).item()


def tokenizer(folder: Path, steps: int) -> None:
    toy = TOKENIZERS["toy"]
    print(f"{'stage 1 of the toy':38} PSNR   codes in use")
    for name, gain, flags in (
            ("as it is", 0.0, []),
            ("residual branches not from zero", 1.0, []),
            ("codes not from latents", 0.0, ["--no-codebook-from-data"]),
            ("no momentum", 0.0, ["--tokenizer-beta1", "0"]),
            ("entropy loss x 0.1 instead of 0.0003", 0.0, ["--entropy-weight", "0.1"])):
        TOKENIZERS["toy"] = replace(toy, residual_gain=gain)
        train_toy(folder / name, "tokenizer", steps, *flags)
        numbers = evaluate_reconstruction(tokenizer_of(folder / name), MovingShapes("test"), 64)
        print(f"{name:38} {numbers['psnr']:.1f}   {numbers['codes_used']}", flush=True)
    TOKENIZERS["toy"] = toy


def transformer(folder: Path, steps: int) -> None:
    print(f"{'stage 2 of the toy':38} right shape   right direction")
    for name, flags in (("as it is", []),
                        ("attention not from neighbours", ["--no-start-local"]),
                        ("rate 1e-3 instead of 2e-3", ["--transformer-rate", "1e-3"])):
        run = folder / name
        run.mkdir()
        shutil.copy(TOY / "tokenizer.pt", run)
        train_toy(run, "transformer", steps, *flags)
        *networks, config = load_run(run)
        numbers = measure_classes(*networks, 256, decoding_of(config))
        print(f"{name:38} {numbers['right_shape']:11.1%} {numbers['right_direction']:17.1%}",
              flush=True)


def decoding(folder: Path, steps: int) -> None:
    networks = load_run(TOY)[:2]
    print("decoding steps   temperature   right shape   right direction, of 1,024")
    for count, temperature in ((12, 4.5), (12, 1.5), (16, 1.5), (24, 1.5)):
        numbers = measure_classes(*networks, 1024, dict(steps=count, temperature=temperature))
        print(f"{count:14} {temperature:13} {numbers['right_shape']:13.1%} "
              f"{numbers['right_direction']:17.1%}", flush=True)


def main() -> None:
    ablations = {each.__name__: each for each in (inflation, gan, tokenizer, transformer, decoding)}
    if len(sys.argv) < 2 or sys.argv[1] not in ablations:
        sys.exit(__doc__)
    chosen, steps = ablations[sys.argv[1]], int(sys.argv[2]) if len(sys.argv) > 2 else 300
    with tempfile.TemporaryDirectory() as folder:
        chosen(Path(folder), steps)


if __name__ == "__main__":
    main()
