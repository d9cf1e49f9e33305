"""The paper's comparisons, each one command: Tables 4 to 7 and Fig. 5.

Paper   Sec. 4.3 (Fig. 5), Sec. 4.4 (Table 4), Sec. 4.5 (Tables 5 to 7)

Shapes  a table -> its arms, trained (arms.py) -> 64 held-out clips through each -> rows
          -> printed beside the paper's numbers; runs/comparisons/SEED/table4.txt and .json

Read    measure, what is counted as right; then table_4 to table_7, fig_5.

The paper judges by FVD on real videos. Here clips are drawn, and what was generated is read back
from its pixels: no foreign network, and a percentage that means what it says. From runs on real
data, `--runs` prints the same rows with the FVD that evaluate.py measured.

Run:    python -m comparisons.tables 4                  trains, measures, prints; may be stopped
        python -m comparisons.tables 4 --runs A B C     of runs that evaluate.py has measured
        python -m comparisons.tables evaluate RUN --protocol bair --data DIR
                                evaluate.py with a run's own way of decoding, and its flags
"""
from __future__ import annotations

import argparse
import itertools
import json
import math
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
from comparisons.arms import ARMS, Laptop, way_of
from comparisons.autoregressive import AutoregressiveConfig, autoregressive_decode
from comparisons.baselines import WindowConfig, latent_masking
from data.moving_shapes import MovingShapes
from data.source import load_batch
from decode import commit_decode, generate, seeded_noise
from measure.metrics import frames_of, psnr
from measure.report import aligned
from steps import autocast
from tokenizer import TOKENIZERS
from training.checkpoint import Run, load_run
from training.kernels import resolve_precision, use
from training.plan import flop_of_step
from training.processes import device_of_this_process
from transformer import TRANSFORMERS, TransformerConfig

# FVD on BAIR, debiased, of the models of size B. Table 4: by task, then the average.
PAPER = {
    "4": {"FVD": (*MT8, "average"),
          "unc": (74.0, 71.4, 119.0, 46.7, 55.9, 389.3, 145.0, 303.2, 150.6),
          "fp": (47.7, 56.2, 247.1, 118.5, 142.7, 366.3, 357.3, 272.7, 201.1),
          "mt": (47.2, 36.0, 28.1, 29.0, 27.8, 32.1, 31.1, 31.0, 32.8)},
    "5": {"FVD": ("FP", "eight tasks"), "unc": (74, 151), "prefix": (55, "-"), "mask": (388, 143),
          "no-refine": (51, 53), "all": (48, 33)},
    "6": {"FVD": ("FP",), "maskgit-2d": (177,), "unc": (74,), "maskvit": ("94 (not debiased)",),
          "autoregressive": (56,), "fp": (48,)},
    "7": {"FVD of reconstructing UCF-101": ("from scratch", "from ImageNet"),
          "2D, 8x8": (240, 216), "3D, 4x8x8": (127, ""), "average": ("", 103), "central": ("", 58)},
    "fig5": {"speed": ("frames/s at 128 pixels, V100", "time, against MAGVIT"), "MAGVIT": (37, 1),
             "autoregressive": ("", 60), "MaskViT's windows": ("", "4-16")}}


@torch.no_grad()
def measure(run: Run, task: str, seed: int = 0, **how) -> dict[str, float]:
    """A task on the 64 held-out clips, as numbers. how: keywords of generate in place of run.how's.

    right: the share of videos in which the plain rule reads the clip's shape and direction. One
    frame leaves the direction open: in FP any will do, but one must be read. Where nothing of the
    shape is given, so will any shape. given: PSNR inside the given region, in dB.
    """
    video, label = held_out()
    made = generate(run.tokenizer, run.transformer, video, task, noise=seeded_noise(seed),
                    **run.how(task, decode=way_of(run) or commit_decode) | run.config.decoding
                    | how)
    valid = make_condition(video, task)[1]
    return dict(right=right(made, video, label, valid, task).float().mean().item(),
                given=-10 * (made - video).square()[..., valid].mean().log10().item())


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


