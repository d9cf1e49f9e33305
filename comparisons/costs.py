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

import itertools
import shutil
import sys
from dataclasses import fields, replace

import torch
from torch import Tensor, nn

from comparisons.arms import Laptop, aligned, claim, parameters
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

PAPER_7 = {"": ("from scratch", "from ImageNet"), "2D, 8x8": (240, 216), "scratch": (127, ""),
           "average": ("", 103), "central": ("", 58)}      # of reconstructing UCF-101
PAPER_FIG_5 = {"": ("frames/s at 128 pixels, V100", "time, against MAGVIT"),
               "MAGVIT": (37, 1), "autoregressive": ("", 60), "MaskViT's windows": ("", "4-16")}


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
                parameters=parameters(tokenizer), codes=len(tokens.unique()))


def flicker(decoded: Tensor, video: Tensor) -> float:
    """Mean |change from frame to frame| of decoded pixels where the video's do not change."""
    still = video.diff(dim=2) == 0
    return 255 * decoded.diff(dim=2)[still].abs().mean().item()


def table_7(laptop: Laptop, inflated_steps: int = 300) -> tuple[list[str], dict]:
    """2D against 3D at equal patches and at equal tokens; then how the 3D-VQ starts.

    Control: the 2D-VQ of every fourth frame, held for four, which has the 3D-VQ's tokens too.
    """
    toy = TOKENIZERS["toy"]
    coarse = replace(toy, channel_multipliers=(1, 1, 2, 2, 2), temporal_downsample=(False,) * 4)
    networks = {"2D, 8x8": laptop.tokenizer("image-8", "image", tokenizer_batch=16),
                "2D, 16x16": laptop.tokenizer("image-16", "image", tokenizer_batch=16,
                                              tokenizer=coarse),
                "3D, 4x8x8": laptop.tokenizer("video", "tokenizer")}
    held = "2D, 8x8, every fourth frame (control)"
    results = {name: measure_reconstruction(network) for name, network in networks.items()}
    results[held] = measure_reconstruction(networks["2D, 8x8"], every=4)
    starts = {f"3D, {mode}, {inflated_steps} steps": mode for mode in ("scratch", "average",
                                                                       "central")}
    for title, mode in starts.items():
        run = laptop.folder / f"inflate-{mode}"
        if mode != "scratch" and not (run / "image.pt").exists():
            run.mkdir(parents=True, exist_ok=True)
            shutil.copy(laptop.folder / "image-8/image.pt", run / "image.pt")
        results[title] = measure_reconstruction(laptop.tokenizer(
            run.name, "tokenizer", tokenizer_steps=inflated_steps,
            inflate="" if mode == "scratch" else mode))
    rows = [("tokenizer", "tokens", "parameters", "PSNR", "flicker", "paper", "from ImageNet")]
    rows += [(name, row["tokens"], f"{row['parameters']:,}", f"{row['psnr']:.2f}",
              f"{row['flicker']:.2f}", *PAPER_7.get(starts.get(name, name), ("", "")))
             for name, row in results.items()]
    psnr_of = {name: row["psnr"] for name, row in results.items()}
    scratch, average, central = (psnr_of[title] for title in starts)
    return [aligned(rows), "paper: FVD on UCF-101",
            claim("3D is better than 2D at equal tokens",
                  psnr_of["3D, 4x8x8"] > psnr_of["2D, 16x16"]),
            claim("3D flickers less than 2D at equal patches",
                  results["3D, 4x8x8"]["flicker"] < results["2D, 8x8"]["flicker"]),
            claim("central, average, scratch, in this order", central > average > scratch),
            claim("control: frames that are held are worse",
                  psnr_of[held] < psnr_of["3D, 4x8x8"])], results


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
        ) -> tuple[list[str], dict]:
    """Seconds to generate 16 frames, and frames per second: all methods in one run."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name() if device.type == "cuda" else (
        f"CPU, {torch.get_num_threads()} threads")
    measured, rows = [], [("method", "pixels", "batch", "sequence", "steps", "transformer, s",
                           "decoder, s", "frames/s", "transformer, against MAGVIT")]
    for resolution, batch in itertools.product(resolutions, batches):
        for name, (config, steps, image) in methods(size, resolution).items():
            what = name, resolution, batch, config.sequence_length, steps
            if config.num_tokens > most_tokens:
                rows.append((*what, *["left out"] * 4))
                continue
            torch.manual_seed(0)
            model = build_transformer(config).to(device).eval()
            tokenizer = (ImageTokenizer if image else VideoTokenizer)(TOKENIZERS[size]).to(device)
            tokens = torch.zeros(batch, config.num_tokens, dtype=torch.long, device=device)
            latents = tokens.view(batch, *tokenizer.latent_shape(16, resolution, resolution))
            decode = getattr(model, "decode", commit_decode)
            seconds = seconds_of(1, lambda: list(decode(
                model, tokens[:, 0], tokens[:, 0], tokens, tokens[0] == 0, steps=steps)))
            decoder = seconds_of(1, lambda: tokenizer.decode(latents))
            if name == "MAGVIT":
                fastest = seconds
            measured.append(dict(zip(("method", "resolution", "batch", "sequence", "steps"), what),
                                 seconds=seconds, decoder=decoder))
            rows.append((*what, f"{seconds:.2f}", f"{decoder:.2f}",
                         f"{16 * batch / (seconds + decoder):.2f}", f"{seconds / fastest:.1f} x"))
            print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    return [f"16 frames at a time on {where}; networks of size {size}, random weights; left out: "
            f"more than {most_tokens:,} tokens", "", aligned(rows)], dict(
                where=where, size=size, rows=measured)


def main() -> None:
    print(*fig_5(size="toy", resolutions=(32,), batches=(1,))[0], sep="\n")


if __name__ == "__main__":
    main()
