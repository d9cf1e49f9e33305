"""A run on disk: written whole or not at all, never lost, safe to load.

Files   RUN/tokenizer.pt, RUN/transformer.pt (RUN/image.pt for a 2D-VQ): the latest checkpoint
        of each stage; *.previous the one before. Each is a dict of tensors, numbers and strings:
          format, stage, step, finished, versions, origin (where --init took weights from)
          config: network, train, data, as plain dicts (build.as_plain)
          the networks of the stage by name, the tokenizer's average as "ema", the optimizers

        NAME-step-N.pt: one that --keep-every has kept; to go back, copy it to NAME.pt

Read    save_checkpoint, load_checkpoint, load_run; Writer, which saves while training goes on.

Not here: what goes on from a checkpoint (loop.py).

Run:    python -m training.checkpoint [RUN]      what a run folder holds (assets/toy)
        python -m training.checkpoint RUN OUT    its weights alone, as half floats, for sharing
"""
from __future__ import annotations

import hashlib
import os
import pickle
import platform
import shutil
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from commit import TASKS, nothing
from data.clips import ClipSource, DataConfig, open_source
from decode import latent_masking
from training.build import build_tokenizer, build_transformer, from_plain
from training.presets import TrainConfig
from tokenizer import TokenizerConfig
from transformer import MaskedTransformer, TransformerConfig

FORMAT = "magvit checkpoint 2"


def save_checkpoint(path: str | Path, state: dict) -> None:
    """Write state to path atomically and keep what was there as path.previous.

    At every moment, a kill included, path or path.previous is a whole checkpoint: the new file
    is on disk (fsync) before any name changes. OSError where it cannot be written, for instance on
    a full disk: then what was there is as it was.
    """
    path = Path(path)
    state = dict(format=FORMAT, versions=dict(torch=str(torch.__version__),
                                              python=platform.python_version())) | state
    temporary = path.with_name(path.name + ".writing")
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:         # torch.save makes RuntimeErrors of the disk's
        temporary.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free
        raise OSError(f"{path} could not be written ({str(error).splitlines()[0]}; "
                      f"{free / 2**20:,.0f} MiB are free there)") from error
    if path.exists():
        os.replace(path, previous(path))
    os.replace(temporary, path)
    if os.name == "posix":                           # make the renames themselves durable
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


class Writer:
    """Saves a stage's checkpoints beside its training: from a copy, in a thread, one at a time.

    saved is the step of the last one that is on the disk. An error of the thread is raised by the
    next call of any method. On leaving, an OSError of whatever kind names the last good checkpoint.
    """

    def __init__(self, path: Path, step: int, config: TrainConfig):
        self.path, self.saved, self.config = path, step, config
        self.pool, self.writing, self.last = ThreadPoolExecutor(1), None, time.monotonic()

    def is_due(self, done: int) -> bool:
        """Whether to save after so many steps, by their number or by the clock."""
        if self.writing and self.writing.done():
            self.wait()
        minutes, config = (time.monotonic() - self.last) / 60, self.config
        return (any(every and done % every == 0 for every in (config.save_every, config.keep_every))
                or 0 < config.save_minutes <= minutes)

    def save(self, done: int, state: dict) -> None:
        """Begin to write a copy of the state, once the one before is written."""
        self.wait()
        copied = tree_map_only(Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), state)
        self.writing, self.last = self.pool.submit(self._write, done, copied), time.monotonic()

    def _write(self, done: int, state: dict) -> None:
        save_checkpoint(self.path, state)
        if self.config.keep_every and done % self.config.keep_every == 0:
            kept = self.path.with_name(f"{self.path.stem}-step-{done}.pt")
            kept.unlink(missing_ok=True)
            os.link(self.path, kept)                 # the same file by a second name, no copy
        self.saved = done

    def wait(self) -> None:
        """Until what was begun is on the disk."""
        writing, self.writing = self.writing, None
        if writing:
            writing.result()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        try:
            self.wait()
        except OSError as raised:
            error = error or raised
        self.pool.shutdown()
        if isinstance(error, OSError):
            last = (f"the last good checkpoint is {self.path} of step {self.saved}; the same "
                    "command goes on from there" if is_there(self.path) else "nothing was saved")
            raise OSError(f"{error}; {last}") from error


