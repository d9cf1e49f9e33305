"""The paper's comparisons, each one command: Tables 4 to 7 and Fig. 5.

Paper   Sec. 4.3 (Fig. 5), Sec. 4.4 (Table 4), Sec. 4.5 (Tables 5 to 7)

Shapes  a table -> its models, trained on the toy (arms.py) -> 64 held-out clips through each
          -> rows, printed above the paper's; runs/comparisons/SEED/table4.txt and .json

Read    measure, what is counted as right; then table_4 to table_7, fig_5.

The paper judges by FVD on real videos. Here clips are drawn, and what was generated is read back
from its pixels: no foreign network, and a percentage that means what it says. From runs on real
data, `--runs` prints the same rows with the FVD that evaluate.py measured.

Run:    python -m comparisons.tables 4                  trains, measures, prints; may be stopped
        python -m comparisons.tables 4 --runs A B C     of runs that were measured, by
        python -m comparisons.tables evaluate RUN --protocol bair --data DIR
                                evaluate.py with a run's own way of decoding, and its flags
"""
from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Callable

import torch
from einops import rearrange
from torch import Tensor, nn

import evaluate
from commit import MT8, make_condition
from comparisons.arms import ARMS, train_arm, way_of
from comparisons.autoregressive import AutoregressiveConfig, autoregressive_decode
from comparisons.baselines import WindowConfig, latent_masking
from data.clips import DataConfig
from data.moving_shapes import MovingShapes
from data.source import load_batch
from decode import commit_decode, generate, seeded_noise
from measure.metrics import frames_of, psnr
from measure.report import aligned
from steps import autocast
from tokenizer import TOKENIZERS
from train import train
from training.checkpoint import Run, load_checkpoint, load_network, load_run
from training.kernels import resolve_precision, use
from training.plan import flop_of_step
from training.presets import PRESETS, TrainConfig
from training.processes import device_of_this_process
from transformer import TRANSFORMERS, TransformerConfig

Rows = list[tuple]              # of a table: the header, then a row for each model
TOY, SHAPES = Path("assets/toy"), DataConfig(dataset="shapes")
PAPER: dict[str, Rows] = {
    "4": [("the paper: FVD on BAIR, debiased", *MT8, "average"),
          ("UNC", 74.0, 71.4, 119.0, 46.7, 55.9, 389.3, 145.0, 303.2, 150.6),
          ("FP", 47.7, 56.2, 247.1, 118.5, 142.7, 366.3, 357.3, 272.7, 201.1),
          ("MT", 47.2, 36.0, 28.1, 29.0, 27.8, 32.1, 31.1, 31.0, 32.8)],
    "5": [("the paper: FVD on BAIR, debiased", "FP", "eight tasks"),
          ("latent masking", 74, 151), ("prefix condition", 55, "did not converge"),
          ("COMMIT: mask", 388, 143), ("COMMIT: mask + reconstruct", 51, 53),
          ("COMMIT: mask + reconstruct + refine", 48, 33)],
    "6": [("the paper: FVD on BAIR, debiased", "sequence", "FP"),
          ("MaskGIT, 2D-VQ", 4096, 177), ("MaskGIT, 3D-VQ", 1024, 74),
          ("MaskViT, 2D-VQ", 4096, "94 (not debiased)"), ("autoregressive, 3D-VQ", 1024, 56),
          ("MAGVIT, 3D-VQ", 1024, 48)],
    "7": [("the paper: FVD of reconstructing UCF-101", "from scratch", "from ImageNet"),
          ("2D", 240, 216), ("3D", 127, ""), ("average inflation", "", 103),
          ("central inflation", "", 58)],
    "fig5": [("the paper, 128 pixels, V100", "frames/s", "time, against MAGVIT"),
             ("MAGVIT", 37, 1), ("autoregressive", "", 60), ("MaskViT's windows", "", "4-16")]}


