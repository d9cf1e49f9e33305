"""Table 7's argument on the toy: a 3D tokenizer that starts from a 2D one. A curve, never a test.

    python tests/inflation.py [steps]        writes assets/inflation.png

Trains the 2D-VQ (--stage image), then three 3D-VQs with the same seed, clips and steps: from
scratch, inflated by averages, inflated centrally. The curve is the training PSNR, smoothed.
"""
from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


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


def main() -> None:
    length = ["--tokenizer-steps", sys.argv[1] if len(sys.argv) > 1 else "300"]
    figure, axis = plt.subplots(figsize=(5, 3))
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image"
        train(image, "--stage", "image", *length)
        for mode in ("scratch", "average", "central"):
            run = Path(folder) / mode
            if mode == "scratch":
                train(run, "--stage", "tokenizer", *length)
            else:
                shutil.copytree(image, run)
                train(run, "--stage", "tokenizer", *length, "--inflate", mode)
            steps, psnr = curve(run)
            axis.plot(steps, psnr, label=mode)
            print(f"{mode:8} PSNR at step", *(f"{step}: {value:.1f}" for step, value in
                                              zip(steps, psnr) if step % 50 == 0), flush=True)
    axis.set(xlabel="step of the 3D-VQ", ylabel="PSNR [dB], training clips")
    axis.legend()
    figure.tight_layout()
    figure.savefig(ROOT / "assets/inflation.png", dpi=90)


if __name__ == "__main__":
    main()
