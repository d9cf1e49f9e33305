"""Stage 2's batches: clips and their tokens, made anew in each step or looked up in a table.

Paper   Sec. 3.2 (Training), App. B.2 (one task is drawn per step)

Shapes  step -> task, clips -> z (B, N), z-tilde (B, N), is_pad (N,), labels (B,) -> TokenBatch

Files   DIR/tokens.json      facts: of which tokenizer, clips, tasks and sizes the tokens are
        DIR/0000000.npy      a shard: a row for each entry, uint16 or int32, of label + 1, the
                             clip's tokens z (N), and for each task z-tilde (N)

Read    TokenSource.__call__, then fresh; Table, write_table, make_rows.

An entry of a table is a clip of the training order, augmented: entry 0 is the first clip of the
first epoch. So twice as many entries as clips are two augmentations of each. The toy's pool
(token_pool) is such a table, in RUN/pool. Tokens made by anybody can take the place of a
TokenSource: a function step -> steps.TokenBatch, given to train.train as `tokens`.

Run:    python -m training.tokens RUN --out DIR [--copies 2]    then train.py ... --tokens DIR
        torchrun --nproc_per_node 8 -m training.tokens ...      the same, shards shared out; a
                                                                stopped one resumes
"""
from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor, nn
from tqdm import tqdm

from commit import TASKS, tokenize_condition
from data.clips import open_source, written_whole
from data.source import BatchLoader, ClipSource, fingerprint, load_batch, to_float
from steps import TokenBatch, autocast
from training.checkpoint import from_plain, load_checkpoint, load_network, weights_hash
from training.kernels import resolve_precision
from training.presets import TrainConfig
from training.processes import (Processes, from_first, start_processes, threads_of_this_process)
from training.start import usable_tasks

# The random streams of stage 2. Each is a function of (seed, its number, step).
TASK_AND_MASK, POOL = 2, 3
BATCH, SHARD = 32, 4096                     # entries loaded together, and in a file
AT_ONCE = 16                                # clips that the tokenizer gets at once


