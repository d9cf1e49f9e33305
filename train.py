"""Two stages, one loop: the tokenizer, then the transformer on its tokens.

Paper   Sec. 3.1 and 3.2 (Training), App. B.2

Shapes  a step of stage 1                                             a step of stage 2
          BatchLoader       video (B, 3, T, H, W)   data/loader.py      BatchLoader, encode
          VideoTokenizer    reconstruction          tokenizer.py        make_condition, encode
          Discriminator3d   logits (B,)             discriminator.py    commit_mask, Eq. (2)
          tokenizer_pass    losses, gradients       steps.py            MaskedTransformer
          tokenizer_step    new weights             steps.py            commit_loss, Eq. (3)
          fit               rate, log, checkpoint   training/loop.py    transformer_step, fit

Read    train; then train_tokenizer and train_transformer, how each stage is set up.

Not here: what one step is (steps.py), the loop around it (training/loop.py), what can be set
        (training/presets.py, training/command.py), where weights start (training/start.py),
        numbers at the end (measure/report.py).

Run:    python train.py                                 the toy: both stages, pictures, numbers
        python train.py ucf101-B --data DIR             the paper's presets; --dry-run for the plan
        torchrun --nproc_per_node 8 train.py ucf101-L --data DIR
"""
from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data.clips import DataConfig, open_source
from data.source import ClipSource, digest, to_float
from measure.pretrained import load_lpips
from measure.report import report
from steps import TokenBatch, tokenizer_step, transformer_step
from training.build import build
from training.checkpoint import is_finished, load_checkpoint, load_network, weights_hash
from training.command import parse
from training.heldout import HeldOut
from training.loop import Stage, fit
from training.plan import plan
from training.presets import TrainConfig
from training.processes import Processes, from_first, start_processes
from training.start import check_all, classes_used, facts_of, start_stage
from training.stored import open_table
from training.tokens import TokenSource, batches_ahead
from training.watch import TokenizerWatch

Tokens = Callable[[int], TokenBatch] | str | Path | None


def train(config: TrainConfig, data: DataConfig | ClipSource, run: str | Path, *,
          stage: str = "all", on_step: Callable[[str, int, dict], dict | None] | None = None,
          tokens: Tokens = None, processes: Processes = Processes(), draw: bool = True,
          prepare: Callable[[Stage], None] = lambda stage: None) -> bool:
    """Train in the folder `run`, or go on there. True when the end was reached.

    data: where videos are, or any ClipSource. stage: "image" (2D), "tokenizer", "transformer", or
    "all" that the run needs. on_step(stage, step, terms) is called after every step, in the first
    process; what it returns is logged. tokens: a folder of training.stored, or a function step ->
    TokenBatch; either stands in for tokenizing clips in stage 2. draw: end with pictures and
    numbers. prepare(stage) may change a stage before it begins. Raises ValueError where settings
    cannot work together, before anything is trained.
    """
    run = Path(run)
    run.mkdir(parents=True, exist_ok=True)
    source = open_source(data, config.clip_shape, stride=config.stride, flip=config.flip,
                         crop=config.crop, index=run / "videos.json")
    data = replace(data.resolved() if isinstance(data, DataConfig) else
                   DataConfig(dataset=f"object {type(data).__name__}"),
                   class_names=tuple(source.class_names))
    first = ["image"] * bool(config.inflate and not from_first(
        lambda: is_finished(run / "image.pt"), processes))
    stages = {"all": [*first, "tokenizer", "transformer"]}.get(stage, [stage])
    check_all(config, stages, source, processes)
    kept = source.held_out or source if data.dataset.startswith("object") else None
    on_step = HeldOut(config, lambda: kept or open_source(
        data, config.clip_shape, stride=config.stride, held_out=True), run, on_step)
    for name in stages:
        setup = (train_transformer(config, data, source, run, processes, tokens)
                 if name == "transformer" else
                 train_tokenizer(config, data, source, run, processes, name))
        prepare(setup)
        if not fit(setup, config, run, processes, on_step):
            return False
    if processes.rank == 0 and draw and (run / "transformer.pt").exists():
        report(run, source=kept)
    return True


