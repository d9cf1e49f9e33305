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


class CausalAttention(Attention):
    """Every token sees itself and those before it.

    While decoding, `room` is how many tokens there will be, and `memory` (2, B, heads, room, d)
    has the keys and values of the first `length` of them, which were read before.
    """

    room, length = 0, 0
    memory: Tensor | None = None

    def start(self, room: int = 0) -> None:
        """Forget what was read, and from now on remember `room` tokens; 0: training."""
        self.room, self.length, self.memory = room, 0, None

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.room:
            if self.memory is None:
                B, heads, _, d = key.shape
                self.memory = key.new_empty(2, B, heads, self.room, d)
            before, self.length = self.length, self.length + key.shape[2]
            self.memory[:, :, :, before:self.length] = torch.stack([key, value])
            key, value = self.memory[:, :, :, :self.length]
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
        """The logits (B, K) of what follows ids (B, n), which stand at place `start` of the
        sequence: one token, or all from its beginning."""
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
    total = 0.0
    for rows in torch.arange(len(sequence), device=sequence.device).chunk(config.accumulate):
        with autocast(config.precision, sequence.device):
            logits = transformer(sequence[rows], task[rows], batch.label[rows])
        losses = transformer.cross_entropy(logits, batch.tokens[rows], config.label_smoothing)
        loss = len(rows) / len(sequence) * losses.mean()
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
    config, prefix = model.config, condition_tokens[:, ~is_pad]
    if prefix.shape[1] > config.prefix_length or algorithm_1.get("guidance_scale"):
        raise ValueError(f"{prefix.shape[1]} given tokens for a prefix of {config.prefix_length}, "
                         "or guidance; this model does the tasks it was trained on, without")
    missing = config.prefix_length - prefix.shape[1]
    ids = torch.cat([model.prefix(task, label),
                     F.pad(prefix, (missing, 1), value=model.mask_id)], dim=1)
    place, chosen = 0, []
    try:
        for block in model.blocks:
            block.attention.start(config.sequence_length)
        for _ in range(config.num_tokens):
            logits = model.read(ids, place).float()
            place += ids.shape[1]
            ids = (logits + noise(logits.shape)).argmax(-1, keepdim=True)
            chosen.append(ids)
    finally:
        for block in model.blocks:
            block.attention.start()
    tokens = torch.cat(chosen, dim=1)
    decided = torch.full_like(tokens, torch.inf, dtype=torch.float32)
    yield DecodeState(config.num_tokens - 1, tokens, tokens, tokens < 0, decided)
