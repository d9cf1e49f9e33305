"""Algorithm 1 on a few clips, recorded step by step into one HTML file to play with.

Paper   Algorithm 1, Eq. (2), Fig. 3, Table 5 (latent masking)

Shapes  clips (B, 3, T, H, W) -> per task, method and schedule a Recording of K steps, N tokens
          -> pictures as WebP sheets, a row of T frames a step; the rest as JSON
          -> page/template.html, its blanks {{...}} filled -> docs/index.html

Read    record (one decoding), source_lines (links that cannot rot), recorded (all of the data),
        page; then template.html, whose script draws what is here.

Not here: the algorithm itself (decode.py); how the page looks (template.html).

Run:    python figures.py page          writes docs/index.html from assets/toy
        python -m page.record           where each line of Algorithm 1 and of Eq. (2) is
"""
from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Callable, NamedTuple

import imageio.v3 as imageio
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from commit import TASKS, make_condition, task_index, tokenize_condition
from data.source import all_clips
from decode import commit_decode, gumbel_noise, latent_masking
from measure.report import measurable_tasks
from pictures import COLOURS, DECIDED, GIVEN, MASKED, to_frames
from training.checkpoint import Run, load_run

TOP, TEMPLATE = Path(__file__).parents[1], Path(__file__).with_name("template.html")
METHODS = {"COMMIT": commit_decode, "latent masking": latent_masking}
SCHEDULES = ("cosine", "uniform", "exp")                # App. B.3
CLIPS, QUALITY = 3, 25                                  # what keeps the page below 4 MB

# What the page links to: a name there -> the file, and a text that stands on one of its lines.
MARKS = {
    **{f"line {n}": ("decode.py", f"# line {n}") for n in range(1, 8)},
    "line 8": ("decode.py", "# lines 8 and 9"), "line 9": ("decode.py", "# lines 8 and 9"),
    "case 1": ("commit.py", "torch.where(masked & ~is_pad, condition_tokens,"),
    "case 2": ("commit.py", "torch.where(masked & is_pad, mask_id,"),
    "case 3": ("commit.py", " tokens))"),
    "COMMIT": ("decode.py", "def commit_decode("),
    "latent masking": ("decode.py", "def latent_masking("),
    **{name: ("commit.py", f'if schedule == "{name}":') for name in SCHEDULES},
    **{name: ("commit.py", f'"{name}": Task(') for name in TASKS},
}


class Recording(NamedTuple):
    """What K steps did to N tokens of B clips."""

    tokens: Tensor      # (B, K, N) z-hat after each step
    scores: Tensor      # (B, K, N) s after line 5: log p plus noise; nan where nothing was predicted
    cutoffs: Tensor     # (B, K) s* after line 6
    decided: Tensor     # (B, N) the step, from 1, that decided a token for good; 0: it was known


@torch.no_grad()
def record(model: nn.Module, decode: Callable, task: Tensor, label: Tensor, condition: Tensor,
           is_pad: Tensor, *, steps: int, temperature: float, schedule: str, seed: int = 0
           ) -> Recording:
    """Decode, and listen to the model and the noise: a DecodeState keeps no score of what was just
    decided. decode: commit_decode or latent_masking; the others are its arguments."""
    generator, heard = torch.Generator().manual_seed(seed), []

    def noise(shape: torch.Size) -> Tensor:
        heard.append(gumbel_noise(shape, generator))
        return heard[-1]

    hook = model.register_forward_hook(lambda module, given, logits: heard.append(logits.float()))
    unknown = torch.ones_like(condition, dtype=torch.bool)
    unknown = unknown & is_pad if decode is latent_masking else unknown
    decided, rows = torch.zeros_like(condition), []
    for state in decode(model, task, label, condition, is_pad, steps=steps, schedule=schedule,
                        temperature=temperature, noise=noise):
        logits, _, ranking = heard[-3:]
        scores = F.log_softmax(logits, dim=-1).gather(-1, state.tokens[..., None])[..., 0]
        scores = scores + temperature * (1 - (state.step + 1) / steps) * ranking
        at_most = state.confidence.masked_fill(state.confidence.isinf(), -torch.inf)
        rows.append((state.tokens, scores.masked_fill(~unknown, torch.nan), at_most.amax(1)))
        decided[unknown & ~state.unknown] = state.step + 1
        unknown = state.unknown
    hook.remove()
    return Recording(*(torch.stack(each, dim=1) for each in zip(*rows)), decided)


def source_lines() -> dict[str, dict]:
    """For each of MARKS its file, the number of its line and what stands there."""
    lines = {}
    for name, (file, text) in MARKS.items():
        found = [(number, line.strip()) for number, line in
                 enumerate((TOP / file).read_text().splitlines(), 1) if text in line]
        if len(found) != 1:
            raise ValueError(f"{file} has {len(found)} lines with {text!r}; the page links to one")
        lines[name] = dict(file=file, line=found[0][0], code=found[0][1])
    return lines


