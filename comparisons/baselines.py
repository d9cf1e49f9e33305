"""What the paper compares COMMIT with: latent masking, prefix conditions, attention in windows.

Paper   Sec. 4.5 (Tables 5 and 6); MaskViT (its windows and 18 steps)

Shapes  condition tokens (B, N), is_pad (N,) -> prefix (B, n), the n tokens that are given
          -> [prompt, class, padding, prefix, z-bar] -> PrefixTransformer -> logits (B, N, K)
        tokens (B, N) of a grid (t, h, w) -> WindowTransformer -> logits (B, N, K)

Read    latent_masking; then PrefixTransformer and prefix_step: how a condition is put before
        the sequence; then WindowAttention.

Latent masking needs no model of its own: any that was trained on Eq. (1) alone will do. MaskGIT on
2D tokens is the same, on those of tokenizer.ImageTokenizer.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from commit import tokenize_condition
from decode import DecodeState, Noise, commit_decode
from steps import Recipe, TokenBatch, Trainee, transformer_step
from transformer import Attention, Block, MaskedTransformer, TransformerConfig

Grid = tuple[int, int, int]


class Conditioned(nn.Module):
    """A transformer that has a condition beside the tokens it is asked for: in decoding and
    training a MaskedTransformer. ask(tokens (B, n), task, label) -> logits (B, n, K)."""

    def __init__(self, model: nn.Module, ask: Callable[[Tensor, Tensor, Tensor], Tensor]):
        super().__init__()
        self.model, self.ask = model, ask
        self.config, self.mask_id, self.no_class = model.config, model.mask_id, model.no_class
        self.sample, self.cross_entropy = model.sample, model.cross_entropy

    def forward(self, tokens: Tensor, task: Tensor, label: Tensor) -> Tensor:
        return self.ask(tokens, task, label)


def latent_masking(model: nn.Module, task: Tensor, label: Tensor, condition_tokens: Tensor,
                   is_pad: Tensor, *, noise: Noise | None = None, **decoding
                   ) -> Iterator[DecodeState]:
    """Table 5: the condition's tokens are simply unmasked, and never change; the others are
    decoded, and counted, by Algorithm 1. Arguments of commit_decode, is_pad (N,)."""
    B, N = condition_tokens.shape

    def whole(tokens: Tensor) -> Tensor:
        """The tokens that are asked for, (B, n), in their places among the given, (B, N)."""
        whole = condition_tokens.repeat(len(tokens) // B, 1)               # twice, when guided
        whole[:, is_pad] = tokens
        return whole

    partial = Conditioned(model, lambda tokens, *prompt: model(whole(tokens), *prompt)[:, is_pad])
    drawn = noise and (lambda shape: noise(torch.Size((B, N, *shape[2:])))[:, is_pad])
    for state in commit_decode(partial, task, label, condition_tokens[:, is_pad], is_pad[is_pad],
                               noise=drawn, **decoding):
        unknown = torch.zeros_like(condition_tokens, dtype=torch.bool)
        confidence = torch.full_like(condition_tokens, torch.inf, dtype=torch.float32)
        unknown[:, is_pad], confidence[:, is_pad] = state.unknown, state.confidence
        yield DecodeState(state.step, whole(state.inputs), whole(state.tokens), unknown, confidence)


# ---------------------------------------------------------------------------------------------
# A prefix condition: the tokens that are given stand before the sequence

@dataclass(frozen=True)
class PrefixConfig(TransformerConfig):
    """A transformer whose sequence has room for so many condition tokens."""

    prefix_length: int = 0

    def build(self) -> PrefixTransformer:
        return PrefixTransformer(self)

    @property
    def sequence_length(self) -> int:
        return super().sequence_length + self.prefix_length


def given_tokens(tokenizer: nn.Module, task: str, shape: Grid, frames: int = 1) -> Tensor:
    """(N,) bool, True where a task on clips (T, H, W), with so many frames given, gives a token."""
    video = torch.zeros(1, 3, *shape, device=next(tokenizer.parameters()).device)
    return ~tokenize_condition(tokenizer, video, task, frames)[1]


class PrefixTransformer(MaskedTransformer):
    """[prompt, class, prefix, tokens]; a shorter prefix has [MASK] before it, up to full length.

    A condition token is known by its place in the prefix alone, which with several tasks is not
    always the same supervoxel's; and all pay for the longest. The paper calls that less tractable.
    """

    def forward(self, tokens: Tensor, task: Tensor, label: Tensor) -> Tensor:
        """tokens (B, n + N), the last N of which are the sequence; logits (B, N, K) of those."""
        N = self.config.num_tokens
        missing = self.config.prefix_length + N - tokens.shape[1]
        if missing < 0 or tokens.shape[1] < N:
            raise ValueError(f"{tokens.shape[1]} tokens for a sequence of {N} and a prefix of at "
                             f"most {self.config.prefix_length}; give more room or fewer tokens")
        tokens = F.pad(tokens, (missing, 0), value=self.mask_id)
        return super().forward(tokens, task, label)[:, -N:]


def with_prefix(model: PrefixTransformer, prefix: Tensor) -> Conditioned:
    """A model that is asked for the sequence alone, behind prefixes (B, n) of a batch."""
    return Conditioned(model, lambda tokens, *prompt: model(torch.cat([prefix, tokens], dim=1),
                                                            *prompt))


def prefix_decode(model: nn.Module, task: Tensor, label: Tensor, condition_tokens: Tensor,
                  is_pad: Tensor, **decoding) -> Iterator[DecodeState]:
    """Algorithm 1 from [MASK] alone; the condition is in front. Arguments of commit_decode."""
    model = with_prefix(model, condition_tokens[:, ~is_pad])
    return commit_decode(model, task, label, condition_tokens, torch.ones_like(is_pad), **decoding)


def prefix_step(trainee: Trainee, batch: TokenBatch, config: Recipe) -> dict[str, Tensor]:
    """Stage 2 with a prefix condition: Eq. (2) knows [MASK] and tokens only."""
    if config.accumulate > 1:
        raise ValueError(f"accumulate is {config.accumulate}; a prefix model takes a batch at once")
    model = with_prefix(trainee.networks["transformer"], batch.condition_tokens[:, ~batch.is_pad])
    return transformer_step(Trainee(dict(transformer=model), trainee.optimizers),
                            batch._replace(is_pad=torch.ones_like(batch.is_pad)), config)


@torch.no_grad()
def align_prefix(model: PrefixTransformer, given: Tensor) -> None:
    """For one task: the places of the prefix start as the places of the tokens they stand for.

    given (N,) bool. Without it, a short training has to find out which token is where.
    """
    places = model.position_embedding.weight
    count, N = int(given.sum()), len(given)
    places[-N - count:-N] = places[-N:][given]


@dataclass(frozen=True)
class WindowConfig(TransformerConfig):
    """A transformer whose blocks attend in windows that tile the grid, in turn: MaskViT's are a
    frame, and all frames of 4x4 tokens."""

    windows: tuple[Grid, Grid] = ((1, 4, 4), (16, 2, 2))

    def build(self) -> WindowTransformer:
        return WindowTransformer(self)


class WindowAttention(Attention):
    """Each token sees its window, and the prompt and class; those two see only themselves.

    If they saw all tokens, they would carry news from window to window.
    """

    grid: Grid
    window: Grid

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        t, h, w = self.grid
        a, b, c = self.window
        first = query.shape[2] - t * h * w                                  # prompt and class
        sizes = dict(t=t // a, h=h // b, w=w // c, a=a, b=b, c=c)
        apart = "n heads (t a h b w c) d -> (n t h w) heads (a b c) d"
        together = "(n t h w) heads (a b c) d -> n heads (t a h b w c) d"
        heads = [x[:, :, :first] for x in (query, key, value)]
        windows = [rearrange(x[:, :, first:], apart, **sizes) for x in (query, key, value)]
        count = len(windows[0]) // len(query)
        keys, values = (torch.cat([head.repeat_interleave(count, 0), window], dim=2)
                        for head, window in zip(heads[1:], windows[1:]))
        seen = rearrange(super().attend(windows[0], keys, values), together, **sizes)
        return torch.cat([super().attend(*heads), seen], dim=2)


class WindowBlock(Block):
    attention_type = WindowAttention


class WindowTransformer(MaskedTransformer):
    """MaskViT's network, given its first frames' tokens and never asked for them again."""

    block_type = WindowBlock

    def __init__(self, config: WindowConfig):
        super().__init__(config)
        for number, block in enumerate(self.blocks):
            block.attention.grid = config.grid
            block.attention.window = config.windows[number % len(config.windows)]
