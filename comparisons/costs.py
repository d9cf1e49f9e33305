"""What a token costs: which tokenizer says most with so many, which decoder makes them soonest.

Paper   Sec. 4.5 (Table 7), Sec. 4.3 (Fig. 5)

Shapes  held-out clips -> a tokenizer and back -> PSNR, flicker
        a transformer with random weights, which takes the same time -> seconds, frames per second

Read    table_7, fig_5.

Not here: the other tables (tables.py), the curves of inflation (tests/ablations.py).

Run:    python -m comparisons.costs           Fig. 5 at the toy's sizes, in seconds
        python -m comparisons.tables 7        and fig5
"""
from __future__ import annotations

import json
import shutil
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from comparisons.arms import Laptop, claim
from comparisons.autoregressive import AutoregressiveConfig
from comparisons.baselines import WindowConfig
from data.moving_shapes import MovingShapes
from data.source import load_batch
from decode import commit_decode
from measure.metrics import frames_of, psnr
from measure.speed import seconds_of
from tokenizer import TOKENIZERS, ImageTokenizer, VideoTokenizer
from training.build import build_transformer
from transformer import TRANSFORMERS, TransformerConfig

# FVD of reconstructing UCF-101, from scratch or from ImageNet.
PAPER_7 = {"2D, 8x8": "240 (216)", "3D, 4x8x8": "127", "scratch": "127", "average": "103",
           "central": "58"}


# ---------------------------------------------------------------------------------------------
# Table 7: tokenizers

@torch.no_grad()
def measure_reconstruction(tokenizer: nn.Module, every: int = 1) -> dict[str, float]:
    """Held-out clips of the toy through a tokenizer and back.

    every: only each so-many-th frame is coded, and held until the next (a control). psnr in dB;
    flicker: how far pixels that stand still from frame to frame are made to move, in 1/255.
    """
    source = MovingShapes("test")
    video, _ = load_batch(source, 0, len(source), 0, augment=False)
    tokens = tokenizer.encode(video[:, :, ::every])
    decoded = tokenizer.decode(tokens).clamp(0, 1).repeat_interleave(every, dim=2)
    return dict(psnr=psnr(frames_of(decoded), frames_of(video)).mean().item(),
                flicker=flicker(decoded, video), tokens=tokens[0].numel(),
                parameters=sum(p.numel() for p in tokenizer.parameters()),
                codes=len(tokens.unique()))


def flicker(decoded: Tensor, video: Tensor) -> float:
    """Mean |change from frame to frame| of decoded pixels where the video's do not change."""
    still = video.diff(dim=2) == 0
    return 255 * decoded.diff(dim=2)[still].abs().mean().item()


def table_7(laptop: Laptop, inflated_steps: int = 300) -> tuple[str, dict]:
    """2D against 3D at equal patches and at equal tokens; then how the 3D-VQ starts.

    Control: the 2D-VQ of every fourth frame, held for four, which has the 3D-VQ's tokens too.
    """
    toy = TOKENIZERS["toy"]
    coarse = replace(toy, channel_multipliers=(1, 1, 2, 2, 2), temporal_downsample=(False,) * 4)
    networks = {"2D, 8x8": laptop.tokenizer("image-8", "image", tokenizer_batch=16),
                "2D, 16x16": laptop.tokenizer("image-16", "image", tokenizer_batch=16,
                                              tokenizer=coarse),
                "3D, 4x8x8": laptop.tokenizer("video", "tokenizer")}
    results = {name: measure_reconstruction(network) for name, network in networks.items()}
    held = "2D, 8x8, every fourth frame (control)"
    results[held] = measure_reconstruction(networks["2D, 8x8"], every=4)
    lines = ["tokenizer                                tokens  parameters    PSNR  flicker   paper"]
    lines += [f"{name:40}{row['tokens']:7}{row['parameters']:12,}{row['psnr']:8.2f}"
              f"{row['flicker']:9.2f}   {PAPER_7.get(name, '')}" for name, row in results.items()]
    lines.append(f"\n3D-VQ after {inflated_steps} steps{'':19}step 50     150     the end  "
                 "held out   paper")
    for mode in ("scratch", "average", "central"):
        run = laptop.folder / f"inflate-{mode}"
        if mode != "scratch" and not (run / "image.pt").exists():
            run.mkdir(parents=True, exist_ok=True)
            shutil.copy(laptop.folder / "image-8/image.pt", run / "image.pt")
        network = laptop.tokenizer(run.name, "tokenizer", tokenizer_steps=inflated_steps,
                                   inflate="" if mode == "scratch" else mode)
        curve = [logged_psnr(run, step) for step in (50, 150, inflated_steps - 1)]
        results[mode] = measure_reconstruction(network) | dict(curve=curve)
        lines.append(f"{mode:40}" + "".join(f"{value:8.2f}" for value in curve)
                     + f"{results[mode]['psnr']:12.2f}   {PAPER_7[mode]}")
    equal, held_out = results["2D, 16x16"], [results[mode]["psnr"] for mode in
                                             ("central", "average", "scratch")]
    three = results["3D, 4x8x8"]
    lines += [f"training took {laptop.seconds('image-8', 'image-16', 'video', 'inflate-scratch', 'inflate-average', 'inflate-central'):.0f} s; paper: FVD on UCF-101, from scratch (from ImageNet)",
              claim("3D is better than 2D at equal tokens", three["psnr"] > equal["psnr"]),
              claim("3D flickers less than 2D at equal patches",
                    three["flicker"] < results["2D, 8x8"]["flicker"]),
              claim("central, average, scratch, in this order",
                    held_out == sorted(held_out, reverse=True)),
              claim("control: frames that are held are worse", results[held]["psnr"]
                    < three["psnr"])]
    return "\n".join(lines), results


