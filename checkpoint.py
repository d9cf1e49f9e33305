"""A run on disk: written whole or not at all, never lost, safe to load.

Files   RUN/tokenizer.pt, RUN/transformer.pt (RUN/image.pt for a 2D-VQ): the latest checkpoint
        of each stage; *.previous the one before. Each is a dict of tensors, numbers and strings:
          format, stage, step, finished, config (plain dicts), versions, model, ema, and what
          else the stage needs to go on: optimizers, LeCam averages.

Read    save_checkpoint, load_checkpoint, load_run.

Not here: what goes on from a checkpoint (train.py).

Run:    python checkpoint.py                what happens to a damaged checkpoint
        python checkpoint.py RUN            what a run folder holds
        python checkpoint.py RUN OUT        its weights alone, as half floats, for sharing
"""
from __future__ import annotations

import contextlib
import io
import os
import pickle
import platform
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from torch import nn

from tokenizer import ImageTokenizer, TokenizerConfig, VideoTokenizer
from transformer import MaskedTransformer, TransformerConfig

FORMAT = "magvit checkpoint 1"


def save_checkpoint(path: str | Path, state: dict) -> None:
    """Write state to path atomically and keep what was there as path.previous.

    At every moment, a kill included, path or path.previous is a whole checkpoint: the new file
    is on disk (fsync) before any name changes.
    """
    path = Path(path)
    state = dict(format=FORMAT, versions=dict(torch=str(torch.__version__),
                                              python=platform.python_version())) | state
    temporary = path.with_name(path.name + ".writing")
    with open(temporary, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    if path.exists():
        os.replace(path, previous(path))
    os.replace(temporary, path)
    if os.name == "posix":                           # make the renames themselves durable
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def previous(path: Path) -> Path:
    return path.with_name(path.name + ".previous")


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
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of this project (no {FORMAT!r} in it)")
    return state


def load_checkpoint(path: str | Path) -> dict:
    """Read path, or path.previous where path is damaged or missing, and say so.

    Raises FileNotFoundError where neither exists, ValueError where none can be used.
    """
    path = Path(path)
    if not path.exists() and not previous(path).exists():
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


def load_network(state: dict, device: torch.device | str = "cpu") -> nn.Module:
    """The network of a checkpoint, ready to use: EMA weights where it has them, eval mode."""
    config = {name: tuple(value) if isinstance(value, list) else value
              for name, value in state["config"][state["stage"]].items()}
    if state["stage"] == "transformer":
        network = MaskedTransformer(TransformerConfig(**config))
    else:
        network_type = ImageTokenizer if state["stage"] == "image" else VideoTokenizer
        network = network_type(TokenizerConfig(**config))
    network.load_state_dict(state.get("ema") or state["model"])
    return network.to(device).eval().requires_grad_(False)


def load_run(run: str | Path, device: torch.device | str = "cpu"
             ) -> tuple[VideoTokenizer, MaskedTransformer, dict]:
    """The two trained models of a run folder, and its configuration as plain dicts.

    FileNotFoundError where the folder or a stage is missing, ValueError where the two stages do
    not belong together.
    """
    run = Path(run)
    if not run.is_dir():
        raise FileNotFoundError(f"no run folder {run}; train one: python train.py")
    tokenizer_state = load_checkpoint(run / "tokenizer.pt")
    transformer_state = load_checkpoint(run / "transformer.pt")
    tokenizer = load_network(tokenizer_state, device)
    transformer = load_network(transformer_state, device)
    if tokenizer.codebook_size != transformer.config.codebook_size:
        raise ValueError(f"{run}: the tokenizer has {tokenizer.codebook_size} codes and the "
                         f"transformer {transformer.config.codebook_size}: they are not of one run")
    return tokenizer, transformer, transformer_state["config"]


def export(run: Path, out: Path) -> None:
    """Copy a run's weights alone, in half precision: what others need to use it."""
    out.mkdir(parents=True, exist_ok=True)
    for stage in ("tokenizer", "transformer"):
        state = load_checkpoint(run / f"{stage}.pt")
        weights = {name: tensor.half() for name, tensor in
                   (state.get("ema") or state["model"]).items()}
        save_checkpoint(out / f"{stage}.pt", dict(
            stage=stage, step=state["step"], finished=state["finished"], config=state["config"],
            model=weights))
        print(f"{out / stage}.pt: {(out / f'{stage}.pt').stat().st_size:,} bytes")


def show_damage() -> None:
    """Save two checkpoints, damage the later one in several ways, and load what there is."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tokenizer.pt")
        for step in (1, 2):
            save_checkpoint(path, dict(step=step, model=dict(weight=torch.randn(1000))))
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        for what, data in (("whole", whole), ("cut short", whole[:-100]), ("one bit off", flipped),
                           ("zeros", bytes(len(whole))), ("of somebody else", b"GIF89a")):
            path.write_bytes(data)
            with contextlib.redirect_stderr(io.StringIO()) as said:
                step = load_checkpoint(path)["step"]
            reason = said.getvalue().replace(f"{folder}/", "").strip() or "loaded"
            print(f"{what:17} step {step}   {reason}")
        path.unlink()
        previous(path).unlink()
        try:
            load_checkpoint(path)
        except FileNotFoundError as error:
            print(f"{'nothing left':17}          {str(error).replace(f'{folder}/', '')}")


def main() -> None:
    if len(sys.argv) == 1:
        show_damage()
        return
    run = Path(sys.argv[1])
    if len(sys.argv) > 2:
        export(run, Path(sys.argv[2]))
        return
    for path in sorted(run.glob("*.pt")):
        state = load_checkpoint(path)
        numbers = sum(tensor.numel() for tensor in state["model"].values())
        print(f"{path}: step {state['step']}{', finished' if state['finished'] else ''}, "
              f"{numbers:,} numbers, torch {state['versions']['torch']}")


if __name__ == "__main__":
    main()
