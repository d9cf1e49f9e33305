"""MAGVIT-v2's training as a table, beside the first paper's (training/presets.py).

Paper   MAGVIT-v2, App. A.1 and A.2; what they do not say is the first paper's

Read    SequelConfig, what is new; PRESETS.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

from magvit2.blur_discriminator import BLUR_DISCRIMINATORS
from magvit2.causal_tokenizer import CAUSAL_TOKENIZERS
from magvit2.factorized import FACTORIZED_TRANSFORMERS
from training.presets import PRESETS as FIRST_PAPER, TrainConfig, named
from transformer import TRANSFORMERS

SIZES = dict(tokenizer=CAUSAL_TOKENIZERS, discriminator=BLUR_DISCRIMINATORS,
             transformer=FACTORIZED_TRANSFORMERS)


@dataclass(frozen=True)
class SequelConfig(TrainConfig):
    """A run's settings: the first paper's, an entropy loss that is annealed, other networks."""

    # networks
    tokenizer: str | object = "appendix"    # a size in CAUSAL_TOKENIZERS
    discriminator: str | object = "appendix"    # a size in BLUR_DISCRIMINATORS
    transformer: str | object = "L"     # a size in FACTORIZED_TRANSFORMERS
    # stage 1, tokenizer
    inflate: str = ""                   # last: start from the run's 2D tokenizer, which is trained
    #                                     first where it is missing (App. A.1)
    entropy_boost: float = 3.0          # of the entropy's weight: added at step 0, gone after ...
    entropy_boost_steps: int = 2000     # ... so many steps; App. A.2

    inflations = "", "last"             # what `inflate` may be

    def __post_init__(self):
        super().__post_init__()
        for field, sizes in SIZES.items():          # a name becomes the configuration it stands for
            object.__setattr__(self, field, named(getattr(self, field), sizes, field))

    def entropy_weight_at(self, step: int) -> float:
        """The entropy's weight in a step: it falls in a straight line to entropy_weight."""
        steps = self.entropy_boost_steps
        left = 1 - step / steps if step < steps else 0.0
        return self.entropy_weight * (1 + self.entropy_boost * left)


def changed(first: str, **changes) -> SequelConfig:
    """A preset of the first paper with what the sequel changes."""
    return SequelConfig(**vars(FIRST_PAPER[first]) | dict(reconstruction_weight=5.0) | changes)


PRESETS = {
    # Ours: the whole paper on a laptop. Its transformer has no factors.
    "toy-v2": changed(
        "toy", frames=17, tokenizer="toy", discriminator="toy", transformer=TRANSFORMERS["toy"],
        inflate="last", residual_gain=1.0, latent_gain=1.0, codebook_from_data=False,
        entropy_weight=0.03, entropy_boost_steps=200, tokenizer_steps=1500, tokenizer_rate=2e-3),
    "k600-v2": changed(
        "k600-L", frames=17, tokenizer="appendix", discriminator="appendix", inflate="last",
        tokenizer_epochs=190, transformer_epochs=360, decode_schedule="cosine",
        decode_temperature=32.0)}
PRESETS["imagenet256-v2"] = replace(                     # pictures are clips: --layout images
    PRESETS["k600-v2"], resolution=256, frames=1, crop=0.8, tasks=("CG",), condition_frames=1,
    train_videos=1_281_167, num_classes=1000, tokenizer="16x", inflate="", tokenizer_epochs=270,
    transformer_epochs=1080, transformer_batch=1024, class_dropout=0.1, decode_steps=64,
    decode_temperature=15.0)
PRESETS["imagenet512-v2"] = replace(PRESETS["imagenet256-v2"], resolution=512, tokenizer="32x",
                                    decode_temperature=30.0)
