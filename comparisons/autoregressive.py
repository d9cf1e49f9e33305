"""The autoregressive model that Table 6 and Fig. 5 compare with: one token a step.

Paper   Sec. 4.3 (Fig. 5), Sec. 4.5 (Table 6); the rest is as in any GPT

Shapes  [prompt, class, prefix, start, z_1 .. z_{N-1}] -> logits (B, N, K) of z_1 .. z_N
        one token a step, the keys and values of those before it kept -> tokens (B, N)

Read    CausalAttention, AutoregressiveTransformer, autoregressive_step, autoregressive_decode.

The network is the masked one, of equal size, with attention that looks back only. The condition is
a prefix, as in the official code; the id of [MASK] starts the sequence. The official model is
pre-LN, has a table of its own for the output, no biases in attention, and a padding mask
(inputs > 0) that also hides code 0, which we take for a mistake.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from commit import task_index
from comparisons.baselines import PrefixConfig, PrefixTransformer
from decode import DecodeState, Noise, gumbel_noise
from steps import Recipe, TokenBatch, Trainee, autocast, average_gradients
from transformer import Attention, Block


@dataclass(frozen=True)
class AutoregressiveConfig(PrefixConfig):
    """Sizes as of a PrefixTransformer. A type of its own, so that none is taken for the other."""

    def build(self) -> AutoregressiveTransformer:
        return AutoregressiveTransformer(self)


class Memory:
    """Keys and values of everything read so far, in tensors made once for the whole sequence."""

    def __init__(self, room: int):
        self.room, self.length = room, 0

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add those of new tokens, (B, heads, n, d); returns those of all."""
        if self.length == 0:
            B, heads, _, d = key.shape
            self.keys = key.new_empty(B, heads, self.room, d)
            self.values = torch.empty_like(self.keys)
        start, self.length = self.length, self.length + key.shape[2]
        self.keys[:, :, start:self.length] = key
        self.values[:, :, start:self.length] = value
        return self.keys[:, :, :self.length], self.values[:, :, :self.length]


class CausalAttention(Attention):
    """Every token sees itself and those before it."""

    memory: Memory | None = None                     # while decoding: what was read before

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.memory is not None:
            first, (key, value) = self.memory.length == 0, self.memory.extend(key, value)
            if not first and query.shape[2] > 1:
                raise ValueError(f"{query.shape[2]} tokens at once behind others; give one")
        # One query sees all keys there are: no mask, and no work for what was read before.
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout,
                                              is_causal=query.shape[2] > 1)


class CausalBlock(Block):
    attention_type = CausalAttention


class AutoregressiveTransformer(PrefixTransformer):
    """p(z_i | prompt, class, prefix, z_1 .. z_{i-1}), for all i at once in training."""

    block_type = CausalBlock

    def forward(self, tokens: Tensor, task: Tensor, label: Tensor) -> Tensor:
        """tokens (B, n + N): prefix and sequence z. Returns logits (B, N, K), those of z_i at i."""
        N = self.config.num_tokens
        start = torch.full_like(tokens[:, :1], self.mask_id)
        shifted = torch.cat([tokens[:, :-N], start, tokens[:, -N:-1]], dim=1)
        return super().forward(shifted, task, label)

    def read(self, ids: Tensor, start: int) -> Tensor:
        """The logits (B, K) after ids (B, n), which stand at place `start` of the sequence.

        Each block's attention must have a memory of what stands before.
        """
        x = self.token_embedding(ids) + self.position_embedding.weight[start:start + ids.shape[1]]
        x = self.embedding_norm(x)
        for block in self.blocks:
            x = block(x)
        return self.predict(x[:, -1])


def autoregressive_step(trainee: Trainee, batch: TokenBatch, config: Recipe) -> dict[str, Tensor]:
    """Stage 2: one update on -log p(z_i | z_1 .. z_{i-1}), the mean over all N tokens."""
    transformer, optimizer = trainee.networks["transformer"], trainee.optimizers["transformer"]
    sequence = torch.cat([batch.condition_tokens[:, ~batch.is_pad], batch.tokens], dim=1)
    task = torch.full_like(batch.label, task_index(batch.task, transformer.config.tasks))
    total = torch.zeros((), device=sequence.device)
    for part in torch.arange(len(sequence), device=sequence.device).chunk(config.accumulate):
        with autocast(config.precision, sequence.device):
            logits = transformer(sequence[part], task[part], batch.label[part])
        loss = transformer.cross_entropy(logits, batch.tokens[part], config.label_smoothing).mean()
        loss = loss * len(part) / len(sequence)
        loss.backward()
        total = total + loss.detach()
    average_gradients(transformer)
    norm = nn.utils.clip_grad_norm_(transformer.parameters(), config.gradient_clip)
    optimizer.step()
    optimizer.zero_grad()
    return {"loss": total, "transformer gradient": norm}


@torch.no_grad()
def autoregressive_decode(model: AutoregressiveTransformer, task: Tensor, label: Tensor,
                          condition_tokens: Tensor, is_pad: Tensor, *,
                          noise: Noise | None = None, **algorithm_1) -> Iterator[DecodeState]:
    """One token after the other, in t, h, w raster order; one DecodeState, the last.

    Arguments as of commit_decode, for which it can stand in: the keywords of Algorithm 1 alone
    (steps, schedule, temperature) mean nothing here.
    """
    noise = noise or (lambda shape: gumbel_noise(shape, device=condition_tokens.device))
    (B, N), config = condition_tokens.shape, model.config
    prefix = condition_tokens[:, ~is_pad]
    if prefix.shape[1] > config.prefix_length or algorithm_1.get("guidance_scale"):
        raise ValueError(f"{prefix.shape[1]} given tokens for a prefix of {config.prefix_length}, "
                         "or guidance; this model does the tasks it was trained on, without")
    start = torch.full_like(condition_tokens[:, :1], model.mask_id)
    padding = start.expand(B, config.prefix_length - prefix.shape[1])
    read = torch.cat([model.prefix(task, label), padding, prefix, start], dim=1)
    place, chosen = 0, []
    try:
        for block in model.blocks:
            block.attention.memory = Memory(config.sequence_length)
        for _ in range(N):
            logits = model.read(read[:, place:], place).float()
            place = read.shape[1]
            chosen.append((logits + noise(logits.shape)).argmax(-1, keepdim=True))
            read = torch.cat([read, chosen[-1]], dim=1)
    finally:
        for block in model.blocks:
            block.attention.memory = None
    tokens = torch.cat(chosen, dim=1)
    decided = torch.full_like(tokens, torch.inf, dtype=torch.float32)
    yield DecodeState(N - 1, tokens, tokens, torch.zeros_like(tokens, dtype=torch.bool), decided)
