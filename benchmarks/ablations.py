"""Choices of the paper and of the toy, tried on the toy. Numbers and a curve, never a test.

    python benchmarks/ablations.py inflation [steps]     Table 7's argument; writes assets/inflation.png
    python benchmarks/ablations.py gan [steps]           what the adversary gives, and what it costs
    python benchmarks/ablations.py tokenizer [steps]     what lets the toy's stage 1 learn in minutes
    python benchmarks/ablations.py transformer [steps]   likewise stage 2, on the tokens of assets/toy
    python benchmarks/ablations.py decoding              steps and temperatures, on assets/toy
    python benchmarks/ablations.py every_start [steps]   a run for `python figures.py panorama`
    python benchmarks/ablations.py vocabulary [steps]    MAGVIT-v2's Figure 1; writes assets/vocabulary.*

Each row trains with the seed, clips and steps of the first and one choice undone. PSNR, codes and
edges are of held-out clips, except the curve's, which is smoothed training PSNR.
"""
from __future__ import annotations

import json
import math
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from data.clips import DataConfig  # noqa: E402
from data.moving_shapes import MovingShapes  # noqa: E402
from data.source import all_clips, load_batch  # noqa: E402
from decode import generate, seeded_noise  # noqa: E402
from magvit2 import train as sequel  # noqa: E402
from magvit2.lookup_free import LookupFreeConfig  # noqa: E402
from magvit2.presets import SequelConfig  # noqa: E402
from measure.metrics import frames_of, psnr  # noqa: E402
from measure.report import evaluate_reconstruction, measure_classes  # noqa: E402
from measure.pictures import draw_curves  # noqa: E402
from tokenizer import TOKENIZERS  # noqa: E402
from train import train  # noqa: E402
from training.checkpoint import Run, load_checkpoint, load_network, load_run  # noqa: E402
from training.processes import start_processes  # noqa: E402
from training.presets import PRESETS  # noqa: E402

TOY = ROOT / "assets/toy"


def train_toy(run: Path, stage: str, steps: int, **settings) -> float:
    """Train a stage of the toy in `run`, with settings changed; returns the seconds it took."""
    name = "transformer" if stage == "transformer" else "tokenizer"
    config = replace(PRESETS["toy"], **{f"{name}_steps": steps}, **settings)
    begin = time.time()
    train(config, DataConfig(dataset="shapes"), run, stage=stage, processes=start_processes(),
          draw=False)
    return time.time() - begin


def tokenizer_of(run: Path) -> nn.Module:
    return load_network(load_checkpoint(run / "tokenizer.pt"))


def inflation(folder: Path, steps: int) -> None:
    curves = {}
    train_toy(folder / "image", "image", steps)
    for mode in ("scratch", "average", "central"):
        run = folder / mode
        if mode == "scratch":
            train_toy(run, "tokenizer", steps, inflate="")
        else:
            shutil.copytree(folder / "image", run)
            train_toy(run, "tokenizer", steps, inflate=mode)
        curves[mode] = curve(run)
        print(f"{mode:8} PSNR at step", *(f"{place}: {value:.1f}" for place, value in
                                          zip(*curves[mode]) if place % 50 == 0), flush=True)
    draw_curves(ROOT / "assets/inflation.png", [
        ("", "step of the 3D-VQ", "PSNR [dB], training clips", curves)], size=(5, 3))