def toy_arm(name: str, preset: TrainConfig, folder: Path) -> Run:
    """The run of an arm on drawn clips, trained where it is not yet."""
    tokenizer = TOY
    if ARMS[name].image:
        toy_tokenizer("image-8", "image", preset, folder)
        tokenizer = folder / "image-8"
    run = train_arm(name, preset, SHAPES, folder / name, tokenizer)
    return run or sys.exit("stopped; the same command resumes from here")


def toy_tokenizer(name: str, stage: str, preset: TrainConfig, folder: Path) -> nn.Module:
    """A tokenizer of drawn clips, stage "tokenizer" or "image", trained where it is not yet."""
    if stage == "image":
        preset = replace(preset, tokenizer_batch=16)
    if not train(preset, SHAPES, folder / name, stage=stage, draw=False):
        sys.exit("stopped; the same command resumes from here")
    return load_network(load_checkpoint(folder / name / f"{stage}.pt"))


# ---------------------------------------------------------------------------------------------
# Tables 4 to 6: what was generated

@torch.no_grad()
def measure(run: Run, task: str, seed: int = 0, **how) -> tuple[float, float]:
    """A task on the 64 held-out clips: (right, given). how: keywords of generate in place of
    run.how's.

    right: percent of videos in which the plain rule reads the clip's shape and direction. One
    frame leaves the direction open: in FP any will do, but one must be read. Where nothing of the
    shape is given, so will any shape. given: PSNR inside the given region, in dB.
    """
    video, label = held_out()
    made = generate(run.tokenizer, run.transformer, video, task, noise=seeded_noise(seed),
                    **run.how(task, decode=way_of(run) or commit_decode) | run.config.decoding
                    | how)
    valid = make_condition(video, task)[1]
    return (100 * right(made, video, label, valid, task).float().mean().item(),
            -10 * (made - video).square()[..., valid].mean().log10().item())


def held_out() -> tuple[Tensor, Tensor]:
    """The 64 clips (64, 3, T, H, W) that no run has learned from, and their labels."""
    source = MovingShapes("test")
    return load_batch(source, 0, len(source), 0, augment=False)