def previous(path: Path) -> Path:
    return path.with_name(path.name + ".previous")


def is_there(path: Path) -> bool:
    """Whether load_checkpoint(path) has a file to read."""
    return path.exists() or previous(path).exists()


def is_finished(path: Path) -> bool:
    """Whether a stage's checkpoint is that of its last step."""
    return is_there(path) and load_checkpoint(path)["finished"]


def read_checkpoint(path: Path) -> dict:
    """The dict in one file. ValueError, in one line, where it is damaged or not one of ours."""
    try:
        with zipfile.ZipFile(path) as archive:       # torch.load does not check the checksums
            broken = archive.testzip()
        if broken:
            raise ValueError(f"{path} is damaged: the checksum of {broken} does not match")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, EOFError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged: {str(error).splitlines()[0]}") from None
    except pickle.UnpicklingError:
        raise ValueError(f"{path} holds more than plain data and tensors: not a checkpoint of "
                         "this project, and not loaded") from None
    if isinstance(state, dict) and state.get("format") == "magvit checkpoint 1":
        state = converted(state)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of this project (no {FORMAT!r} in it)")
    return state


def converted(old: dict) -> dict:
    """A checkpoint of format 1, with the names of today."""
    name = "transformer" if old["stage"] == "transformer" else "tokenizer"
    state = {{"model": name, "optimizer model": f"optimizer {name}"}.get(key, key): value
             for key, value in old.items()}
    train, data = dict(old["config"].get("train", {})), dict(old["config"].get("data", {}))
    network = dict(old["config"][old["stage"]])
    data["dataset"] = train.pop("dataset", "folder")
    train["recompute"] = train.pop("checkpointing", False)
    if train.get("padding") == "reflect":                    # now what is there if nothing is said
        train["padding"] = ""
    if train.get("codebook_from_data") and old["stage"] != "transformer":
        network["latent_gain"] = 0.2
    types = ("TransformerConfig" if name == "transformer" else "TokenizerConfig", "TrainConfig",
             "DataConfig")
    config = {part: dict(type=each) | values for (part, values), each in zip(
        dict(network=network, train=train, data=data).items(), types)}
    return state | dict(format=FORMAT, config=config)


def load_checkpoint(path: str | Path) -> dict:
    """Read path, or path.previous where path is damaged or missing, and say so.

    Raises FileNotFoundError where neither exists, ValueError where none can be used.
    """
    path = Path(path)
    if not is_there(path):
        raise FileNotFoundError(f"no checkpoint {path}; train first: python train.py")
    try:
        if not path.exists():
            raise ValueError(f"{path} is missing")
        return read_checkpoint(path)
    except ValueError as error:
        if not previous(path).exists():
            raise
        state = read_checkpoint(previous(path))
        print(f"{error}; using {previous(path).name} of step {state['step']}", file=sys.stderr)
        return state


def load_network(state: dict, device: torch.device | str = "cpu", averaged: bool = True
                 ) -> nn.Module:
    """The network of a checkpoint, ready to use: in eval mode, averaged weights where it has them.

    averaged False: the weights that the optimizer moved.
    """
    if state["stage"] == "transformer":
        name = "transformer"
        network = build_transformer(from_plain(state["config"]["network"], TransformerConfig))
    else:
        name = "ema" if averaged and "ema" in state else "tokenizer"
        network = build_tokenizer(from_plain(state["config"]["network"], TokenizerConfig),
                                  image=state["stage"] == "image")
    network.load_state_dict(state[name])
    return network.to(device).eval().requires_grad_(False)


