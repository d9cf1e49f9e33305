"""Tokens for recognition: as what a video encoder is taught to guess, and as what it looks at.

Paper   MAGVIT-v2, App. A.4 and its table (there: ViT-B, BEVT's recipe, SSv2 and Kinetics)

Shapes  clips (B, 3, T, H, W) -> one patch for each token, (B, N, D), three of four masked in
        tubes -> Block x num_layers -> what was masked: codes (B, N, K), or pixels (B, N, pixels)
        then without masks -> the mean over N -> logits of the classes

Read    tube_mask, Encoder, pretrain, finetune; targets, the arms.

Run:    python -m magvit2.recognition           what a tube mask hides
        python -m magvit2.recognition RUN       both tables on the toy, by the tokenizer of a run
"""
from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from tqdm import tqdm

from data.moving_shapes import MovingShapes
from data.source import all_clips
from measure.numbers import aligned
from training.checkpoint import load_checkpoint, load_network
from training.start import start_local
from transformer import TRANSFORMERS, Block, initialize

# App. A.4, as plain data (warm-up in epochs); the toy's beside it. Decay is AdamW's.
PRESETS = {
    "appendix": dict(pixels=224, frames=16, patch=(2, 14, 14), mask_ratio=0.75, beta1=0.9,
                     layer_decay=0.75, weight_decay=0.05, label_smoothing=0.1, pretrain_epochs=800,
                     pretrain_batch=1024, pretrain_warmup=40, pretrain_dropout=0.1,
                     pretrain_flip=True, finetune_epochs=50, finetune_batch=512, finetune_warmup=5,
                     finetune_droppath=0.1, finetune_mixup=0.8, finetune_cutmix=1.0),
    "toy": dict(pixels=32, frames=16, patch=(4, 8, 8), mask_ratio=0.75, pretrain_steps=400,
                pretrain_batch=16, weight_decay=0.05, label_smoothing=0.0, finetune_steps=150,
                finetune_batch=16, clips_per_class=2)}
RATE = 1e-3                                             # ours; warmed up in a tenth of the steps


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

    def __init__(self, grid: tuple[int, int, int], patch: tuple[int, int, int], outputs: int):
        super().__init__()
        self.config = config = replace(TRANSFORMERS["toy"], num_tokens=math.prod(grid))
        self.patches = nn.Conv3d(3, config.hidden_size, patch, patch)
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


def schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Up in the first tenth of the steps, then along a cosine down to none."""
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.1)


# ---------------------------------------------------------------------------------------------
# Tokens as targets: a simplified BEVT

def targets(name: str, tokenizer: nn.Module, video: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """What is guessed of each patch: codes (clips, N), or pixels (clips, N, values).

    "shuffled" are the codes of the same clips, of other patches: as many of each, in no relation
    to what is seen.
    """
    if name == "pixels":
        t, h, w = patch
        return rearrange(video, "b c (t i) (h j) (w k) -> b (t h w) (i j k c)", i=t, j=h, k=w)
    with torch.no_grad():
        codes = torch.cat([tokenizer.encode(part).flatten(1) for part in video.split(16)])
    if name == "shuffled":
        order = torch.randperm(codes.numel(), generator=torch.Generator().manual_seed(1))
        codes = codes.flatten()[order].view_as(codes)
    return codes


def pretrain(encoder: Encoder, clips: Clips, wanted: Tensor, grid: tuple[int, int, int],
             settings: dict, seed: int = 0) -> float:
    """Teach an encoder to guess what is masked; its last loss. No label is used."""
    optimizer = torch.optim.AdamW(encoder.parameters(), RATE, weight_decay=settings["weight_decay"])
    rates = schedule(optimizer, settings["pretrain_steps"])
    generator = torch.Generator().manual_seed(seed)
    for _ in tqdm(range(settings["pretrain_steps"]), "pretraining", mininterval=1.0):
        chosen = torch.randint(len(clips.video), (settings["pretrain_batch"],), generator=generator)
        is_masked = tube_mask(len(chosen), grid, settings["mask_ratio"], generator)
        guess = encoder.head(encoder(clips.video[chosen], is_masked))[is_masked]
        truth = wanted[chosen][is_masked]
        loss = (F.mse_loss(guess, truth) if truth.is_floating_point() else
                F.cross_entropy(guess, truth, label_smoothing=settings["label_smoothing"]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
    return loss.item()


def finetune(encoder: Encoder, clips: Clips, classes: int, settings: dict, seed: int = 0
             ) -> Callable[[Tensor], Tensor]:
    """Train everything on labelled clips, with a new head; returns video -> logits (B, classes)."""
    head = nn.Linear(encoder.head.in_features, classes)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], RATE,
                                  weight_decay=settings["weight_decay"])
    rates = schedule(optimizer, settings["finetune_steps"])
    generator = torch.Generator().manual_seed(seed)

    def classify(video: Tensor) -> Tensor:
        return head(encoder(video).mean(1))

    for _ in tqdm(range(settings["finetune_steps"]), "finetuning", mininterval=1.0):
        chosen = torch.randint(len(clips.video), (settings["finetune_batch"],), generator=generator)
        loss = F.cross_entropy(classify(clips.video[chosen]), clips.label[chosen],
                               label_smoothing=settings["label_smoothing"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
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

def both_tables(run: str, seeds: int = 2) -> None:
    """Targets: held-out accuracy of each arm. Inputs: of a classifier of pixels, on what the
    tokenizer leaves of them."""
    tokenizer, settings = load_network(load_checkpoint(Path(run, "tokenizer.pt"))), PRESETS["toy"]
    train, test = (Clips(*all_clips(MovingShapes(split))) for split in ("train", "test"))
    grid, classes = tokenizer.latent_shape(*train.video.shape[2:]), len(MovingShapes().class_names)
    labelled, rows = few(train, settings["clips_per_class"]), []
    for name in ("codes", "pixels", "shuffled", "nothing"):
        rates = []
        for seed in range(seeds):
            torch.manual_seed(seed)
            wanted = None if name == "nothing" else targets(name, tokenizer, train.video,
                                                            settings["patch"])
            outputs = (1 if wanted is None else wanted.shape[-1] if wanted.is_floating_point()
                       else tokenizer.codebook_size)
            encoder = Encoder(grid, settings["patch"], outputs)
            if wanted is not None:
                pretrain(encoder, train, wanted, grid, settings, seed)
            rates.append(accuracy(finetune(encoder, labelled, classes, settings, seed), test))
        rows.append((name, *(f"{rate:.1%}" for rate in rates), f"{sum(rates) / seeds:.1%}"))
        print(*rows[-1], flush=True)
    print(aligned([("guessed while pretraining", *(f"seed {i}" for i in range(seeds)), "mean"),
                   *rows]))
    torch.manual_seed(0)
    classify = finetune(Encoder(grid, settings["patch"], 1), train, classes,
                        settings | dict(finetune_steps=600))
    with torch.no_grad():
        decoded = torch.cat([tokenizer.decode(tokenizer.encode(part)).clamp(0, 1)
                             for part in test.video.split(16)])
    shape, direction = MovingShapes.recognize(decoded)
    rule = ((shape * 4 + direction) == test.label).float().mean().item()
    print(aligned([("a classifier of pixels looks at", "right"),
                   ("held-out clips", f"{accuracy(classify, test):.1%}"),
                   ("the same from their tokens",
                    f"{accuracy(classify, test._replace(video=decoded)):.1%}"),
                   ("the same, by the toy's rule", f"{rule:.1%}")]))


def main() -> None:
    if len(sys.argv) > 1:
        return both_tables(sys.argv[1])
    mask = tube_mask(4, (4, 4, 4), 0.75, torch.Generator().manual_seed(0)).view(4, 4, 4, 4)
    print("four masks of 4x4 places, the same in all frames; # is masked")
    for y in range(4):
        print("   ".join("".join(".#"[int(cell)] for cell in clip[0, y]) for clip in mask))


if __name__ == "__main__":
    main()
