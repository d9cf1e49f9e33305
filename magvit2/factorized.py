"""MAGVIT-v2's masked transformer: a code of 2^18 is predicted as two factors of 2^9.

Paper   MAGVIT-v2, Sec. 3.2 (token factorization); App. A.1 and A.2 (guidance, its schedule)

Shapes  tokens (B, N) with [MASK] -> digits (B, N, factors) -> sum of the factors' embeddings
          -> Block x num_layers -> a head for each factor -> logits (B, N, factors, K_f)
        code = digit_0 + K_f digit_1 + ...                      (commit.digits_of, codes_of)

Read    FactorizedTransformer; power_cosine, falling.

A table of 2^18 rows of 1,024 numbers would nearly double the network, and a softmax over them be
most of a step's memory. Whole positions are masked, as COMMIT needs it; the loss of a position,
and its confidence in Algorithm 1, are sums over its factors: log p(code) = sum of log p(digit).
So the same losses and the same decoding take it. Given the sequence, digits are independent.

Not public: whether v2 masks the factors of a token together, and its guidance's exponent.

Run:    python -m magvit2.factorized      sizes; what factors cost and what they cannot say
        python -m magvit2.factorized RUN  what guidance does to a run on the toy's classes
"""
from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from commit import digits_of, token_cross_entropy
from measure.report import measure_classes
from training.build import TRANSFORMER_TYPES
from training.checkpoint import load_run
from transformer import TRANSFORMERS, MaskedTransformer, TransformerConfig, initialize


@dataclass(frozen=True)
class FactorizedConfig(TransformerConfig):
    """Sizes as of a MaskedTransformer, for codes that are spelled out in `factors` digits."""

    factors: int = 2

    def __post_init__(self):
        super().__post_init__()
        if self.factor_size ** self.factors != self.codebook_size:
            raise ValueError(f"{self.codebook_size} codes are no {self.factors} factors of equal "
                             "size; give a codebook of 2^(bits), with bits a multiple of factors")

    @property
    def factor_size(self) -> int:
        """K_f, the digits' base: 2^9 for 2^18 codes and two factors."""
        return round(self.codebook_size ** (1 / self.factors))

    @property
    def table_size(self) -> int:
        """Classes, "no class", prompts and [MASK]; codes have no rows of their own."""
        return self.vocabulary_size - self.codebook_size


def _like(name: str, **changes) -> FactorizedConfig:
    """A size of the first paper, with factors."""
    return FactorizedConfig(**vars(replace(TRANSFORMERS[name], **changes)))


FACTORIZED_TRANSFORMERS = {
    "L": _like("L", codebook_size=2 ** 18, num_tokens=5 * 16 * 16, num_tasks=1,
               task_names=("FP",)),
    "toy": _like("toy", codebook_size=2 ** 10, num_tokens=5 * 4 * 4),
}


class FactorizedTransformer(MaskedTransformer):
    """p(z_i | rho, c, z-bar) as the product of its factors' probabilities, for all i at once."""

    def __init__(self, config: FactorizedConfig):
        super().__init__(config)
        size = config.hidden_size
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
        digits = digits_of(tokens.masked_fill(is_mask, 0), tokens.new_empty(
            *tokens.shape, self.config.factors, self.config.factor_size, device="meta"))
        codes = sum(table(digits[..., i]) for i, table in enumerate(self.digit_embeddings))
        mask = self.token_embedding(tokens.new_tensor(self.mask_id - K))
        codes = torch.where(is_mask[..., None], mask, codes)                    # (B, N, D)
        prefix = self.token_embedding(self.prefix(task, label) - K)
        return torch.cat([prefix, codes], dim=1)

    def predict(self, x: Tensor) -> Tensor:
        """The last block's vectors of visual tokens (B, N, D) -> logits (B, N, factors, K_f)."""
        return torch.stack([F.linear(head(x), table.weight, bias) for head, table, bias in zip(
            self.heads, self.digit_embeddings, self.digit_biases)], dim=2)


TRANSFORMER_TYPES[FactorizedConfig] = FactorizedTransformer


def power_cosine(scale: float, power: float) -> Callable[[float], float]:
    """A guidance scale for commit_decode that rises from 0 to `scale` as decoding goes on:
    scale (1 - cos(pi (t / K)^power)) / 2 (MDT, Gao et al. 2023).

    Scales are ours, logits + scale (logits - unconditional). Where others write unconditional +
    s (logits - unconditional), scale is s - 1.
    """
    if power <= 0:
        raise ValueError(f"power {power}; wanted above 0: 1 is a plain cosine, more rises later")
    return lambda progress: scale * (1 - math.cos(math.pi * progress ** power)) / 2


def falling(progress: float) -> float:
    """A softmax temperature for commit_decode, 1d-tokenizer's; App. A.1 does not say its own."""
    return 1.3 - 0.8 * progress


def guided_classes(run: str, samples: int = 256) -> None:
    """How often a run that was trained with class dropout draws what its label says, by the toy's
    rule, at several guidance scales, and as it is or with a softmax temperature that falls."""
    loaded = load_run(run)
    scales = {"none": 0.0, "1": 1.0, "3": 3.0, "9": 9.0, "9, power 1": power_cosine(9.0, 1.0),
              "9, power 3": power_cosine(9.0, 3.0)}
    print("guidance              right direction   right shape")
    for name, tau in ((name, tau) for tau in (1.0, falling) for name in scales):
        guided = dict(guidance_scale=scales[name], softmax_temperature=tau)
        rates = measure_classes(loaded.tokenizer, loaded.transformer, samples,
                                loaded.config.decoding | guided, frames=loaded.config.frames)
        print(f"{name + ', falling' * callable(tau):21} {rates['right_direction']:15.1%} "
              f"{rates['right_shape']:13.1%}")


def main() -> None:
    if len(sys.argv) > 1:
        return guided_classes(sys.argv[1])
    L = FACTORIZED_TRANSFORMERS["L"]
    image = replace(L, num_classes=1000, num_tokens=256, num_tasks=0, task_names=())
    for title, config in (("Kinetics-600, 1,280 tokens", L), ("pictures, 256 tokens", image),
                          ("the toy", FACTORIZED_TRANSFORMERS["toy"])):
        with torch.device("meta"):
            factors = FactorizedTransformer(config)
            whole = MaskedTransformer(TransformerConfig(**{
                name: value for name, value in vars(config).items() if name != "factors"}))
        counts = (sum(p.numel() for p in model.parameters()) for model in (factors, whole))
        print("{:28} {:>12,} parameters; {:>12,} with a row for each code".format(title, *counts))
    # Two digits that are always equal: each factor can say how often, not that they agree.
    tokens = torch.tensor([[0, 5, 10, 15]])
    logits = torch.zeros(1, 4, 2, 4)
    print(f"codes 00, 11, 22, 33, one as likely as another: {math.log(4):.2f} nats a code; two "
          f"factors need {token_cross_entropy(logits, tokens).mean():.2f}")
    print("guidance at power 3:", *(f"{power_cosine(10.0, 3)(t / 12):5.2f}" for t in range(12)))


if __name__ == "__main__":
    main()
