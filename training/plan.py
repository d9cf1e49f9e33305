"""The plan of a run: its sizes, steps, arithmetic and bytes, before any of it is spent.

Paper   App. A.1 and A.2 (sizes), App. B.2 and Table 2 of the appendix (steps)

Shapes  any, without contents: FakeTensorMode gives every tensor a shape and no memory, so that
        the real training step of the largest model is counted in seconds on a laptop

Read    plan, flop_of_step; made_up_step, a step on made-up clips.
"""
from __future__ import annotations

import dataclasses
import time
from dataclasses import replace
from typing import Callable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from commit import TASKS, nothing
from steps import TokenBatch, Trainee, tokenizer_step, transformer_step
from training.kernels import resolve_precision
from training.presets import TrainConfig
from training.processes import device_of_this_process
from training.start import build, build_networks, build_optimizers, without_weights

# PyTorch counts attention on GPUs only; on CPUs it is another operation with the same shapes.
aten = torch.ops.aten
FORMULAS = flop_registry | {
    aten._scaled_dot_product_flash_attention_for_cpu:
        flop_registry[aten._scaled_dot_product_flash_attention],
    aten._scaled_dot_product_flash_attention_for_cpu_backward:
        flop_registry[aten._scaled_dot_product_flash_attention_backward]}
SOME = 4                             # clips on which a step is counted and tried


def plan(name: str, config: TrainConfig) -> str:
    """What a preset would do, as text: settings, sizes, steps, arithmetic, bytes.

    On a GPU each stage also takes two real steps on made-up clips, for what no counting knows.
    """
    lines = [f"preset {name}; * where it differs from the default"]
    default = type(config)()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        changed = " " if value == getattr(default, field.name) else "*"
        lines.append(f"  {changed} {field.name:22} "
                     f"{' '.join(value) if field.name == 'tasks' else value}")
    networks = {stage: empty_networks(config, stage) for stage in ("tokenizer", "transformer")}
    shape = networks["tokenizer"]["tokenizer"].latent_shape(*config.clip_shape)
    size = networks["transformer"]["transformer"].config
    lines.append(f"\nvideo {'x'.join(map(str, config.clip_shape))} -> "
                 f"{'x'.join(map(str, shape))} tokens of {size.codebook_size}; sequence "
                 f"{size.sequence_length}, vocabulary {size.vocabulary_size}")
    if config.inflate:
        lines.append("stage image comes first, where it is not there: the 2D tokenizer, for as "
                     "many steps as the other")
    for stage, parts in networks.items():
        steps, warmup = config.steps(stage, config.train_videos)
        batch = config.of(stage, "batch")
        lines.append(f"\nstage {stage}: {config.train_videos:,} videos, batch {batch}: "
                     f"{max(1, config.train_videos // batch):,} steps per epoch, {steps:,} steps, "
                     f"{warmup:,} of warm-up")
        counts = {part: sum(p.numel() for p in network.parameters())
                  for part, network in parts.items()}
        lines += [f"  {part:14} {count:>12,} parameters" for part, count in counts.items()
                  if part not in ("ema", "lecam")]
        kept = 4 * (3 * sum(counts.values()) - 2 * counts.get("ema", 0))   # Adam has two averages
        lines.append(f"  weights and optimizers (a checkpoint): {kept / 2**20:,.1f} MiB")
        lines.append(f"  a step: {batch * flop_of_step(config, stage) / 1e12:,.2f} TFLOP")
        if device_of_this_process().type == "cuda":
            lines.append(try_step(config, stage))
    return "\n".join(lines)


def flop_of_step(config: TrainConfig, stage: str) -> float:
    """FLOP of a training step for each clip: forward, backward, R1's second derivative.

    Stage 2 tokenizes the clips of its batch, too, unless config.token_pool has them ready: each
    clip is encoded, and the condition of its task if that gives any pixels.
    """
    config = replace(config, precision="float32", accumulate=1)
    networks = empty_networks(config, stage)
    tokenizer = empty_networks(config, "tokenizer")["tokenizer"].to_empty(device="cpu")
    with FakeTensorMode(allow_non_fake_inputs=True):
        trainee = Trainee({name: network.to_empty(device="cpu")
                           for name, network in networks.items()}, {})
        trainee.optimizers = build_optimizers(trainee.networks, config)
        step = made_up_step(trainee, config, stage, SOME)
        with CountFlop() as count:
            step()
        with torch.no_grad(), CountFlop() as encoding:
            tokenizer.latents(made_up(config, SOME))
    encoded = 0.0 if stage == "tokenizer" or config.token_pool else 1 + sum(
        TASKS[task].region is not nothing for task in config.tasks) / len(config.tasks)
    return (count.flop + encoded * encoding.flop) / SOME


class CountFlop(TorchDispatchMode):
    """Adds up the FLOP of every operation. (PyTorch's FlopCounterMode cannot see R1: its hooks
    refuse a gradient of a gradient.)"""

    flop = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options = options or {}
        result = function(*arguments, **options)
        if function._overloadpacket in FORMULAS:
            self.flop += FORMULAS[function._overloadpacket](*arguments, **options, out_val=result)
        return result


def empty_networks(config: TrainConfig, stage: str) -> dict[str, torch.nn.Module]:
    """A stage's networks on the meta device."""
    networks = without_weights(lambda: build_networks(config, stage, config.num_classes or 1))
    return {name: network.to("meta") for name, network in networks.items()}


def try_step(config: TrainConfig, stage: str) -> str:
    """Two real steps of a stage on SOME made-up clips on this GPU: memory and clips a second."""
    device = device_of_this_process()
    config = replace(config, precision=resolve_precision(config.precision, device), accumulate=1)
    torch.cuda.reset_peak_memory_stats(device)
    trainee = build(config, stage, num_classes=config.num_classes or 1, device=device)
    step = made_up_step(trainee, config, stage, SOME)
    step()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return (f"  tried on {torch.cuda.get_device_name(device)}, {SOME} clips: "
            f"{torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB at the peak, "
            f"{SOME / (time.perf_counter() - begin):.1f} clips a second")


def made_up(config: TrainConfig, clips: int, device: torch.device | str = "cpu") -> Tensor:
    """Noise in the shape of a batch of clips."""
    return torch.rand(clips, 3, *config.clip_shape, device=device)


def made_up_step(trainee: Trainee, config: TrainConfig, stage: str, clips: int
                 ) -> Callable[[], dict[str, Tensor]]:
    """A training step of a stage on so many made-up clips, to be called again and again."""
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
