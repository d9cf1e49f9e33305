"""Two stages, one loop: the tokenizer, then the transformer on its tokens.

Paper   Sec. 3.1 and 3.2 (Training), App. B.2

Shapes  a step of stage 1                                             a step of stage 2
          BatchLoader       video (B, 3, T, H, W)   data/source.py      TokenSource: clips, z, z-tilde
          VideoTokenizer    reconstruction          tokenizer.py        commit_mask, Eq. (2)
          Discriminator3d   logits (B,)             discriminator.py    MaskedTransformer
          tokenizer_pass    losses, gradients       steps.py            commit_loss, Eq. (3)
          tokenizer_step    new weights             steps.py            transformer_step
          fit               rate, log, checkpoint   training/loop.py    fit

Read    train; then tokenizer_stage and transformer_stage, how each stage is set up.

Not here: what one step is (steps.py), the loop around it (training/loop.py), what can be set
        (training/presets.py), where weights start (training/start.py), numbers at the end
        (measure/report.py).

Run:    python train.py                                 the toy: both stages, pictures, numbers
        python train.py ucf101-B --data DIR             the paper's presets; --dry-run for the plan
        torchrun --nproc_per_node 8 train.py ucf101-L --data DIR
"""
from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import sys
import typing
from dataclasses import replace
from pathlib import Path
from typing import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from commit import TASKS
from data.clips import DataConfig, open_source
from data.source import BatchLoader, ClipSource, digest, fingerprint, held_out, to_float
from measure.pretrained import load_lpips
from measure.report import report
from steps import TokenBatch, tokenizer_step, transformer_step
from training.checkpoint import (as_plain, is_there, load_checkpoint, load_network, weights_hash)
from training.kernels import resolve_precision
from training.loop import OnStep, Stage, fit
from training.plan import plan
from training.presets import PRESETS, TASK_SETS, TrainConfig
from training.processes import Processes, from_first, start_processes, threads_of_this_process
from training.start import build, refuse_impossible, start_weights, usable_tasks
from training.tokens import TokenSource, open_table
from training.watch import HeldOut, TokenizerWatch

Tokens = Callable[[int], TokenBatch] | str | Path | None


def train(config: TrainConfig, data: DataConfig | ClipSource, run: str | Path, *,
          stage: str = "all", on_step: OnStep | None = None, tokens: Tokens = None,
          processes: Processes = Processes(), draw: bool = True) -> bool:
    """Train in the folder `run`, or resume there. True when the end was reached.

    data: where videos are, or any ClipSource. stage: "image" (2D), "tokenizer", "transformer", or
    "all" that the run needs. on_step(stage, step, terms) is called after every step, in the first
    process; numbers in a dict that it returns are logged. tokens: a folder of training.tokens, or
    a function step -> TokenBatch; either stands in for tokenizing clips in stage 2. draw: end with
    pictures and numbers. ValueError where settings cannot work together, before anything is
    trained.
    """
    run = Path(run)
    stages = stages_of(config, stage, run, processes)
    source, data = open_data(config, data, run, stages, processes)
    for name in stages:
        setup = make_stage(name, config, data, source, run, processes, tokens)
        if not fit(setup, config, run, processes, on_step):
            return False
    if processes.rank == 0 and draw and is_there(run / "transformer.pt"):
        report(run, source=unseen(config, data, source) if data.dataset.startswith("object")
               else None)
    return True


def stages_of(config: TrainConfig, stage: str, run: Path, processes: Processes) -> list[str]:
    """The stages to train. Frames come first (Sec. 3.1) where inflation asks for them."""
    def frames_first() -> bool:
        image = run / "image.pt"
        return not is_there(run / "tokenizer.pt") and not (
            is_there(image) and load_checkpoint(image)["finished"])

    stages = ["tokenizer", "transformer"] if stage == "all" else [stage]
    wanted = config.inflate and not config.init and "tokenizer" in stages
    if wanted and from_first(frames_first, processes):
        stages = ["image", *stages]
    return stages


