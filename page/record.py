"""Algorithm 1 on a few clips, recorded step by step into one HTML file to play with.

Paper   Algorithm 1, Eq. (2), Fig. 3, Table 5 (latent masking)

Shapes  clips (B, 3, T, H, W) -> per task, method and schedule a Recording of K steps, N tokens
          -> pictures as AVIF sheets, a row of T frames a step; the rest as JSON
          -> page/template.html, its blanks {{...}} filled -> docs/index.html

Read    record (one decoding), source_lines, recorded (all the data), filled; then template.html,
        how the page looks and what it does. Not here: the algorithm (decode.py).

Run:    python figures.py page          writes docs/index.html from assets/toy
        python -m page.record           where each line of Algorithm 1 and of Eq. (2) is
"""
from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from typing import Callable, NamedTuple

import imageio.v3 as imageio
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
CLIPS, QUALITY, FINE = 3, 38, 75                        # keep the page below 4 MB, as AVIF does

# What the page links to: a name there -> the file, and a text that stands on one of its lines.
MARKS = {
    **{f"line {n}": ("decode.py", f"# line {n}" if n < 8 else "# lines 8 and 9")
       for n in range(1, 10)},
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
    scores: Tensor      # (B, K, N) s after line 5: log p plus noise; 0 where nothing is predicted
    cutoffs: Tensor     # (B, K) s* after line 6
    decided: Tensor     # (B, N) the step, from 1, that decided a token for good; 0: it was known


def record(model: nn.Module, decode: Callable, task: Tensor, label: Tensor, condition: Tensor,
           is_pad: Tensor, *, steps: int, temperature: float, schedule: str) -> Recording:
    """Decode, and listen to the model and the noise: a DecodeState keeps no score of what was just
    decided. decode: commit_decode or latent_masking; the others are its arguments."""
    generator, heard = torch.Generator().manual_seed(0), []

    def noise(shape: torch.Size) -> Tensor:
        heard.append(gumbel_noise(shape, generator))
        return heard[-1]

    hook = model.register_forward_hook(lambda module, given, logits: heard.append(logits.float()))
    unknown = (is_pad if decode is latent_masking else torch.ones_like(is_pad)).expand_as(condition)
    decided, rows = torch.zeros_like(condition), []
    for state in decode(model, task, label, condition, is_pad, steps=steps, schedule=schedule,
                        temperature=temperature, noise=noise):
        logits, _, ranking = heard[-3:]
        scores = F.log_softmax(logits, dim=-1).gather(-1, state.tokens[..., None])[..., 0]
        scores = scores + temperature * (1 - (state.step + 1) / steps) * ranking
        at_most = state.confidence.masked_fill(state.confidence.isinf(), -torch.inf)
        rows.append((state.tokens, scores.masked_fill(~unknown, 0.0), at_most.amax(1)))
        decided[unknown & ~state.unknown] = state.step + 1
        unknown = state.unknown
    hook.remove()
    return Recording(*(torch.stack(each, dim=1) for each in zip(*rows)), decided)


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


def sheet(videos: Tensor, quality: int) -> str:
    """(rows, 3, T, H, W) in [0, 1] -> a data URL of a picture, a row of T frames each."""
    picture = rearrange([to_frames(video) for video in videos], "r t h w c -> (r h) (t w) c")
    picture = imageio.imwrite("<bytes>", picture, extension=".avif", plugin="pillow",
                              quality=quality, subsampling="4:4:4", max_threads=1)
    return "data:image/avif;base64," + b64encode(picture).decode()


@torch.no_grad()
def recorded(run: Run, tasks: tuple = ()) -> dict:
    """All that the page shows, as plain data; tasks: by default all that the run can do. Tokens and
    scores are bytes, a recording's from `first` on; a score's 0 to 255 span `score_range`."""
    tokenizer, model, (video, label) = run.tokenizer, run.transformer, all_clips(run.held_out())
    if tokenizer.codebook_size > 256:
        raise ValueError(f"{run.folder}: {tokenizer.codebook_size} codes; the page takes up to 256")
    chosen = label.argsort(stable=True)[torch.arange(1, 2 * CLIPS, 2) * len(label) // (2 * CLIPS)]
    video, label = video[chosen], label[chosen]
    grid, steps = tokenizer.latent_shape(*video.shape[2:]), run.config.decode_steps
    sheets, conditions, recordings, kept = {}, {}, {}, []

    def keep(videos: Tensor, quality: int) -> int:
        return sheets.setdefault(sheet(videos, quality), len(sheets))

    def pixels(tokens: Tensor) -> Tensor:
        return tokenizer.decode(tokens.view(-1, *grid)).clamp(0, 1)

    for task in tasks or measurable_tasks(run):
        condition, is_pad = tokenize_condition(tokenizer, video, task)
        padded, valid = make_condition(video, task)
        shown = zip(video, torch.where(valid, video, 0.6), padded, pixels(condition))
        conditions[task] = dict(title=TASKS[task].title, is_pad=is_pad.int().tolist(), clips=[
            dict(sheet=keep(torch.stack(rows), FINE), tokens=tokens)
            for rows, tokens in zip(shown, condition.tolist())])
        prompt = torch.full((CLIPS,), task_index(task, model.prompts))
        classes = label if TASKS[task].class_conditional else label * 0 + model.no_class
        for method, decode in METHODS.items():
            for schedule in SCHEDULES:
                made = record(model, decode, prompt, classes, condition, is_pad, steps=steps,
                              schedule=schedule, temperature=run.config.decode_temperature)
                for clip in range(CLIPS):
                    recordings[f"{task}/{clip}/{method}/{schedule}"] = dict(
                        sheet=keep(pixels(made.tokens[clip]), QUALITY),
                        first=len(kept) * steps * len(is_pad), decided=made.decided[clip].tolist(),
                        cutoffs=[round(x, 2) for x in made.cutoffs[clip].tolist()])
                    kept.append((made.tokens[clip], made.scores[clip]))
    tokens, scores = (torch.stack(each) for each in zip(*kept))
    low, high = scores.min().item(), scores.max().item()
    scores = ((scores - low) / (high - low) * 255).round()
    tokens, scores = (b64encode(each.byte().numpy()).decode() for each in (tokens, scores))
    return dict(
        run=run.folder.name, steps=steps, grid=grid, size=list(video.shape[2:]),
        clips=[run.class_names[i] for i in label.tolist()], methods=list(METHODS),
        schedules=list(SCHEDULES), conditions=conditions, recordings=recordings, tokens=tokens,
        scores=scores, sheets=list(sheets), score_range=[round(low, 3), round(high, 3)])


def filled(data: dict) -> str:
    """The page: the template with data, today's source_lines and the colours of pictures.py."""
    data = json.dumps(data | dict(lines=source_lines()), separators=(",", ":"))
    text = TEMPLATE.read_text().replace("{{data}}", data.replace("<", "\\u003c"))
    for name, kind in dict(given=GIVEN, masked=MASKED, decided=DECIDED).items():
        red, green, blue = (255 * COLOURS[kind]).round().int().tolist()
        text = text.replace("{{" + name + "}}", f"rgb({red}, {green}, {blue})")
    return text


def page(run: Path = TOP / "assets/toy", out: Path = Path("docs"), tasks: tuple = ()) -> None:
    """docs/index.html: Algorithm 1 to play with, in one file that needs nothing else."""
    text = filled(recorded(load_run(run), tasks))
    out.mkdir(parents=True, exist_ok=True)
    (out / "index.html").write_text(text)
    print(f"  {out / 'index.html'}: {len(text.encode()) / 1e6:.2f} MB")


def main() -> None:
    for name, place in source_lines().items():
        print(f"{name:15} {place['file']}:{place['line']:<4} {place['code'][:70]}")


if __name__ == "__main__":
    main()
