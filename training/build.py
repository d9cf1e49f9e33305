"""The one place where a configuration becomes networks and optimizers.

Paper   App. A.1, A.2 and B.2 (sizes, optimizers)

Shapes  TrainConfig, stage -> build -> Trainee: networks with fresh weights, and their optimizers
        a configuration -> as_plain -> dict of plain data in a checkpoint -> from_plain -> it again

Read    TOKENIZER_TYPES, build, transformer_config.

A tokenizer is whatever has encode, decode, latents, forward, latent_shape and codebook_size, with
tokenizer.VideoTokenizer's meaning. Nothing else is asked of it. To use one of your own, add its
configuration's type and its class to TOKENIZER_TYPES, and give TrainConfig(tokenizer=YourConfig());
likewise a transformer, whose configuration inherits from TransformerConfig.

Run:    python -m training.build          who takes part in each stage of the toy
"""
from __future__ import annotations

import copy
import dataclasses
import importlib
import math
from dataclasses import replace
from typing import Any, Callable

import torch
from torch import nn

from commit import MT10, TASKS
from data.clips import DataConfig
from discriminator import Discriminator2d, Discriminator3d, DiscriminatorConfig, LeCam
from steps import Trainee
from tokenizer import ImageTokenizer, TokenizerConfig, VideoTokenizer
from training.presets import PRESETS, TrainConfig, named, settings_of
from training.small_kernels import small_kernels
from transformer import TRANSFORMERS, MaskedTransformer, TransformerConfig

# Another network is one line here: its configuration's type, and its class.
TOKENIZER_TYPES: dict[type, type[nn.Module]] = {TokenizerConfig: VideoTokenizer}
IMAGE_TOKENIZER_TYPES: dict[type, Callable] = {TokenizerConfig: ImageTokenizer}       # 2D twins
DISCRIMINATOR_TYPES: dict[type, dict[str, type[nn.Module]]] = {                       # by stage
    DiscriminatorConfig: dict(tokenizer=Discriminator3d, image=Discriminator2d)}
TRANSFORMER_TYPES: dict[type, type[nn.Module]] = {TransformerConfig: MaskedTransformer}
# Rooms that add to these when they are imported, by the types that a checkpoint may name.
ADDED_BY = {"PrefixConfig": "comparisons.baselines", "WindowConfig": "comparisons.baselines",
            "AutoregressiveConfig": "comparisons.autoregressive",
            "FactorizedConfig": "magvit2.factorized",
            "LookupFreeConfig": "magvit2.lookup_free", "CausalConfig": "magvit2.causal_tokenizer",
            "BlurConfig": "magvit2.blur_discriminator", "PublishedConfig": "magvit2.published"}


def build_tokenizer(config, image: bool = False) -> nn.Module:
    """The tokenizer of a configuration of a type in TOKENIZER_TYPES; image: its 2D twin."""
    types = IMAGE_TOKENIZER_TYPES if image else TOKENIZER_TYPES
    if type(config) not in types:
        raise ValueError(f"no {'2D ' * image}tokenizer for a {type(config).__name__}; add the type "
                         f"and its class to {'IMAGE_' * image}TOKENIZER_TYPES in training/build.py")
    return types[type(config)](config)


def build_transformer(config: TransformerConfig) -> nn.Module:
    """The transformer of a configuration of a type in TRANSFORMER_TYPES."""
    if type(config) not in TRANSFORMER_TYPES:
        raise ValueError(f"no transformer for a {type(config).__name__}; add the type and its "
                         "class to TRANSFORMER_TYPES in training/build.py")
    return TRANSFORMER_TYPES[type(config)](config)


def without_weights(make: Callable[[], Any]) -> Any:
    """make() on the meta device, whose tensors have shapes but no numbers.

    For real where the constructor needs numbers, which a tokenizer of one's own may.
    """
    try:
        with torch.device("meta"):
            return make()
    except (RuntimeError, NotImplementedError):
        return make()


def transformer_config(config: TrainConfig, num_classes: int, tokenizer: nn.Module | None = None
                       ) -> TransformerConfig:
    """The transformer that fits a tokenizer (by default the configuration's) and its clips.

    It has the paper's ten prompts, and more only for tasks of the run that are not among them.
    """
    tokenizer = tokenizer or without_weights(lambda: build_tokenizer(config.tokenizer_config()))
    base = config.transformer
    if not isinstance(base, TransformerConfig):
        base = named("transformer", base, TRANSFORMERS)
    more = tuple(task for task in dict.fromkeys(config.tasks) if task not in MT10)
    return replace(base, codebook_size=tokenizer.codebook_size,
                   num_tokens=math.prod(tokenizer.latent_shape(*config.clip_shape)),
                   num_classes=num_classes, num_tasks=len(MT10 + more),
                   task_names=MT10 + more if more else ())


def build(config: TrainConfig, stage: str, *, num_classes: int = 0,
          tokenizer: nn.Module | None = None, device: torch.device | str = "cpu") -> Trainee:
    """What a stage trains, with fresh weights: "image", "tokenizer" or "transformer".

    Stage 1 has the tokenizer, its moving average and, if its weight is not 0, an adversary; stage
    2 the transformer, for num_classes and for `tokenizer` (by default, the configuration's).
    """
    networks = build_networks(config, stage, num_classes=num_classes, tokenizer=tokenizer)
    for network in networks.values():
        network.to(device)
    return Trainee(networks, build_optimizers(networks, config))