def measure_tasks(run: Run, **how) -> dict[str, dict[str, float]]:
    """`measure` of all eight tasks, and their average."""
    rows = {task: measure(run, task, **how) for task in MT8}
    return rows | dict(average={name: sum(row[name] for row in rows.values()) / len(MT8)
                                for name in ("right", "given")})


def given_nothing(model, task, label, condition_tokens, is_pad, **decoding):
    """commit_decode that is not shown the condition."""
    return commit_decode(model, task, label, condition_tokens, torch.ones_like(is_pad), **decoding)


def with_real_tokens(run: Run) -> Callable:
    """latent_masking that is given the real clips' tokens, which know the answer: an oracle."""
    tokens = rearrange(run.tokenizer.encode(held_out()[0]), "b t h w -> b (t h w)")
    return lambda model, task, label, condition_tokens, is_pad, **decoding: latent_masking(
        model, task, label, tokens, is_pad, **decoding)


# ---------------------------------------------------------------------------------------------
# Tables 4 to 6: each returns the lines of its text, and what it measured

def table_4(laptop: Laptop) -> tuple[list[str], dict]:
    """Multi-task against single-task models. Control: given nothing, which is chance."""
    trained = ("unc", "fp", "mt", "mt-one-prompt")
    results = {name: measure_tasks(laptop.arm(name), **(
        dict(prompt=ARMS[name].prompt) if ARMS[name].prompt else {})) for name in trained}
    results["nothing"] = measure_tasks(laptop.arm("unc"), decode=given_nothing)
    title = {name: ARMS[name].title for name in trained} | dict(
        nothing="UNC, given nothing (control)")
    tables = [aligned([(words, *MT8, "average"), *(
        (title[name], *(form.format(entry[what]) for entry in row.values()))
        for name, row in results.items())]) for what, form, words in (
            ("right", "{:.0%}", "right"), ("given", "{:.1f}", "PSNR inside the given region, dB"))]
    average = {name: row["average"]["right"] for name, row in results.items()}
    return [*tables, paper("4"),
            f"{laptop.steps:,} steps each: UNC and FP {laptop.steps:,} on their task, MT "
            f"{laptop.steps // 8:,} on each of eight",
            claim("MT is best on average over the tasks",
                  average["mt"] > max(average["unc"], average["fp"])),
            claim("MT is best on frame prediction, too", results["mt"]["FP"]["right"] > max(
                results[name]["FP"]["right"] for name in ("unc", "fp"))),
            claim("control: chance is far below", average["nothing"] < average["unc"] / 2)
            ], results


def table_5(laptop: Laptop) -> tuple[list[str], dict]:
    """Conditions and losses. Control: latent masking that is given the answer."""
    unc, results = laptop.arm("unc"), {}
    titles = {"unc": "Latent masking, the padded clip's tokens",
              "oracle": "Latent masking, the real clip's tokens (leaks)",
              "prefix": "Prefix condition", "mask": "COMMIT: mask",
              "no-refine": "COMMIT: mask + reconstruct",
              "all": "COMMIT: mask + reconstruct + refine"}
    rows = [("", "sequence", "GFLOP", "FP right", "given", "paper", "eight tasks right", "given",
             "paper")]
    for name, title in titles.items():
        latent = name in ("unc", "oracle")
        part = "" if name == "all" else f"-{name}"
        single, multi = (unc, unc) if latent else (laptop.arm(f"{tasks}{part}")
                                                   for tasks in ("fp", "mt"))
        how = dict(decode=with_real_tokens(unc)) if name == "oracle" else {}
        one, every = measure(single, "FP", **how), measure_tasks(multi, **how)["average"]
        length = [run.transformer.config.sequence_length for run in (single, multi)]
        flop = 16 * flop_of_step(multi.config, "transformer") / 1e9
        results[name] = dict(FP=one, MT8=every, sequence=length, gflop=flop)
        told = PAPER["5"].get(name, ("", ""))
        rows.append((title, "-".join(map(str, dict.fromkeys(length))), f"{flop:.1f}",
                     f"{one['right']:.0%}", f"{one['given']:.1f}", told[0],
                     f"{every['right']:.0%}", f"{every['given']:.1f}", told[1]))
    tasks = {name: row["MT8"] for name, row in results.items()}
    worst = min(tasks[name]["given"] for name in ("unc", "no-refine", "all"))
    return [aligned(rows),
            f"{laptop.steps:,} steps each; GFLOP: of a step on 16 clips, eight tasks",
            claim("mask alone is worst inside the given region", tasks["mask"]["given"] < worst),
            claim("COMMIT is ahead of latent masking on average",
                  tasks["all"]["right"] > tasks["unc"]["right"]),
            claim("control: the answer's own tokens beat the condition's",
                  tasks["oracle"]["right"] > tasks["unc"]["right"])], results


