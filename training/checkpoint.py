"""A run on disk: written whole or not at all, never lost, safe to load.

Files   RUN/tokenizer.pt, RUN/transformer.pt (RUN/image.pt for a 2D-VQ): the latest checkpoint
        of each stage; *.previous the one before. Each is a dict of tensors, numbers and strings:
          format, stage, step, finished, versions, origin (where --init took weights from), facts
          config: network, train, data, as plain dicts (as_plain)
          the networks of the stage by name, the tokenizer's average as "ema", the optimizers

        NAME-step-N.pt: one that --keep-every has kept; to go back, copy it to NAME.pt

Read    save_checkpoint, load_checkpoint; as_plain and from_plain; load_network, Run, load_run.

A configuration is saved with the name of its class, "tokenizer.TokenizerConfig", and a checkpoint
that is read asks that class to build the network. So a tokenizer or transformer of your own needs
no line here: its configuration is a frozen dataclass with `build`, in a file beside train.py.

Run:    python -m training.checkpoint RUN OUT    its weights alone, as half floats, for sharing
"""
from __future__ import annotations

import dataclasses
import hashlib
import importlib
import os
import pickle
import platform
import shutil
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import torch
from torch import Tensor, nn

from commit import TASKS, nothing
from data.clips import ClipSource, DataConfig, open_source
from training.kernels import use
from training.presets import TrainConfig

FORMAT = "magvit checkpoint 3"
ROOT = Path(__file__).resolve().parents[1]
NOT_CODE = "runs", "assets", "tests"         # folders of the project that no checkpoint may import


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


def previous(path: Path) -> Path:
    return path.with_name(path.name + ".previous")


def is_there(path: Path) -> bool:
    """Whether load_checkpoint(path) has a file to read."""
    return path.exists() or previous(path).exists()


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


def read_checkpoint(path: Path) -> dict:
    """The dict in one file. ValueError, in one line, where it is damaged or not one of ours."""
    try:
        with zipfile.ZipFile(path) as archive:       # torch.load does not check the checksums
            broken = archive.testzip()
        if broken:
            raise ValueError(f"{path} is damaged: the checksum of {broken} does not match")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged: {str(error).splitlines()[0]}") from None
    except pickle.UnpicklingError:
        raise ValueError(f"{path} holds more than plain data and tensors: not a checkpoint of "
                         "this project, and not loaded") from None
    found = state.get("format") if isinstance(state, dict) else None
    if found in ("magvit checkpoint 1", "magvit checkpoint 2"):
        raise ValueError(f"{path} is of an older format ({found}); commit 33ed89a is the last that "
                         "reads it")
    if found != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of this project (no {FORMAT!r} in it)")
    return state


# ---------------------------------------------------------------------------------------------
# Configurations as plain data

def as_plain(config) -> dict:
    """A configuration as a dict of plain data, nested ones too, each with the name of its class.

    ValueError for a class that a checkpoint could not find again: one of the program that was
    started, or of a file elsewhere.
    """
    name = f"{type(config).__module__}.{type(config).__qualname__}"
    class_of(name)
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return dict(type=name) | {field: as_plain(value) if dataclasses.is_dataclass(value) else value
                              for field, value in values.items()}


def from_plain(values: dict):
    """The configuration again. A field that came later has its default.

    Settings and data may have a field that is gone: it is left out. In a network's configuration
    it is a ValueError, since the network could not be the same. ValueError, too, where the class
    is not one of the project's configurations.
    """
    kind = class_of(values["type"])
    fields = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(values) - fields - {"type"})
    if unknown and hasattr(kind, "build"):
        raise ValueError(f"a checkpoint's {kind.__name__} has {', '.join(unknown)}, which this "
                         "code does not know")

    def restored(value):
        if isinstance(value, dict) and "type" in value:
            return from_plain(value)
        return tuple(value) if isinstance(value, list) else value

    return kind(**{name: restored(value) for name, value in values.items() if name in fields})


def class_of(name: str) -> type:
    """"module.ClassName" -> a frozen dataclass of the project. Nothing else is imported."""
    module, _, class_name = name.rpartition(".")
    parts = module.split(".")
    ours = (all(part.isidentifier() for part in parts) and parts[0] not in NOT_CODE
            and Path(ROOT, *parts).with_suffix(".py").is_file())
    kind = getattr(importlib.import_module(module), class_name, None) if ours else None
    if not dataclasses.is_dataclass(kind) or not kind.__dataclass_params__.frozen:
        raise ValueError(f"{name!r} is no configuration that a checkpoint can have; wanted a "
                         f"frozen dataclass in a file beside {ROOT / 'train.py'}, or in the "
                         "project's folders")
    return kind


