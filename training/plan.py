"""The plan of a run: its sizes, steps, arithmetic and memory, before any of it is spent.

Paper   App. A.1 and A.2 (sizes), App. B.2 and Table 2 of the appendix (steps)

Shapes  any, without contents: FakeTensorMode gives every tensor a shape and no memory, so that
        the real training step of the largest model runs in seconds on a laptop.

Read    plan, step_cost, count_step, step_on (a step on made-up clips); Count.

Run:    python -m training.plan                 what a step costs, what --recompute saves
        python -m training.plan PRESET ...      days on eight H200, were they kept busy for 30 %
        python train.py PRESET --dry-run        the plan of a run
"""
from __future__ import annotations

import dataclasses
import math
import sys
import weakref
from dataclasses import replace
from typing import Callable, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from commit import TASKS, nothing
from steps import TokenBatch, Trainee, tokenizer_step, transformer_step
from training.build import build_networks, build_optimizers, without_weights
from training.presets import PRESETS, TrainConfig, settings_of

CARD = 80e9                                  # bytes of the card that the plan fits clips into

# FLOP of an operation from the shapes of its arguments; torch lists attention on GPUs only.
aten = torch.ops.aten
FORMULAS = flop_registry | {
    aten._scaled_dot_product_flash_attention_for_cpu:
        flop_registry[aten._scaled_dot_product_flash_attention],
    aten._scaled_dot_product_flash_attention_for_cpu_backward:
        flop_registry[aten._scaled_dot_product_flash_attention_backward]}


def plan(name: str, config: TrainConfig) -> str:
    """What a preset would do, as a table: settings, sizes, steps, arithmetic, memory."""
    lines = [f"preset {name}; * where it differs from what TrainConfig says"]
    default = TrainConfig()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        changed = " " if value == getattr(default, field.name) else "*"
        value = " ".join(value) if field.name == "tasks" else value
        lines.append(f"  {changed} {field.name:22} {value}")
    stages = {stage: empty_networks(config, stage) for stage in ("tokenizer", "transformer")}
    tokenizer = stages["tokenizer"]["tokenizer"]
    size = stages["transformer"]["transformer"].config
    shape = tokenizer.latent_shape(*config.clip_shape)
    lines.append(f"\nvideo {'x'.join(map(str, config.clip_shape))} -> "
                 f"{'x'.join(map(str, shape))} tokens of {tokenizer.codebook_size}; "
                 f"sequence {size.sequence_length}, vocabulary {size.vocabulary_size}")
    for networks in stages.values():
        for part, network in networks.items():
            if part not in ("ema", "lecam"):
                count = sum(p.numel() for p in network.parameters())
                lines.append(f"{part:14} {count:>12,} parameters")
    elements = largest_tensor(config)
    lines.append(f"the tokenizer's largest tensor has {elements:,} elements a clip; GPUs pad and "
                 f"resize at most 2^31 at once, so from {2**29 // elements + 1} clips on they take "
                 "turns")
    if config.inflate:
        lines.append("\nstage image comes first, where it is not there: the 2D tokenizer, for as "
                     "many steps as the other")
    for stage in stages:
        steps, warmup = config.steps(stage, config.train_videos)
        batch = getattr(config, f"{stage}_batch")
        cost = step_cost(replace(config, precision="float32"), stage)     # bfloat16: less
        tokens = f" and {batch * cost.tokens_per_clip / 1e12:,.2f} to make its tokens"
        shares = math.ceil(batch / max(1, cost.clips_that_fit))
        lines += [f"\nstage {stage}: {config.train_videos:,} videos, batch {batch}: "
                  f"{max(1, config.train_videos // batch):,} steps per epoch, "
                  f"{steps:,} steps, {warmup:,} of warm-up",
                  f"  a step: {batch * cost.flop_per_clip / 1e12:,.2f} TFLOP"
                  f"{tokens if cost.tokens_per_clip else ''}",
                  f"  memory in float32: {cost}, a batch in {shares:,} parts or more "
                  "(processes x --accumulate)",
                  *(f"  warning: {words}" for words in doubts(config, stage, config.train_videos))]
    return "\n".join(lines)


