"""A stage's networks and optimizers, and where its weights start.

Paper   App. A.1, A.2 and B.2 (sizes, optimizers), Sec. 3.1 and Table 7 (inflation); the other ways
        to start are ours

Shapes  TrainConfig, stage -> build -> Trainee with fresh weights -> start_weights changes them

Read    build, transformer_config; start_weights, then each way to start.
"""
from __future__ import annotations

import copy
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import torch
from einops import rearrange
from torch import Tensor, nn

from commit import MT10, TASKS
from data.source import ClipSource, load_batch
from discriminator import LeCam
from steps import Trainee
from tokenizer import Encoder, ResidualBlock, inflate
from training.checkpoint import from_plain, is_there, load_checkpoint, load_network
from training.kernels import use
from training.presets import TrainConfig
from transformer import TransformerConfig


def build(config: TrainConfig, stage: str, *, num_classes: int = 0,
          tokenizer: nn.Module | None = None, device: torch.device | str = "cpu") -> Trainee:
    """What a stage trains, with fresh weights: "image", "tokenizer" or "transformer".

    Stage 1 has the tokenizer, its moving average and, if its weight is not 0, an adversary; stage
    2 the transformer, for num_classes and for `tokenizer` (by default, the configuration's).
    """
    networks = build_networks(config, stage, num_classes, tokenizer)
    for network in networks.values():
        use(network).to(device)
    return Trainee(networks, build_optimizers(networks, config))


def build_networks(config: TrainConfig, stage: str, num_classes: int = 0,
                   tokenizer: nn.Module | None = None) -> dict[str, nn.Module]:
    """The networks of build, by name."""
    if stage == "transformer":
        networks = dict(transformer=transformer_config(config, num_classes, tokenizer).build())
    else:
        configs = dict(tokenizer=config.tokenizer_config())
        if config.adversarial_weight:
            configs["discriminator"] = config.discriminator_config()
        networks = {name: (each.image_twin() if stage == "image" else each).build()
                    for name, each in configs.items()}
        if config.adversarial_weight:
            networks["lecam"] = LeCam()
        networks["ema"] = copy.deepcopy(networks["tokenizer"]).requires_grad_(False)
    for network in networks.values():
        for module in network.modules():
            if hasattr(module, "recompute"):
                module.recompute = config.recompute
    return networks


def build_optimizers(networks: dict[str, nn.Module], config: TrainConfig
                     ) -> dict[str, torch.optim.Optimizer]:
    """The optimizers of build, by the names of the networks that they update (App. B.2)."""
    if "transformer" in networks:
        decayed, free = decay_groups(networks["transformer"])
        return dict(transformer=torch.optim.AdamW(
            [dict(params=decayed, weight_decay=config.weight_decay),
             dict(params=free, weight_decay=0.0)],
            lr=config.transformer_rate, fused=True,
            betas=(config.transformer_beta1, config.transformer_beta2)))
    return {name: torch.optim.Adam(networks[name].parameters(), lr=config.tokenizer_rate,
                                   betas=(config.tokenizer_beta1, config.tokenizer_beta2),
                                   fused=True)
            for name in ("tokenizer", "discriminator") if name in networks}


