"""The models of the tables, each trained by one command on the toy or on real data.

Paper   Table 4 (UNC, FP, MT), Table 5 (conditions and losses), Table 6 (decoding methods)

Shapes  a preset's TrainConfig, an Arm -> TrainConfig, the step of stage 2 -> a run like any other

Read    ARMS, the rows of the tables; then train_arm, and Laptop, which trains them on the toy.

Seed, clips, batches, steps and sizes are equal in all arms of a preset. The run of an arm is
evaluated as any other (evaluate.py), in its own way; but mt-one-prompt by table_4 alone.

Run:    python -m comparisons.arms autoregressive RUN bair-B --data DIR    (RUN: the tokenizer's)
"""
from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable

import torch.distributed as dist
from torch import nn

from commit import MT8, TASKS, nothing
from comparisons.autoregressive import (AutoregressiveConfig, AutoregressiveTransformer,
                                        autoregressive_decode, autoregressive_step)
from comparisons.baselines import (PrefixConfig, PrefixTransformer, WindowConfig,
                                   WindowTransformer, align_prefix, given_tokens, latent_masking,
                                   prefix_decode, prefix_step)
from data.clips import DataConfig
from data.source import ClipSource
from steps import transformer_step
from train import make_stage, open_data, parse, run_command, train
from training.checkpoint import Run, is_there, load_checkpoint, load_network, load_run
from training.loop import fit
from training.presets import PRESETS, TrainConfig
from training.processes import Processes
from training.start import transformer_config
from transformer import TransformerConfig

TOY, STOPPED = Path("assets/toy"), "stopped; the same command goes on from here"


@dataclass(frozen=True)
class Arm:
    """What a model of the tables has otherwise than the preset."""

    title: str
    settings: dict                                        # of TrainConfig, where it differs
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
    "autoregressive-cg": Arm("Autoregressive, of classes (MAGVIT-v2, Table 8)", dict(tasks=("CG",)),
                             AutoregressiveConfig, autoregressive_step),
    "maskgit-2d": Arm("MaskGIT, 2D-VQ", _unc, image=True),
    "maskvit": Arm("MaskViT, 2D-VQ", dict(**_fp, decode_steps=18), WindowConfig, image=True),
}


def arm_config(name: str, preset: TrainConfig, tokenizer: nn.Module) -> TrainConfig:
    """A preset's configuration with what an arm has otherwise."""
    arm, config = ARMS[name], replace(preset, **ARMS[name].settings)
    more, (t, h, w) = {}, tokenizer.latent_shape(*config.clip_shape)
    if arm.kind is WindowConfig:
        more = dict(windows=((1, h, w), (t, min(4, h // 2), min(4, w // 2))))
    elif arm.kind is not None:
        more = dict(prefix_length=max(int(given_tokens(
            tokenizer, task, config.clip_shape, config.condition_frames).sum())
            for task in config.tasks))
    base = transformer_config(config, 0, tokenizer)
    return replace(config, transformer=(arm.kind or type(base))(**vars(base) | more))


def way_of(run: Run) -> Callable | None:
    """How a run decodes where it is not by Algorithm 1: by the kind of its transformer, or, where
    it was trained without any condition (UNC), by latent masking."""
    ways = {PrefixTransformer: prefix_decode, WindowTransformer: latent_masking,
            AutoregressiveTransformer: autoregressive_decode}
    unconditional = all(TASKS[task].region is nothing for task in run.config.tasks)
    return ways.get(type(run.transformer), latent_masking if unconditional else None)


def train_arm(name: str, preset: TrainConfig, data: DataConfig | ClipSource, run: str | Path,
              tokenizer: str | Path, processes: Processes = Processes()) -> Run | None:
    """Train stage 2 of an arm in the folder `run`, or go on there; None where it was stopped.

    tokenizer: the run with tokenizer.pt, or for arms on 2D tokens with image.pt.
    """
    arm, run = ARMS[name], Path(run)
    made = Path(tokenizer) / ("image.pt" if arm.image else "tokenizer.pt")
    if processes.rank == 0 and not is_there(run / "tokenizer.pt"):
        if not made.exists():
            raise FileNotFoundError(f"no {made}; {name} needs one: python train.py PRESET --stage "
                                    f"{made.stem} --out {tokenizer}")
        run.mkdir(parents=True, exist_ok=True)
        shutil.copy(made, run / "tokenizer.copying")
        (run / "tokenizer.copying").rename(run / "tokenizer.pt")
    if dist.is_initialized():
        dist.barrier()                               # the others read what the first has copied
    network = load_network(load_checkpoint(run / "tokenizer.pt"))
    config = arm_config(name, preset, network)
    source, data = open_data(config, data, run, ["transformer"], processes)
    stage = make_stage("transformer", config, data, source, run, processes)
    stage.step, batch_of = arm.step, stage.batch_of
    if arm.prompt:
        stage.batch_of = lambda step: batch_of(step)._replace(task=arm.prompt)
    if arm.kind in (PrefixConfig, AutoregressiveConfig) and (
            len(set(config.tasks)) == 1 and not config.init):
        align_prefix(stage.networks["transformer"], given_tokens(
            network, config.tasks[0], config.clip_shape, config.condition_frames))
    return load_run(run, processes.device) if fit(stage, config, run, processes) else None


@dataclass(frozen=True)
class Laptop:
    """Where the arms of a table lie, and how long each is trained on drawn clips."""

    folder: Path
    steps: int = 4000                                     # of stage 2
    seed: int = 0

    def arm(self, name: str) -> Run:
        """The run of an arm, trained where it is not yet."""
        preset = replace(PRESETS["toy"], transformer_steps=self.steps, seed=self.seed)
        if ARMS[name].image:
            self.tokenizer("image-8", "image", tokenizer_batch=16)
        run = train_arm(name, preset, DataConfig(dataset="shapes"), self.folder / name,
                        self.folder / "image-8" if ARMS[name].image else TOY)
        return run or sys.exit(STOPPED)

    def tokenizer(self, name: str, stage: str, **settings) -> nn.Module:
        """The tokenizer of the toy, stage "tokenizer" or "image", with settings changed."""
        config, run = replace(PRESETS["toy"], seed=self.seed, **settings), self.folder / name
        if not train(config, DataConfig(dataset="shapes"), run, stage=stage, draw=False):
            sys.exit(STOPPED)
        return load_network(load_checkpoint(run / f"{stage}.pt"))


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
