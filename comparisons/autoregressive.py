"""The autoregressive model that Table 6 and Fig. 5 compare with: one token a step.

Paper   Sec. 4.3 (Fig. 5), Sec. 4.5 (Table 6); the rest is as in any GPT

Shapes  [prompt, class, prefix, start, z_1 .. z_{N-1}] -> logits (B, N, K) of z_1 .. z_N
        one token a step, the keys and values of those before it kept -> tokens (B, N)

Read    CausalAttention, AutoregressiveTransformer, autoregressive_step, autoregressive_decode.

The network is the masked one, of equal size, with attention that looks back only. The condition is
a prefix, as in the official code; the id of [MASK] starts the sequence. The official model is
pre-LN, has a table of its own for the output, no biases in attention, and a padding mask
(inputs > 0) that also hides code 0, which we take for a mistake.

Run:    python -m comparisons.autoregressive     with and without keeping keys and values: seconds
"""
from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Callable, Iterator

import torch
from torch import Tensor, nn

from commit import token_cross_entropy, task_index
from comparisons.baselines import PrefixConfig, PrefixTransformer
from decode import DecodeState, gumbel_noise
from steps import Recipe, TokenBatch, Trainee, autocast, average_gradients
from training.build import TRANSFORMER_TYPES
from transformer import Attention, Block


@dataclass(frozen=True)
class AutoregressiveConfig(PrefixConfig):
    """Sizes as of a PrefixTransformer. A type of its own, so that none is taken for the other."""


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
            if key.device.type == "cpu":        # causal attention is in float32: converted once
                query, key, value = query.float(), key.float(), value.float()
            first, (key, value) = self.memory.length == 0, self.memory.extend(key, value)
            if not first and query.shape[2] > 1:
                raise ValueError(f"{query.shape[2]} tokens at once behind others; give one")
        # One query sees all keys there are: no mask, and no work for what was read before.
        return super().attend(query, key, value, causal=query.shape[2] > 1)


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


TRANSFORMER_TYPES[AutoregressiveConfig] = AutoregressiveTransformer


def autoregressive_step(trainee: Trainee, batch: TokenBatch, config: Recipe) -> dict[str, Tensor]:
    """Stage 2: one update on -log p(z_i | z_1 .. z_{i-1}), the mean over all N tokens."""
    transformer, optimizer = trainee.networks["transformer"], trainee.optimizers["transformer"]
    sequence = torch.cat([batch.condition_tokens[:, ~batch.is_pad], batch.tokens], dim=1)
    task = torch.full_like(batch.label, task_index(batch.task, transformer.prompts))
    total = torch.zeros((), device=sequence.device)
    for part in torch.arange(len(sequence), device=sequence.device).chunk(config.accumulate):
        with autocast(config.precision, sequence.device):
            logits = transformer(sequence[part], task[part], batch.label[part])
        loss = token_cross_entropy(logits, batch.tokens[part], config.label_smoothing).mean()
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
                          top_k: int = 0, top_p: float = 1.0, cached: bool = True,
                          generator: torch.Generator | None = None,
                          noise: Callable[[torch.Size], Tensor] | None = None,
                          **algorithm_1) -> Iterator[DecodeState]:
    """One token after the other, in t, h, w raster order; one DecodeState, the last.

    Arguments as of commit_decode, for which it can stand in: the keywords of Algorithm 1 alone
    (steps, schedule, temperature, grid, ...) mean nothing here. Drawn are the top_k surest codes
    alone (0: all), and of them those that together have probability top_p.
    cached False computes everything anew for each token: the same tokens, slowly.
    """
    if noise is None:
        def noise(shape: torch.Size) -> Tensor:
            return gumbel_noise(shape, generator, condition_tokens.device)
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
        for _ in range(N):
            if place == 0 or not cached:
                place = 0
                for block in model.blocks:
                    block.attention.memory = Memory(config.sequence_length)
            logits = likely(model.read(read[:, place:], place).float(), top_k, top_p)
            place = read.shape[1]
            chosen.append((logits + noise(logits.shape)).argmax(-1, keepdim=True))
            read = torch.cat([read, chosen[-1]], dim=1)
    finally:
        for block in model.blocks:
            block.attention.memory = None
    tokens = torch.cat(chosen, dim=1)
    decided = torch.full_like(tokens, torch.inf, dtype=torch.float32)
    yield DecodeState(N - 1, tokens, tokens, torch.zeros_like(tokens, dtype=torch.bool), decided)


AutoregressiveTransformer.decode = staticmethod(autoregressive_decode)


def likely(logits: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """logits (B, K) with -inf for codes outside the top_k, and outside the fewest with top_p."""
    if top_k:
        least = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        ordered, order = logits.softmax(-1).sort(descending=True)
        enough = ordered.cumsum(-1) - ordered >= top_p            # without it, there are enough
        logits = logits.masked_fill(enough.gather(-1, order.argsort(-1)), -torch.inf)
    return logits


def main() -> None:
    """A toy of 256 tokens with random weights: the same tokens, from one query a step or all."""
    config = AutoregressiveConfig(num_layers=4, hidden_size=128, num_heads=4, mlp_size=512,
                                  codebook_size=128, num_tokens=256)
    torch.manual_seed(0)
    model = AutoregressiveTransformer(config).eval()
    zero = torch.zeros(1, 256, dtype=torch.long)
    for cached, title in ((True, "one query a step"), (False, "all queries anew")):
        begin = time.perf_counter()
        (state,) = autoregressive_decode(model, zero[0, :1], zero[0, :1], zero, zero[0] == 0,
                                         cached=cached, generator=torch.Generator().manual_seed(0))
        print(f"{title}: {time.perf_counter() - begin:.2f} s, {state.tokens[0, -4:].tolist()}")


if __name__ == "__main__":
    main()