def open_data(config: TrainConfig, data: DataConfig | ClipSource, run: Path, stages: list[str],
              processes: Processes) -> tuple[ClipSource, DataConfig]:
    """The clips of a run, and what its checkpoints say of them.

    ValueError where settings, stages and clips do not fit.
    """
    refuse_impossible(config, stages, processes.world)
    run.mkdir(parents=True, exist_ok=True)
    source = open_source(data, config.clip_shape, stride=config.stride, flip=config.flip,
                         crop=config.crop, index=run / "videos.json")
    if not isinstance(data, DataConfig):
        data = DataConfig(dataset=f"object {type(data).__name__}")
    data = replace(data.resolved(), class_names=tuple(source.class_names))
    shape = source.clip(0, None)[0].shape[:3]
    if shape[1:] != config.clip_shape[1:] or stages != ["image"] and shape[0] != config.frames:
        raise ValueError(f"clips of the data are {'x'.join(map(str, shape))} (T x H x W); the run "
                         f"is for {'x'.join(map(str, config.clip_shape))}: change --frames and "
                         "--resolution, or the data")
    if "transformer" in stages and not usable_tasks(config.tasks, len(source.class_names)):
        raise ValueError(f"the data have no classes, and {' '.join(config.tasks)} need some; give "
                         "videos in folders of the classes' names, or other --tasks")
    for name in stages:
        steps, warmup = config.steps(name, len(source))
        if not steps:
            raise ValueError(f"0 steps of the {name}; set its steps or epochs")
        if warmup >= steps and processes.rank == 0:
            print(f"warning: {steps} steps of the {name} and {warmup} of warm-up: the learning "
                  "rate never reaches its peak", file=sys.stderr)
    return source, data


def unseen(config: TrainConfig, data: DataConfig, source: ClipSource) -> ClipSource:
    """The clips that are kept from training, or, where there are none, the training clips."""
    if data.dataset.startswith("object"):
        return held_out(source) or source
    return open_source(data, config.clip_shape, stride=config.stride, held_out=True)


def make_stage(name: str, config: TrainConfig, data: DataConfig, source: ClipSource, run: Path,
               processes: Processes, tokens: Tokens = None) -> Stage:
    """A stage as the loop takes it, ready to begin or to resume."""
    resolved = replace(config, precision=resolve_precision(config.precision, processes.device))
    look = HeldOut(resolved, unseen(config, data, source), run) if (
        config.evaluate_every and processes.rank == 0 and name != "image") else None
    facts = dict(clips=len(source), fingerprint=fingerprint(source))
    saved = dict(config=dict(train=as_plain(config), data=as_plain(data)), facts=facts)
    if name == "transformer":
        return transformer_stage(resolved, data, source, run, processes, tokens, saved, look)
    return tokenizer_stage(name, resolved, source, run, processes, saved, look)


def tokenizer_stage(name: str, config: TrainConfig, source: ClipSource, run: Path,
                    processes: Processes, saved: dict, look: HeldOut | None) -> Stage:
    """Stage 1, or its 2D ancestor (stage "image"), with EMA and, if its weight is not 0, a GAN."""
    torch.manual_seed(config.seed)
    trainee = build(config, name, device=processes.device)
    tokenizer = trainee.networks["tokenizer"]
    # Process 0 decides where weights start, and the loop hands them to the others.
    saved["origin"] = (start_weights(trainee, name, config, source, run)
                       if processes.rank == 0 else {})
    saved["config"]["network"] = as_plain(tokenizer.config)
    if config.perceptual_weight and config.lpips_weights:
        trainee.perceptual = load_lpips(config.lpips_weights).to(processes.device)
    elif config.perceptual_weight and processes.rank == 0:
        print("no --lpips-weights: training without the perceptual loss (App. B.2 has it); python "
              "-m measure.pretrained tells where the weights are from", file=sys.stderr)
    saved["facts"]["lpips"] = trainee.perceptual is not None
    if config.compile:
        tokenizer.compile()       # not the discriminator: R1 differentiates twice, which it cannot
    steps, warmup = config.steps(name, len(source))
    loader = BatchLoader(source, config.tokenizer_batch, config.seed, processes.rank,
                         processes.world, total=steps, threads=threads_of_this_process(),
                         pinned=processes.device.type == "cuda")

    def batch_of(step: int) -> Tensor:
        clips, _ = loader(step)                                             # (B, T, H, W, 3)
        T = clips.shape[1]
        if name == "image" and T > 1:       # official: frames 3, 6, 10 and 13 of 16
            clips = clips[:, [round(k * T / 5) for k in range(1, 5)]]
        return to_float(clips.to(processes.device, non_blocking=True))      # (B, 3, T, H, W)

    watch = TokenizerWatch(tokenizer.codebook_size)
    stage = Stage(name, trainee, tokenizer_step, batch_of, loader.close, steps, warmup, saved,
                  watch)
    if look:
        stage.look = lambda: look.look_at_tokenizer(trainee.networks["ema"])
    return stage


