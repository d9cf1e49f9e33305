"""Tokens for recognition: as what a video encoder is taught to guess, and as what it looks at.

Paper   MAGVIT-v2, App. A.4 and its table (there: ViT-B, BEVT's recipe, SSv2 and Kinetics)

Shapes  clips (B, 3, T, H, W) -> one patch for each token, (B, N, D), three of four masked in
        tubes -> Block x num_layers -> what was masked: codes (B, N, K), or pixels (B, N, pixels)
        then without masks -> the mean over N -> logits of the classes

Read    tube_mask, Encoder, targets, pretrain, finetune; then main, the arms.

Not here: the appendix's own recipe, of which docs/magvit2.md says what is left out.

Run:    python -m magvit2.recognition RUN       both tables on the toy, by the tokenizer of a run
"""
from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from tqdm import tqdm

from data.moving_shapes import MovingShapes
from data.source import all_clips
from measure.report import aligned
from training.checkpoint import load_run
from training.start import start_local
from transformer import TRANSFORMERS, Block, initialize

PATCH = 4, 8, 8                                         # pixels of a token of the toy
MASK_RATIO, WEIGHT_DECAY = 0.75, 0.05                   # App. A.4
PRETRAIN_STEPS, FINETUNE_STEPS, PIXELS_STEPS = 400, 150, 600                     # ours
BATCH, RATE, CLIPS_PER_CLASS = 16, 1e-3, 2              # ours


class Clips(NamedTuple):
    video: Tensor                   # (clips, 3, T, H, W)
    label: Tensor                   # (clips,)


def tube_mask(B: int, grid: tuple[int, int, int], ratio: float, generator: torch.Generator
              ) -> Tensor:
    """(B, N) bool, True where masked: the same places in all frames, all but one block of them.

    The block that stays is as square as the grid, at a random place; with 0.75 it has half of
    each side.
    """
    t, h, w = grid
    high, wide = (max(1, round(side * (1 - ratio) ** 0.5)) for side in (h, w))
    top = torch.randint(h - high + 1, (B, 1, 1), generator=generator)
    left = torch.randint(w - wide + 1, (B, 1, 1), generator=generator)
    y, x = torch.arange(h)[None, :, None], torch.arange(w)[None, None, :]
    seen = (y >= top) & (y < top + high) & (x >= left) & (x < left + wide)
    return ~seen[:, None].expand(B, t, h, w).flatten(1)


class Encoder(nn.Module):
    """Blocks of the masked transformer on patches of pixels; a head for whatever is asked."""

    def __init__(self, grid: tuple[int, int, int], outputs: int):
        super().__init__()
        self.grid = grid
        self.config = config = replace(TRANSFORMERS["toy"], num_tokens=math.prod(grid))
        self.patches = nn.Conv3d(3, config.hidden_size, PATCH, PATCH)
        self.position_embedding = nn.Embedding(config.num_tokens, config.hidden_size)
        self.embedding_norm = nn.LayerNorm(config.hidden_size)
        self.mask = nn.Parameter(torch.zeros(config.hidden_size))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.head = nn.Linear(config.hidden_size, outputs)
        for module in self.modules():
            initialize(module, config.initial_deviation)
        start_local(self, grid)                       # as the toy's transformer: minutes are few

    def forward(self, video: Tensor, is_masked: Tensor | None = None) -> Tensor:
        """video (B, 3, T, H, W) in [0, 1], is_masked (B, N) -> features (B, N, D)."""
        x = rearrange(self.patches(2 * video - 1), "b d t h w -> b (t h w) d")
        if is_masked is not None:
            x = torch.where(is_masked[..., None], self.mask, x)
        x = self.embedding_norm(x + self.position_embedding.weight)
        for block in self.blocks:
            x = block(x)
        return x


# ---------------------------------------------------------------------------------------------
# Tokens as targets: a simplified BEVT

@torch.no_grad()
def targets(name: str, tokenizer: nn.Module, video: Tensor) -> Tensor:
    """What is guessed of each patch: codes (clips, N), or pixels (clips, N, values).

    "shuffled" are the codes of the same clips, of other patches: as many of each, in no relation
    to what is seen.
    """
    if name == "pixels":
        t, h, w = PATCH
        return rearrange(video, "b c (t i) (h j) (w k) -> b (t h w) (i j k c)", i=t, j=h, k=w)
    codes = torch.cat([tokenizer.encode(part).flatten(1) for part in video.split(16)])
    if name == "shuffled":
        order = torch.randperm(codes.numel(), generator=torch.Generator().manual_seed(1))
        codes = codes.flatten()[order].view_as(codes)
    return codes