def load_network(state: dict, device: torch.device | str = "cpu", averaged: bool = True
                 ) -> nn.Module:
    """The network of a checkpoint, ready to use: in eval mode, averaged weights where it has them.

    averaged False: the weights that the optimizer moved.
    """
    stage = "transformer" if state["stage"] == "transformer" else "tokenizer"
    config = from_plain(state["config"]["network"])
    if not hasattr(config, "build"):
        raise ValueError(f"a checkpoint's network is a {type(config).__name__}, which has no build")
    network = use(config.build())
    network.load_state_dict(state["ema" if averaged and "ema" in state else stage])
    return network.to(device).eval().requires_grad_(False)


def weights_hash(network: nn.Module) -> str:
    """A hash of a network's settings and weights: to any other, its tokens mean nothing."""
    total = hashlib.sha256(repr(getattr(network, "config", "")).encode())
    for name, tensor in sorted(network.state_dict().items()):
        total.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


# ---------------------------------------------------------------------------------------------
# A run

@dataclass
class Run:
    """A trained run: its two networks, ready to use, and what it was trained with and on."""

    folder: Path
    tokenizer: nn.Module
    transformer: nn.Module | None       # None where only stage 1 was asked for
    config: TrainConfig
    data: DataConfig

    @property
    def class_names(self) -> list[str]:
        return list(self.data.class_names)

    @property
    def tasks(self) -> list[str]:
        """The tasks it was trained on, those that need classes only where it knows some."""
        return [task for task in dict.fromkeys(self.config.tasks)
                if self.transformer.no_class or not TASKS[task].needs_classes]

    def how(self, task: str, label: Tensor | None = None, decode: Callable | None = None) -> dict:
        """The keywords of decode.generate with which this run does a task (Table 4).

        A run of one task does others under that task's prompt, the only one that it has trained.
        label (B,) is used where the task has classes and the run has learned them; elsewhere it
        is "no class". decode: a way to decode other than Algorithm 1. Without one, ValueError
        where Algorithm 1 cannot do the task: for a transformer of comparisons/, and where a run
        that has trained CG alone is to use a condition.
        """
        trained, no_class = list(dict.fromkeys(self.config.tasks)), self.transformer.no_class
        unconditional = all(TASKS[each].region is nothing for each in trained)
        other = type(self.transformer).__module__.startswith("comparisons.")
        if decode is None and (other or unconditional and TASKS[task].region is not nothing):
            what = (f"a {type(self.transformer).__name__}" if other else
                    f"trained on {' '.join(trained)} alone, and {task} has a condition")
            raise ValueError(f"{self.folder} is {what}, which Algorithm 1 does not decode; use "
                             f"python -m comparisons.tables evaluate {self.folder}")
        keywords: dict = dict(prompt=trained[0]) if len(trained) == 1 else {}
        if decode is not None:
            keywords["decode"] = decode
        if TASKS[task].class_conditional and no_class and label is not None:
            learned = self.config.class_dropout < 1 and any(
                TASKS[each].class_conditional for each in trained)
            keywords["label"] = label if learned else torch.full_like(label, no_class)
        return keywords

    def held_out(self, index: str | Path | None = None) -> ClipSource:
        """The clips that the run kept from training, or, where it has none, its training clips."""
        return open_source(self.data, self.config.clip_shape, stride=self.config.stride,
                           held_out=True, index=index)


def load_run(run: str | Path, device: torch.device | str = "cpu",
             stages: tuple[str, ...] = ("tokenizer", "transformer")) -> Run:
    """The trained run in a folder: two stages that belong together (else ValueError).

    stages: ("tokenizer",) or ("image",) for stage 1 or the 2D-VQ alone. FileNotFoundError where
    the folder or a stage is missing.
    """
    run = Path(run)
    if not run.is_dir():
        raise FileNotFoundError(f"no run folder {run}; train one: python train.py")
    states = [load_checkpoint(run / f"{stage}.pt") for stage in stages]
    tokenizer, *rest = [load_network(state, device) for state in states]
    transformer = rest[0] if rest else None
    if transformer and tokenizer.codebook_size != transformer.config.codebook_size:
        raise ValueError(f"{run}: the tokenizer has {tokenizer.codebook_size} codes and the "
                         f"transformer {transformer.config.codebook_size}: they are not of one run")
    config = states[-1]["config"]
    return Run(run, tokenizer, transformer, from_plain(config["train"]), from_plain(config["data"]))


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__.split("\n\n")[-1])
    run, out = map(Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    for stage in ("tokenizer", "transformer"):
        state = load_checkpoint(run / f"{stage}.pt")
        weights = {name: tensor.half() for name, tensor in state.get("ema", state[stage]).items()}
        kept = {key: state[key] for key in ("stage", "step", "finished", "config")}
        save_checkpoint(out / f"{stage}.pt", kept | {stage: weights})
        print(f"{out / stage}.pt: {(out / f'{stage}.pt').stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
