"""The models of the tables, each trained by one command on the toy or on real data.

Paper   Table 4 (UNC, FP, MT), Table 5 (conditions and losses), Table 6 (decoding methods)

Shapes  a preset's TrainConfig, an Arm -> TrainConfig, the step of stage 2 -> a run like any other

Read    ARMS, the models; then arm_config and train_arm.

Seed, clips, batches, steps and sizes are equal in all arms of a preset. The run of an arm is
evaluated by `python -m comparisons.tables evaluate RUN ...`, in its own way; mt-one-prompt by
table_4 alone.

Run:    python -m comparisons.arms autoregressive RUN bair-B --data DIR    (RUN: the tokenizer's)
"""
from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable

from torch import nn

from commit import MT8, TASKS, nothing
from comparisons.autoregressive import (AutoregressiveConfig, AutoregressiveTransformer,
                                        autoregressive_decode, autoregressive_step)
from comparisons.baselines import (PrefixConfig, PrefixTransformer, WindowConfig,
                                   WindowTransformer, align_prefix, given_tokens, latent_masking,
                                   prefix_decode, prefix_step)
from data.clips import DataConfig, written_whole
from data.source import ClipSource
from steps import transformer_step
from train import make_stage, open_data, parse, run_command
from training.checkpoint import Run, is_there, load_checkpoint, load_network, load_run
from training.loop import fit
from training.presets import TrainConfig
from training.processes import Processes, from_first
from training.start import transformer_config
from transformer import TransformerConfig


@dataclass(frozen=True)
class Arm:
    """What a model of the tables has otherwise than the preset."""

    settings: dict                                        # of TrainConfig, where it differs
    kind: type[TransformerConfig] | None = None           # its own kind of transformer
    step: Callable = transformer_step
    image: bool = False                                   # on tokens of the 2D-VQ
    prompt: str = ""                                      # of all tasks, instead of each one's


UNC, FP, MT = dict(tasks=("CG",), class_dropout=1.0), dict(tasks=("FP",)), dict(tasks=MT8)
MASK = dict(loss_weights=(0.0, 1.0, 0.0))                 # of refine, mask and reconstruct, Eq. (4)
NO_REFINE = dict(loss_weights=(0.0, 1.0, 1.0))
ARMS = {
    "unc": Arm(UNC),                                      # unconditional
    "fp": Arm(FP),                                        # frame prediction alone
    "mt": Arm(MT),                                        # eight tasks
    "mt-one-prompt": Arm(MT, prompt="FP"),                # a control
    "fp-mask": Arm(FP | MASK),
    "mt-mask": Arm(MT | MASK),
    "fp-no-refine": Arm(FP | NO_REFINE),
    "mt-no-refine": Arm(MT | NO_REFINE),
    "fp-prefix": Arm(FP, PrefixConfig, prefix_step),
    "mt-prefix": Arm(MT, PrefixConfig, prefix_step),
    "autoregressive": Arm(FP, AutoregressiveConfig, autoregressive_step),
    "autoregressive-cg": Arm(dict(tasks=("CG",)), AutoregressiveConfig, autoregressive_step),
    "maskgit-2d": Arm(UNC, image=True),
    "maskvit": Arm(FP | dict(decode_steps=18), WindowConfig, image=True),
}


def arm_config(name: str, preset: TrainConfig, tokenizer: nn.Module) -> TrainConfig:
    """A preset's configuration with what an arm has otherwise."""
    arm = ARMS[name]
    config = replace(preset, **arm.settings)
    base = transformer_config(config, 0, tokenizer)
    if arm.kind is WindowConfig:
        t, h, w = base.grid
        more = dict(windows=((1, h, w), (t, min(4, h // 2), min(4, w // 2))))
    elif arm.kind:
        more = dict(prefix_length=max(int(given_tokens(
            tokenizer, task, config.clip_shape, config.condition_frames).sum())
            for task in config.tasks))
    return replace(config, transformer=arm.kind(**vars(base) | more) if arm.kind else base)


def way_of(run: Run) -> Callable | None:
    """How a run decodes where it is not by Algorithm 1: by the kind of its transformer, or, where
    it was trained without any condition (UNC), by latent masking."""
    ways = {PrefixTransformer: prefix_decode, WindowTransformer: latent_masking,
            AutoregressiveTransformer: autoregressive_decode}
    unconditional = all(TASKS[task].region is nothing for task in run.config.tasks)
    return ways.get(type(run.transformer), latent_masking if unconditional else None)


def train_arm(name: str, preset: TrainConfig, data: DataConfig | ClipSource, run: str | Path,
              tokenizer: str | Path, processes: Processes = Processes()) -> Run | None:
    """Train stage 2 of an arm in the folder `run`, or resume there; None where it was stopped.

    tokenizer: the run with tokenizer.pt, or for arms on 2D tokens with image.pt.
    """
    arm, run = ARMS[name], Path(run)
    source = Path(tokenizer) / ("image.pt" if arm.image else "tokenizer.pt")

    def tokenizer_of_the_run() -> dict:
        if not is_there(run / "tokenizer.pt"):
            if not source.exists():
                raise FileNotFoundError(f"no {source}; {name} needs one: python train.py PRESET "
                                        f"--stage {source.stem} --out {tokenizer}")
            with written_whole(run / "tokenizer.pt") as temporary:
                shutil.copy(source, temporary)
        return load_checkpoint(run / "tokenizer.pt")

    network = load_network(from_first(tokenizer_of_the_run, processes))
    config = arm_config(name, preset, network)
    clips, data = open_data(config, data, run, ["transformer"], processes)
    stage = make_stage("transformer", config, data, clips, run, processes)
    stage.step, batch_of = arm.step, stage.batch_of
    if arm.prompt:
        stage.batch_of = lambda step: batch_of(step)._replace(task=arm.prompt)
    transformer = stage.networks["transformer"]
    if isinstance(transformer, PrefixTransformer) and len(set(config.tasks)) == 1 and (
            not config.init):
        align_prefix(transformer, given_tokens(network, config.tasks[0], config.clip_shape,
                                               config.condition_frames))
    return load_run(run, processes.device) if fit(stage, config, run, processes) else None


def main() -> None:
    if len(sys.argv) < 3 or sys.argv[1] not in ARMS:
        sys.exit("usage: python -m comparisons.arms ARM RUN PRESET ...; RUN has the tokenizer, and "
                 f"ARM is one of {', '.join(ARMS)}")
    name, tokenizer = sys.argv[1:3]
    config, data, options = parse(arguments=sys.argv[3:])
    options.out = options.out or f"runs/{options.preset}-{name}"
    if options.dry_run:
        config = replace(config, **ARMS[name].settings)

    def train_one(config, data, run, *, processes, **others) -> bool:
        return train_arm(name, config, data, run, tokenizer, processes) is not None

    run_command(config, data, options, train=train_one)


if __name__ == "__main__":
    main()
