"""Stage 2's tokens as a table: made once, kept as files, looked up in each step.

Paper   Sec. 3.2 (Training): stage 2 sees tokens alone, so they can be made ahead of time

Files   DIR/tokens.json      facts: of which tokenizer, clips, tasks and sizes the tokens are
        DIR/0000000.npy      a shard: a row an entry, uint16 or int32, of label + 1, the clip's
                             tokens z (N), and for each rule of a condition z-tilde (N)

Read    Table, make_rows, open_table; write_tokens, the command.

An entry is a clip of the training order, augmented: entry 0 is the first clip of the first epoch.
So twice as many entries as clips are two augmentations of each.

Run:    python -m training.stored                               what it takes for the toy
        python -m training.stored RUN --out DIR [--copies 2]    then train.py ... --tokens DIR
        torchrun --nproc_per_node 8 -m training.stored ...      shares the shards out; both go on
                                                                where they were stopped
"""
from __future__ import annotations

import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import Callable

import numpy as np
import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor, nn
from tqdm import tqdm

from commit import MT10, TASKS, tokenize_condition
from data.clips import DataConfig, open_source
from data.moving_shapes import MovingShapes
from data.source import ClipSource, load_batch
from steps import autocast
from training.build import from_plain
from training.checkpoint import load_checkpoint, load_network, load_run, weights_hash
from training.presets import TrainConfig
from training.processes import Processes, start_processes

BATCH, SHARD = 32, 4096                     # entries tokenized together, and in a file


class Table:
    """Tokens of many entries, in memory or mapped from files, and what they are of.

    facts: plain data. is_pad, of each task: (N,) bool. rows(entries) -> (len(entries), columns).
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
        N, rule = self.facts["tokens"], self.facts["rules"][task]
        first = 1 + (1 + rule) * N
        return (rows[:, 1:1 + N], rows[:, first:first + N], self.is_pad[task].to(device),
                rows[:, 0] - 1)


def facts_of(tokenizer: nn.Module, source: ClipSource, config: TrainConfig, tasks: list[str],
             entries: int) -> dict:
    """What a table is of; a run uses no table with other facts. Tasks of one rule share columns."""
    rules: dict[tuple, int] = {}
    number = {task: rules.setdefault((TASKS[task].region, TASKS[task].padding), len(rules))
              for task in dict.fromkeys(tasks)}
    with torch.no_grad():
        video = torch.zeros(1, 3, *config.clip_shape, device=device_of(tokenizer))
        is_pad = {task: tokenize_condition(tokenizer, video, task, config.condition_frames)[1]
                  for task in number}
    return dict(tokenizer=weights_hash(tokenizer)[:10], fingerprint=source.fingerprint(),
                clips=len(source), shape=list(config.clip_shape), stride=config.stride,
                flip=config.flip, crop=config.crop, seed=config.seed, precision=config.precision,
                condition_frames=config.condition_frames, entries=entries,
                tokens=math.prod(tokenizer.latent_shape(*config.clip_shape)), rules=number,
                codes=tokenizer.codebook_size,
                is_pad={task: pad.int().tolist() for task, pad in is_pad.items()})


def device_of(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


@torch.no_grad()
def make_rows(tokenizer: nn.Module, source: ClipSource, config: TrainConfig, facts: dict,
              begin: int, end: int, quiet: bool = False) -> np.ndarray:
    """The rows of entries begin .. end-1; begin is a multiple of BATCH."""
    device, rows = device_of(tokenizer), []
    one_of = {rule: task for task, rule in reversed(facts["rules"].items())}
    kind = np.uint16 if max(facts["codes"], len(source.class_names) + 1) <= 2**16 else np.int32

    def in_parts(video: Tensor, function: Callable[[Tensor], Tensor]) -> np.ndarray:
        with autocast(config.precision, device):
            return torch.cat([function(part) for part in video.split(config.tokenize_at_once)]
                             ).cpu().numpy()

    for step in tqdm(range(begin // BATCH, math.ceil(end / BATCH)), desc="tokenizing",
                     disable=quiet, mininterval=1.0):
        batch = load_batch(source, step, BATCH, config.seed)        # of the last, what is wanted
        video, label = (each[:end - step * BATCH].to(device) for each in batch)
        columns = [label[:, None].cpu().numpy() + 1, in_parts(video, lambda part: rearrange(
            tokenizer.encode(part), "b t h w -> b (t h w)"))]
        columns += [in_parts(video, lambda part, task=one_of[rule]: tokenize_condition(
            tokenizer, part, task, config.condition_frames)[0]) for rule in sorted(one_of)]
        rows.append(np.concatenate(columns, 1).astype(kind))
    return np.concatenate(rows)


def open_table(folder: str | Path) -> Table:
    """A folder's table, mapped, not read. FileNotFoundError where it is not there or not whole."""
    folder = Path(folder)
    if not (folder / "tokens.json").exists():
        raise FileNotFoundError(f"no {folder / 'tokens.json'}; make tokens with python -m "
                                "training.stored RUN --out DIR")
    facts = json.loads((folder / "tokens.json").read_text())
    names = [folder / f"{begin:07}.npy" for begin in range(0, facts["entries"], SHARD)]
    missing = [name for name in names if not name.exists()]
    if missing:
        raise FileNotFoundError(f"{missing[0]} is missing, {len(missing)} of {len(names)} files: "
                                "the same command of training.stored goes on")
    return Table(facts, [np.load(name, mmap_mode="r") for name in names])


