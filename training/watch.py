"""What a run says of itself while it trains: codes in use, warnings, a look at held-out clips.

Paper   none; Sec. 3.1's codebook is what goes wrong most often

Shapes  stage 1: held-out clips -> averaged tokenizer -> PSNR, a picture of clip and reconstruction
        stage 2: their tokens, masked by Eq. (2) at five ratios -> cross-entropy of what was masked

Files   RUN/held_out.png: the latest look at the tokenizer

Read    TokenizerWatch; HeldOut.
"""
from __future__ import annotations

import sys
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from commit import TASKS, commit_mask, cutoff_score, num_masked, task_index, tokenize_condition
from data.source import NO_LABEL, ClipSource, load_batch
from measure.pictures import write_grid
from steps import autocast
from training.presets import TrainConfig

RATIOS = 0.1, 0.3, 0.5, 0.7, 0.9              # of the tokens that are masked


class TokenizerWatch:
    """Adds PSNR and the codes in use to a step's terms, and warns of what users of VQ-GANs meet.

    The codes are those that this process's clips used in the last hundred steps. Warnings look at
    every hundredth step, and each is printed once.
    """

    window = 100

    def __init__(self, codebook_size: int):
        self.codebook_size = codebook_size
        self.last_used = torch.full((codebook_size,), -self.window)
        self.warned: set[str] = set()

    def __call__(self, step: int, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        self.last_used = self.last_used.to(terms["tokens"].device)
        self.last_used[terms["tokens"].flatten()] = step
        codes = (self.last_used > step - self.window).sum().float()
        if step >= 2 * self.window and step % self.window == 0:
            if codes < 0.05 * self.codebook_size:
                self.warn("codebook", f"only {codes:.0f} of {self.codebook_size} codes in use: the "
                          "codebook collapses; raise --entropy-weight or lower --tokenizer-rate")
            if terms["contrast"] < 0.01:
                self.warn("colour", "reconstructions are of one colour; lower --tokenizer-rate, or "
                          "--adversarial-weight 0 until pictures appear")
            if "discriminator" in terms and terms["discriminator"] < 0.05:
                self.warn("adversary", "the discriminator wins outright; raise --r1-weight or "
                          "--lecam-weight")
        return dict(psnr=-10 * terms["reconstruction"].clamp_min(1e-10).log10(), codes=codes)

    def warn(self, kind: str, words: str) -> None:
        if kind not in self.warned:
            self.warned.add(kind)
            print(f"\nwarning: {words}", file=sys.stderr)


class HeldOut:
    """Looks at sixteen held-out clips, always the same, at their centre.

    What it draws at random does not touch the draws of training.
    """

    def __init__(self, config: TrainConfig, source: ClipSource, run: Path):
        self.config, self.picture = config, run / "held_out.png"
        self.video, self.label = load_batch(source, 0, min(16, len(source)), 0, augment=False)

    @torch.no_grad()
    def look_at_tokenizer(self, tokenizer: nn.Module) -> dict[str, float]:
        """PSNR in dB: the mean over clips of each clip's."""
        device = next(tokenizer.parameters()).device
        with autocast(self.config.precision, device):
            again = torch.cat([tokenizer.decode(tokenizer.encode(part.to(device))).clip(0, 1).cpu()
                               for part in self.video.split(4)])
        mse = (again - self.video).square().mean((1, 2, 3, 4)).clamp_min(1e-10)
        real, ours = list(self.video[:4]), list(again[:4].float())
        write_grid(self.picture, [("held-out clip", real), ("reconstruction", ours)],
                   [str(number) for number in range(len(real))])
        return dict(psnr=round((-10 * mse.log10()).mean().item(), 2))

    @torch.no_grad()
    def look_at_transformer(self, model: nn.Module, tokenizer: nn.Module) -> dict[str, float]:
        """Cross-entropy of masked tokens by the share that is masked, in nats; log K is guessing.

        The run's task without a condition, if it has one, else its first. A clip's class is told
        where training tells it.
        """
        config, device, parts = self.config, next(model.parameters()).device, []
        task = "CG" if "CG" in config.tasks else config.tasks[0]
        told = model.no_class and TASKS[task].class_conditional and config.class_dropout < 1
        label = self.label if told else torch.full_like(self.label, NO_LABEL)
        label = label.masked_fill(label == NO_LABEL, model.no_class).to(device)
        training, losses = model.training, {}
        model.eval()
        with autocast(config.precision, device):
            for part in self.video.to(device).split(4):
                condition, is_pad = tokenize_condition(tokenizer, part, task,
                                                       config.condition_frames)
                parts.append((rearrange(tokenizer.encode(part), "b t h w -> b (t h w)"), condition))
            tokens, condition = (torch.cat(each) for each in zip(*parts))
            scores = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(0)).to(device)
            prompt = torch.full_like(label, task_index(task, model.config.tasks))
            for ratio in RATIOS:
                count = num_masked(torch.full((len(tokens),), ratio), tokens.shape[1]).to(device)
                cutoff = cutoff_score(scores, count)
                inputs = commit_mask(tokens, condition, is_pad, scores, cutoff, model.mask_id)
                loss = model.cross_entropy(model(inputs, prompt, label), tokens)
                losses[f"loss at {ratio}"] = round(
                    loss[scores <= cutoff[:, None]].mean().item(), 4)
        model.train(training)
        return losses