def build_networks(config: TrainConfig, stage: str, *, num_classes: int = 0,
                   tokenizer: nn.Module | None = None) -> dict[str, nn.Module]:
    """The networks of build, by name."""
    if stage == "transformer":
        networks = dict(transformer=build_transformer(
            transformer_config(config, num_classes, tokenizer)))
    else:
        networks = dict(tokenizer=build_tokenizer(config.tokenizer_config(), stage == "image"))
        if config.adversarial_weight:
            size = config.discriminator_config()
            networks |= dict(discriminator=small_kernels(DISCRIMINATOR_TYPES[type(size)][stage](
                size)), lecam=LeCam())
        networks["ema"] = copy.deepcopy(networks["tokenizer"]).requires_grad_(False)
    for network in networks.values():
        for module in network.modules():
            if hasattr(module, "recompute"):
                module.recompute = config.recompute
    return networks


def build_optimizers(networks: dict[str, nn.Module], config: TrainConfig
                     ) -> dict[str, torch.optim.Optimizer]:
    """The optimizers of build, by the names of the networks they move (App. B.2)."""
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


def refuse_impossible(config: TrainConfig, stages: list[str], num_classes: int,
                      world: int = 1) -> None:
    """ValueError, before anything is trained, where some stage could not begin or end."""
    config.check()
    if "transformer" in stages and not num_classes and all(
            TASKS[task].needs_classes for task in config.tasks):
        raise ValueError(f"the data have no classes, and {' '.join(config.tasks)} need some; give "
                         "videos in folders of the classes' names, or other --tasks")
    for stage in stages:
        batch = f"{settings_of(stage)}_batch"
        if getattr(config, batch) % world:
            raise ValueError(f"{batch} is {getattr(config, batch)}; wanted a multiple of the "
                             f"{world} processes")
    if config.adversarial_weight and stages != ["transformer"]:
        config.discriminator_config()
    tokenizer = without_weights(lambda: build_tokenizer(config.tokenizer_config()))
    size = transformer_config(config, num_classes, tokenizer)
    if size.hidden_size % size.num_heads:
        raise ValueError(f"hidden size {size.hidden_size} does not make {size.num_heads} heads")
    if "transformer" in stages and config.start_local and size.hidden_size % 16:
        raise ValueError(f"start_local needs a hidden size that 16 divides, got {size.hidden_size}")
    if config.init and config.inflate:
        raise ValueError("init and inflate both say where the tokenizer starts; give one of them")
    if config.codebook_from_data and not hasattr(getattr(tokenizer, "quantizer", 0), "codebook"):
        raise ValueError(f"a {type(tokenizer).__name__} has no codebook to start; give "
                         "--no-codebook-from-data")


# ---------------------------------------------------------------------------------------------
# Configurations as plain data, for checkpoints

def as_plain(config) -> dict:
    """A configuration as a dict of plain data, nested ones too, each with the name of its type."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return dict(type=type(config).__name__) | {
        name: as_plain(value) if dataclasses.is_dataclass(value) else value
        for name, value in values.items()}


def from_plain(values: dict, kind: type | None = None):
    """The configuration again. kind: its type, where the dict is older than the type's name in it.

    A field that came later has its default. What a run's settings have too much is left out; what
    a network's have too much is refused: it could not be the same network.
    """
    name = values.get("type") or kind.__name__
    if name in ADDED_BY:
        importlib.import_module(ADDED_BY[name])
    types = [TrainConfig, DataConfig, *DISCRIMINATOR_TYPES, *TOKENIZER_TYPES, *TRANSFORMER_TYPES]
    by_name = {each.__name__: each for each in types}
    if name not in by_name:
        raise ValueError(f"a checkpoint has a configuration of type {name}; known are "
                         f"{', '.join(by_name)}: see training/build.py")
    fields = {field.name for field in dataclasses.fields(by_name[name])}
    unknown = sorted(set(values) - fields - {"type"})
    if unknown and by_name[name] not in (TrainConfig, DataConfig):
        raise ValueError(f"a checkpoint's {name} has {', '.join(unknown)}, which this code has not")

    def restored(value):
        if isinstance(value, dict) and "type" in value:
            return from_plain(value)
        return tuple(value) if isinstance(value, list) else value

    return by_name[name](**{key: restored(value) for key, value in values.items() if key in fields})


def differences(old, new) -> dict[str, tuple]:
    """Where two configurations differ, as name -> (old, new), but for fields that may change."""
    pairs = {field.name: (getattr(old, field.name, None), getattr(new, field.name))
             for field in dataclasses.fields(new) if not field.metadata.get("may_change")}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def main() -> None:
    config = replace(PRESETS["toy"], adversarial_weight=0.1)
    for stage in ("image", "tokenizer", "transformer"):
        trainee = build(config, stage, num_classes=16)
        print(f"stage {stage}")
        for name, network in trainee.networks.items():
            count = sum(p.numel() for p in network.parameters())
            optimizer = trainee.optimizers.get(name)
            print(f"  {name:14} {type(network).__name__:18} {count:>9,} parameters   "
                  f"{type(optimizer).__name__ if optimizer else 'not by an optimizer'}")


if __name__ == "__main__":
    main()