def weights_hash(network: nn.Module) -> str:
    """A hash of a network's settings and weights: to any other, its tokens mean nothing."""
    total = hashlib.sha256(repr(getattr(network, "config", "")).encode())
    for name, tensor in sorted(network.state_dict().items()):
        total.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


@dataclass
class Run:
    """A trained run: its two models, ready to use, and what it was trained with and on."""

    folder: Path
    tokenizer: nn.Module
    transformer: MaskedTransformer
    config: TrainConfig
    data: DataConfig

    @property
    def class_names(self) -> list[str]:
        return list(self.data.class_names)

    def how(self, task: str, label: Tensor | None = None) -> dict:
        """The keywords of decode.generate with which this run does a task (Table 4).

        A run of one task does the others, too, under that task's prompt, the only one that it has
        trained; if that is generation without a condition, by latent masking. label (B,) is used
        where the task has classes and the run has learned them; elsewhere there is "no class".
        """
        trained, no_class = list(dict.fromkeys(self.config.tasks)), self.transformer.no_class
        keywords: dict = dict(prompt=trained[0]) if len(trained) == 1 else {}
        if len(trained) == 1 and TASKS[trained[0]].region is nothing and (
                TASKS[task].region is not nothing):
            keywords["decode"] = latent_masking
        if TASKS[task].class_conditional and no_class and label is not None:
            learned = self.config.class_dropout < 1 and any(
                TASKS[each].class_conditional for each in trained)
            keywords["label"] = label if learned else torch.full_like(label, no_class)
        return keywords

    def held_out(self, index: str | Path | None = None) -> ClipSource:
        """The clips that the run kept from training, or, where it has none, its training clips."""
        return open_source(self.data, self.config.clip_shape, stride=self.config.stride,
                           held_out=True, index=index)


def load_run(run: str | Path, device: torch.device | str = "cpu") -> Run:
    """The trained run in a folder: two stages that belong together (else ValueError).

    FileNotFoundError where the folder or a stage is missing.
    """
    run = Path(run)
    if not run.is_dir():
        raise FileNotFoundError(f"no run folder {run}; train one: python train.py")
    states = [load_checkpoint(run / f"{stage}.pt") for stage in ("tokenizer", "transformer")]
    tokenizer, transformer = (load_network(state, device) for state in states)
    if tokenizer.codebook_size != transformer.config.codebook_size:
        raise ValueError(f"{run}: the tokenizer has {tokenizer.codebook_size} codes and the "
                         f"transformer {transformer.config.codebook_size}: they are not of one run")
    config = states[1]["config"]
    return Run(run, tokenizer, transformer, from_plain(config["train"], TrainConfig),
               from_plain(config["data"], DataConfig))


def export(run: Path, out: Path) -> None:
    """Copy a run's weights alone, in half precision: what others need to use it."""
    out.mkdir(parents=True, exist_ok=True)
    for stage in ("tokenizer", "transformer"):
        state = load_checkpoint(run / f"{stage}.pt")
        weights = {name: tensor.half() for name, tensor in (state.get("ema") or
                                                            state[stage]).items()}
        kept = {key: state[key] for key in ("stage", "step", "finished", "config")}
        save_checkpoint(out / f"{stage}.pt", kept | {stage: weights})
        print(f"{out / stage}.pt: {(out / f'{stage}.pt').stat().st_size:,} bytes")


def main() -> None:
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "assets/toy")
    if len(sys.argv) > 2:
        export(run, Path(sys.argv[2]))
        return
    for path in sorted(run.glob("*.pt")):
        state = load_checkpoint(path)
        parts = [name for name in state if name not in ("format", "config", "versions")]
        print(f"{path}: {', '.join(parts)}\n  step {state['step']}, "
              f"{'finished' if state['finished'] else 'not finished'}; "
              + "; ".join(f"{part}: {values['type']}" for part, values in state["config"].items()))


if __name__ == "__main__":
    main()