def table_6(laptop: Laptop) -> tuple[list[str], dict]:
    """Decoding methods, on frame prediction. Control: all tokens in one step."""
    titles = {"maskgit-2d": "MaskGIT, 2D-VQ", "unc": "MaskGIT, 3D-VQ",
              "maskvit": "MaskViT, 2D-VQ", "autoregressive": "Autoregressive, 3D-VQ",
              "fp": "MAGVIT, 3D-VQ", "one step": "MAGVIT in one step (control)"}
    results, rows = {}, [("", "parameters", "sequence", "steps", "right", "given", "paper")]
    for name, title in titles.items():
        how = dict(steps=1) if name == "one step" else {}
        run = laptop.arm("fp" if how else name)
        row, size = measure(run, "FP", **how), run.transformer.config
        sizes = [sum(p.numel() for p in network.parameters())
                 for network in (run.tokenizer, run.transformer)]
        steps = steps_of(run, how or run.config.decoding)
        results[name] = row | dict(parameters=sizes, sequence=size.sequence_length, steps=steps)
        rows.append((title, " + ".join(f"{each:,}" for each in sizes), size.sequence_length, steps,
                     f"{row['right']:.0%}", f"{row['given']:.1f}", *PAPER["6"].get(name, ("",))))
    return [aligned(rows), f"{laptop.steps:,} steps each; paper: FVD on BAIR, debiased; its "
            "sequences are 4,096 (2D) and 1,024",
            claim("MAGVIT is ahead of MaskGIT on the same tokens",
                  results["fp"]["right"] > results["unc"]["right"]),
            claim("MAGVIT is ahead of all", results["fp"]["right"] > max(
                row["right"] for name, row in results.items() if name != "fp")),
            claim("control: one step is worse",
                  results["one step"]["right"] < results["fp"]["right"])], results


# ---------------------------------------------------------------------------------------------
# Table 7: tokenizers

@torch.no_grad()
def measure_reconstruction(tokenizer: nn.Module, every: int = 1) -> dict[str, float]:
    """Held-out clips of the toy through a tokenizer and back.

    every: only each so-many-th frame is coded, and held until the next (a control). psnr in dB;
    flicker: how far pixels that stand still from frame to frame are made to move, in 1/255.
    """
    video, _ = held_out()
    tokens = tokenizer.encode(video[:, :, ::every])
    decoded = tokenizer.decode(tokens).clamp(0, 1).repeat_interleave(every, dim=2)
    return dict(psnr=psnr(frames_of(decoded), frames_of(video)).mean().item(),
                flicker=flicker(decoded, video), tokens=tokens[0].numel(),
                parameters=sum(p.numel() for p in tokenizer.parameters()))


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
    starts = {mode: f"3D, {mode}, {inflated_steps} steps"
              for mode in ("scratch", "average", "central")}
    for mode, title in starts.items():
        run = laptop.folder / f"inflate-{mode}"
        if mode != "scratch" and not (run / "image.pt").exists():
            run.mkdir(parents=True, exist_ok=True)
            shutil.copy(laptop.folder / "image-8/image.pt", run / "image.pt")
        results[title] = measure_reconstruction(laptop.tokenizer(
            run.name, "tokenizer", tokenizer_steps=inflated_steps,
            inflate="" if mode == "scratch" else mode))
    told = {title: PAPER["7"].get(mode, ("", "")) for mode, title in starts.items()} | PAPER["7"]
    rows = [("tokenizer", "tokens", "parameters", "PSNR", "flicker", "paper", "from ImageNet")]
    rows += [(name, row["tokens"], f"{row['parameters']:,}", f"{row['psnr']:.2f}",
              f"{row['flicker']:.2f}", *told.get(name, ("", ""))) for name, row in results.items()]
    psnr_of = {name: row["psnr"] for name, row in results.items()}
    scratch, average, central = (psnr_of[title] for title in starts.values())
    return [aligned(rows), "paper: FVD of reconstructing UCF-101",
            claim("3D is better than 2D at equal patches",
                  psnr_of["3D, 4x8x8"] > psnr_of["2D, 8x8"]),
            claim("3D is better than 2D at equal tokens (ours)",
                  psnr_of["3D, 4x8x8"] > psnr_of["2D, 16x16"]),
            claim("central, average, scratch, in this order", central > average > scratch),
            claim("control: frames that are held are worse",
                  psnr_of[held] < psnr_of["3D, 4x8x8"])], results