def transformer_stage(config: TrainConfig, data: DataConfig, source: ClipSource, run: Path,
                      processes: Processes, tokens: Tokens, saved: dict, look: HeldOut | None
                      ) -> Stage:
    """Stage 2 on the frozen EMA tokenizer of the run."""
    state = from_first(lambda: load_checkpoint(run / "tokenizer.pt"), processes)
    if not state["finished"] and processes.rank == 0:
        print(f"the tokenizer has stopped at step {state['step']}; its weights of then are used",
              file=sys.stderr)
    tokenizer = load_network(state, processes.device)
    # Kinetics lies in folders with names, which frame prediction has no use for: no rows for them.
    named = data.dataset != "folder" or config.num_classes or any(
        TASKS[task].class_conditional for task in config.tasks)
    num_classes = len(source.class_names) if named else 0
    torch.manual_seed(config.seed)
    trainee = build(config, "transformer", num_classes=num_classes, tokenizer=tokenizer,
                    device=processes.device)
    transformer = trainee.networks["transformer"]
    saved["origin"] = (start_weights(trainee, "transformer", config, source, run)
                       if processes.rank == 0 else {})
    saved["config"]["network"] = as_plain(transformer.config)
    saved["facts"]["tokenizer"] = weights_hash(tokenizer)[:10]
    if not num_classes and processes.rank == 0 and "CFP" in config.tasks:
        print("no classes in the data: training without CFP; CG is unconditional", file=sys.stderr)
    if not callable(tokens):
        table = open_table(tokens) if tokens else None
        saved["facts"] |= dict(tokens=digest(table.facts)) if table else {}
        tokens = TokenSource(tokenizer, source, config, processes, num_classes, table=table,
                             pool=run / "pool")
    if config.compile:
        transformer.compile()
    steps, warmup = config.steps("transformer", len(source))
    stage = Stage("transformer", trainee, transformer_step, tokens,
                  getattr(tokens, "close", lambda: None), steps, warmup, saved)
    if look:
        stage.look = lambda: look.look_at_transformer(transformer, tokenizer)
    return stage


# ---------------------------------------------------------------------------------------------
# The command

