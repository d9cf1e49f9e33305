"""Where a stage's weights start: at random, at clips, at a 2D network, or at another run.

Paper   Sec. 3.1 and Table 7 (inflation); the rest is ours

Shapes  a Trainee with fresh weights -> the same Trainee, its weights changed in place

Read    check_all, all that is checked before a first step; start_stage, which says what happens
        when; then each way to start.

Run:    python -m training.start     which token a token of the toy attends to before any training
"""
from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from commit import TASKS
from data.clips import DataConfig
from data.source import ClipSource, load_batch
from steps import Trainee
from tokenizer import TokenizerConfig, inflate
from training.build import differences, from_plain, refuse_impossible, transformer_config
from training.checkpoint import is_there, load_checkpoint, load_network
from training.plan import doubts
from training.presets import TrainConfig
from training.processes import Processes
from transformer import TRANSFORMERS, MaskedTransformer, TransformerConfig


def check_all(config: TrainConfig, stages: list[str], source: ClipSource, processes: Processes
              ) -> None:
    """ValueError where settings, stages and clips do not fit, before training; doubts are said."""
    if not set(stages) <= {"image", "tokenizer", "transformer"}:
        raise ValueError(f"stage {stages[0]!r} is unknown; choose all, image, tokenizer or "
                         "transformer")
    shape = source.clip(0, None)[0].shape[:3]
    if shape[1:] != config.clip_shape[1:] or stages != ["image"] and shape[0] != config.frames:
        raise ValueError(f"clips of the data are {'x'.join(map(str, shape))} (T x H x W); the run "
                         f"is for {'x'.join(map(str, config.clip_shape))}: change --frames and "
                         "--resolution, or the data")
    for name in stages:
        if not config.steps(name, len(source))[0]:
            raise ValueError(f"0 steps of the {name}; set its steps or epochs")
    refuse_impossible(config, stages, len(source.class_names), processes.world)
    if config.init and stages != ["image"]:
        refuse_other_networks(config, stages, len(source.class_names))
    for name in stages if processes.rank == 0 else []:
        for words in doubts(config, name, len(source)):
            print(f"warning: {words}", file=sys.stderr)


def classes_used(config: TrainConfig, data: DataConfig, source: ClipSource) -> int:
    """How many classes the vocabulary has rows for: none where no task asks for one.

    Kinetics lies in folders with names, which frame prediction has no use for.
    """
    used = data.dataset != "folder" or any(TASKS[task].class_conditional for task in config.tasks)
    return len(source.class_names) if used else 0


def facts_of(source: ClipSource) -> dict[str, object]:
    """What tells these clips from others: a run that was stopped goes on with the same alone."""
    return dict(clips=len(source), fingerprint=source.fingerprint())


def start_stage(trainee: Trainee, stage: str, config: TrainConfig, source: ClipSource, run: Path,
                grid: tuple[int, int, int] | None = None) -> dict:
    """Change a stage's fresh weights to those that the configuration asks for.

    grid: (t, h, w) of the tokens, for stage 2. Returns what a checkpoint should say of it: nothing,
    or the run that the weights are from.
    """
    if is_there(run / f"{stage}.pt"):
        return {}                                        # the weights are in the checkpoint
    if stage == "transformer":
        transformer = trainee.networks["transformer"]
        if config.init:
            return transformer_from_run(transformer, Path(config.init), source.class_names)
        if config.start_local:
            start_local(transformer, grid)
        return {}
    tokenizer, origin = trainee.networks["tokenizer"], {}
    if config.init and stage == "tokenizer":
        origin = tokenizer_from_run(trainee, Path(config.init))
    elif config.inflate and stage == "tokenizer":
        state = load_checkpoint(run / "image.pt")
        inflate(state["ema"], tokenizer, config.inflate)
        if "discriminator" in trainee.networks and config.inflate != "last":
            inflate(state["discriminator"], trainee.networks["discriminator"], config.inflate)
    elif config.codebook_from_data:
        device = next(tokenizer.parameters()).device
        codebook_from_data(tokenizer, load_batch(source, 0, 16, config.seed)[0].to(device),
                           config.seed)
    trainee.networks["ema"].load_state_dict(tokenizer.state_dict())
    return origin


@torch.no_grad()
def codebook_from_data(tokenizer: nn.Module, video: Tensor, seed: int) -> None:
    """Start the codes at latents of real clips: a short run has no time to move them there.

    The first code is a latent drawn at random. Each further one is drawn with its squared
    distance to the nearest code so far as its chance (k-means++), so that a wide plain background
    gets a few codes and not most of them. Latents should start small (TokenizerConfig's
    latent_gain), or the quickest way to less loss is to make them all alike.
    """
    latents = rearrange(tokenizer.latents(video), "b d t h w -> (b t h w) d").cpu()
    generator = torch.Generator().manual_seed(seed)
    chance = torch.full((len(latents),), 1e6)             # before the first code: all alike
    for code in tokenizer.quantizer.codebook:
        # Where every latent is a code already, the 1e-9 makes the choice uniform.
        place = torch.multinomial(chance + 1e-9, 1, generator=generator)[0]
        code.copy_(latents[place])
        chance = chance.minimum((latents - latents[place]).square().sum(1))


