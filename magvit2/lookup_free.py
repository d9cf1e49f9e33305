"""Lookup-free quantization: a token is the signs of its latent, so no codebook has to be learned.

Paper   MAGVIT-v2, App. A.2 (weights, 2^18 codes); the layer is that of google/praxis (official)

Shapes  latents (B, bits, t, h, w) -> their signs (B, bits, t, h, w), and tokens (B, t, h, w)
        tokens -> lookup -> signs

Read    LookupFreeQuantizer; then entropies, why 2^18 codes cost no more than 2 * 2^9.

The codes are the corners of a cube, so the nearest one is found without a search. They also have to
be used: the entropy loss wants each latent to be sure of its code, and all codes to be as frequent.
Its distribution over codes, a softmax of 2 z.c / temperature, is a product of one for each bit,
p(+1) = sigmoid(4 z / temperature).
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tokenizer import Quantized, TokenizerConfig, VideoTokenizer, average_over_processes

OFFICIAL_EPSILON = 1e-5         # added to a probability in the logarithm; uniform is 2^-18 = 4e-6


class LookupFreeQuantizer(nn.Module):
    """Stands in for tokenizer.VectorQuantizer: D is the number of bits, K is 2^bits.

    Bit i of a token is the sign of channel i, so channel 0 is its lowest bit; 0 counts as positive.
    epsilon is added to the mean code's probabilities in the logarithm: 0 is exact, official is
    1e-5, with which the entropy of uniform codes is 11.19 nats instead of 12.48 at 18 bits.
    """

    def __init__(self, bits: int, temperature: float = 0.01, epsilon: float = 0.0):
        super().__init__()
        self.bits, self.temperature, self.epsilon = bits, temperature, epsilon

    def lookup(self, tokens: Tensor) -> Tensor:
        """tokens (B, t, h, w) -> codes (B, bits, t, h, w) of -1 and +1."""
        return ((tokens[:, None] >> self._places(tokens)) & 1).float() * 2 - 1

    def tokens(self, latents: Tensor) -> Tensor:
        """latents (B, bits, t, h, w) -> tokens (B, t, h, w): sum of 2^i [z_i >= 0]."""
        return (self.positive(latents).long() << self._places(latents)).sum(1)

    def _places(self, x: Tensor) -> Tensor:
        return torch.arange(self.bits, device=x.device)[:, None, None, None]

    def positive(self, latents: Tensor) -> Tensor:
        """True where a sign is +1; published weights differ at 0."""
        return latents >= 0

    def forward(self, latents: Tensor) -> Quantized:
        codes = torch.where(self.positive(latents), 1.0, -1.0)
        position, mean = entropies(latents, self.temperature, self.epsilon)
        return Quantized(
            embeddings=latents + (codes - latents).detach(),                 # straight-through
            tokens=self.tokens(latents),
            commitment_loss=F.mse_loss(latents, codes),
            codebook_loss=latents.new_zeros(()),                     # there is no code to move
            entropy_loss=position - mean)


def entropies(latents: Tensor, temperature: float = 0.01, epsilon: float = 0.0
              ) -> tuple[Tensor, Tensor]:
    """Entropy of a position's code, the mean over positions; and entropy of the mean code; in nats.

    latents (B, bits, t, h, w). At a position bits are independent, so its entropy is the sum of
    theirs. The mean code's entropy needs the distribution over all 2^bits codes. That is a sum over
    positions of outer products of the distributions of the high and of the low half of the bits, so
    one product of two matrices, (2^high, positions) x (positions, 2^low). Nothing has the size of
    positions x 2^bits. With several processes the mean is over the positions of all.
    """
    with torch.autocast(latents.device.type, enabled=False):
        logits = rearrange(latents.float(), "b d t h w -> (b t h w) d") * (4 / temperature)
        probability = logits.sigmoid()
        position = (F.softplus(logits) - logits * probability).sum(1).mean()
        half = (probability.shape[1] + 1) // 2
        low, high = probability[:, :half], probability[:, half:]
        joint = corners(high).T @ corners(low) / len(logits)                 # (2^high, 2^low)
        joint = average_over_processes(joint)
        # Where a probability is 0, so is its part; the clamp keeps the gradient finite there.
        mean = -(joint * (joint + epsilon).clamp_min(torch.finfo(joint.dtype).tiny).log()).sum()
    return position, mean


def corners(probability: Tensor) -> Tensor:
    """Independent bits' probabilities of being set (N, d) -> that of each code (N, 2^d)."""
    codes = probability.new_ones(len(probability), 1)
    for one in probability.unbind(1):                    # each further bit is the highest so far
        codes = torch.cat([codes * (1 - one)[:, None], codes * one[:, None]], dim=1)
    return codes


@dataclass(frozen=True)
class LookupFreeConfig(TokenizerConfig):
    """The first paper's network with signs for codes: `bits` says K = 2^bits and D = bits."""

    bits: int = 10
    epsilon: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "codebook_size", 2 ** self.bits)
        object.__setattr__(self, "embedding_dim", self.bits)

    def build(self) -> LookupFreeTokenizer:
        return LookupFreeTokenizer(self)

    def image_twin(self) -> None:
        raise ValueError("the first paper's network with signs for codes has no 2D twin: train it "
                         "without --inflate, or take a causal tokenizer")


class LookupFreeTokenizer(VideoTokenizer):
    """tokenizer.VideoTokenizer, quantized without a codebook."""

    def __init__(self, config: LookupFreeConfig):
        super().__init__(config)
        self.quantizer = LookupFreeQuantizer(config.bits, config.entropy_temperature,
                                             config.epsilon)
