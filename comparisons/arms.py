"""The models of the tables, each trained by one command on the toy or on real data.

Paper   Table 4 (UNC, FP, MT), Table 5 (conditions and losses), Table 6 (decoding methods)

Shapes  a preset's TrainConfig, an Arm -> TrainConfig, the step of stage 2 -> a run like any other

Read    ARMS, the rows of the tables; then train_arm, and Laptop, which trains them on the toy.

What is equal in all arms of a preset: seed, clips, batches, steps, sizes. The run of an arm is
evaluated as any other (evaluate.py), and decodes in its own way.

Not here: what is measured (tables.py), the networks (baselines.py, autoregressive.py).

Run:    python -m comparisons.arms                               the arms, and what each differs in
        python -m comparisons.arms autoregressive RUN bair-B --data DIR --out runs/bair-ar
        (RUN has the tokenizer; then flags of train.py)
"""
from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Callable

from torch import nn

from commit import MT8
from comparisons.autoregressive import AutoregressiveConfig, autoregressive_step
from comparisons.baselines import (Grid, PrefixConfig, WindowConfig, align_prefix, given_tokens,
                                   prefix_step)
from data.clips import DataConfig, open_source
from data.source import ClipSource
from steps import transformer_step
from train import train, train_transformer
from training.build import refuse_impossible
from training.checkpoint import Run, is_there, load_checkpoint, load_network, load_run
from training.command import parse
from training.loop import Processes, fit, start_processes
from training.presets import PRESETS, TrainConfig
from transformer import TRANSFORMERS, TransformerConfig

TOY = Path("assets/toy")


@dataclass(frozen=True)
class Arm:
    """What a model of the tables has otherwise than the preset."""

    title: str
    settings: dict = field(default_factory=dict)          # of TrainConfig
    kind: type[TransformerConfig] | None = None           # its own kind of transformer
    step: Callable = transformer_step
    image: bool = False                                   # on tokens of the 2D-VQ
    prompt: str = ""                                      # of all tasks, instead of each one's


_unc, _fp, _mt = (dict(tasks=("CG",), class_dropout=1.0), dict(tasks=("FP",)), dict(tasks=MT8))
_mask, _no_refine = (0.0, 1.0, 0.0), (0.0, 1.0, 1.0)      # weights of refine, mask, reconstruct
ARMS = {
    "unc": Arm("UNC: unconditional, tasks by latent masking", _unc),
    "fp": Arm("FP: frame prediction alone", _fp),
    "mt": Arm("MT: all eight tasks", _mt),
    "mt-one-prompt": Arm("MT, one prompt for all tasks (control)", _mt, prompt="FP"),
    "fp-mask": Arm("COMMIT, mask", dict(**_fp, loss_weights=_mask)),
    "fp-no-refine": Arm("COMMIT, mask + reconstruct", dict(**_fp, loss_weights=_no_refine)),
    "mt-mask": Arm("COMMIT, mask", dict(**_mt, loss_weights=_mask)),
    "mt-no-refine": Arm("COMMIT, mask + reconstruct", dict(**_mt, loss_weights=_no_refine)),
    "fp-prefix": Arm("Prefix condition", _fp, PrefixConfig, prefix_step),
    "mt-prefix": Arm("Prefix condition", _mt, PrefixConfig, prefix_step),
    "autoregressive": Arm("Autoregressive", _fp, AutoregressiveConfig, autoregressive_step),
    "maskgit-2d": Arm("MaskGIT, 2D-VQ", _unc, image=True),
    "maskvit": Arm("MaskViT's windows, 2D-VQ", dict(**_fp, decode_steps=18), WindowConfig,
                   image=True),
}


