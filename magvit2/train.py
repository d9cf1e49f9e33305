"""The sequel's training: the first paper's two stages, with an entropy loss that starts stronger.

Paper   MAGVIT-v2, App. A.1 and A.2

Shapes  as in train.py; a batch of stage 1 comes with the number of its step

Read    train, beside the first paper's in train.py; annealed.

Run:    python -m magvit2.train toy-v2                  both stages, pictures, numbers
        python -m magvit2.train k600-v2 --data DIR      flags as of train.py; --dry-run for the plan
"""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from data.clips import DataConfig
from data.source import ClipSource
from magvit2.presets import PRESETS, SequelConfig
from measure.report import report
from steps import Trainee, tokenizer_step
from train import Tokens, make_stage, open_data, parse, run_command, stages_of, unseen
from training.checkpoint import is_there
from training.loop import OnStep, Stage, fit
from training.processes import Processes


def train(config: SequelConfig, data: DataConfig | ClipSource, run: str | Path, *,
          stage: str = "all", on_step: OnStep | None = None, tokens: Tokens = None,
          processes: Processes = Processes(), draw: bool = True) -> bool:
    """As train.train; in stage 1 the entropy's weight falls from step to step."""
    run = Path(run)
    stages = stages_of(config, stage, run, processes)
    source, data = open_data(config, data, run, stages, processes)
    for name in stages:
        setup = make_stage(name, config, data, source, run, processes, tokens)
        if name != "transformer":
            anneal(setup)
        if not fit(setup, config, run, processes, on_step):
            return False
    if processes.rank == 0 and draw and is_there(run / "transformer.pt"):
        report(run, source=unseen(config, data, source) if data.dataset.startswith("object")
               else None)
    return True


def anneal(stage: Stage) -> None:
    """Let a stage's step take the entropy's weight that belongs to the step."""
    batch_of = stage.batch_of

    def step(trainee: Trainee, numbered: tuple[int, Tensor], config: SequelConfig) -> dict:
        number, video = numbered
        return tokenizer_step(trainee, video, replace(
            config, entropy_weight=config.entropy_weight_at(number)))

    stage.batch_of, stage.step = lambda number: (number, batch_of(number)), step


def main() -> None:
    run_command(*parse(PRESETS), train=train)


if __name__ == "__main__":
    main()