def doubts(config: TrainConfig, stage: str, videos: int) -> list[str]:
    """What is odd about the length of a stage, in words; nothing for a run of sensible length."""
    steps, warmup = config.steps(stage, videos)
    words = []
    if warmup >= steps:
        words.append(f"{steps:,} steps, and {warmup:,} of warm-up: the learning rate never reaches "
                     f"its peak (--{settings_of(stage)}-warmup)")
    start = config.tokenizer_ema ** steps
    if stage != "transformer" and start > 0.05:
        words.append(f"after {steps:,} steps the averaged weights are still {start:.0%} those of "
                     "the start; look at the raw ones too, or lower --tokenizer-ema")
    return words


class StepCost(NamedTuple):
    """What a training step takes; bytes are of memory."""

    flop_per_clip: float        # forward, backward, R1's second derivative, recomputation
    tokens_per_clip: float      # FLOP again: of stage 2's tokens, made anew in each step
    fixed: float                # weights, their average, gradients, optimizer, making tokens
    per_clip: float             # of the clips that pass at once: batch / processes / accumulate

    @property
    def clips_that_fit(self) -> int:
        return max(0, int((CARD - self.fixed) // self.per_clip))

    def __str__(self) -> str:
        return (f"{amount(self.fixed)} and {amount(self.per_clip)} for each clip at once; "
                f"{self.clips_that_fit:,} clips fit 80 GB")


def amount(size: float) -> str:
    """Bytes in words."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"


def step_cost(config: TrainConfig, stage: str) -> StepCost:
    """From counts on 16 and 32 clips at once; from there on memory is linear.

    Stage 2 makes the tokens of its next batch during a step, unless config.token_pool has them
    ready: that is added. A task that gives nothing (CG) has one condition for all clips.
    """
    (flop, some), (more_flop, more) = (count_step(config, stage, clips) for clips in (16, 32))
    flop, per_clip = (more_flop - flop) / 16, (more - some) / 16
    fixed = some - 16 * per_clip
    if stage == "tokenizer" or config.token_pool:
        return StepCost(flop, 0.0, fixed, per_clip)
    given = [TASKS[task].region is not nothing for task in config.tasks]
    videos = 1 + sum(given) / len(given)                            # each clip, and its condition
    tokenizer, at_once = empty_networks(config, "tokenizer")["tokenizer"], config.tokenize_at_once
    with FakeTensorMode(allow_non_fake_inputs=True), Count() as count:
        tokenizer.to_empty(device="cpu").encode(made_up(config, at_once))
    return StepCost(flop, videos * count.flop / at_once, fixed + count.most_bytes, per_clip)


def largest_tensor(config: TrainConfig) -> int:
    """Elements of the largest tensor as the tokenizer encodes and decodes a clip."""
    tokenizer = empty_networks(config, "tokenizer")["tokenizer"].to_empty(device="cpu")
    with FakeTensorMode(allow_non_fake_inputs=True), Count() as count, torch.no_grad():
        tokenizer(made_up(config, 1))
    return count.largest


def count_step(config: TrainConfig, stage: str, clips: int) -> tuple[float, int]:
    """(FLOP, bytes) of a step of a stage on so many clips at once.

    Bytes: the most that tensors held together, in the config's precision as on a CPU. With
    config.accumulate, of two passes, and FLOP of one. Not in it: what kernels need for
    themselves, the copy of the gradients that processes exchange, LPIPS.
    """
    passes = min(config.accumulate, 2)
    config = replace(config, accumulate=passes)
    networks = empty_networks(config, stage)
    with FakeTensorMode(allow_non_fake_inputs=True), Count() as count:
        step_on(fake_trainee(networks, config), config, stage, clips * passes)()
    return count.flop / passes, count.most_bytes


def empty_networks(config: TrainConfig, stage: str) -> dict[str, nn.Module]:
    """A stage's networks on the meta device."""
    networks = without_weights(lambda: build_networks(config, stage,
                                                      num_classes=config.num_classes))
    return {name: network.to("meta") for name, network in networks.items()}


def fake_trainee(networks: dict[str, nn.Module], config: TrainConfig) -> Trainee:
    """Networks from the meta device and their optimizers, on a CPU that does not compute."""
    for network in networks.values():
        network.to_empty(device="cpu")
    return Trainee(networks, build_optimizers(networks, config))


def made_up(config: TrainConfig, clips: int, device: torch.device | str = "cpu") -> Tensor:
    """Noise in the shape of a batch of clips."""
    return torch.rand(clips, 3, *config.clip_shape, device=device)


def step_on(trainee: Trainee, config: TrainConfig, stage: str, clips: int
            ) -> Callable[[], dict[str, Tensor]]:
    """A training step of a stage on so many made-up clips, to be called again and again."""
    for optimizer in trainee.optimizers.values():            # its state, as after a first step
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
    network = trainee.networks[stage]
    device = next(network.parameters()).device
    if stage == "tokenizer":
        video = made_up(config, clips, device)
        return lambda: tokenizer_step(trainee, video, config)
    size = network.config
    tokens = torch.randint(size.codebook_size, (clips, size.num_tokens), device=device)
    batch = TokenBatch(config.tasks[0], tokens, tokens, is_pad=torch.ones_like(tokens[0]).bool(),
                       label=torch.zeros_like(tokens[:, 0]),
                       scores=torch.rand(clips, size.num_tokens, device=device),
                       r=torch.rand(clips, device=device))
    return lambda: transformer_step(trainee, batch, config)


class Count(TorchDispatchMode):
    """Sees every operation: its FLOP, and the bytes that tensors hold, now and at the peak."""

    def __init__(self):
        super().__init__()
        self.flop = self.bytes = self.most_bytes = self.largest = 0
        self.known: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options = options or {}
        result = function(*arguments, **options)
        formula = FORMULAS.get(function._overloadpacket)
        if formula is not None:
            self.flop += formula(*arguments, **options, out_val=result)
        tree_map_only(Tensor, self._see, result)
        return result

    def _see(self, tensor: Tensor) -> Tensor:
        self.largest = max(self.largest, tensor.numel())
        storage = tensor.untyped_storage()                               # views share one
        if storage not in self.known:
            self.known.add(storage)
            weakref.finalize(storage, self._free, storage.nbytes())
            self.bytes += storage.nbytes()
            self.most_bytes = max(self.most_bytes, self.bytes)
        return tensor

    def _free(self, size: int) -> None:
        self.bytes -= size


def weeks(presets: list[str], cards: int = 8, peak: float = 989e12, share: float = 0.3) -> str:
    """What presets take on so many cards that reach a share of their peak, as a table."""
    rows = ["| preset | stage | steps | TFLOP a step | clips/s | days |",
            "|---|---|---|---|---|---|"]
    for name in presets:
        for stage in ("tokenizer", "transformer"):
            config = PRESETS[name]
            cost = step_cost(replace(config, precision="float32"), stage)
            batch, steps = getattr(config, f"{stage}_batch"), config.steps(
                stage, config.train_videos)[0]
            flop = batch * (cost.flop_per_clip + cost.tokens_per_clip)
            seconds = flop / (cards * peak * share)
            rows.append(f"| {name} | {stage} | {steps:,} | {flop / 1e12:,.0f} | "
                        f"{batch / seconds:,.0f} | {steps * seconds / 86400:.1f} |")
    return "\n".join(rows)


def main() -> None:
    if sys.argv[1:]:
        print(weeks(sys.argv[1:]))
        return
    print("ucf101-B, a training step on 8 clips   TFLOP   memory in float32")
    for stage in ("tokenizer", "transformer"):
        for recompute in (False, True):
            config = replace(PRESETS["ucf101-B"], recompute=recompute, precision="float32")
            flop, most_bytes = count_step(config, stage, clips=8)
            flag = "--recompute" if recompute else ""
            print(f"{stage:12} {flag:25} {flop / 1e12:5.1f}   {amount(most_bytes)}", flush=True)


if __name__ == "__main__":
    main()