def logged_psnr(run: Path, step: int) -> float:
    """PSNR of training clips around a step: the mean of the three nearest in the log."""
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    rows = {line["step"]: line["psnr"] for line in lines if line["stage"] == "tokenizer"}
    near = sorted(rows, key=lambda each: abs(each - step))[:3]
    return sum(rows[each] for each in near) / len(near)


# ---------------------------------------------------------------------------------------------
# Fig. 5: speed

def methods(size: str, resolution: int) -> dict[str, tuple[TransformerConfig, int, bool]]:
    """Fig. 5's and Table 6's: the transformer, the steps, whether on the 2D-VQ's tokens."""
    side = resolution // 8
    base = {each.name: getattr(TRANSFORMERS[size], each.name) for each in fields(TransformerConfig)}
    base |= dict(num_tokens=4 * side * side)
    window = (16, min(4, side // 2), min(4, side // 2))
    return {"MAGVIT": (TransformerConfig(**base), 12, False),
            "autoregressive": (AutoregressiveConfig(**base), 4 * side * side, False),
            "MaskViT's windows": (WindowConfig(**base | dict(
                num_tokens=16 * side * side, grid=(16, side, side),
                windows=((1, side, side), window))), 18, True)}


@torch.no_grad()
def fig_5(laptop: Laptop | None = None, size: str = "B", resolutions: tuple[int, ...] = (
        32, 64, 128), batches: tuple[int, ...] = (1, 4), most_tokens: int = 1024
        ) -> tuple[str, dict]:
    """Seconds to generate 16 frames, and frames per second: all methods in one run."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name() if device.type == "cuda" else (
        f"CPU, {torch.get_num_threads()} threads")
    rows = []
    lines = [f"16 frames at a time on {where}; transformer and 3D-VQ of size {size}, random weights",
             "pixels batch  method              sequence  steps  transformer   decoder  frames/s"
             "   transformer, against MAGVIT"]
    for resolution in resolutions:
        for batch in batches:
            for name, (config, steps, image) in methods(size, resolution).items():
                row = dict(resolution=resolution, batch=batch, method=name, steps=steps,
                           sequence=config.sequence_length)
                if config.num_tokens > most_tokens:
                    lines.append(f"{resolution:6} {batch:5}  {name:19}{row['sequence']:9} {steps:6}"
                                 f"   left out: more than {most_tokens:,} tokens")
                    continue
                torch.manual_seed(0)
                model = build_transformer(config).to(device).eval()
                tokenizer = (ImageTokenizer if image else VideoTokenizer)(TOKENIZERS[size])
                latent = tokenizer.latent_shape(16, resolution, resolution)
                tokens = torch.zeros(batch, config.num_tokens, dtype=torch.long, device=device)
                decode = getattr(model, "decode", commit_decode)
                row["seconds"] = seconds_of(1, lambda: list(decode(
                    model, tokens[:, 0], tokens[:, 0], tokens, tokens[0] == 0, steps=steps)))
                row["decoder"] = seconds_of(1, lambda: tokenizer.to(device).decode(
                    tokens.view(batch, *latent)))
                row["frames_per_second"] = 16 * batch / (row["seconds"] + row["decoder"])
                first = next(r for r in rows + [row] if (r["resolution"], r["batch"]) == (
                    resolution, batch))
                rows.append(row)
                lines.append(f"{resolution:6} {batch:5}  {name:19}{row['sequence']:9} {steps:6} "
                             f"{row['seconds']:10.2f} s {row['decoder']:7.2f} s "
                             f"{row['frames_per_second']:9.2f} "
                             f"{row['seconds'] / first['seconds']:12.1f} x")
                print(lines[-1], flush=True)
    lines.append("the paper: MAGVIT-B 37 frames/s at 128 pixels on a V100, autoregressive 60 times "
                 "slower, MaskViT 4 to 16 times")
    return "\n".join(lines), dict(where=where, size=size, rows=rows)


def main() -> None:
    print(fig_5(size="toy", resolutions=(32,), batches=(1,))[0])


if __name__ == "__main__":
    main()
