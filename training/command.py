"""train.py's command line: each field of a configuration is a flag.

Paper   none

Shapes  command line -> parse -> TrainConfig, DataConfig, and the few options that are neither

Read    parse, add_flags.

Run:    python -m training.command PRESET --flags ...     what these flags change in the preset
"""
from __future__ import annotations

import argparse
import dataclasses
import typing
from dataclasses import replace

from commit import TASKS
from data.clips import DataConfig
from training.build import refuse_impossible
from training.presets import DRAWN, PRESETS, TASK_SETS, TrainConfig


def parse(arguments: list[str] | None = None
          ) -> tuple[TrainConfig, DataConfig, argparse.Namespace]:
    """Command line -> configurations and the other options. Exits with usage on a bad flag."""
    parser = argparse.ArgumentParser(
        prog="train.py", allow_abbrev=False,
        description="Train MAGVIT: the tokenizer, then the transformer, then draw and measure.")
    parser.add_argument("preset", nargs="?", default="toy", metavar="PRESET", choices=PRESETS,
                        help="one of: " + " ".join(PRESETS))
    parser.add_argument("--out", help="run folder (default runs/PRESET); an old one goes on")
    parser.add_argument("--stage", default="all",
                        choices=["all", "image", "tokenizer", "transformer"], help="(default all)")
    parser.add_argument("--no-report", dest="draw", action="store_false",
                        help="stop after training, without pictures and numbers")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("--tokens", metavar="DIR", help="tokens for stage 2, made by python -m "
                        "training.stored")
    files = parser.add_argument_group("videos")
    paths = [field for field in dataclasses.fields(DataConfig) if field.metadata]
    for field in paths:
        choices = field.metadata["choices"]
        kind = (dict(action="store_true") if field.default is False else
                dict(choices=choices, default=field.default) if choices else dict(metavar="PATH"))
        files.add_argument(field.metadata["flag"], dest=field.name, help=field.metadata["help"],
                           **kind)
    add_flags(parser)
    options = parser.parse_args(arguments)
    config, given = PRESETS[options.preset], chosen_settings(options)
    drawn = options.preset in DRAWN and not options.root
    if options.preset in DRAWN and not drawn:
        given.setdefault("num_classes", 0)
    try:
        config = replace(config, **given)
        refuse_impossible(config, ["tokenizer", "transformer"], config.num_classes or 1)
        data = DataConfig(dataset="shapes" if drawn else "folder",
                          **{field.name: getattr(options, field.name) for field in paths})
        if not drawn and not options.root and not options.dry_run:
            raise ValueError(f"{options.preset} needs --data, a folder of videos")
        if options.layout == "images" and options.stage != "image" and config.frames > 1:
            raise ValueError("--layout images has clips of one frame: --stage image, or --frames 1")
    except ValueError as error:
        parser.error(str(error))
    return config, data.resolved(), options


def add_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for every field of TrainConfig, under its group's heading, with its help."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    hints = typing.get_type_hints(TrainConfig)
    for field in sorted(dataclasses.fields(TrainConfig), key=lambda f: _ORDER.index(_group(f))):
        name, kind = _group(field), hints[field.name]
        group = groups.setdefault(name, parser.add_argument_group(name))
        flag, help = "--" + field.name.replace("_", "-"), field.metadata["help"]
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, help=help)
        elif field.name == "tasks":
            group.add_argument(flag, nargs="+", choices=[*TASK_SETS, *TASKS], metavar="TASK",
                               help=help)
        elif typing.get_origin(kind) is tuple:
            group.add_argument(flag, nargs=len(typing.get_args(kind)), type=float,
                               metavar="NUMBER", help=help)
        else:
            kind = kind if isinstance(kind, type) else str
            group.add_argument(flag, type=kind, metavar=kind.__name__, help=help)


_ORDER = ["clips", "networks", "stage 1, tokenizer", "stage 2, transformer", "decoding", "machine"]


def _group(field: dataclasses.Field) -> str:
    return field.metadata["group"]


def chosen_settings(options: argparse.Namespace) -> dict:
    """The fields that the command line has set, with task sets spelled out."""
    given = {field.name: value for field in dataclasses.fields(TrainConfig)
             if (value := getattr(options, field.name)) is not None}
    if "tasks" in given:
        given["tasks"] = tuple(task for name in given["tasks"]
                               for task in TASK_SETS.get(name, (name,)))
    return given


def main() -> None:
    config, data, options = parse()
    print(f"preset {options.preset}, data {data.root or data.dataset}\nflags that differ from it:")
    for field in dataclasses.fields(config):
        there, here = getattr(PRESETS[options.preset], field.name), getattr(config, field.name)
        if there != here:
            print(f"  {field.name:20} {there} -> {here}")


if __name__ == "__main__":
    main()