def methods(size: str, resolution: int) -> dict[str, tuple[TransformerConfig, Callable, int]]:
    """Fig. 5's and Table 6's: the transformer, how it decodes, and in how many steps."""
    side = resolution // 8
    base = vars(TRANSFORMERS[size]) | dict(num_tokens=4 * side * side, grid=(4, side, side))
    windows = (1, side, side), (16, min(4, side // 2), min(4, side // 2))
    return {"MAGVIT": (TransformerConfig(**base), commit_decode, 12),
            "autoregressive": (AutoregressiveConfig(**base), autoregressive_decode,
                               4 * side * side),
            "MaskViT's windows": (WindowConfig(**base | dict(           # on the 2D-VQ's tokens
                num_tokens=16 * side * side, grid=(16, side, side), windows=windows)),
                latent_masking, 18)}


def fig_5(laptop: Laptop | None = None, size: str = "B", resolutions=(32, 64, 128),
          batches=(1, 4), most_tokens: int = 1024) -> tuple[list[str], dict]:
    """Seconds to generate 16 frames, and frames per second: all methods in one run."""
    device = device_of_this_process()
    where = torch.cuda.get_device_name() if device.type == "cuda" else (
        f"CPU, {torch.get_num_threads()} threads")
    rows = [("method", "pixels", "batch", "sequence", "steps", "transformer, s", "decoder, s",
             "frames/s", "transformer, against MAGVIT")]
    for resolution, batch in itertools.product(resolutions, batches):
        for name, (config, decode, steps) in methods(size, resolution).items():
            what = name, resolution, batch, config.sequence_length, steps
            if config.num_tokens > most_tokens:
                rows.append((*what, *["left out"] * 4))
                continue
            torch.manual_seed(0)
            model = use(config.build()).to(device).eval()
            sizes = TOKENIZERS[size].image_twin() if config.grid[0] == 16 else TOKENIZERS[size]
            tokenizer = use(sizes.build()).to(device)
            seconds, decoder = seconds_to_generate(tokenizer, model, batch, decode, steps)
            if name == "MAGVIT":
                fastest = seconds
            rows.append((*what, *(round(number, 2) for number in (
                seconds, decoder, 16 * batch / (seconds + decoder), seconds / fastest))))
            print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    return [f"16 frames at a time on {where}; networks of size {size}, random weights; left out: "
            f"more than {most_tokens:,} tokens", "", aligned(rows), paper("fig5")], dict(
                where=where, size=size, rows=[dict(zip(rows[0], row)) for row in rows[1:]])


@torch.no_grad()
def seconds_to_generate(tokenizer: nn.Module, model: nn.Module, batch: int, decode: Callable,
                        steps: int) -> tuple[float, float]:
    """Seconds of the transformer and of the tokenizer's decoder, for `batch` videos of the tokens
    of the model's grid: each the second of two runs."""
    device, grid = next(model.parameters()).device, model.config.grid
    tokens = torch.zeros(batch, math.prod(grid), dtype=torch.long, device=device)

    def transformer() -> None:
        list(decode(model, tokens[:, 0], tokens[:, 0], tokens, tokens[0] == 0, steps=steps,
                    noise=seeded_noise(0, device)))

    seconds = []
    with autocast(resolve_precision("auto", device), device):
        for work in (transformer, lambda: tokenizer.decode(tokens.view(batch, *grid))):
            for _ in range(2):
                begin = time.perf_counter()
                work()
                if device.type == "cuda":
                    torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begin)
    return tuple(seconds)


def steps_of(run: Run, decoding: dict) -> int:
    size = run.transformer.config
    return size.num_tokens if isinstance(size, AutoregressiveConfig) else decoding["steps"]


def paper(table: str) -> str:
    """The paper's own rows."""
    (what, *columns), *rows = ((ARMS[name].title if name in ARMS else name, *row)
                               for name, row in PAPER[table].items())
    return aligned([(f"the paper: {what}", *columns), *rows])


def from_runs(runs: list[str]) -> str:
    """A row for each protocol by which evaluate.py has measured a run: FVD by task."""
    rows: dict[str, dict[str, str]] = {}
    for folder in map(Path, runs):
        files, run = sorted(folder.glob("evaluation-*.json")), load_run(folder)
        if not files:
            raise FileNotFoundError(f"{folder} has no evaluation-*.json; measure it first: python "
                                    f"evaluate.py {folder} --protocol bair-debiased --data DIR")
        for path in files:
            measured = json.loads(path.read_text())
            found = {task: (entry["mean"], name[3:]) for task, entries in
                     measured["results"].items() for name, entry in entries.items()
                     if name.strip("*") == "FVD"}
            if found.keys() >= {*MT8}:
                values, stars = zip(*(found[task] for task in MT8))
                found["average of eight"] = sum(values) / len(MT8), max(stars)
            rows[f"{folder.name}, {measured['protocol']}"] = dict(
                parameters=" + ".join(f"{sum(p.numel() for p in network.parameters()) / 1e6:.0f}M"
                                      for network in (run.tokenizer, run.transformer)),
                sequence=str(run.transformer.config.sequence_length),
                steps=str(steps_of(run, measured["decoding"])),
                **{task: f"{value:.1f}{star}" for task, (value, star) in found.items()})
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    return aligned([("FVD", *columns), *((name, *(row.get(column, "") for column in columns))
                                         for name, row in rows.items())]) + (
        "\n*: not comparable with published numbers; evaluate.py says why")


def claim(words: str, holds: bool) -> str:
    """A sentence of the paper, or a control, and whether it came out."""
    return f"{'holds' if holds else 'DOES NOT HOLD'}: {words}"


TABLES = {"4": table_4, "5": table_5, "6": table_6, "7": table_7, "fig5": fig_5}


def evaluate_run(arguments: list[str]) -> None:
    """evaluate.py on a run, which decodes in its own way. arguments: RUN, and evaluate.py's flags."""
    try:
        way = way_of(load_run(arguments[0]))
    except (ValueError, OSError) as error:
        sys.exit(f"tables.py: {error}")
    evaluate.main(arguments, decode=way)


def main() -> None:
    if sys.argv[1:2] == ["evaluate"] and len(sys.argv) > 2:
        return evaluate_run(sys.argv[2:])
    parser = argparse.ArgumentParser(description="The paper's comparisons.")
    parser.add_argument("table", choices=[*TABLES, "evaluate"], help="a table, or evaluate RUN ...")
    parser.add_argument("--runs", nargs="+", help="runs on real data, evaluated by evaluate.py")
    parser.add_argument("--steps", type=int, default=4000, help="of stage 2, for each arm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="runs/comparisons", help="where the arms are")
    options = parser.parse_args()
    if options.table == "evaluate":
        parser.error("evaluate needs a run")
    try:
        if options.runs:
            print(from_runs(options.runs), paper(options.table), sep="\n\n")
            return
        folder = Path(options.out) / f"seed-{options.seed}"
        lines, values = TABLES[options.table](Laptop(folder, options.steps, options.seed))
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"tables.py: {error}")
    folder.mkdir(parents=True, exist_ok=True)
    name = f"table{options.table}" if options.table.isdigit() else options.table
    (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    (folder / f"{name}.json").write_text(json.dumps(values, indent=2) + "\n")
    print(*lines, f"wrote {folder / name}.txt and .json", sep="\n")


if __name__ == "__main__":
    main()