@torch.no_grad()
def start_local(model: MaskedTransformer, grid: tuple[int, int, int]) -> None:
    """For short runs: let each token attend to its neighbours from the first step on.

    The positions of the (t, h, w) grid start as waves along the three axes, so that near ones are
    alike. Keys start equal to queries, so that like attends to like. Both are trained from there
    on as ever; a laptop's minutes are too few to find locality from random positions.
    """
    size = model.config.hidden_size
    widths = (size // 4, 3 * size // 8, 3 * size // 8)                # of the t, h and w waves
    waves = []
    for axis, (length, width) in enumerate(zip(grid, widths)):
        periods = 2.0 ** torch.linspace(0, math.log2(2 * length), width // 2)
        angle = torch.arange(length)[:, None] * math.pi / periods             # (length, width / 2)
        shape = [1, 1, 1, width]
        shape[axis] = length
        waves.append(torch.cat([angle.sin(), angle.cos()], 1).view(shape).expand(*grid, width))
    positions = rearrange(torch.cat(waves, -1), "t h w d -> (t h w) d")
    model.position_embedding.weight[-len(positions):] = 0.2 * positions
    for block in model.blocks:
        query, key, _ = block.attention.query_key_value.weight.chunk(3)
        query *= 0.15 / model.config.initial_deviation
        key.copy_(query)


# ---------------------------------------------------------------------------------------------
# From another run (fine-tuning)

def tokenizer_from_run(trainee: Trainee, init: Path) -> dict:
    """The averaged weights of another run's tokenizer; its discriminator where both have one."""
    state = load_checkpoint(init / "tokenizer.pt")
    trainee.networks["tokenizer"].load_state_dict(load_network(state).state_dict())
    if "discriminator" in trainee.networks and "discriminator" in state:
        trainee.networks["discriminator"].load_state_dict(state["discriminator"])
    return dict(run=str(init.resolve()), step=state["step"])


def refuse_other_networks(config: TrainConfig, stages: list[str], num_classes: int) -> None:
    """ValueError, before anything is trained, where the run config.init has other networks."""
    init = Path(config.init)
    saved = {stage: load_checkpoint(init / f"{stage}.pt")["config"]["network"] for stage in stages}
    if "tokenizer" in saved:
        ours, theirs = config.tokenizer_config(), from_plain(saved["tokenizer"], TokenizerConfig)
        if type(ours) is not type(theirs) or differences(theirs, ours):
            raise ValueError(f"the tokenizer of {init} is {theirs}; this run's is {ours}: give "
                             "--tokenizer and --padding of that run")
    if "transformer" in saved:
        refuse_other_size(transformer_config(config, num_classes),
                          from_plain(saved["transformer"], TransformerConfig), init)


def refuse_other_size(ours: TransformerConfig, theirs: TransformerConfig, init: Path) -> None:
    """ValueError where a transformer cannot start from that of the run `init`."""
    names = ("num_classes", "num_tasks", "task_names", "hidden_dropout", "attention_dropout")
    if replace(theirs, **{name: getattr(ours, name) for name in names}) != ours:
        raise ValueError(f"the transformer of {init} is {theirs}; this run's is {ours}: only "
                         "classes, tasks and dropout may differ")


@torch.no_grad()
def transformer_from_run(model: MaskedTransformer, init: Path, class_names: list[str]) -> dict:
    """The weights of another run's transformer, its vocabulary translated to this run's.

    Codes and [MASK] keep their rows. A class, and a task's prompt, take the row of the class or
    task of the same name; those that are new keep the row they were drawn with. ValueError where
    anything else differs: another grid of tokens, other sizes, another codebook.
    """
    state = load_checkpoint(init / "transformer.pt")
    other = load_network(state)
    refuse_other_size(model.config, other.config, init)
    if model.config.table_size != model.config.vocabulary_size:
        raise ValueError(f"a {type(model).__name__} has no row for each code, and cannot start "
                         f"from {init}; give --stage tokenizer")
    theirs = list(state["config"]["data"]["class_names"])
    rows = {code: code for code in range(model.config.codebook_size)}             # ours -> theirs
    first, first_there = (network.config.codebook_size for network in (model, other))
    rows |= {first + i: first_there + theirs.index(name)
             for i, name in enumerate(class_names) if name in theirs}
    rows |= {first + model.no_class: first_there + other.no_class, model.mask_id: other.mask_id}
    prompts, prompts_there = first + model.no_class + 1, first_there + other.no_class + 1
    rows |= {prompts + i: prompts_there + other.prompts.index(task)
             for i, task in enumerate(model.prompts) if task in other.prompts}
    weights, ours = other.state_dict(), model.state_dict()
    for name in ("token_embedding.weight", "head_bias"):
        table = ours[name].clone()
        table[list(rows)] = weights[name][list(rows.values())].to(table)
        weights[name] = table
    model.load_state_dict(weights)
    new = [name for name in class_names if name not in theirs]
    if new:
        print(f"{len(new)} of {len(class_names)} classes are new to {init}: {', '.join(new[:5])}",
              file=sys.stderr)
    return dict(run=str(init.resolve()), step=state["step"])


def main() -> None:
    """Attention of the first layer, from a token in the middle to its own latent frame."""
    config, grid = replace(TRANSFORMERS["toy"], num_classes=16), (4, 4, 4)
    for name in ("at random", "start_local"):
        torch.manual_seed(0)
        model = MaskedTransformer(config)
        if name == "start_local":
            start_local(model, grid)
        block = model.blocks[0].attention
        x = model.embedding_norm(model.position_embedding.weight[2:])
        query, key, _ = rearrange(block.query_key_value(x), "n (three heads d) -> three heads n d",
                                  three=3, heads=block.num_heads)
        weight = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1).mean(0)
        frame = weight.view(*grid, *grid)[1, 1, 1, 1]
        print(f"{name}: what token (1, 1, 1) attends to in its frame, in percent")
        for row in (100 * frame).tolist():
            print("   ", *(f"{value:5.1f}" for value in row))


if __name__ == "__main__":
    main()