def learn(parameters: list[nn.Parameter], loss_of: Callable[[Tensor, torch.Generator], Tensor],
          clips: int, steps: int, seed: int) -> float:
    """Steps on loss_of(chosen clips (B,), generator); the last loss.

    The rate goes up in the first tenth of the steps, then along a cosine down to none.
    """
    optimizer = torch.optim.AdamW(parameters, RATE, weight_decay=WEIGHT_DECAY)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    for _ in tqdm(range(steps), mininterval=1.0):
        loss = loss_of(torch.randint(clips, (BATCH,), generator=generator), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
    return loss.item()


def pretrain(encoder: Encoder, clips: Clips, wanted: Tensor, steps: int = PRETRAIN_STEPS,
             seed: int = 0) -> float:
    """Teach an encoder to guess what is masked; its last loss. No label is used."""
    def loss_of(chosen: Tensor, generator: torch.Generator) -> Tensor:
        is_masked = tube_mask(len(chosen), encoder.grid, MASK_RATIO, generator)
        guess = encoder.head(encoder(clips.video[chosen], is_masked))[is_masked]
        truth = wanted[chosen][is_masked]
        return (F.mse_loss if truth.is_floating_point() else F.cross_entropy)(guess, truth)

    return learn(list(encoder.parameters()), loss_of, len(clips.video), steps, seed)


def finetune(encoder: Encoder, clips: Clips, classes: int, steps: int = FINETUNE_STEPS,
             seed: int = 0) -> Callable[[Tensor], Tensor]:
    """Train everything on labelled clips, with a new head; returns video -> logits (B, classes)."""
    head = nn.Linear(encoder.head.in_features, classes)

    def classify(video: Tensor) -> Tensor:
        return head(encoder(video).mean(1))

    learn([*encoder.parameters(), *head.parameters()],
          lambda chosen, _: F.cross_entropy(classify(clips.video[chosen]), clips.label[chosen]),
          len(clips.video), steps, seed)
    return classify


@torch.no_grad()
def accuracy(classify: Callable[[Tensor], Tensor], clips: Clips) -> float:
    return (classify(clips.video).argmax(-1) == clips.label).float().mean().item()


def few(clips: Clips, per_class: int) -> Clips:
    """The first clips of each class."""
    chosen = torch.cat([(clips.label == label).nonzero()[:per_class, 0]
                        for label in clips.label.unique()])
    return Clips(clips.video[chosen], clips.label[chosen])


# ---------------------------------------------------------------------------------------------
# Both tables

def as_targets(tokenizer: nn.Module, train: Clips, test: Clips, seeds: int = 2) -> str:
    """Accuracy on held-out clips after a pre-training of each kind."""
    grid, classes = tokenizer.latent_shape(*train.video.shape[2:]), int(train.label.max()) + 1
    rows = []
    for name in ("codes", "pixels", "shuffled", "nothing"):
        rates = []
        for seed in range(seeds):
            torch.manual_seed(seed)
            if name == "nothing":
                encoder = Encoder(grid, 1)
            else:
                wanted = targets(name, tokenizer, train.video)
                encoder = Encoder(grid, wanted.shape[-1] if name == "pixels" else
                                  tokenizer.codebook_size)
                pretrain(encoder, train, wanted, seed=seed)
            labelled = few(train, CLIPS_PER_CLASS)
            rates.append(accuracy(finetune(encoder, labelled, classes, seed=seed), test))
        rows.append((name, *(f"{rate:.1%}" for rate in (*rates, sum(rates) / seeds))))
    return aligned([("guessed while pre-training", *(f"seed {i}" for i in range(seeds)), "mean"),
                    *rows])


@torch.no_grad()
def as_inputs(tokenizer: nn.Module, classify: Callable[[Tensor], Tensor], test: Clips) -> str:
    """Accuracy of a classifier of pixels on what the tokenizer leaves of them."""
    decoded = torch.cat([tokenizer.decode(tokenizer.encode(part)).clamp(0, 1)
                         for part in test.video.split(16)])
    shape, direction = MovingShapes.recognize(decoded)
    rates = {"held-out clips": accuracy(classify, test),
             "the same from their tokens": accuracy(classify, test._replace(video=decoded)),
             "the same, by the toy's rule": (shape * 4 + direction == test.label).float().mean()}
    return aligned([("a classifier of pixels looks at", "right"),
                    *((name, f"{rate:.1%}") for name, rate in rates.items())])


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__.split("\n\n")[-1])
    try:
        tokenizer = load_run(sys.argv[1], stages=("tokenizer",)).tokenizer
    except (ValueError, OSError) as error:
        sys.exit(f"recognition.py: {error}")
    train, test = (Clips(*all_clips(MovingShapes(split))) for split in ("train", "test"))
    print(as_targets(tokenizer, train, test))
    torch.manual_seed(0)
    encoder = Encoder(tokenizer.latent_shape(*train.video.shape[2:]), 1)
    classes = len(MovingShapes().class_names)
    print(as_inputs(tokenizer, finetune(encoder, train, classes, PIXELS_STEPS), test))


if __name__ == "__main__":
    main()
