"""A look at clips that training does not see, every so many steps.

Paper   none; Fig. 3's idea, tokens filled in, without waiting for the end of the run

Shapes  stage 1: held-out clips -> averaged tokenizer -> PSNR, a picture of clip and reconstruction
        stage 2: their tokens, masked by Eq. (2) at five ratios -> cross-entropy of what was masked

Files   RUN/held_out-tokenizer.png, RUN/held_out-transformer.png: the latest look
        RUN/log.jsonl: the numbers, under "held_out" of the step's line

Read    HeldOut.

Run:    python -m training.heldout [RUN]     the look at a finished run (assets/toy)
"""
from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Callable

import torch
from einops import rearrange
from torch import Tensor, nn

from commit import (commit_mask, cutoff_score, task_index, token_cross_entropy, tokenize_condition)
from data.source import ClipSource, load_batch
from pictures import write_grid
from steps import autocast
from training.checkpoint import load_checkpoint, load_network, load_run
from training.presets import TrainConfig

RATIOS = 0.1, 0.3, 0.5, 0.7, 0.9              # of the tokens that are masked


class HeldOut:
    """To be called after every step, as train.train's on_step is: it looks at some of them.

    open_clips() -> the clips to look at, if it is to look at all. Sixteen are taken, always the
    same, at their centre, before training asks the same data set for clips. What it draws does not
    touch the draws of training. on_step, of the same kind, comes first; their answers are merged.
    """

    def __init__(self, config: TrainConfig, open_clips: Callable[[], ClipSource], run: Path,
                 on_step: Callable[[str, int, dict], dict | None] | None = None):
        self.config, self.run, self.on_step = config, run, on_step
        if config.evaluate_every:
            source = open_clips()
            self.video, _ = load_batch(source, 0, min(16, len(source)), 0, augment=False)
        self.tokenizer: nn.Module | None = None

    def __call__(self, stage: str, step: int, terms: dict) -> dict | None:
        heard = self.on_step(stage, step, terms) if self.on_step else None
        every = self.config.evaluate_every
        if not every or (step + 1) % every or stage == "image":
            return heard
        networks = stage.networks
        device = next(networks[stage].parameters()).device
        with torch.no_grad(), autocast(self.config.precision, device):
            if stage == "tokenizer":
                numbers = self.look_at_tokenizer(networks["ema"], device)
            else:
                if self.tokenizer is None:
                    state = load_checkpoint(self.run / "tokenizer.pt")
                    self.tokenizer = load_network(state, device)
                numbers = self.look_at_transformer(networks["transformer"], device)
        return dict(held_out=numbers) | (heard or {})

    def look_at_tokenizer(self, tokenizer: nn.Module, device: torch.device) -> dict[str, float]:
        """PSNR in dB, each clip alone, then their mean."""
        again = torch.cat([tokenizer.decode(tokenizer.encode(part.to(device))).clip(0, 1).cpu()
                           for part in self.video.split(4)])
        mse = (again - self.video).square().mean((1, 2, 3, 4)).clamp_min(1e-10)
        self._draw("tokenizer", "reconstruction", again)
        return dict(psnr=round((-10 * mse.log10()).mean().item(), 2))

    def look_at_transformer(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Cross-entropy of masked tokens by the share that is masked, in nats; log K is guessing.

        The run's task without a condition, if it has one, else its first; no class is told.
        """
        task = "CG" if "CG" in self.config.tasks else self.config.tasks[0]
        parts, training = [], model.training
        model.eval()
        for part in self.video.split(4):
            part = part.to(device)
            tokens = rearrange(self.tokenizer.encode(part), "b t h w -> b (t h w)")
            condition, is_pad = tokenize_condition(self.tokenizer, part, task,
                                                   self.config.condition_frames)
            parts.append((tokens, condition))
        tokens, condition = (torch.cat(each) for each in zip(*parts))
        scores = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(0)).to(device)
        prompt = torch.full_like(tokens[:, 0], task_index(task, model.prompts))
        label, numbers = torch.full_like(prompt, model.no_class), {}
        for ratio in RATIOS:
            cutoff = cutoff_score(scores, scores.new_full((len(scores),), ratio))
            inputs = commit_mask(tokens, condition, is_pad, scores, cutoff, model.mask_id)
            logits = torch.cat([model(*each) for each in zip(*(
                x.split(4) for x in (inputs, prompt, label)))])
            masked = scores <= cutoff[:, None]
            numbers[f"loss at {ratio}"] = round(
                token_cross_entropy(logits, tokens)[masked].mean().item(), 4)
            if ratio == 0.5:
                filled = torch.where(masked, logits.argmax(-1), tokens)[:4]
        model.train(training)
        grid = self.tokenizer.latent_shape(*self.video.shape[2:])
        again = self.tokenizer.decode(filled.view(-1, *grid)).clip(0, 1).cpu()
        self._draw("transformer", "half of the tokens guessed at once", again)
        return numbers

    def _draw(self, stage: str, what: str, again: Tensor) -> None:
        shown = range(min(4, len(again)))
        write_grid(self.run / f"held_out-{stage}.png",
                   [("held-out clip", [self.video[i] for i in shown]),
                    (what, [again[i].float() for i in shown])], [str(i) for i in shown])


def main() -> None:
    run = load_run(sys.argv[1] if len(sys.argv) > 1 else "assets/toy")
    look = HeldOut(run.config, run.held_out, run.folder)
    look.video, _ = load_batch(run.held_out(), 0, 16, 0, augment=False)
    look.tokenizer, look._draw = run.tokenizer, lambda *_: None
    with torch.no_grad():
        print("reconstruction:", look.look_at_tokenizer(run.tokenizer, torch.device("cpu")))
        print(f"transformer, guessing is {math.log(run.tokenizer.codebook_size):.2f}:",
              look.look_at_transformer(run.transformer, torch.device("cpu")))


if __name__ == "__main__":
    main()