class TokenSource:
    """step -> TokenBatch, this process's share of it.

    table: where tokens are looked up; without one and without config.token_pool, the clips of a
    step are tokenized in that step. `pool`: the folder of the table of config.token_pool clips.
    config.precision is that of tokenizing, resolved.
    """

    def __init__(self, tokenizer: nn.Module, source: ClipSource, config: TrainConfig,
                 processes: Processes, num_classes: int, *, table: Table | None = None,
                 pool: Path | None = None):
        self.tokenizer, self.source, self.pool = tokenizer, source, pool
        self.config, self.processes, self.table = config, processes, table
        self.no_class, self.tasks = num_classes, usable_tasks(config.tasks, num_classes)
        if table:
            refuse_other_table(table, tokenizer, config, self.tasks)
        self.loader = BatchLoader(source, config.transformer_batch, config.seed + 1,
                                  processes.rank, processes.world,
                                  total=config.steps("transformer", len(source))[0],
                                  threads=threads_of_this_process(),
                                  pinned=processes.device.type == "cuda")
        self.close = self.loader.close

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
        unlabelled = torch.from_numpy(dropped < config.class_dropout).to(device) | (label < 0) | (
            not TASKS[task].class_conditional or not self.no_class)
        return TokenBatch(task, tokens, condition_tokens, is_pad,
                          label.masked_fill(unlabelled, self.no_class),
                          *(torch.from_numpy(x).to(device) for x in (scores, r)))

    def fresh(self, step: int, task: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """z, z-tilde (B, N), is_pad (N,), label (B,) of clips that are tokenized now."""
        clips, label = self.loader(step)
        device = self.processes.device
        video = to_float(clips.to(device, non_blocking=True))
        condition, is_pad = condition_of(self.tokenizer, video, task, self.config)
        return encode(self.tokenizer, video, self.config), condition, is_pad, label.to(device)

    def stored(self, step: int, task: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same, of entries of the table."""
        batch, (rank, world, device) = self.config.transformer_batch, self.processes
        if self.table is None:
            self.table = self.make_pool()
        random = np.random.default_rng([self.config.seed, POOL, step])
        chosen = random.integers(len(self.table), size=batch)
        return self.table.take(chosen[rank * batch // world:(rank + 1) * batch // world], task,
                               device)

    def make_pool(self) -> Table:
        """The table of the first clips: read from its folder, or made there, by process 0."""
        config = self.config

        def made() -> dict:
            if config.token_pool < len(self.source):
                print(f"stage 2 learns from {config.token_pool} of the {len(self.source)} clips, "
                      "tokenized once (--token-pool 0: all, anew in each step)", file=sys.stderr)
            facts = facts_of(self.tokenizer, self.source, config, self.tasks, config.token_pool)
            if facts_in(self.pool) not in (None, facts):
                shutil.rmtree(self.pool)
            write_table(self.tokenizer, self.source, config, self.pool, facts)
            rows = np.concatenate(open_table(self.pool).shards)
            return dict(facts=facts, rows=torch.from_numpy(rows.astype(np.int32)))

        made_once = from_first(made, self.processes)
        return Table(made_once["facts"], [made_once["rows"].numpy()])


@torch.no_grad()
def encode(tokenizer: nn.Module, video: Tensor, config: TrainConfig) -> Tensor:
    """z (B, N) of a video, AT_ONCE clips at a time."""
    with autocast(config.precision, video.device):
        return torch.cat([rearrange(tokenizer.encode(part), "b t h w -> b (t h w)")
                          for part in video.split(AT_ONCE)])


@torch.no_grad()
def condition_of(tokenizer: nn.Module, video: Tensor, task: str, config: TrainConfig
                 ) -> tuple[Tensor, Tensor]:
    """z-tilde (B, N) and is_pad (N,) of a task's condition, as encode makes them."""
    with autocast(config.precision, video.device):
        parts = [tokenize_condition(tokenizer, part, task, config.condition_frames)
                 for part in video.split(AT_ONCE)]
    return torch.cat([tokens for tokens, _ in parts]), parts[0][1]


# ---------------------------------------------------------------------------------------------
# Tables

class Table:
    """Tokens of many entries, in memory or mapped from files, and what they are of.

    facts: plain data. is_pad, of each task: (N,) bool. shards: rows, as many in each but the last.
    """

    def __init__(self, facts: dict, shards: list[np.ndarray]):
        self.facts, self.shards = facts, shards
        self.is_pad = {task: torch.tensor(pad, dtype=torch.bool)
                       for task, pad in facts["is_pad"].items()}

    def __len__(self) -> int:
        return self.facts["entries"]

    def take(self, entries: np.ndarray, task: str, device: torch.device
             ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """z, z-tilde (B, N), is_pad (N,), label (B,) of some entries."""
        size = len(self.shards[0])
        rows = np.stack([self.shards[entry // size][entry % size] for entry in entries])
        rows = torch.from_numpy(rows.astype(np.int64)).to(device)
        N, place = self.facts["tokens"], list(self.is_pad).index(task)
        first = 1 + (1 + place) * N
        return (rows[:, 1:1 + N], rows[:, first:first + N], self.is_pad[task].to(device),
                rows[:, 0] - 1)


def facts_of(tokenizer: nn.Module, source: ClipSource, config: TrainConfig, tasks: list[str],
             entries: int) -> dict:
    """What a table is of, as plain data: a run uses no table with other facts."""
    video = torch.zeros(1, 3, *config.clip_shape, device=next(tokenizer.parameters()).device)
    is_pad = {task: condition_of(tokenizer, video, task, config)[1].int().tolist()
              for task in tasks}
    return dict(tokenizer=weights_hash(tokenizer)[:10], fingerprint=fingerprint(source),
                clips=len(source), shape=list(config.clip_shape), stride=config.stride,
                flip=config.flip, crop=config.crop, seed=config.seed, precision=config.precision,
                condition_frames=config.condition_frames, entries=entries,
                tokens=math.prod(tokenizer.latent_shape(*config.clip_shape)),
                largest=max(tokenizer.codebook_size, len(source.class_names) + 1), is_pad=is_pad)


def facts_in(folder: Path) -> dict | None:
    """The facts of the table in a folder, which may not be whole yet; None where there is none."""
    there = folder / "tokens.json"
    return json.loads(there.read_text()) if there.exists() else None


def write_table(tokenizer: nn.Module, source: ClipSource, config: TrainConfig, folder: Path,
                facts: dict, processes: Processes = Processes()) -> None:
    """The files of a table that are not there yet; each is written whole or not at all."""
    if processes.rank == 0:
        with written_whole(folder / "tokens.json") as path:
            path.write_text(json.dumps(facts))
    for begin in range(0, facts["entries"], SHARD)[processes.rank::processes.world]:
        shard = folder / f"{begin:07}.npy"
        if not shard.exists():
            rows = make_rows(tokenizer, source, config, facts,
                             range(begin, min(begin + SHARD, facts["entries"])))
            with written_whole(shard) as path:
                np.save(path, rows)


def make_rows(tokenizer: nn.Module, source: ClipSource, config: TrainConfig, facts: dict,
              entries: range) -> np.ndarray:
    """The rows of some entries; the first is a multiple of BATCH."""
    device, rows = next(tokenizer.parameters()).device, []
    kind = np.uint16 if facts["largest"] <= 2**16 else np.int32
    steps = range(entries.start // BATCH, math.ceil(entries.stop / BATCH))
    for step in tqdm(steps, desc="tokenizing", mininterval=1.0):
        batch = load_batch(source, step, BATCH, config.seed)        # of the last, what is wanted
        video, label = (each[:entries.stop - step * BATCH].to(device) for each in batch)
        columns = [label[:, None] + 1, encode(tokenizer, video, config)]
        columns += [condition_of(tokenizer, video, task, config)[0] for task in facts["is_pad"]]
        rows.append(torch.cat(columns, 1).cpu().numpy().astype(kind))
    return np.concatenate(rows)


def open_table(folder: str | Path) -> Table:
    """A folder's table, mapped, not read. FileNotFoundError where it is not there or not whole."""
    folder = Path(folder)
    facts = facts_in(folder)
    if facts is None:
        raise FileNotFoundError(f"no {folder / 'tokens.json'}; make tokens with python -m "
                                "training.tokens RUN --out DIR")
    names = [folder / f"{begin:07}.npy" for begin in range(0, facts["entries"], SHARD)]
    missing = [name for name in names if not name.exists()]
    if missing:
        raise FileNotFoundError(f"{missing[0]} is missing, {len(missing)} of {len(names)} files: "
                                "the same command of training.tokens resumes")
    return Table(facts, [np.load(name, mmap_mode="r") for name in names])


def refuse_other_table(table: Table, tokenizer: nn.Module, config: TrainConfig, tasks: list[str]
                       ) -> None:
    """ValueError where a run cannot learn from a table's tokens."""
    wanted = dict(tokenizer=weights_hash(tokenizer)[:10], shape=list(config.clip_shape),
                  condition_frames=config.condition_frames)
    other = [f"{name} {table.facts[name]!r} there, {value!r} here"
             for name, value in wanted.items() if table.facts[name] != value]
    other += [f"no {task}" for task in dict.fromkeys(tasks) if task not in table.is_pad]
    if other:
        raise ValueError(f"the tokens are of another run: {'; '.join(other)}. Make them anew with "
                         "python -m training.tokens RUN --out DIR")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.tokens", description=__doc__.split(
        "\n")[0])
    parser.add_argument("run", help="folder with tokenizer.pt")
    parser.add_argument("--out", required=True, help="folder for the tokens")
    parser.add_argument("--copies", type=int, default=1, help="augmentations of each clip")
    options = parser.parse_args()
    processes, folder = start_processes(), Path(options.out)
    try:
        if options.copies < 1:
            raise ValueError(f"--copies {options.copies}; wanted at least 1")
        state = load_checkpoint(Path(options.run) / "tokenizer.pt")
        config, data = (from_plain(state["config"][part]) for part in ("train", "data"))
        config = replace(config, precision=resolve_precision(config.precision, processes.device))
        source = open_source(data, config.clip_shape, stride=config.stride, flip=config.flip,
                             crop=config.crop, index=Path(options.run) / "videos.json")
        tokenizer = load_network(state, processes.device)
        facts = facts_of(tokenizer, source, config, usable_tasks(
            config.tasks, len(source.class_names)), options.copies * len(source))
        if facts_in(folder) not in (None, facts):
            raise ValueError(f"{folder} has tokens of other clips, or by another tokenizer: choose "
                             "another --out")
        write_table(tokenizer, source, config, folder, facts, processes)
    except (ValueError, OSError) as error:
        sys.exit(f"tokens.py: {error}")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
