"""MAGVIT-v2's masked transformer: a code of 2^18 is predicted as two factors of 2^9.

Paper   MAGVIT-v2, Sec. 3.2 (token factorization); App. A.1 and A.2 (guidance, its schedule)

Shapes  tokens (B, N) with [MASK] -> digits (B, N, factors) -> sum of the factors' embeddings
          -> Block x num_layers -> a head for each factor -> logits (B, N, factors, K_f)
        code = digit_0 + K_f digit_1 + ...

Read    FactorizedTransformer: embed, predict, cross_entropy, sample; then power_cosine.

A table of 2^18 rows of 1,024 numbers would nearly double the network, and the softmax over it would
take most of a step's memory. Positions are masked whole, as COMMIT needs it. The loss of a position,
and its confidence in Algorithm 1, are sums over its factors: log p(code) = sum of log p(digit).
Digits of a position are independent given the sequence.

Not public: whether v2 masks the factors of a token together, and its guidance's exponent.

Run:    python -m magvit2.factorized RUN      what guidance does to a run on the toy's classes
"""
from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from typing import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from measure.report import aligned, measure_classes
from training.checkpoint import load_run
from transformer import TRANSFORMERS, MaskedTransformer, TransformerConfig, initialize


@dataclass(frozen=True)
class FactorizedConfig(TransformerConfig):
    """Sizes as of a MaskedTransformer, for codes that are spelled out in `factors` digits."""

    factors: int = 2

    def __post_init__(self):
        if self.factor_size ** self.factors != self.codebook_size:
            raise ValueError(f"{self.codebook_size} codes are no {self.factors} factors of equal "
                             "size; give 2^bits codes, with bits a multiple of factors")

    def build(self) -> FactorizedTransformer:
        return FactorizedTransformer(self)

    @property
    def factor_size(self) -> int:
        """K_f, the digits' base: 2^9 for 2^18 codes and two factors."""
        return round(self.codebook_size ** (1 / self.factors))


FACTORIZED_TRANSFORMERS = {
    "L": FactorizedConfig(**vars(TRANSFORMERS["L"]) | dict(
        codebook_size=2 ** 18, num_tokens=5 * 16 * 16, tasks=("FP",))),
    "toy": FactorizedConfig(**vars(TRANSFORMERS["toy"]) | dict(
        codebook_size=2 ** 10, num_tokens=5 * 4 * 4)),
}


class FactorizedTransformer(MaskedTransformer):
    """p(z_i | rho, c, z-bar) as the product of its factors' probabilities, for all i at once."""

    def __init__(self, config: FactorizedConfig):
        # Codes have no rows in the table: it has those of classes, "no class", prompts and [MASK].
        super().__init__(replace(config, codebook_size=0))
        self.config, size = config, config.hidden_size
        self.digit_embeddings = nn.ModuleList(nn.Embedding(config.factor_size, size)
                                              for _ in range(config.factors))
        # BERT's head for each factor, tied to the factor's own table.
        del self.head, self.head_bias
        self.heads = nn.ModuleList(nn.Sequential(
            nn.Linear(size, size), nn.GELU(approximate="tanh"), nn.LayerNorm(size, eps=1e-12))
            for _ in range(config.factors))
        self.digit_biases = nn.Parameter(torch.zeros(config.factors, config.factor_size))
        for part in (self.digit_embeddings, self.heads):
            for module in part.modules():
                initialize(module, config.initial_deviation)

    def embed(self, tokens: Tensor, task: Tensor, label: Tensor) -> Tensor:
        """[rho, c, z-bar] as vectors (B, 2 + N, D): a code's is the sum of its digits'."""
        K, is_mask = self.config.codebook_size, tokens == self.mask_id
        digits = self._digits(tokens.masked_fill(is_mask, 0))
        codes = sum(table(digits[..., i]) for i, table in enumerate(self.digit_embeddings))
        mask = self.token_embedding(tokens.new_tensor(self.mask_id - K))
        codes = torch.where(is_mask[..., None], mask, codes)                    # (B, N, D)
        prefix = self.token_embedding(self.prefix(task, label) - K)
        return torch.cat([prefix, codes], dim=1)

    def predict(self, x: Tensor) -> Tensor:
        """The last block's vectors of visual tokens (B, N, D) -> logits (B, N, factors, K_f)."""
        return torch.stack([F.linear(head(x), table.weight, bias) for head, table, bias in zip(
            self.heads, self.digit_embeddings, self.digit_biases)], dim=2)

    def cross_entropy(self, logits: Tensor, tokens: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """-log p(z_i) of each token (B, N): a sum over its digits. logits (B, N, factors, K_f)."""
        losses = F.cross_entropy(rearrange(logits.float(), "b n f k -> b k n f"),
                                 self._digits(tokens), reduction="none",
                                 label_smoothing=label_smoothing)
        return losses.sum(-1)

    def sample(self, logits: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Draw each digit by itself: logits (B, N, factors, K_f), noise of that shape."""
        digits, log_probability = super().sample(logits, noise)
        return codes_of(digits, self.config.factor_size), log_probability.sum(-1)

    def _digits(self, tokens: Tensor) -> Tensor:
        return digits_of(tokens, self.config.factors, self.config.factor_size)


def digits_of(tokens: Tensor, factors: int, base: int) -> Tensor:
    """Codes (...) -> their digits (..., factors), lowest first. Only a code has all digits in
    range."""
    digits = tokens[..., None] // base ** torch.arange(factors, device=tokens.device)
    digits[..., :-1] %= base
    return digits


def codes_of(digits: Tensor, base: int) -> Tensor:
    """Digits (..., factors) -> the codes (...) that they spell."""
    return (digits * base ** torch.arange(digits.shape[-1], device=digits.device)).sum(-1)


def power_cosine(scale: float, power: float) -> Callable[[float], float]:
    """A guidance scale for commit_decode that rises from 0 to `scale` during decoding:
    scale (1 - cos(pi (t / K)^power)) / 2 (MDT, Gao et al. 2023). A larger power rises later.

    Logits become logits + scale (logits - unconditional). Where others write unconditional +
    s (logits - unconditional), scale is s - 1.
    """
    return lambda progress: scale * (1 - math.cos(math.pi * progress ** power)) / 2


def main() -> None:
    """How often samples are what their label says, by the toy's rule, at several scales."""
    if len(sys.argv) != 2:
        sys.exit(__doc__.split("\n\n")[-1])
    try:
        run = load_run(sys.argv[1])
    except (ValueError, OSError) as error:
        sys.exit(f"factorized.py: {error}")
    rows = [("scale", "right direction", "right shape")]
    for name, scale in {"none": 0.0, "1": 1.0, "3": 3.0, "9": 9.0,
                        "9, rising, power 1": power_cosine(9.0, 1.0),
                        "9, rising, power 3": power_cosine(9.0, 3.0)}.items():
        decoding = run.config.decoding | dict(guidance_scale=scale)
        rates = measure_classes(run.tokenizer, run.transformer, 256, decoding,
                                frames=run.config.frames)
        rows.append((name, f"{rates['right_direction']:.1%}", f"{rates['right_shape']:.1%}"))
    print(aligned(rows))


if __name__ == "__main__":
    main()