def decay_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters with weight decay, the matrices of linear layers, and those without (official)."""
    matrices = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    chosen = {id(matrix) for matrix in matrices}
    return matrices, [p for p in model.parameters() if id(p) not in chosen]


def transformer_config(config: TrainConfig, num_classes: int, tokenizer: nn.Module | None = None
                       ) -> TransformerConfig:
    """The transformer that fits a tokenizer (by default the configuration's) and its clips.

    It has the paper's ten prompts, and more only for tasks of the run that are not among them.
    """
    tokenizer = tokenizer or without_weights(config.tokenizer_config().build)
    grid, tasks = tokenizer.latent_shape(*config.clip_shape), tuple(dict.fromkeys(config.tasks))
    return replace(config.transformer_config(), codebook_size=tokenizer.codebook_size,
                   num_tokens=math.prod(grid), grid=grid, num_classes=num_classes,
                   tasks=(*MT10, *(task for task in tasks if task not in MT10)),
                   trained_tasks=tuple(usable_tasks(tasks, num_classes)))


def usable_tasks(tasks: tuple[str, ...], num_classes: int) -> list[str]:
    """The tasks that data with so many classes can be used for, in their order."""
    return [task for task in tasks if num_classes or not TASKS[task].needs_classes]


def without_weights(make: Callable[[], Any]) -> Any:
    """make() on the meta device, whose tensors have shapes but no numbers.

    For real where the constructor needs numbers, which a tokenizer of one's own may.
    """
    try:
        with torch.device("meta"):
            return make()
    except (RuntimeError, NotImplementedError):
        return make()


def refuse_impossible(config: TrainConfig, stages: list[str], world: int = 1) -> None:
    """ValueError, before anything is opened or trained, where some stage could not begin."""
    config.check()
    for stage in stages:
        if stage not in ("image", "tokenizer", "transformer"):
            raise ValueError(f"stage {stage!r} is unknown; choose all, image, tokenizer or "
                             "transformer")
        if config.of(stage, "batch") % world:
            raise ValueError(f"the batch of stage {stage} is {config.of(stage, 'batch')}; wanted a "
                             f"multiple of the {world} processes")
    if config.adversarial_weight and stages != ["transformer"]:
        config.discriminator_config()
    if "image" in stages and not hasattr(config.tokenizer_config(), "image_twin"):
        raise ValueError(f"a {type(config.tokenizer_config()).__name__} has no image_twin, whose "
                         "frames could come first; give --inflate \"\"")
    tokenizer = without_weights(config.tokenizer_config().build)
    size = transformer_config(config, config.num_classes, tokenizer)
    if size.hidden_size % size.num_heads:
        raise ValueError(f"hidden size {size.hidden_size} does not make {size.num_heads} heads")
    if "transformer" in stages and config.start_local and size.hidden_size % 16:
        raise ValueError(f"start_local needs a hidden size that 16 divides, got {size.hidden_size}")
    if config.codebook_from_data and not hasattr(getattr(tokenizer, "quantizer", 0), "codebook"):
        raise ValueError(f"a {type(tokenizer).__name__} has no codebook to start; give "
                         "--no-codebook-from-data")
    if config.init:
        refuse_other_networks(config, stages)


# ---------------------------------------------------------------------------------------------
# Where weights start

def start_weights(trainee: Trainee, stage: str, config: TrainConfig, source: ClipSource, run: Path
                  ) -> dict:
    """Change a stage's fresh weights to those that the configuration asks for.

    Returns what a checkpoint should say of it: nothing, or the run that the weights are from.
    """
    networks, origin = trainee.networks, {}
    if is_there(run / f"{stage}.pt"):
        return origin                                    # the weights are in the checkpoint
    if config.init and stage != "image":
        init = Path(config.init)
        state = load_checkpoint(init / f"{stage}.pt")
        origin = dict(run=str(init.resolve()), step=state["step"])
    if stage == "transformer":
        if config.init:
            take_vocabulary(networks["transformer"], state, source.class_names)
        elif config.start_local:
            start_local(networks["transformer"], networks["transformer"].config.grid)
        return origin
    apply_gains(networks["tokenizer"], config)
    if origin:
        networks["tokenizer"].load_state_dict(load_network(state).state_dict())
        if "discriminator" in networks and "discriminator" in state:
            networks["discriminator"].load_state_dict(state["discriminator"])
    elif config.inflate and stage == "tokenizer":
        state = load_checkpoint(run / "image.pt")
        for name, image in (("tokenizer", "ema"), ("discriminator", "discriminator")):
            if name in networks and image in state:      # as its configuration does, or Sec. 3.1
                own = getattr(networks[name].config, "inflate", inflate)
                own(state[image], networks[name], config.inflate)
    elif config.codebook_from_data:
        device = next(networks["tokenizer"].parameters()).device
        codebook_from_data(networks["tokenizer"],
                           load_batch(source, 0, 16, config.seed)[0].to(device), config.seed)
    networks["ema"].load_state_dict(networks["tokenizer"].state_dict())
    return origin


@torch.no_grad()
def apply_gains(tokenizer: nn.Module, config: TrainConfig) -> None:
    """For short runs: the first paper's blocks and latents start as small as is asked for."""
    for module in tokenizer.modules():
        if isinstance(module, ResidualBlock):
            module.main[-1].weight.mul_(config.residual_gain)
        if isinstance(module, Encoder):
            module[-1].weight.mul_(config.latent_gain)


@torch.no_grad()
def codebook_from_data(tokenizer: nn.Module, video: Tensor, seed: int) -> None:
    """Start the codes at latents of real clips: a short run has no time to move them there.

    The first code is a latent drawn at random. Each further one is drawn with its squared
    distance to the nearest code so far as its chance (k-means++), so that a wide plain background
    gets a few codes and not most of them. Latents should start small (latent_gain), or the
    quickest way to less loss is to make them all alike.
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
def start_local(model: nn.Module, grid: tuple[int, int, int]) -> None:
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

def refuse_other_networks(config: TrainConfig, stages: list[str]) -> None:
    """ValueError, before anything is trained, where the run config.init has other networks."""
    for stage in stages:
        path, free = Path(config.init) / f"{stage}.pt", ()
        theirs = from_plain(load_checkpoint(path)["config"]["network"])
        ours = config.tokenizer_config()
        if stage == "transformer":
            ours = transformer_config(config, theirs.num_classes)
            free = "tasks", "trained_tasks", "hidden_dropout", "attention_dropout"
        different = [f"{name} {value!r} there, {getattr(ours, name, None)!r} here"
                     for name, value in vars(theirs).items()
                     if name not in free and value != getattr(ours, name, None)]
        if different or type(theirs) is not type(ours):
            raise ValueError(f"{path} has a {type(theirs).__name__}, this run a "
                             f"{type(ours).__name__}: {'; '.join(different)}. Only classes, tasks "
                             "and dropout may differ")


@torch.no_grad()
def take_vocabulary(model: nn.Module, state: dict, class_names: list[str]) -> None:
    """The weights of another run's transformer, its vocabulary translated to this run's.

    A row of the vocabulary is taken from the row of the same name: code, class, task, [MASK]. The
    rows of classes and tasks that are new stay as they were drawn.
    """
    other = load_network(state)
    ours = row_names(model.config, class_names)
    theirs = {name: row for row, name in enumerate(
        row_names(other.config, state["config"]["data"]["class_names"]))}
    new = [name for name in ours if name not in theirs]
    weights = other.state_dict()
    for name in ("token_embedding.weight", "head_bias"):
        table = model.state_dict()[name].clone()
        if len(table) != len(ours):
            raise ValueError(f"a {type(model).__name__} has no row for each code, and cannot take "
                             "those of another run; give --stage tokenizer")
        for row, meaning in enumerate(ours):
            if meaning in theirs:
                table[row] = weights[name][theirs[meaning]]
        weights[name] = table
    model.load_state_dict(weights)
    if new:
        print(f"new in this run: {', '.join(new[:5])}{', ...' * (len(new) > 5)}", file=sys.stderr)


def row_names(config: TransformerConfig, class_names: list[str]) -> list[str]:
    """What each row of a transformer's vocabulary means, in its order."""
    return [*(f"code {code}" for code in range(config.codebook_size)),
            *(f"class {name}" for name in class_names[:config.num_classes]), "no class",
            *(f"task {task}" for task in config.tasks), "[MASK]"]
