"""The paper's comparisons, each one command: Tables 4 to 7 and Fig. 5.

Paper   Sec. 4.3 (Fig. 5), Sec. 4.4 (Table 4), Sec. 4.5 (Tables 5 to 7)

Shapes  a table -> its arms, trained (arms.py) -> 64 held-out clips through each -> rows
          -> printed beside the paper's numbers; runs/comparisons/SEED/table4.txt and .json

Read    measure, what is counted as right; then table_4 to table_6. Table 7 and Fig. 5, which
        need no arms, are in costs.py.

The paper judges by FVD on real videos. Here clips are drawn, and what was generated is read back
from its pixels: no foreign network, and a percentage that means what it says. From runs on real
data, `--runs` prints the same rows with the FVD that evaluate.py measured.

Run:    python -m comparisons.tables 4                  trains, measures, prints; a kill loses little
        python -m comparisons.tables 5 --seed 1
        python -m comparisons.tables 4 --runs A B C     of runs that evaluate.py has measured
"""
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Callable

import torch
from einops import rearrange
from torch import Tensor

from commit import MT8, make_condition
from comparisons.arms import ARMS, TOY, Laptop, claim
from comparisons.costs import fig_5, table_7
from data.moving_shapes import MovingShapes
from data.source import load_batch
from decode import commit_decode, generate, latent_masking
from measure.metrics import frames_of, psnr
from training.checkpoint import Run, load_checkpoint, load_network
from training.plan import count_step

# FVD, in the paper's rows: FP FI OPC OPV OPH OPD IPC IPD of BAIR, debiased; then Tables 5 and 6.
PAPER_4 = {"unc": (74.0, 71.4, 119.0, 46.7, 55.9, 389.3, 145.0, 303.2),
           "fp": (47.7, 56.2, 247.1, 118.5, 142.7, 366.3, 357.3, 272.7),
           "mt": (47.2, 36.0, 28.1, 29.0, 27.8, 32.1, 31.1, 31.0)}
PAPER_5 = {"unc": ("74", "151"), "prefix": ("55", "-"), "mask": ("388", "143"),
           "no-refine": ("51", "53"), "": ("48", "33")}
PAPER_6 = {"maskgit-2d": "177", "unc": "74", "maskvit": "94 (theirs)", "autoregressive": "56",
           "fp": "48"}


# ---------------------------------------------------------------------------------------------
# What is measured on drawn clips

@torch.no_grad()
def measure(run: Run, task: str, seed: int = 0, **how) -> dict[str, float]:
    """A task on the 64 held-out clips, as numbers. how: keywords of generate in place of run.how's.

    right: the share of videos in which the plain rule reads the clip's shape and direction. One
    frame leaves the direction open: in FP any will do, but one must be read. Where nothing of the
    shape is given, so will any shape. given: PSNR inside the given region. nearest: FP's PSNR
    against the nearest of the four clips that go on from the first frame.
    """
    source = MovingShapes("test")
    video, label = load_batch(source, 0, len(source), 0, augment=False)
    made = generate(run.tokenizer, run.transformer, video, task,
                    generator=torch.Generator().manual_seed(seed),
                    **run.how(task) | dict(run.config.decoding) | how)
    valid = make_condition(video, task)[1]
    return dict(right=right(made, video, label, valid, task).float().mean().item(),
                given=-10 * (made - video).square()[..., valid].mean().log10().item(),
                nearest=nearest(made, video).mean().item() if task == "FP" else None)


