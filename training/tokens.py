"""Where stage 2's batches come from: clips, tokenized anew in each step or once for all.

Paper   Sec. 3.2 (Training), App. B.2 (one task is drawn per step)

Shapes  step -> task, clips -> z (B, N), z-tilde (B, N), is_pad (N,), labels (B,) -> TokenBatch

Read    TokenSource.__call__, then fresh and stored.

What a step needs of a token source is one method, so tokens that were saved by anybody can stand
in for it: source(step) -> steps.TokenBatch, given to train.train as `tokens`.

Not here: Eq. (2), which corrupts the tokens (commit.py), and the step (steps.py).

Run:    python -m training.tokens     which tasks the toy's steps draw, and how good z-tilde is
"""
from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from commit import TASKS, tokenize_condition
from data.moving_shapes import MovingShapes
from data.loader import BatchLoader
from data.source import ClipSource, load_batch, to_float
from steps import TokenBatch, autocast
from training.checkpoint import load_checkpoint, load_network
from training.processes import Processes, from_first, threads_of_this_process
from training.stored import Table, facts_of, keep_pool, make_rows, refuse_other_table
from training.presets import PRESETS, TrainConfig

# The random streams of stage 2. Each is a function of (seed, its number, step).
TASK_AND_MASK, POOL = 2, 3


def batches_ahead(source: ClipSource, batch_size: int, seed: int, processes: Processes, total: int
                  ) -> BatchLoader:
    """The loader of a stage of `total` steps, with this process's share of the machine's cores."""
    return BatchLoader(source, batch_size, seed, processes.rank, processes.world, total=total,
                       threads=threads_of_this_process(), pinned=processes.device.type == "cuda")


class TokenSource:
    """step -> TokenBatch, this process's share of it.

    With a table (stored.py), tokens are looked up there. With config.token_pool = P, that is the
    first P clips of the training order, augmented once, tokenized before the first step; the
    folder `pool` keeps them for a run that goes on.
    """

    def __init__(self, tokenizer: nn.Module, source: ClipSource, config: TrainConfig,
                 processes: Processes, num_classes: int, table: Table | None = None,
                 pool: Path | None = None):
        self.tokenizer, self.source, self.pool = tokenizer, source, pool
        self.config, self.processes = config, processes
        self.no_class = num_classes
        self.tasks = [task for task in config.tasks
                      if self.no_class or not TASKS[task].needs_classes]
        if processes.rank == 0 and len(self.tasks) < len(config.tasks):
            print("no classes in the data: training without CFP; CG is unconditional",
                  file=sys.stderr)
        self.loader = batches_ahead(source, config.transformer_batch, config.seed + 1, processes,
                                    config.steps("transformer", len(source))[0])
        self.close, self.table = self.loader.close, table
        if table:
            refuse_other_table(table, tokenizer, config, self.tasks)

    def __call__(self, step: int) -> TokenBatch:
        config, (rank, world, device) = self.config, self.processes
        # Every process draws for the whole batch, and then takes its share.
        random = np.random.default_rng([config.seed, TASK_AND_MASK, step])
        task = self.tasks[random.integers(len(self.tasks))]
        tokens, condition_tokens, is_pad, label = (
            self.stored(step, task) if self.table or config.token_pool else
            self.fresh(step, task))
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
        clips, label = self.loader(step)
        device = self.processes.device
        video = to_float(clips.to(device, non_blocking=True))
        return self._tokens(video), *self._condition(video, task), label.to(device)

    def stored(self, step: int, task: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same, of entries of the table."""
        batch, (rank, world, device) = self.config.transformer_batch, self.processes
        if self.table is None:
            self.table = self._pool()
        random = np.random.default_rng([self.config.seed, POOL, step])
        chosen = random.integers(len(self.table), size=batch)
        return self.table.take(chosen[rank * batch // world:(rank + 1) * batch // world], task,
                               device)

    def _pool(self) -> Table:
        """The table of the first clips: from the run's folder, or made by the first process."""
        config, source = self.config, self.source
        if self.processes.rank == 0 and config.token_pool < len(source):
            print(f"stage 2 learns from {config.token_pool} of the {len(source)} clips, "
                  "tokenized once (--token-pool 0: all, anew in each step)", file=sys.stderr)

        def made() -> dict:
            asked = self.tokenizer, source, config
            facts = facts_of(*asked, self.tasks, config.token_pool)
            rows = (make_rows(*asked, facts, 0, config.token_pool) if self.pool is None else
                    np.concatenate(keep_pool(*asked, self.pool, facts).shards))
            return dict(facts=facts, rows=torch.from_numpy(rows.astype(np.int32)))

        made_once = from_first(made, self.processes)
        return Table(made_once["facts"], [made_once["rows"].numpy()])

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