def train_tokenizer(config: TrainConfig, data: DataConfig, source: ClipSource, run: Path,
                    processes: Processes, stage: str = "tokenizer") -> Stage:
    """Stage 1, or its 2D ancestor (stage "image"), with EMA and, if its weight is not 0, a GAN."""
    torch.manual_seed(config.seed)
    trainee = build(config, stage, device=processes.device)
    tokenizer = trainee.networks["tokenizer"]
    # Process 0 decides where weights start, and the loop hands them to the others.
    origin = start_stage(trainee, stage, config, source, run) if processes.rank == 0 else {}
    trainee.perceptual = perceptual_loss(config, processes)
    if config.compile:
        tokenizer.compile()       # not the discriminator: R1 differentiates twice, which it cannot

    steps, warmup = config.steps("tokenizer", len(source))
    watch = TokenizerWatch(tokenizer.codebook_size)
    loader = batches_ahead(source, config.tokenizer_batch, config.seed, processes, steps)

    def batch_of(step: int) -> Tensor:
        clips, _ = loader(step)                                             # (B, T, H, W, 3)
        T = clips.shape[1]
        if stage == "image" and T > 1:      # official: frames 3, 6, 10 and 13 of 16
            clips = clips[:, [round(k * T / 5) for k in range(1, 5)]]
        return to_float(clips.to(processes.device, non_blocking=True))      # (B, 3, T, H, W)

    return Stage(stage, trainee, tokenizer_step, batch_of, config.tokenizer_rate, steps, warmup,
                 config.tokenizer_batch, dict(network=tokenizer.config, train=config, data=data),
                 facts_of(source) | dict(lpips=trainee.perceptual is not None),
                 watch.measure, watch, origin, loader.close)


def train_transformer(config: TrainConfig, data: DataConfig, source: ClipSource, run: Path,
                      processes: Processes, tokens: Tokens = None) -> Stage:
    """Stage 2 on the frozen EMA tokenizer of the run."""
    state = from_first(lambda: load_checkpoint(run / "tokenizer.pt"), processes)
    if not state["finished"] and processes.rank == 0:
        print(f"the tokenizer has stopped at step {state['step']}; its weights of then are used",
              file=sys.stderr)
    tokenizer = load_network(state, processes.device)
    torch.manual_seed(config.seed)
    num_classes = classes_used(config, data, source)
    trainee = build(config, "transformer", num_classes=num_classes, tokenizer=tokenizer,
                    device=processes.device)
    transformer = trainee.networks["transformer"]
    origin = start_stage(trainee, "transformer", config, source, run, tokenizer.latent_shape(
        *config.clip_shape)) if processes.rank == 0 else {}
    facts = facts_of(source) | dict(tokenizer=weights_hash(tokenizer)[:10])
    if not callable(tokens):
        table = open_table(tokens) if tokens else None
        facts |= dict(tokens=digest(table.facts)) if table else {}
        tokens = TokenSource(tokenizer, source, config, processes, num_classes, table, run / "pool")
    if config.compile:
        transformer.compile()
    steps, warmup = config.steps("transformer", len(source))
    return Stage("transformer", trainee, transformer_step, tokens, config.transformer_rate, steps,
                 warmup, config.transformer_batch, dict(
                     network=transformer.config, train=config, data=data), facts,
                 origin=origin, close=getattr(tokens, "close", lambda: None))


def perceptual_loss(config: TrainConfig, processes: Processes) -> nn.Module | None:
    """LPIPS-VGG from --lpips-weights; without them the term is absent, and that is said."""
    if config.perceptual_weight and config.lpips_weights:
        return load_lpips(config.lpips_weights).to(processes.device)
    if config.perceptual_weight and processes.rank == 0:
        print("no --lpips-weights: training without the perceptual loss (App. B.2 has it); python "
              "-m measure.pretrained tells where the weights are from", file=sys.stderr)
    return None


def main() -> None:
    config, data, options = parse()
    if options.dry_run:
        return print(plan(options.preset, config))
    run = Path(options.out or f"runs/{options.preset}")
    try:
        # Frames are counted by one process, while the others wait for as long as that takes.
        processes = start_processes(before=lambda: open_source(
            data, config.clip_shape, stride=config.stride, index=run / "videos.json"))
        train(config, data, run, stage=options.stage, tokens=options.tokens, processes=processes,
              draw=options.draw)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"train.py: {error}")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
