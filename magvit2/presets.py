"""MAGVIT-v2's training as a table, beside the first paper's (training/presets.py).

Paper   MAGVIT-v2, App. A.1 and A.2; what it does not say is the first paper's

Read    SequelConfig, what is new; PRESETS.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

from magvit2.blur_discriminator import BLUR_DISCRIMINATORS
from magvit2.causal_tokenizer import CAUSAL_TOKENIZERS
from magvit2.factorized import FACTORIZED_TRANSFORMERS
from training.presets import PRESETS as FIRST_PAPER, TrainConfig


@dataclass(frozen=True)
class SequelConfig(TrainConfig):
    """A run's settings, with the annealing of the entropy loss."""

    # stage 1, tokenizer
    entropy_boost: float = 3.0          # times the entropy's weight, added at step 0, gone after ...
    entropy_boost_steps: int = 2000     # ... so many steps; App. A.2

    inflations = "", "last"

    def discriminator_config(self):
        """The 2D twin where clips are pictures: in 3D each blur would halve a single frame."""
        config = super().discriminator_config()
        return config.image_twin() if self.frames == 1 else config

    def entropy_weight_at(self, step: int) -> float:
        """The entropy's weight, which falls in a straight line to entropy_weight."""
        left = max(0.0, 1 - step / self.entropy_boost_steps)
        return self.entropy_weight * (1 + self.entropy_boost * left)


def _sequel(first: str, **changes) -> SequelConfig:
    """A preset of the first paper with what the sequel changes."""
    return SequelConfig(**vars(replace(FIRST_PAPER[first], inflate="")) | changes)


# Ours: the whole paper on a laptop.
PRESETS = {"toy-v2": _sequel(
    "toy", frames=17, tokenizer=CAUSAL_TOKENIZERS["toy"], inflate="last",
    residual_gain=1.0, latent_gain=1.0, codebook_from_data=False,
    reconstruction_weight=5.0, entropy_weight=0.03, entropy_boost_steps=200,
    tokenizer_steps=1500, tokenizer_rate=2e-3)}
# Stage 2 predicts a code as two factors of 2^9: docs/magvit2.md.
PRESETS["k600-v2"] = _sequel(
    "k600-L", frames=17, tokenizer=CAUSAL_TOKENIZERS["appendix"],
    discriminator=BLUR_DISCRIMINATORS["appendix"], transformer=FACTORIZED_TRANSFORMERS["L"],
    inflate="last", reconstruction_weight=5.0, tokenizer_epochs=190, transformer_epochs=360,
    decode_schedule="cosine", decode_temperature=32.0)
PRESETS["imagenet256-v2"] = replace(                     # pictures are clips: --layout images
    PRESETS["k600-v2"], resolution=256, frames=1, crop=0.8, tasks=("CG",), condition_frames=1,
    train_videos=1_281_167, num_classes=1000, tokenizer=CAUSAL_TOKENIZERS["16x"], inflate="",
    tokenizer_epochs=270, transformer_epochs=1080, transformer_batch=1024, class_dropout=0.1,
    decode_steps=64, decode_temperature=15.0)
PRESETS["imagenet512-v2"] = replace(PRESETS["imagenet256-v2"], resolution=512,
                                    tokenizer=CAUSAL_TOKENIZERS["32x"], decode_temperature=30.0)