def right(made: Tensor, video: Tensor, label: Tensor, valid: Tensor, task: str) -> Tensor:
    """(B,) bool: what `measure` counts; label (B,), valid (T, H, W)."""
    shape, direction = MovingShapes.recognize(made)
    shown = ((video.amax(1) - video.amin(1) > 0.15) & valid).flatten(1).any(1)
    open_ended = ~shown | (task == "FP")
    return ((shape >= 0) & ((shape == label // 4) | ~shown)
            & (direction >= 0) & ((direction == label % 4) | open_ended))


def measure_tasks(run: Run, **how) -> list[tuple[float, float]]:
    """`measure` of all eight tasks, and their average."""
    rows = [measure(run, task, **how) for task in MT8]
    return [*rows, tuple(sum(column) / len(rows) for column in zip(*rows))]


def given_nothing(model, task, label, condition_tokens, is_pad, **decoding):
    """commit_decode that is not shown the condition."""
    return commit_decode(model, task, label, condition_tokens, torch.ones_like(is_pad), **decoding)


def with_real_tokens(run: Run) -> Callable:
    """latent_masking that is given the real clips' tokens, which know the answer: an oracle."""
    tokens = rearrange(run.tokenizer.encode(held_out()[0]), "b t h w -> b (t h w)")
    return lambda model, task, label, condition_tokens, is_pad, **decoding: latent_masking(
        model, task, label, tokens, is_pad, **decoding)


def table_4(preset: TrainConfig, folder: Path) -> Rows:
    """Multi-task against single-task models. Control: given nothing, which is chance."""
    unc, fp, mt, control = (toy_arm(name, preset, folder)
                            for name in ("unc", "fp", "mt", "mt-one-prompt"))
    results = {"UNC: unconditional, tasks by latent masking": measure_tasks(unc),
               "FP: frame prediction alone": measure_tasks(fp),
               "MT: all eight tasks": measure_tasks(mt),
               "MT, one prompt for all tasks (control)": measure_tasks(
                   control, prompt=ARMS["mt-one-prompt"].prompt),
               "UNC, given nothing (control)": measure_tasks(unc, decode=given_nothing)}
    return [("right, %", *MT8, "average"),
            *((title, *(right for right, _ in row)) for title, row in results.items()),
            ("PSNR inside the given region, dB", *[""] * 9),
            *((title, *(given for _, given in row)) for title, row in results.items())]


def table_5(preset: TrainConfig, folder: Path) -> Rows:
    """Conditions and losses. Control: latent masking that is given the answer.

    GFLOP are of a step on 16 clips of eight tasks.
    """
    names = {"latent masking, the padded clip's tokens": ("unc", "unc"),
             "latent masking, the real clip's tokens (control: leaks)": ("unc", "unc"),
             "prefix condition": ("fp-prefix", "mt-prefix"),
             "COMMIT: mask": ("fp-mask", "mt-mask"),
             "COMMIT: mask + reconstruct": ("fp-no-refine", "mt-no-refine"),
             "COMMIT: mask + reconstruct + refine": ("fp", "mt")}
    rows = [("", "sequence", "GFLOP", "FP right, %", "given, dB", "eight tasks right, %",
             "given, dB")]
    for title, arms in names.items():
        single, multi = (toy_arm(name, preset, folder) for name in arms)
        how = dict(decode=with_real_tokens(single)) if "leaks" in title else {}
        lengths = {run.transformer.config.sequence_length: None for run in (single, multi)}
        rows.append((title, "-".join(map(str, lengths)),
                     16 * flop_of_step(multi.config, "transformer") / 1e9,
                     *measure(single, "FP", **how), *measure_tasks(multi, **how)[-1]))
    return rows


def table_6(preset: TrainConfig, folder: Path) -> Rows:
    """Decoding methods, on frame prediction. Control: all tokens in one step."""
    names = {"MaskGIT, 2D-VQ": "maskgit-2d", "MaskGIT, 3D-VQ": "unc", "MaskViT, 2D-VQ": "maskvit",
             "autoregressive, 3D-VQ": "autoregressive", "MAGVIT, 3D-VQ": "fp",
             "MAGVIT in one step (control)": "fp"}
    rows = [("", "parameters", "sequence", "steps", "right, %", "given, dB")]
    for title, name in names.items():
        run, how = toy_arm(name, preset, folder), dict(steps=1) if "one step" in title else {}
        parameters = " + ".join(f"{count_parameters(network):,}"
                                for network in (run.tokenizer, run.transformer))
        steps = (run.config.decoding | how)["steps"]
        if name == "autoregressive":
            steps = run.transformer.config.num_tokens
        rows.append((title, parameters, run.transformer.config.sequence_length, steps,
                     *measure(run, "FP", **how)))
    return rows


def count_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


# ---------------------------------------------------------------------------------------------
# Table 7: tokenizers

@torch.no_grad()
def measure_reconstruction(tokenizer: nn.Module, every: int = 1) -> tuple[int, int, float, float]:
    """Held-out clips of the toy through a tokenizer and back.

    every: only each so-many-th frame is coded, and held until the next (a control). Returns tokens
    of a clip, parameters, PSNR in dB, and how far pixels that stand still from frame to frame are
    made to move, in 1/255.
    """
    video, _ = held_out()
    tokens = tokenizer.encode(video[:, :, ::every])
    decoded = tokenizer.decode(tokens).clamp(0, 1).repeat_interleave(every, dim=2)
    return (tokens[0].numel(), count_parameters(tokenizer),
            psnr(frames_of(decoded), frames_of(video)).mean().item(), flicker(decoded, video))


def flicker(decoded: Tensor, video: Tensor) -> float:
    """Mean |change from frame to frame| of decoded pixels where the video's do not change."""
    still = video.diff(dim=2) == 0
    return 255 * decoded.diff(dim=2)[still].abs().mean().item()


def table_7(preset: TrainConfig, folder: Path, inflated_steps: int = 300) -> Rows:
    """2D against 3D at equal patches and at equal tokens; then how the 3D-VQ starts.

    Control: the 2D-VQ of every fourth frame, held for four, which has the 3D-VQ's tokens too.
    """
    coarse = replace(TOKENIZERS["toy"], channel_multipliers=(1, 1, 2, 2, 2),
                     temporal_downsample=(False,) * 4)
    fine = toy_tokenizer("image-8", "image", preset, folder)
    rows = [("", "tokens", "parameters", "PSNR, dB", "flicker"),
            ("2D, patches of 8x8", *measure_reconstruction(fine)),
            ("2D, 16x16", *measure_reconstruction(toy_tokenizer(
                "image-16", "image", replace(preset, tokenizer=coarse), folder))),
            ("3D, 4x8x8", *measure_reconstruction(
                toy_tokenizer("video", "tokenizer", replace(preset, inflate=""), folder))),
            ("2D, 8x8, every fourth frame, held (control)", *measure_reconstruction(fine, 4))]
    for mode in ("scratch", "average", "central"):
        run = folder / f"inflate-{mode}"
        if mode != "scratch" and not (run / "image.pt").exists():
            run.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "image-8/image.pt", run)
        inflated = replace(preset, tokenizer_steps=inflated_steps,
                           inflate="" if mode == "scratch" else mode)
        rows.append((f"3D, {mode}, {inflated_steps} steps", *measure_reconstruction(
            toy_tokenizer(run.name, "tokenizer", inflated, folder))))
    return rows


# ---------------------------------------------------------------------------------------------
# Fig. 5: seconds

def methods(size: str, resolution: int) -> dict[str, tuple[TransformerConfig, Callable, int]]:
    """Of each method the transformer, how it decodes, and in how many steps."""
    side = resolution // 8
    base = vars(TRANSFORMERS[size]) | dict(num_tokens=4 * side * side, grid=(4, side, side))
    flat = base | dict(num_tokens=16 * side * side, grid=(16, side, side))     # of the 2D-VQ
    windows = (1, side, side), (16, min(4, side // 2), min(4, side // 2))
    return {"MAGVIT": (TransformerConfig(**base), commit_decode, 12),
            "autoregressive": (AutoregressiveConfig(**base), autoregressive_decode,
                               4 * side * side),
            "MaskViT's windows": (WindowConfig(**flat, windows=windows), latent_masking, 18)}


@torch.no_grad()
def fig_5(preset: TrainConfig, folder: Path, size: str = "B", resolutions=(32, 64, 128),
          batches=(1, 4), most_tokens: int = 1024) -> Rows:
    """Seconds to generate 16 frames, and frames per second, with random weights.

    Where there are more than most_tokens tokens, a method is left out.
    """
    device = device_of_this_process()
    where = torch.cuda.get_device_name() if device.type == "cuda" else (
        f"CPU, {torch.get_num_threads()} threads")
    rows = [(f"size {size} on {where}", "pixels", "batch", "sequence", "steps", "transformer, s",
             "decoder, s", "frames/s", "transformer, against MAGVIT")]
    for resolution, batch in itertools.product(resolutions, batches):
        for name, (config, decode, steps) in methods(size, resolution).items():
            if config.num_tokens > most_tokens:
                continue
            torch.manual_seed(0)
            model = use(config.build()).to(device).eval()
            image = config.grid[0] == 16
            kind = TOKENIZERS[size].image_twin() if image else TOKENIZERS[size]
            tokenizer = use(kind.build()).to(device)
            tokens = torch.zeros(batch, config.num_tokens, dtype=torch.long, device=device)
            with autocast(resolve_precision("auto", device), device):
                seconds = seconds_of(lambda: list(decode(
                    model, tokens[:, 0], tokens[:, 0], tokens, tokens[0] == 0, steps=steps,
                    noise=seeded_noise(0, device))))
                decoder = seconds_of(lambda: tokenizer.decode(tokens.view(batch, *config.grid)))
            if name == "MAGVIT":
                fastest = seconds
            rows.append((name, resolution, batch, config.sequence_length, steps, seconds, decoder,
                         16 * batch / (seconds + decoder), seconds / fastest))
            print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    return rows


def seconds_of(work: Callable) -> float:
    """The second of two runs, on a GPU to its end."""
    for _ in range(2):
        begin = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return time.perf_counter() - begin


# ---------------------------------------------------------------------------------------------
# The command

def from_runs(runs: list[str]) -> Rows:
    """A row for each protocol by which a run was measured: FVD by task, and MT8's average."""
    found: dict[str, dict[str, str]] = {}
    for folder in map(Path, runs):
        files = sorted(folder.glob("evaluation-*.json"))
        if not files:
            raise FileNotFoundError(f"{folder} has no evaluation-*.json; measure it first: python "
                                    f"-m comparisons.tables evaluate {folder} --protocol "
                                    "bair-debiased --data DIR --tasks MT8")
        for measured in (json.loads(path.read_text()) for path in files):
            fvd = {task: (entry["mean"], name[3:]) for task, entries in
                   measured["results"].items() for name, entry in entries.items()
                   if name.strip("*") == "FVD"}
            if fvd.keys() >= {*MT8}:
                values, stars = zip(*(fvd[task] for task in MT8))
                fvd["average of eight"] = sum(values) / len(MT8), max(stars)
            found[f"{folder.name}, {measured['protocol']}"] = {
                task: f"{value:.1f}{star}" for task, (value, star) in fvd.items()}
    tasks = list(dict.fromkeys(task for row in found.values() for task in row))
    return [("FVD (*: not comparable, evaluate.py says why)", *tasks),
            *((name, *(row.get(task, "") for task in tasks)) for name, row in found.items())]


def text_of(rows: Rows) -> str:
    """A table in Markdown; of numbers that are no counts, three digits."""
    def text(cell: str | int | float) -> str:
        if isinstance(cell, float):
            return f"{cell:.1f}" if cell >= 10 else f"{cell:.2f}"
        return f"{cell:,}" if isinstance(cell, int) else cell

    return aligned([tuple(map(text, row)) for row in rows])


TABLES = {"4": table_4, "5": table_5, "6": table_6, "7": table_7, "fig5": fig_5}


def main() -> None:
    parser = argparse.ArgumentParser(description="The paper's comparisons.")
    parser.add_argument("table", choices=[*TABLES, "evaluate"], help="a table, or evaluate RUN ...")
    parser.add_argument("--runs", nargs="+", help="runs on real data that were evaluated")
    parser.add_argument("--steps", type=int, default=4000, help="of stage 2, for each arm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="runs/comparisons", help="where the arms are")
    try:
        if sys.argv[1:2] == ["evaluate"] and len(sys.argv) > 2:
            return evaluate.main(sys.argv[2:], decode=way_of(load_run(sys.argv[2])))
        options = parser.parse_args()
        if options.table == "evaluate":
            parser.error("evaluate needs a run")
        if options.runs:
            print(text_of(from_runs(options.runs)), text_of(PAPER[options.table]), sep="\n\n")
            return
        folder = Path(options.out) / f"seed-{options.seed}"
        preset = replace(PRESETS["toy"], transformer_steps=options.steps, seed=options.seed)
        rows = TABLES[options.table](preset, folder)
    except (ValueError, OSError) as error:
        sys.exit(f"tables.py: {error}")
    folder.mkdir(parents=True, exist_ok=True)
    name = f"table{options.table}" if options.table.isdigit() else options.table
    text = f"{text_of(rows)}\n\n{text_of(PAPER[options.table])}\n"
    (folder / f"{name}.txt").write_text(text)
    (folder / f"{name}.json").write_text(json.dumps(rows, indent=2) + "\n")
    print(text, f"wrote {folder / name}.txt and .json", sep="\n")


if __name__ == "__main__":
    main()