def sheet(videos: Tensor) -> str:
    """(rows, 3, T, H, W) in [0, 1] -> a data URL of a picture, a row of T frames each."""
    picture = rearrange([to_frames(video) for video in videos], "r t h w c -> (r h) (t w) c")
    picture = imageio.imwrite("<bytes>", picture, extension=".webp", quality=QUALITY, method=6)
    return "data:image/webp;base64," + base64.b64encode(picture).decode()


def packed(numbers: np.ndarray) -> str:
    return base64.b64encode(numbers.astype(np.uint8).tobytes()).decode()


def recorded(run: Run, tasks: list[str] | None = None) -> dict:
    """Everything that the page shows, as plain data; tasks: all that the run can do.

    Tokens and scores of all recordings are bytes, one after another; `first` is where a
    recording's begin. Scores fill `score_range`, and what two recordings share is kept once.
    """
    tokenizer, model, (video, label) = run.tokenizer, run.transformer, all_clips(run.held_out())
    if tokenizer.codebook_size > 256:
        raise ValueError(f"{run.folder} has {tokenizer.codebook_size} codes; the page keeps a "
                         "token in a byte, so at most 256")
    chosen = label.argsort(stable=True)[torch.arange(1, 2 * CLIPS, 2) * len(label) // (2 * CLIPS)]
    video, label = video[chosen], label[chosen]
    grid, steps = tokenizer.latent_shape(*video.shape[2:]), run.config.decode_steps
    sheets, conditions, recordings, kept = {}, {}, {}, []

    def keep(videos: Tensor) -> int:
        return sheets.setdefault(sheet(videos), len(sheets))

    def pixels(tokens: Tensor) -> Tensor:
        with torch.no_grad():
            return tokenizer.decode(tokens.view(-1, *grid)).clamp(0, 1)

    for task in tasks or measurable_tasks(run):
        condition, is_pad = tokenize_condition(tokenizer, video, task)
        padded, valid = make_condition(video, task)
        shown = zip(video, torch.where(valid, video, 0.6), padded, pixels(condition))
        conditions[task] = dict(title=TASKS[task].title, is_pad=is_pad.int().tolist(), clips=[
            dict(sheet=keep(torch.stack(rows)), tokens=tokens)
            for rows, tokens in zip(shown, condition.tolist())])
        prompt = torch.full((CLIPS,), task_index(task, model.prompts))
        classes = label if TASKS[task].class_conditional else label * 0 + model.no_class
        for method, decode in METHODS.items():
            for schedule in SCHEDULES:
                made = record(model, decode, prompt, classes, condition, is_pad, steps=steps,
                              schedule=schedule, temperature=run.config.decode_temperature)
                for clip in range(CLIPS):
                    recordings[f"{task}/{clip}/{method}/{schedule}"] = dict(
                        sheet=keep(pixels(made.tokens[clip])), first=len(kept) * made.tokens[clip].numel(),
                        decided=made.decided[clip].tolist(),
                        cutoffs=[round(x, 2) for x in made.cutoffs[clip].tolist()])
                    kept.append((made.tokens[clip].numpy(), made.scores[clip].numpy()))
    tokens, scores = (np.stack(each) for each in zip(*kept))
    low, high = float(np.nanmin(scores)), float(np.nanmax(scores))
    return dict(
        run=run.folder.name, steps=steps, grid=grid, size=list(video.shape[2:]),
        clips=[run.class_names[i] for i in label.tolist()], methods=list(METHODS),
        schedules=list(SCHEDULES), conditions=conditions,
        recordings=recordings, lines=source_lines(), tokens=packed(tokens),
        scores=packed(np.nan_to_num((scores - low) / (high - low)) * 255 + 0.5),
        score_range=[round(low, 3), round(high, 3)], sheets=list(sheets))


def page(run: Path = TOP / "assets/toy", out: Path = Path("docs"), tasks: list[str] | None = None
         ) -> None:
    """docs/index.html: Algorithm 1 to play with, in one file that needs nothing else."""
    blanks = {name: f"rgb({', '.join(str(round(255 * x)) for x in COLOURS[kind].tolist())})"
              for name, kind in dict(given=GIVEN, masked=MASKED, decided=DECIDED).items()}
    data = recorded(load_run(run), tasks)
    blanks["data"] = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    text = TEMPLATE.read_text()
    for name, value in blanks.items():
        text = text.replace("{{" + name + "}}", value)
    Path(out).mkdir(parents=True, exist_ok=True)
    Path(out, "index.html").write_text(text)
    print(f"  {len(data['recordings'])} decodings of {data['steps']} steps, {len(data['sheets'])} "
          f"pictures, {len(text.encode()) / 1e6:.2f} MB")


def main() -> None:
    for name, place in source_lines().items():
        print(f"{name:15} {place['file']}:{place['line']:<4} {place['code'][:70]}")


if __name__ == "__main__":
    main()