def right(made: Tensor, video: Tensor, label: Tensor, valid: Tensor, task: str) -> Tensor:
    """(B,) bool: what `measure` counts; label (B,), valid (T, H, W)."""
    shape, direction = MovingShapes.recognize(made)
    shown = ((video.amax(1) - video.amin(1) > 0.15) & valid).flatten(1).any(1)
    open_ended = ~shown | (task == "FP")
    return ((shape >= 0) & ((shape == label // 4) | ~shown)
            & (direction >= 0) & ((direction == label % 4) | open_ended))


def nearest(made: Tensor, video: Tensor) -> Tensor:
    """(B,) PSNR of made (B, 3, T, H, W) against the nearest way on from video's first frame."""
    moved, ways = MovingShapes.speed * torch.arange(video.shape[2]), []
    for axis, sign in ((-1, 1), (-1, -1), (-2, 1), (-2, -1)):
        frames = [video[:, :, 0].roll(sign * int(step), axis) for step in moved]
        way = torch.stack(frames, dim=2)
        ways.append(psnr(frames_of(made), frames_of(way)).mean(1))
    return torch.stack(ways).amax(0)


def measure_tasks(run: Run, **how) -> dict[str, dict[str, float]]:
    """`measure` of all eight tasks, and their average."""
    rows = {task: measure(run, task, **how) for task in MT8}
    rows["average"] = {name: sum(row[name] for row in rows.values()) / len(MT8)
                       for name in ("right", "given")}
    return rows


def given_nothing(model, task, label, condition_tokens, is_pad, **decoding):
    """commit_decode that is not shown the condition."""
    return commit_decode(model, task, label, condition_tokens, torch.ones_like(is_pad), **decoding)


def with_real_tokens(run: Run) -> Callable:
    """latent_masking that is given the real clips' tokens, which know the answer: an oracle."""
    source = MovingShapes("test")
    video, _ = load_batch(source, 0, len(source), 0, augment=False)
    tokens = rearrange(run.tokenizer.encode(video), "b t h w -> b (t h w)")
    return lambda model, task, label, condition_tokens, is_pad, **decoding: latent_masking(
        model, task, label, tokens, is_pad, **decoding)


# ---------------------------------------------------------------------------------------------
# Tables 4 to 6: each returns its text and what it measured

def table_4(laptop: Laptop) -> tuple[str, dict]:
    """Multi-task against single-task models. Control: given nothing, which is chance."""
    trained = ("unc", "fp", "mt", "mt-one-prompt")
    results = {name: measure_tasks(laptop.arm(name)) for name in trained}
    results["nothing"] = measure_tasks(laptop.arm("unc"), decode=given_nothing)
    titles = {name: ARMS[name].title for name in trained} | dict(
        nothing="UNC, given nothing (control)")
    columns = (*MT8, "average")
    lines = []
    for what, unit, form in (("right", "right", "8.0%"),
                             ("given", "PSNR inside the given region, in dB", "8.1f")):
        lines.append(f"{unit:48}" + "".join(f"{column:>8}" for column in columns))
        lines += [f"  {titles[name]:46}" + "".join(
            f"{row[column][what]:{form}}" for column in columns) for name, row in results.items()]
    lines.append("the paper: FVD on BAIR, B (lower is better)")
    for name, values in PAPER_4.items():
        values = *values, sum(values) / len(values)
        lines.append(f"  {titles[name]:46}" + "".join(f"{value:8.1f}" for value in values))
    average = {name: row["average"]["right"] for name, row in results.items()}
    lines += [f"{laptop.steps:,} steps each: UNC and FP {laptop.steps:,} on their task, MT "
              f"{laptop.steps // 8:,} on each of eight; training took "
              f"{laptop.seconds(*trained):.0f} s",
              claim("MT is best on average over the tasks", average["mt"] > max(
                  average["unc"], average["fp"])),
              claim("control: chance is far below", average["nothing"] < average["unc"] / 2)]
    return "\n".join(lines), results


def table_5(laptop: Laptop) -> tuple[str, dict]:
    """Conditions and losses. Control: latent masking that is given the answer."""
    unc, results = laptop.arm("unc"), {}
    rows = {"unc": "Latent masking, the padded clip's tokens",
            "oracle": "Latent masking, the real clip's tokens (leaks)",
            "prefix": "Prefix condition", "mask": "COMMIT: mask",
            "no-refine": "COMMIT: mask + reconstruct", "": "COMMIT: mask + reconstruct + refine"}
    lines = [f"{'':48}{'':>12}   frame prediction             eight tasks",
             f"{'':48}sequence GFLOP  right  given nearest paper   right  given  paper"]
    for name, title in rows.items():
        if name in ("unc", "oracle"):
            single = multi = unc
            how = {} if name == "unc" else dict(decode=with_real_tokens(unc))
        else:
            single, multi = (laptop.arm("-".join(filter(None, (tasks, name))))
                             for tasks in ("fp", "mt"))
            how = {}
        one, every = measure(single, "FP", **how), measure_tasks(multi, **how)["average"]
        longest = [run.transformer.config.sequence_length for run in (single, multi)]
        flop = count_step(multi.config, "transformer", 16)[0] / 1e9
        results[name or "all"] = dict(FP=one, MT8=every, sequence=longest, gflop=flop)
        paper = PAPER_5.get(name, ("", ""))
        length = "-".join(map(str, dict.fromkeys(longest)))
        lines.append(f"{title:48}{length:>8} {flop:6.1f} {one['right']:6.0%} {one['given']:6.1f} "
                     f"{one['nearest']:7.1f} {paper[0]:>5} {every['right']:7.0%} "
                     f"{every['given']:6.1f} {paper[1]:>6}")
    names = ["unc", *(f"{tasks}{part}" for tasks in ("fp", "mt")
                      for part in ("-prefix", "-mask", "-no-refine", ""))]
    tasks = {name: row["MT8"] for name, row in results.items()}
    worst = min(tasks[name]["given"] for name in ("unc", "no-refine", "all"))
    lines += [f"{laptop.steps:,} steps each; training took {laptop.seconds(*names):.0f} s; GFLOP: of "
              "a step on 16 clips, eight tasks",
              claim("mask alone is worst inside the given region", tasks["mask"]["given"] < worst),
              claim("COMMIT is ahead of latent masking on average",
                    tasks["all"]["right"] > tasks["unc"]["right"]),
              claim("control: the answer's own tokens beat the condition's",
                    tasks["oracle"]["right"] > tasks["unc"]["right"])]
    return "\n".join(lines), results


def table_6(laptop: Laptop) -> tuple[str, dict]:
    """Decoding methods, on frame prediction. Control: all tokens in one step."""
    laptop.tokenizer("image-8", "image", tokenizer_batch=16)
    image, results = laptop.folder / "image-8", {}
    lines = [f"{'':34}parameters          sequence  steps   right  nearest   given   paper"]
    rows = {"maskgit-2d": "MaskGIT, 2D-VQ", "unc": "MaskGIT, 3D-VQ",
            "maskvit": "MaskViT's windows, 2D-VQ", "autoregressive": "Autoregressive, 3D-VQ",
            "fp": "MAGVIT, 3D-VQ", "one step": "MAGVIT in one step (control)"}
    for name, title in rows.items():
        run = laptop.arm("fp" if name == "one step" else name,
                         image if name in ARMS and ARMS[name].image else TOY)
        how = dict(steps=1) if name == "one step" else {}
        row = measure(run, "FP", **how)
        sizes = [sum(p.numel() for p in network.parameters())
                 for network in (run.tokenizer, run.transformer)]
        size = run.transformer.config
        steps = size.num_tokens if name == "autoregressive" else (
            how or run.config.decoding)["steps"]
        results[name] = row | dict(parameters=sizes, sequence=size.sequence_length, steps=steps)
        lines.append(f"{title:34}{sizes[0]:>7,} + {sizes[1]:>9,} {size.sequence_length:8} "
                     f"{steps:6} {row['right']:7.0%} {row['nearest']:8.1f} {row['given']:7.1f}   "
                     f"{PAPER_6.get(name, '')}")
    names = [name for name in rows if name in ARMS]
    lines += [f"{laptop.steps:,} steps each; training took "
              f"{laptop.seconds('image-8', *names):.0f} s; paper: FVD on BAIR, debiased; its "
              "sequences are 4,096 (2D) and 1,024",
              claim("MAGVIT is ahead of MaskGIT on the same tokens",
                    results["fp"]["right"] > results["unc"]["right"]),
              claim("control: one step is worse", results["one step"]["nearest"]
                    < results["fp"]["nearest"])]
    return "\n".join(lines), results


# ---------------------------------------------------------------------------------------------
# The same from runs on real data

def from_runs(runs: list[str]) -> str:
    """Rows of what evaluate.py has measured: FVD by task, and what a transformer costs."""
    rows, tasks = [], {}
    for run in map(Path, runs):
        state = load_checkpoint(run / "transformer.pt")
        transformer = load_network(state)
        tokenizer = load_network(load_checkpoint(run / "tokenizer.pt"))
        files = sorted(run.glob("evaluation-*.json"))
        if not files:
            raise FileNotFoundError(f"{run} has no evaluation-*.json; measure it first: python "
                                    f"evaluate.py {run} --protocol bair-debiased --data DIR")
        found = {}
        for path in files:
            for task, entries in json.loads(path.read_text())["results"].items():
                found |= {task: f"{entry['mean']:.1f}{'*' if name.endswith('*') else ''}"
                          for name, entry in entries.items() if name.strip("*") == "FVD"}
        tasks |= dict.fromkeys(found)
        numbers = [float(found[task].strip("*")) for task in MT8 if task in found]
        found["MT8"] = f"{sum(numbers) / 8:.1f}" if len(numbers) == 8 else "-"
        sizes = [sum(p.numel() for p in network.parameters()) / 1e6
                 for network in (tokenizer, transformer)]
        rows.append((run.name, "{:.0f}M+{:.0f}M".format(*sizes),
                     transformer.config.sequence_length, found))
    lines = [f"{'run':24}{'parameters':>12}{'sequence':>10}" + "".join(
        f"{task:>10}" for task in (*tasks, "MT8"))]
    lines += [f"{name:24}{size:>12}{length:>10}" + "".join(
        f"{found.get(task, '-'):>10}" for task in (*tasks, "MT8"))
        for name, size, length, found in rows]
    return "\n".join([*lines, "FVD as evaluate.py measured it; * not comparable, see its output"])


TABLES = {"4": table_4, "5": table_5, "6": table_6, "7": table_7, "fig5": fig_5}


def main() -> None:
    parser = argparse.ArgumentParser(description="The paper's comparisons.")
    parser.add_argument("table", nargs="?", choices=TABLES)
    parser.add_argument("--runs", nargs="+", help="runs on real data, evaluated by evaluate.py")
    parser.add_argument("--steps", type=int, default=4000, help="of stage 2, for each arm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="runs/comparisons", help="where the arms are")
    options = parser.parse_args()
    try:
        if options.runs:
            print(from_runs(options.runs))
            return
        if options.table is None:
            for name, table in TABLES.items():
                print(f"{name:5} {table.__doc__.splitlines()[0]}")
            return
        folder = Path(options.out) / f"seed-{options.seed}"
        text, values = TABLES[options.table](Laptop(folder, options.steps, options.seed))
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"tables.py: {error}")
    folder.mkdir(parents=True, exist_ok=True)
    name = f"table{options.table}" if options.table.isdigit() else options.table
    (folder / f"{name}.txt").write_text(text + "\n")
    (folder / f"{name}.json").write_text(json.dumps(values, indent=2) + "\n")
    print(f"{text}\nwrote {folder / name}.txt and .json")


if __name__ == "__main__":
    main()