def parse(presets: dict[str, TrainConfig] = PRESETS, arguments: list[str] | None = None
          ) -> tuple[TrainConfig, DataConfig, argparse.Namespace]:
    """Command line -> configurations and the other options. Exits with usage on a bad flag.

    The clips of a preset whose name begins with "toy" are drawn, unless --data gives videos.
    """
    parser = argparse.ArgumentParser(
        allow_abbrev=False, usage="%(prog)s [PRESET] [FLAGS]",
        description="Train MAGVIT: the tokenizer, then the transformer, then draw and measure. "
                    "Defaults are the preset's: PRESET --dry-run prints them.")
    first = next(iter(presets))
    parser.add_argument("preset", nargs="?", default=first, metavar="PRESET", choices=presets,
                        help="one of: " + " ".join(presets))
    parser.add_argument("--out", help="run folder (default runs/PRESET); an old one is resumed")
    parser.add_argument("--stage", default="all",
                        choices=["all", "image", "tokenizer", "transformer"], help="(default all)")
    parser.add_argument("--no-report", dest="draw", action="store_false",
                        help="stop after training, without pictures and numbers")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("--tokens", metavar="DIR", help="tokens for stage 2, made by python -m "
                        "training.tokens")
    add_flags(parser, DataConfig, dict(root="data", test_root="test-data", dataset=None,
                                       class_names=None), "videos")
    add_flags(parser, type(presets[first]), {})
    options = parser.parse_args(arguments)
    given = {name: value for name, value in vars(options).items() if value is not None}
    config = presets[options.preset]
    drawn = options.preset.startswith("toy") and not options.root
    try:
        changed = {field.name: given[field.name] for field in dataclasses.fields(config)
                   if field.name in given}
        if options.root and options.preset.startswith("toy"):
            changed.setdefault("num_classes", 0)
        if "tasks" in changed:
            changed["tasks"] = tuple(task for name in changed["tasks"]
                                     for task in TASK_SETS.get(name, (name,)))
        config = replace(config, **changed)
        data = DataConfig(**{field.name: given[field.name]
                             for field in dataclasses.fields(DataConfig) if field.name in given})
        data = replace(data, dataset="shapes" if drawn else "folder")
        if not drawn and not options.root and not options.dry_run:
            raise ValueError(f"{options.preset} needs --data, a folder of videos")
        if options.layout == "images" and options.stage != "image" and config.frames > 1:
            raise ValueError("--layout images has clips of one frame: --stage image, or --frames 1")
    except ValueError as error:
        parser.error(str(error))
    return config, data, options


def add_flags(parser: argparse.ArgumentParser, kind: type, names: dict, heading: str = ""
              ) -> None:
    """A flag for each field of a dataclass. The comment behind a field is its help, a comment
    line above some fields their heading. names: other names of flags; None: no flag."""
    helps: dict[str, str] = {}
    groups: dict[str, list[str]] = {heading: []}
    for base in reversed(kind.__mro__[:-1]):
        for line in inspect.getsource(base).splitlines():
            if title := re.match(r"    # (\w.*)", line):
                heading = title[1]
                groups.setdefault(heading, [])
            elif field := re.match(r"    (\w+): .*?  # (.*)", line):
                name = field[1]
                if name not in helps:               # a subclass may declare a field again
                    groups[heading].append(name)
                helps[name] = field[2]
            elif more := re.match(r"    # +(.*)", line):
                helps[name] += " " + more[1]
    hints = typing.get_type_hints(kind)
    for heading, fields in groups.items():
        group = parser.add_argument_group(heading)
        for name in fields:
            hint, flag = hints[name], names.get(name, name.replace("_", "-"))
            if hint is bool:
                options = dict(action=argparse.BooleanOptionalAction)
            elif name == "tasks":
                options = dict(nargs="+", choices=[*TASK_SETS, *TASKS], metavar="TASK")
            elif typing.get_origin(hint) is tuple:
                options = dict(nargs=len(typing.get_args(hint)), type=float, metavar="NUMBER")
            else:
                options = dict(type=hint if hint in (int, float) else str, metavar="VALUE")
            if flag:
                group.add_argument(f"--{flag}", dest=name, help=helps[name].replace("%", "%%"),
                                   **options)


def run_command(config: TrainConfig, data: DataConfig, options: argparse.Namespace,
                train: Callable[..., bool] = train) -> None:
    """What a training command does once its flags are read; mistakes end it in one line."""
    run = Path(options.out or f"runs/{options.preset}")
    try:
        if options.dry_run:
            refuse_impossible(config, ["tokenizer", "transformer"])
            print(plan(options.preset, config))
            return
        # On each machine one process counts frames, while the others wait for as long as it takes.
        processes = start_processes(before=lambda: open_source(
            data, config.clip_shape, stride=config.stride, index=run / "videos.json"))
        train(config, data, run, stage=options.stage, tokens=options.tokens, processes=processes,
              draw=options.draw)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"train.py: {error}")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def main() -> None:
    run_command(*parse())


if __name__ == "__main__":
    main()