def curve(run: Path) -> tuple[list[int], list[float]]:
    """Steps and PSNR of stage 1, each value the mean of three logged ones."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["stage"] == "tokenizer"]
    windows = [lines[max(0, i - 1):i + 2] for i in range(len(lines))]
    return ([line["step"] for line in lines],
            [sum(line["psnr"] for line in window) / len(window) for window in windows])


def gan(folder: Path, steps: int) -> None:
    source = MovingShapes("test")
    video, _ = load_batch(source, 0, len(source), seed=0, augment=False)
    print("adversarial weight   seconds   PSNR   edges left")
    for weight in (0.0, 0.1):
        run = folder / f"{weight:g}"
        seconds = train_toy(run, "tokenizer", steps, adversarial_weight=weight, inflate="")
        tokenizer = tokenizer_of(run)
        with torch.no_grad():
            decoded = tokenizer.decode(tokenizer.encode(video)).clamp(0, 1)
        quality = psnr(frames_of(decoded), frames_of(video)).mean()
        print(f"{weight:>18g} {seconds:9.0f} {quality:6.2f} {sharpness(decoded, video):12.0%}",
              flush=True)


def sharpness(decoded: Tensor, real: Tensor) -> float:
    """How much of the step from pixel to pixel is left where the real clips have an edge."""
    steps = [(decoded.diff(dim=axis), real.diff(dim=axis)) for axis in (-1, -2)]
    kept = sum((d * r.sign())[r.abs() > 0.1].sum() for d, r in steps)
    return (kept / sum(r[r.abs() > 0.1].abs().sum() for _, r in steps)).item()


def tokenizer(folder: Path, steps: int) -> None:
    print(f"{'stage 1 of the toy':38} PSNR   codes in use")
    for name, settings in (
            ("as it is", {}),
            ("videos from scratch, without frames", dict(inflate="")),
            ("residual branches not from zero", dict(residual_gain=1.0)),
            ("codes not from latents", dict(latent_gain=1.0, codebook_from_data=False)),
            ("no momentum", dict(tokenizer_beta1=0.0)),
            ("entropy loss x 0.1 instead of 0.0003", dict(entropy_weight=0.1))):
        train_toy(folder / name, "tokenizer", steps, **settings)
        numbers = evaluate_reconstruction(tokenizer_of(folder / name), MovingShapes("test"), 64)
        print(f"{name:38} {numbers['psnr']:.1f}   {numbers['codes_used']}", flush=True)


def transformer(folder: Path, steps: int) -> None:
    print(f"{'stage 2 of the toy':38} right shape   right direction")
    for name, settings in (("as it is", {}),
                           ("attention not from neighbours", dict(start_local=False)),
                           ("rate 1e-3 instead of 2e-3", dict(transformer_rate=1e-3))):
        (folder / name).mkdir()
        shutil.copy(TOY / "tokenizer.pt", folder / name)
        train_toy(folder / name, "transformer", steps, **settings)
        run = load_run(folder / name)
        numbers = measure_classes(run.tokenizer, run.transformer, 256, run.config.decoding)
        print(f"{name:38} {numbers['right_shape']:11.1%} {numbers['right_direction']:17.1%}",
              flush=True)


def decoding(folder: Path, steps: int) -> None:
    run = load_run(TOY)
    print("decoding steps   temperature   right shape   right direction, of 1,024")
    for count, temperature in ((12, 4.5), (12, 1.5), (16, 1.5), (24, 1.5), (16, 0.0)):
        numbers = measure_classes(run.tokenizer, run.transformer, 1024, dict(
            steps=count, temperature=temperature))
        print(f"{count:14} {temperature:13} {numbers['right_shape']:13.1%} "
              f"{numbers['right_direction']:17.1%}", flush=True)


class EveryStart(MovingShapes):
    """MovingShapes that start at each of the four cells along their way, not at every other one:
    four frames later they are a cell further, and after 16 where they were."""

    def __len__(self) -> int:
        return 2 * len(self.numbers)

    def clip(self, index, random=None):
        video, label = super().clip(index // 2)
        return np.roll(video, 4 * (index % 2), axis=0), label


def every_start(folder: Path, steps: int) -> None:
    """Stage 2 of the toy on outpainting alone, of a world in which any 32 pixels are a clip."""
    run = ROOT / "runs/every-start"
    run.mkdir(parents=True, exist_ok=True)
    shutil.copy(TOY / "tokenizer.pt", run)
    config = replace(PRESETS["toy"], transformer_steps=steps, token_pool=640, tasks=("OPV", "OPH"))
    train(config, EveryStart(), run, stage="transformer", draw=False)


class FineShapes(MovingShapes):
    """MovingShapes in twice as many lanes, four pixels apart: 768 clips, for which 128 codes are too
    few. Every sixteenth is held out."""

    cell = 4
    choices = 16, 8, 2, 3                                # classes, lanes, starts, colours

    def __init__(self, split: str = "train"):
        super().__init__(split)
        numbers = np.random.default_rng(0).permutation(math.prod(self.choices))
        self.numbers = numbers[(np.arange(len(numbers)) % 16 == 0) == (split == "test")]

    @property
    def held_out(self) -> MovingShapes | None:
        return FineShapes("test") if self.split == "train" else None


def vocabulary(folder: Path, steps: int) -> None:
    """With more codes both reconstruct better; which one generates better? `steps` of stage 1, three
    times as many of stage 2."""
    toy, results = asdict(TOKENIZERS["toy"]), {"VQ": [], "LFQ": []}
    folder = ROOT / "runs/vocabulary"                        # kept: an hour, which can be resumed
    print("     bits   PSNR   codes used   bits a token   nearest clip: PSNR   right class")
    for bits in (4, 7, 10, 12):
        for name in results:
            sizes = (replace(TOKENIZERS["toy"], codebook_size=2 ** bits) if name == "VQ" else
                     LookupFreeConfig(**toy | dict(bits=bits, entropy_temperature=0.1)))
            config = replace(
                PRESETS["toy"], tokenizer=sizes, inflate="", tokenizer_rate=4e-4,
                tokenizer_steps=steps, transformer_steps=3 * steps,
                token_pool=720, tasks=("CG",))
            if name == "VQ":
                train(config, FineShapes(), folder / f"{name}-{bits}", draw=False)
            else:
                # With less, 4 bits use 3 of their 16 codes; 10 bits use most in any case.
                entropy_weight = 0.1 if bits < 10 else 0.03
                config = SequelConfig(**vars(config) | dict(
                    residual_gain=1.0, latent_gain=1.0, codebook_from_data=False,
                    reconstruction_weight=5.0, tokenizer_rate=2e-3, entropy_weight=entropy_weight,
                    entropy_boost_steps=200))
                sequel.train(config, FineShapes(), folder / f"{name}-{bits}", draw=False)
            run = load_run(folder / f"{name}-{bits}")
            row = evaluate_reconstruction(run.tokenizer, FineShapes("test"), 48)
            lines = (folder / f"{name}-{bits}/log.jsonl").read_text().splitlines()
            losses = [json.loads(line)["loss"] for line in lines if '"transformer"' in line]
            row |= dict(bits=bits, loss=sum(losses[-50:]) / 50 / math.log(2),
                        **nearest_of_the_world(run))
            results[name].append(row)
            print(f"{name:4} {bits:4} {row['psnr']:6.2f} {row['codes_used']:12} {row['loss']:14.2f} "
                  f"{row['nearest']:20.2f} {row['right_class']:13.1%}", flush=True)
    (ROOT / "assets/vocabulary.json").write_text(json.dumps(results, indent=1) + "\n")
    panels = [("", "bits of a token", words, {
        name: ([row["bits"] for row in rows], [value(row) for row in rows])
        for name, rows in results.items()}) for words, value in (
            ("reconstruction [dB]", lambda row: row["psnr"]),
            ("codes used", lambda row: row["codes_used"]),
            ("sample to nearest clip [dB]", lambda row: row["nearest"]))]
    draw_curves(ROOT / "assets/vocabulary.png", panels, size=(4, 3))


@torch.no_grad()
def nearest_of_the_world(run: Run, samples: int = 512) -> dict:
    """How near class-conditional samples come to any of the world's clips, and of which class it is.

    The world is finite, so a sample that fits together is near to one of its clips, and a sample
    whose parts contradict each other is near to none.
    """
    world = [all_clips(FineShapes(split)) for split in ("train", "test")]
    clips, classes = (torch.cat(parts) for parts in zip(*world))
    labels, noise = torch.arange(samples) % 16, seeded_noise(0)
    made = torch.cat([generate(run.tokenizer, run.transformer, clips[:64], "CG", part,
                               noise=noise, **run.config.decoding)
                      for part in labels.split(64)])
    error = torch.cdist(made.flatten(1), clips.flatten(1)).square() / made[0].numel()
    nearest, which = error.min(1)
    return dict(nearest=-10 * nearest.log10().mean().item(),
                right_class=(classes[which] == labels).float().mean().item())


def main() -> None:
    ablations = {each.__name__: each for each in (inflation, gan, tokenizer, transformer, decoding,
                                                  every_start, vocabulary)}
    if len(sys.argv) < 2 or sys.argv[1] not in ablations:
        sys.exit(__doc__)
    chosen, steps = ablations[sys.argv[1]], int(sys.argv[2]) if len(sys.argv) > 2 else 300
    with tempfile.TemporaryDirectory() as folder:
        chosen(Path(folder), steps)


if __name__ == "__main__":
    main()