def refuse_other_table(table: Table, tokenizer: nn.Module, config: TrainConfig, tasks: list[str]
                       ) -> None:
    """ValueError where a run cannot learn from a table's tokens."""
    wanted = dict(tokenizer=weights_hash(tokenizer)[:10], shape=list(config.clip_shape),
                  condition_frames=config.condition_frames)
    other = [f"{name} {table.facts[name]!r} there, {value!r} here"
             for name, value in wanted.items() if table.facts[name] != value]
    other += [f"no {task}" for task in dict.fromkeys(tasks) if task not in table.facts["rules"]]
    if other:
        raise ValueError(f"the tokens are of another run: {'; '.join(other)}. Make them anew with "
                         "python -m training.stored RUN --out DIR")


def write_tokens(tokenizer: nn.Module, source: ClipSource, config: TrainConfig, folder: Path,
                 copies: int = 1, processes: Processes = Processes()) -> None:
    """Tokens of all clips, in `copies` augmentations, as files. Goes on where it was stopped.
    ValueError where the folder has tokens of other clips, or by another tokenizer."""
    tasks = [task for task in config.tasks if source.class_names or not TASKS[task].needs_classes]
    facts = facts_of(tokenizer, source, config, tasks, copies * len(source))
    if facts_in(folder) not in (None, facts):
        raise ValueError(f"{folder} has tokens of other clips, or by another tokenizer: choose "
                         "another --out")
    write_shards(tokenizer, source, config, folder, facts, processes)


def keep_pool(tokenizer: nn.Module, source: ClipSource, config: TrainConfig, folder: Path,
              facts: dict) -> Table:
    """The table of a run's pool, out of its folder; made there where it is not, or is another's."""
    if facts_in(folder) not in (None, facts):
        for path in [*folder.glob("*.npy"), folder / "tokens.json"]:    # whose they are, last
            path.unlink()
    write_shards(tokenizer, source, config, folder, facts)
    return open_table(folder)


def facts_in(folder: Path) -> dict | None:
    """The facts of the table in a folder, which may not be whole yet; None where there is none."""
    there = folder / "tokens.json"
    return json.loads(there.read_text()) if there.exists() else None


def write_shards(tokenizer: nn.Module, source: ClipSource, config: TrainConfig, folder: Path,
                 facts: dict, processes: Processes = Processes()) -> None:
    """The files of a table that are not there yet. The facts are first: whose files they are."""
    folder.mkdir(parents=True, exist_ok=True)
    if processes.rank == 0:
        write_whole(folder / "tokens.json", lambda file: file.write(json.dumps(facts).encode()))
    shards = range(0, facts["entries"], SHARD)
    for begin in shards[processes.rank::processes.world]:
        path = folder / f"{begin:07}.npy"
        if not path.exists():
            rows = make_rows(tokenizer, source, config, facts, begin,
                             min(begin + SHARD, facts["entries"]), processes.rank > 0)
            write_whole(path, lambda file: np.save(file, rows))


def write_whole(path: Path, write: Callable) -> None:
    """A file is there as a whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with open(temporary, "wb") as file:
        write(file)
    os.replace(temporary, path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.stored", description=__doc__.split(
        "\n")[0])
    parser.add_argument("run", help="folder with tokenizer.pt")
    parser.add_argument("--out", required=True, help="folder for the tokens")
    parser.add_argument("--copies", type=int, default=1, help="augmentations of each clip")
    if not sys.argv[1:]:
        toy = load_run("assets/toy")
        rows = make_rows(toy.tokenizer, MovingShapes(), toy.config, facts_of(
            toy.tokenizer, MovingShapes(), toy.config, MT10, 16), 0, 16, quiet=True)
        print(f"16 clips of the toy, ten tasks: {rows.shape} {rows.dtype}, {rows.nbytes:,} bytes\n"
              f"the first: label {rows[0, 0] - 1}, tokens {rows[0, 1:9]} ...")
        return
    options = parser.parse_args()
    processes = start_processes()
    try:
        state = load_checkpoint(Path(options.run) / "tokenizer.pt")
        config = from_plain(state["config"]["train"], TrainConfig)
        data = from_plain(state["config"]["data"], DataConfig)
        source = open_source(data, config.clip_shape, stride=config.stride, flip=config.flip,
                             crop=config.crop, index=Path(options.run) / "videos.json")
        write_tokens(load_network(state, processes.device), source, config, Path(options.out),
                     options.copies, processes)
    except (ValueError, OSError) as error:
        sys.exit(f"stored.py: {error}")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
