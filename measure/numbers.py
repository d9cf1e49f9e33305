"""From rows of features to a number, and to the name it may bear.

Paper   App. B.3, Sec. 4 (Tables 1-4 and 7)

Shapes  rows of features, one per video -> score -> mean and deviation over the folds
          -> entry -> "FVD", or "FVD*" with what was not as in the paper

Read    score, entry.

Not here: how videos become rows (features.py), the mathematics (metrics.py).

Run:    python -m measure.numbers      what a number is called, and why
"""
from __future__ import annotations

import math
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from commit import TASKS
from measure.features import JUDGES, METRICS, open_judges, rows_of
from measure.metrics import best_of_trials, fvd, fvd_infinity, inception_score, kvd, over_folds
from measure.protocols import PROTOCOLS, Protocol
from measure.rows import Rows


def score(metrics: list[str], folds: int, real: Rows, fake: Rows, clips: Tensor | None = None,
          infinity: bool = False) -> dict[str, tuple[float, float]]:
    """Mean and deviation over folds of each metric, from rows in sample order.

    clips (n,): which real clip each sample tried to predict; if given, PSNR and SSIM are those
    of the best trial for each clip within a fold. infinity: also FVD_inf, over all samples.
    PSNR is NaN where no frame differs from the real one, and of those that differ elsewhere.
    """
    def best(values: Tensor, which: Tensor) -> float:
        differ = ~values.isnan()
        return (best_of_trials(values[differ], which[differ]).mean().item() if differ.any()
                else math.nan)

    numbers, alone = {}, torch.arange(len(next(iter(fake.values()))))
    if "fvd" in metrics:
        numbers["fvd"] = over_folds(fvd, folds, real["fvd"], fake["fvd"])
        if infinity:
            smallest = min(5000, max(2, len(fake["fvd"]) // 4))
            numbers["fvd_inf"] = fvd_infinity(real["fvd"], fake["fvd"], smallest), 0.0
    if "kvd" in metrics:
        numbers["kvd"] = over_folds(kvd, folds, real["fvd"], fake["fvd"])
    if "is" in metrics:
        numbers["is"] = over_folds(inception_score, folds, fake["is"])
    for name in ("psnr", "ssim", "lpips"):
        if name in metrics:                                # the official LPIPS is a plain mean
            which = alone if clips is None or name == "lpips" else clips
            numbers[name] = over_folds(best, folds, fake[name], which)
    return numbers


def entry(metric: str, number: tuple[float, float], samples: int, folds: int,
          judges: dict[str, nn.Module], reasons: list[str]) -> tuple[str, dict]:
    """A number under the name it may bear: "FVD", or "FVD*" with what is not as it should be."""
    name, judge = METRICS.get(metric, "FVD_inf"), rows_of([metric.removesuffix("_inf")])[0]
    weights = judges[judge].weights if judge in JUDGES else "none needed"
    if weights.startswith("random"):
        reasons = ["random weights: the number means nothing", *reasons]
    elif judge in JUDGES and ("verified" not in weights or "unverified" in weights):
        reasons = ["weights for which nobody published a hash: they may be others", *reasons]
    if metric == "fvd_inf":
        folds = 1
        if samples < 10_000:
            reasons = ["a line in 1/N needs N from 5,000 up to well above", *reasons]
    mean, deviation = (value if math.isfinite(value) else None for value in number)    # JSON's
    return f"{name}{'*' if reasons else ''}", dict(
        mean=mean, deviation=deviation, samples=samples, folds=folds, weights=weights,
        not_as_wanted=reasons)


def print_numbers(title: str, results: dict[str, dict[str, dict]]) -> None:
    """results: task or sets -> name of the number -> its entry."""
    rows = [(subject, name, value) for subject, entries in results.items()
            for name, value in entries.items() if "mean" in value]
    print(f"\n{title}\n{'number':9} {'of':14} {'value':>20} {'samples':>13}   weights")
    reasons: dict[str, dict] = {}
    for subject, name, value in rows:
        number = "-" if value["mean"] is None else f"{value['mean']:.4f}"
        samples = f"{value['samples']:,}"
        if value["folds"] > 1 and value["mean"] is not None:
            number = f"{number} ± {value['deviation']:.4f}"
            samples = f"{value['samples'] // value['folds']:,} x {value['folds']}"
        print(f"{name:9} {subject:14} {number:>20} {samples:>13}   {value['weights']}")
        for reason in value["not_as_wanted"]:
            reasons.setdefault(reason, {})[name] = None
    if reasons:
        print("* not comparable with published numbers:")
    for reason, names in reasons.items():
        print(f"  - {', '.join(names)}: {reason}")


def print_trials(results: dict[str, dict[str, dict]], protocol: Protocol | None = None,
                 trials: float = 1.0) -> None:
    """Of how many trials PSNR and SSIM are the best; how many codes a reconstruction used."""
    for task, entries in results.items():
        if task in TASKS and protocol and protocol.best_of > 1 and {"PSNR", "SSIM"} & {
                name.strip("*") for name in entries}:
            print(f"{task}: PSNR and SSIM are of the best of {max(1, trials):.3g} "
                  f"trials; wanted {protocol.best_of}")
        if entries.get("identical_frames"):
            count = entries["identical_frames"]["count"]
            print(f"{task}: {count:,} frames are identical with the real ones; their PSNR is "
                  "infinite and not in the mean")
        if "codes" in entries:
            print(f"{task}: {entries['codes']['used']} of {entries['codes']['of']} codes used")


def print_tasks(results: dict[str, dict[str, dict]]) -> None:
    """Table 4: the FVDs of several tasks side by side, and their average."""
    names = {name for entries in results.values() for name in entries if name.strip("*") == "FVD"}
    means = {task: results[task][name]["mean"] for name in names for task in TASKS
             if name in results.get(task, {})}
    if len(means) > 1:
        means["average"] = sum(means.values()) / len(means)
        print("\n      " + "".join(f"{task:>9}" for task in means))
        print(f"{max(names):6}" + "".join(f"{value:9.1f}" for value in means.values()))


def print_abilities(directory: str) -> None:
    """Without a run: which protocol could give which number with the weights at hand."""
    names = {}
    for metric in dict.fromkeys(metric for row in PROTOCOLS.values() for metric in row.metrics):
        title = METRICS[metric]
        try:
            judges = open_judges([metric], directory, torch.device("cpu"))
            names[metric] = entry(metric, (0.0, 0.0), 0, 1, judges, [])[0]
        except (FileNotFoundError, ValueError) as error:
            names[metric] = f"({title})"
            print(f"({title}) {str(error).split('; or leave')[0]}")
    print(f"\n{'protocol':14} numbers; in brackets: no weights; *: nothing vouches for them")
    for name, row in PROTOCOLS.items():
        print(f"{name:14} {' '.join(names[metric] for metric in row.metrics)}")


def aligned(rows: list[tuple]) -> str:
    """Rows of cells, the first of which is the header, as a table in Markdown."""
    cells = [[str(cell) for cell in row] for row in rows]
    first, *others = [max(map(len, column)) for column in zip(*cells)]
    cells.insert(1, [":" + "-" * (first - 1), *("-" * (width - 1) + ":" for width in others)])
    return "\n".join("| " + " | ".join([row[0].ljust(first), *(
        cell.rjust(width) for cell, width in zip(row[1:], others))]) + " |" for row in cells)


def claim(words: str, holds: bool) -> str:
    """A sentence of the paper, or a control, and whether it came out."""
    return f"{'holds' if holds else 'DOES NOT HOLD'}: {words}"


def main() -> None:
    """One value under the names that it may bear."""
    results, verified = {}, "i3d_pretrained_400.pt, git blob a867b87ac3a9, verified"
    for what, weights, reasons in (
            ("as published", verified, []), ("no weights", "random (seed 0)", []),
            ("few samples", verified, ["2,048 samples; wanted 25,600 x 4"])):
        judges: dict = dict(fvd=SimpleNamespace(weights=weights))
        results[what] = dict([entry("fvd", (62.0, 0.5), 102_400, 4, judges, reasons)])
    print_numbers("one value, three names", results)


if __name__ == "__main__":
    main()
