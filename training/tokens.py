"""Where stage 2's batches come from: clips, tokenized anew in each step or once for all.

Paper   Sec. 3.2 (Training), App. B.2 (one task is drawn per step)

Shapes  step -> task, clips -> z (B, N), z-tilde (B, N), is_pad (N,), labels (B,) -> TokenBatch

Read    TokenSource.__call__, then fresh and pooled.

What a step needs of a token source is one method, so tokens that were saved by anybody can stand
in for it: source(step) -> steps.TokenBatch, given to train.train as `tokens`.

Not here: Eq. (2), which corrupts the tokens (commit.py), and the step (steps.py).

Run:    python -m training.tokens     which tasks the toy's steps draw, and how good z-tilde is
"""
from __future__ import annotations

import math
import sys
from collections import Counter

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from tqdm import tqdm

from commit import TASKS, tokenize_condition
from data.moving_shapes import MovingShapes
from data.source import ClipSource, load_batch
from steps import TokenBatch, autocast
from training.checkpoint import load_checkpoint, load_network
from training.processes import Processes
from training.presets import PRESETS, TrainConfig

# The random streams of stage 2. Each is a function of (seed, its number, step).
TASK_AND_MASK, POOL = 2, 3


class TokenSource:
    """step -> TokenBatch, this process's share of it.

    With config.token_pool = P, the first P clips of the training order, augmented once, and their
    conditions are tokenized before the first step, to save that time in each.
    """

    def __init__(self, tokenizer: nn.Module, source: ClipSource, config: TrainConfig,
                 processes: Processes, num_classes: int):
        self.tokenizer, self.source = tokenizer, source
        self.config, self.processes = config, processes
        self.no_class = num_classes
        self.tasks = [task for task in config.tasks
                      if self.no_class or not TASKS[task].needs_classes]
        if processes.rank == 0 and len(self.tasks) < len(config.tasks):
            print("no classes in the data: training without CFP; CG is unconditional",
                  file=sys.stderr)
        self.pool: dict[str, tuple[Tensor, Tensor]] = {}
        if config.token_pool:
            self._fill_pool()

    def __call__(self, step: int) -> TokenBatch:
        config, (rank, world, device) = self.config, self.processes
        # Every process draws for the whole batch, and then takes its share.
        random = np.random.default_rng([config.seed, TASK_AND_MASK, step])
        task = self.tasks[random.integers(len(self.tasks))]
        tokens, condition_tokens, is_pad, label = (
            self.pooled(step, task) if self.pool else self.fresh(step, task))
        size, share = config.transformer_batch, config.transformer_batch // world
        mine = slice(rank * share, (rank + 1) * share)
        scores = random.random((size, tokens.shape[1]), np.float32)[mine]
        r, dropped = random.random(size, np.float32)[mine], random.random(size)[mine]
        unlabelled = torch.from_numpy(dropped < config.class_dropout) | (
            not TASKS[task].class_conditional or not self.no_class)
        label = label.masked_fill(unlabelled.to(label.device), self.no_class)
        return TokenBatch(task, tokens, condition_tokens, is_pad, label,
                          *(torch.from_numpy(x).to(device) for x in (scores, r)))

    def fresh(self, step: int, task: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """z, z-tilde (B, N), is_pad (N,), label (B,) of clips that are tokenized now."""
        rank, world, device = self.processes
        video, label = load_batch(self.source, step, self.config.transformer_batch,
                                  self.config.seed + 1, rank, world)
        video = video.to(device)
        return self._tokens(video), *self._condition(video, task), label.to(device)

    def pooled(self, step: int, task: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same, of clips of the pool."""
        batch, (rank, world, _) = self.config.transformer_batch, self.processes
        random = np.random.default_rng([self.config.seed, POOL, step])
        chosen = torch.from_numpy(random.integers(len(self.labels), size=batch))
        chosen = chosen[rank * batch // world:(rank + 1) * batch // world]
        condition, is_pad = self.pool[task]
        return self.tokens[chosen], condition[chosen], is_pad, self.labels[chosen]

    def _fill_pool(self) -> None:
        config, (rank, _, device) = self.config, self.processes
        if rank == 0 and config.token_pool < len(self.source):
            print(f"stage 2 learns from {config.token_pool} of the {len(self.source)} clips, "
                  "tokenized once (--token-pool 0: all, anew in each step)", file=sys.stderr)
        size, tokens, labels = 32, [], []
        conditions: dict[str, list[tuple[Tensor, Tensor]]] = {task: [] for task in self.tasks}
        for step in tqdm(range(math.ceil(config.token_pool / size)), desc="tokenizing",
                         disable=rank > 0, mininterval=1.0):
            video, label = load_batch(self.source, step, size, config.seed)
            video = video.to(device)
            tokens.append(self._tokens(video))
            labels.append(label.to(device))
            same: dict[tuple, tuple[Tensor, Tensor]] = {}              # FP and CFP, for instance
            for task, parts in conditions.items():
                rule = TASKS[task].region, TASKS[task].padding
                if rule not in same:
                    same[rule] = self._condition(video, task)
                parts.append(same[rule])
        first = slice(config.token_pool)                    # the last of the batches is not whole
        self.tokens, self.labels = torch.cat(tokens)[first], torch.cat(labels)[first]
        self.pool = {task: (torch.cat([tokens for tokens, _ in parts])[first], parts[0][1])
                     for task, parts in conditions.items()}

    def _tokens(self, video: Tensor) -> Tensor:
        with autocast(self.config.precision, video.device):
            return torch.cat([rearrange(self.tokenizer.encode(part), "b t h w -> b (t h w)")
                              for part in video.split(self.config.tokenize_at_once)])

    def _condition(self, video: Tensor, task: str) -> tuple[Tensor, Tensor]:
        with autocast(self.config.precision, video.device):
            parts = [tokenize_condition(self.tokenizer, part, task, self.config.condition_frames)
                     for part in video.split(self.config.tokenize_at_once)]
        return torch.cat([tokens for tokens, _ in parts]), parts[0][1]


def main() -> None:
    """Drawn tasks, and the share of condition tokens that are the real clip's tokens."""
    config = PRESETS["toy"]
    draws = Counter(config.tasks[np.random.default_rng([0, TASK_AND_MASK, step]).integers(
        len(config.tasks))] for step in range(1500))
    tokenizer = load_network(load_checkpoint("assets/toy/tokenizer.pt"))
    video, _ = load_batch(MovingShapes("test"), 0, 16, seed=0)
    tokens = tokenizer.encode(video).flatten(1)
    print("task   drawn in 1,500 steps   given tokens   z-tilde equals z there")
    for task in TASKS:
        condition_tokens, is_pad = tokenize_condition(tokenizer, video, task)
        right = (condition_tokens == tokens)[:, ~is_pad].float().mean().item()
        print(f"{task:5} {draws[task]:12} {(~is_pad).sum():17} of 64"
              + (f" {right:14.0%}" if not is_pad.all() else ""))


if __name__ == "__main__":
    main()
