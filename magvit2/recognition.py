"""Tokens for recognition: as what a video encoder is taught to guess, and as what it looks at.

Paper   MAGVIT-v2, App. A.4 and its table (there: ViT-B, BEVT's recipe, SSv2 and Kinetics)

Shapes  clips (B, 3, T, H, W) -> one patch for each token, (B, N, D), three of four masked in
        tubes -> Block x num_layers -> what was masked: codes (B, N, K), or pixels (B, N, pixels)
        then without masks -> the mean over N -> logits of the classes

Read    tube_mask, Encoder, targets, pretrain, finetune; then main, the two tables.

Not here: the appendix's own recipe, of which docs/magvit2.md says what is left out.

Run:    python -m magvit2.recognition RUN       both tables on the toy, by the tokenizer of a run
"""
from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import Callable

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
BATCH, RATE, CLIPS_PER_CLASS, SEEDS = 16, 1e-3, 2, 2    # ours

Classifier = Callable[[Tensor], Tensor]                 # video (B, 3, T, H, W) -> (B, classes)


def tube_mask(B: int, grid: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """(B, N) bool, True where masked: in all frames the same places, all but one block of them.

    The block that stays has half of each side, at a random place.
    """
    t, h, w = grid
    high, wide = (max(1, round(side * (1 - MASK_RATIO) ** 0.5)) for side in (h, w))
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
# Training: a simplified BEVT

@torch.no_grad()
def targets(name: str, tokenizer: nn.Module, video: Tensor) -> Tensor:
    """What is guessed of each patch: codes (clips, N), or pixels (clips, N, values).

    "shuffled" are the same codes at random other places, a control: what is seen says nothing
    about them.
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

    The rate rises in the first tenth of the steps and falls along a cosine to 0.
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


def pretrain(encoder: Encoder, video: Tensor, wanted: Tensor, steps: int = PRETRAIN_STEPS,
             seed: int = 0) -> float:
    """Teach an encoder to guess targets where it is masked, without labels; the last loss."""
    def loss_of(chosen: Tensor, generator: torch.Generator) -> Tensor:
        is_masked = tube_mask(len(chosen), encoder.grid, generator)
        guess = encoder.head(encoder(video[chosen], is_masked))[is_masked]
        truth = wanted[chosen][is_masked]
        return (F.mse_loss if truth.is_floating_point() else F.cross_entropy)(guess, truth)

    return learn(list(encoder.parameters()), loss_of, len(video), steps, seed)


def finetune(encoder: Encoder, video: Tensor, label: Tensor, classes: int,
             steps: int = FINETUNE_STEPS, seed: int = 0) -> Classifier:
    """Train everything on labelled clips, with a new head."""
    head = nn.Linear(encoder.head.in_features, classes)

    def classify(video: Tensor) -> Tensor:
        return head(encoder(video).mean(1))

    def loss_of(chosen: Tensor, _: torch.Generator) -> Tensor:
        return F.cross_entropy(classify(video[chosen]), label[chosen])

    learn([*encoder.parameters(), *head.parameters()], loss_of, len(video), steps, seed)
    return classify


@torch.no_grad()
def accuracy(classify: Classifier, video: Tensor, label: Tensor) -> float:
    return (classify(video).argmax(-1) == label).float().mean().item()


# ---------------------------------------------------------------------------------------------
# Both tables

def accuracy_after(name: str, tokenizer: nn.Module, train: tuple[Tensor, Tensor],
                   test: tuple[Tensor, Tensor], seed: int) -> float:
    """Accuracy on held-out clips after pre-training on targets of a kind, or on "nothing", and
    fine-tuning on a few clips of each class. train, test: (video, label)."""
    video, label = train
    grid = tokenizer.latent_shape(*video.shape[2:])
    torch.manual_seed(seed)
    if name == "nothing":
        encoder = Encoder(grid, 1)
    else:
        wanted = targets(name, tokenizer, video)
        encoder = Encoder(grid, wanted.shape[-1] if name == "pixels" else tokenizer.codebook_size)
        pretrain(encoder, video, wanted, seed=seed)
    few = torch.cat([(label == each).nonzero()[:CLIPS_PER_CLASS, 0] for each in label.unique()])
    classify = finetune(encoder, video[few], label[few], int(label.max()) + 1, seed=seed)
    return accuracy(classify, *test)


@torch.no_grad()
def as_inputs(tokenizer: nn.Module, classify: Classifier, video: Tensor, label: Tensor
              ) -> dict[str, float]:
    """Accuracy of a classifier of pixels on what the tokenizer leaves of them."""
    decoded = torch.cat([tokenizer.decode(tokenizer.encode(part)).clamp(0, 1)
                         for part in video.split(16)])
    shape, direction = MovingShapes.recognize(decoded)
    return {"held-out clips": accuracy(classify, video, label),
            "the same from their tokens": accuracy(classify, decoded, label),
            "the same, by the toy's rule": (shape * 4 + direction == label).float().mean().item()}


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__.split("\n\n")[-1])
    try:
        tokenizer = load_run(sys.argv[1], stages=("tokenizer",)).tokenizer
    except (ValueError, OSError) as error:
        sys.exit(f"recognition.py: {error}")
    train, test = (all_clips(MovingShapes(split)) for split in ("train", "test"))
    rows = [("guessed while pre-training", *(f"seed {i}" for i in range(SEEDS)), "mean")]
    for name in ("codes", "pixels", "shuffled", "nothing"):
        rates = [accuracy_after(name, tokenizer, train, test, seed) for seed in range(SEEDS)]
        rows.append((name, *(f"{rate:.1%}" for rate in (*rates, sum(rates) / SEEDS))))
    print(aligned(rows))
    torch.manual_seed(0)
    encoder = Encoder(tokenizer.latent_shape(*train[0].shape[2:]), 1)
    classify = finetune(encoder, *train, len(MovingShapes().class_names), PIXELS_STEPS)
    print(aligned([("a classifier of pixels looks at", "right"), *(
        (name, f"{rate:.1%}") for name, rate in as_inputs(tokenizer, classify, *test).items())]))


if __name__ == "__main__":
    main()