def transformer_of(arm: Arm, config: TrainConfig, grid: Grid) -> TransformerConfig:
    """The configuration of an arm's transformer: the preset's sizes, and what its kind has more."""
    base = config.transformer
    base = TRANSFORMERS[base] if isinstance(base, str) else base
    more = {}
    if arm.kind is WindowConfig:
        t, h, w = grid
        more = dict(grid=grid, windows=((1, h, w), (t, min(4, h // 2), min(4, w // 2))))
    elif arm.kind is not None:
        more = dict(prefix_length=max(
            int(given_tokens(task, config.clip_shape, grid, config.condition_frames).sum())
            for task in config.tasks))
    values = {each.name: getattr(base, each.name) for each in dataclasses.fields(base)}
    return (arm.kind or type(base))(**values | more)


def arm_config(name: str, preset: TrainConfig, tokenizer: nn.Module) -> TrainConfig:
    """The configuration of an arm's run on a preset's data."""
    config = replace(preset, **ARMS[name].settings)
    grid = tokenizer.latent_shape(*config.clip_shape)
    return replace(config, transformer=transformer_of(ARMS[name], config, grid))


def train_arm(name: str, preset: TrainConfig, data: DataConfig | ClipSource, run: str | Path,
              tokenizer: str | Path, processes: Processes = Processes()) -> Run | None:
    """Train stage 2 of an arm in the folder `run`, or go on there; None where it was stopped.

    tokenizer: the run with tokenizer.pt, or for arms on 2D tokens with image.pt.
    """
    arm, run = ARMS[name], Path(run)
    if not is_there(run / "transformer.pt") or not (
            load_checkpoint(run / "transformer.pt")["finished"]):
        run.mkdir(parents=True, exist_ok=True)
        if processes.rank == 0 and not (run / "tokenizer.pt").exists():
            shutil.copy(Path(tokenizer) / ("image.pt" if arm.image else "tokenizer.pt"),
                        run / "tokenizer.copying")
            (run / "tokenizer.copying").rename(run / "tokenizer.pt")
        network = load_network(load_checkpoint(run / "tokenizer.pt"))
        config = arm_config(name, preset, network)
        source = open_source(data, config.clip_shape, stride=config.stride, flip=config.flip,
                             index=run / "videos.json")
        refuse_impossible(config, ["transformer"], len(source.class_names), processes.world)
        kept = replace(data.resolved(), class_names=tuple(source.class_names)) if isinstance(
            data, DataConfig) else DataConfig(dataset=f"object {type(data).__name__}",
                                              class_names=tuple(source.class_names))
        stage = train_transformer(config, kept, source, run, processes)
        stage.step = arm.step
        if arm.prompt:
            batch_of = stage.batch_of
            stage.batch_of = lambda step: batch_of(step)._replace(task=arm.prompt)
        if isinstance(stage.configs["network"], PrefixConfig) and len(set(config.tasks)) == 1:
            grid = network.latent_shape(*config.clip_shape)
            align_prefix(stage.trainee.networks["transformer"], given_tokens(
                config.tasks[0], config.clip_shape, grid, config.condition_frames))
        if not fit(stage, config, run, processes):
            return None
    return load_run(run, processes.device)


# ---------------------------------------------------------------------------------------------
# On the toy, for the tables

@dataclass(frozen=True)
class Laptop:
    """Where the arms of a table lie, and how long each is trained on drawn clips."""

    folder: Path
    steps: int = 4000                                     # of stage 2
    seed: int = 0

    def arm(self, name: str, tokenizer: Path = TOY) -> Run:
        """The run of an arm, trained where it is not yet."""
        preset = replace(PRESETS["toy"], transformer_steps=self.steps, seed=self.seed)
        run = train_arm(name, preset, DataConfig(dataset="shapes"), self.folder / name, tokenizer)
        return run or sys.exit("stopped; the same command goes on from here")

    def tokenizer(self, name: str, stage: str, **settings) -> nn.Module:
        """The tokenizer of the toy, stage "tokenizer" or "image", with settings changed."""
        config, run = replace(PRESETS["toy"], seed=self.seed, **settings), self.folder / name
        if not train(config, DataConfig(dataset="shapes"), run, stage=stage, draw=False):
            sys.exit("stopped; the same command goes on from here")
        return load_network(load_checkpoint(run / f"{stage}.pt"))

    def seconds(self, *names: str) -> float:
        """How long the training of arms took, by their logs."""
        total = 0.0
        for name in names:
            seconds = [0.0, *(json.loads(line)["seconds"] for line in
                              (self.folder / name / "log.jsonl").read_text().splitlines())]
            # A run that was stopped and went on counts from 0 again.
            total += sum(b - a if b >= a else b for a, b in zip(seconds, seconds[1:]))
        return total


def claim(words: str, holds: bool) -> str:
    """A sentence of the paper, or a control, and whether it came out."""
    return f"{'holds' if holds else 'DOES NOT HOLD'}: {words}"


def main() -> None:
    if len(sys.argv) < 4:
        for name, arm in ARMS.items():
            tasks = {MT8: "MT8"}.get(arm.settings["tasks"], " ".join(arm.settings["tasks"]))
            tokens = "2D-VQ" if arm.image else "3D-VQ"
            print(f"{name:15} {tasks:4} {tokens}  {arm.title}")
        return
    name, tokenizer, *arguments = sys.argv[1:]
    if name not in ARMS:
        sys.exit(f"arm {name!r} is unknown; choose from {' '.join(ARMS)}")
    config, data, options = parse(arguments)
    try:
        train_arm(name, config, data, options.out or f"runs/{options.preset}-{name}", tokenizer,
                  start_processes())
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        sys.exit(f"arms.py: {error}")


if __name__ == "__main__":
    main()
