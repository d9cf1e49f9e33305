"""docs/index.html: one file in which the toy runs, so that Algorithm 1 can be played with.

Paper   Algorithm 1, Eq. (2), Fig. 3

Shapes  a run -> its weights as half floats in base64, its configurations, the clips it was trained
        on and the lines of the code as JSON -> the blanks {{...}} of docs/page_template.html

Read    facts (what the page knows of the run), source_lines, page; then docs/paper.js, the networks
        and the algorithm in JavaScript, and docs/page.js, what a reader can do with them.

Run:    python -m docs.page [RUN]       writes docs/index.html, from assets/toy by default
"""
from __future__ import annotations

import json
import sys
from base64 import b64encode
from dataclasses import asdict
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import torch
from torch import Tensor

from commit import TASKS
from data.moving_shapes import MovingShapes
from measure.pictures import COLOURS, DECIDED, GIVEN, MASKED, WRONG
from training.checkpoint import Run, load_run

DOCS = Path(__file__).parent
TOP = DOCS.parent

# What the page links to: a name there -> the file, and a text that stands on one of its lines.
MARKS = {
    **{f"line {n}": ("decode.py", f"# line {n}" if n < 8 else "# lines 8 and 9")
       for n in range(1, 10)},
    "case 1": ("commit.py", "torch.where(masked & ~is_pad, condition_tokens,"),
    "case 2": ("commit.py", "torch.where(masked & is_pad, mask_id,"),
    "case 3": ("commit.py", " tokens))"),
    "algorithm": ("decode.py", "def commit_decode("),
    **{name: ("commit.py", f'if schedule == "{name}":') for name in ("cosine", "uniform", "exp")},
    **{name: ("commit.py", f'"{name}": Task(') for name in TASKS},
}


def source_lines() -> dict[str, dict]:
    """For each of MARKS its file, its line's number and what stands on it. ValueError: it moved."""
    lines = {}
    for name, (file, text) in MARKS.items():
        found = [(number, line.strip()) for number, line in
                 enumerate((TOP / file).read_text().splitlines(), 1) if text in line]
        if len(found) != 1:
            raise ValueError(f"{file} has {len(found)} lines with {text!r}; the page links to one")
        lines[name] = dict(file=file, line=found[0][0], code=found[0][1])
    return lines


def networks(run: Run) -> dict[str, Tensor]:
    """The weights of both networks, whose names do not collide."""
    return run.tokenizer.state_dict() | run.transformer.state_dict()


def facts(run: Run) -> dict:
    """What the page knows of a run, as plain data; nothing in the JavaScript repeats it."""
    shapes = MovingShapes()
    return dict(
        tokenizer=asdict(run.tokenizer.config), transformer=asdict(run.transformer.config),
        weights=[(name, list(weight.shape)) for name, weight in networks(run).items()],
        decoding=run.config.decoding, size=list(run.config.clip_shape), classes=run.class_names,
        tasks={name: TASKS[name].title for name in run.tasks},
        labelled=[name for name in run.tasks if TASKS[name].class_conditional],
        shapes=dict(
            shapes=shapes.shapes, directions=shapes.directions, choices=shapes.choices,
            colours=shapes.colours.tolist(), ground=shapes.ground, size=shapes.size,
            cell=shapes.cell, speed=shapes.speed, kept_back=shapes.kept_back,
            masks=shapes.masks().reshape(len(shapes.shapes), -1).tolist()),
        lines=source_lines())


def page(run: str | Path = TOP / "assets/toy") -> str:
    """The page: the template with the run's weights and facts in it, and a picture."""
    loaded = load_run(run)
    weights = np.concatenate([weight.half().numpy().ravel() for weight in
                              networks(loaded).values()]).astype("<f2")
    picture = imageio.imwrite("<bytes>", imageio.imread(TOP / "assets/steps.png")[..., :3],
                              extension=".webp", quality=50)
    blanks = {"css": (DOCS / "page.css").read_text(), "paper": (DOCS / "paper.js").read_text(),
              "page": (DOCS / "page.js").read_text(),
              "facts": json.dumps(facts(loaded), separators=(",", ":")).replace("<", "\\u003c"),
              "picture": b64encode(picture).decode(), "weights": b64encode(weights).decode()}
    for name, kind in dict(given=GIVEN, masked=MASKED, decided=DECIDED, wrong=WRONG).items():
        red, green, blue = (255 * COLOURS[kind]).round().int().tolist()
        blanks[name] = f"rgb({red}, {green}, {blue})"
    text = (DOCS / "page_template.html").read_text()
    for name, filling in blanks.items():
        text = text.replace("{{" + name + "}}", filling)
    return text


def main() -> None:
    out = DOCS / "index.html"
    out.write_text(page(*sys.argv[1:2]))
    print(f"wrote {out}: {out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
