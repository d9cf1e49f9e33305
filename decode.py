"""Algorithm 1: from conditions to tokens in a few steps, and from pixels to pixels.

Paper   Sec. 3.2 (Algorithm 1, Inference, Fig. 3), App. B.3 (steps, schedule, temperature)

Shapes  task (B,), label (B,), condition tokens (B, N), is_pad (N,) or (B, N)
          -> commit_decode: `steps` times [Eq. (2) -> transformer -> sample -> keep the surest]
          -> tokens (B, N) -> tokenizer.decode -> video (B, 3, T, H, W)

Read    commit_decode beside Algorithm 1; then guided_logits, generate, draw_samples.

Not here: Eq. (2), tasks and schedules (commit.py); the networks. Models are arguments.

Run:    python decode.py        Algorithm 1: masked tokens per step, what one token sees, Fig. 3
        python decode.py RUN                          all ten tasks on a clip of the run's data
        python decode.py RUN --task OPC --video in.mp4 --out out.gif
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Callable, Iterator, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from checkpoint import load_run
from commit import (TASKS, commit_mask, cutoff_score, make_condition, mask_ratio, num_masked,
                    task_index, tokenize_condition)
from data import NO_LABEL, load_clip, open_source, to_float, write_grid


class DecodeState(NamedTuple):
    """Where decoding stands after a step. The last state's tokens are the answer."""

    step: int               # t, from 0
    inputs: Tensor          # (B, N) z-bar: what the transformer was given in this step
    tokens: Tensor          # (B, N) z-hat: the best guess now, without any [MASK]
    unknown: Tensor         # (B, N) bool, True where the next step will predict anew
    confidence: Tensor      # (B, N) log probability plus noise; inf where decided for good


@torch.no_grad()
def commit_decode(model: nn.Module, task: Tensor, label: Tensor, condition_tokens: Tensor,
                  is_pad: Tensor, *, steps: int = 12, temperature: float = 4.5,
                  schedule: str = "cosine", guidance_scale: float = 0.0,
                  generator: torch.Generator | None = None,
                  noise: Callable[[torch.Size], Tensor] | None = None,
                  masked_counts: Tensor | None = None) -> Iterator[DecodeState]:
    """Algorithm 1, one DecodeState per step. The defaults are App. B.3's.

    model: MaskedTransformer; task (B,), label (B,) its prefix. condition_tokens z-tilde (B, N);
    is_pad (N,) or (B, N), True where they hold only padding.

    Two things are not in the printed algorithm and come from the official code. Scores are log
    probabilities, with inf for tokens decided for good (the order is that of p with 1). And
    Gumbel noise times temperature, fading to none at the last step, is added to the scores:
    which tokens stay is left to chance at first. Temperature 0 is the printed algorithm.

    All noise is Gumbel from `generator`, two draws a step: of the logits' shape to sample the
    tokens, then (B, N) to rank them. To replay a recording, `noise(shape)` may return it instead,
    and masked_counts (steps, B) replaces ceil(gamma((t+1)/steps) N) in line 6.
    """
    if steps < 1:
        raise ValueError(f"{steps} decoding steps; give at least 1")
    if noise is None:
        def noise(shape: torch.Size) -> Tensor:
            return gumbel_noise(shape, generator, condition_tokens.device)
    B, N = condition_tokens.shape
    scores = torch.zeros(B, N, device=condition_tokens.device)                    # line 1
    cutoff = torch.ones(B, device=condition_tokens.device)
    tokens = torch.zeros_like(condition_tokens)
    for t in range(steps):                                                        # line 2
        inputs = commit_mask(tokens, condition_tokens, is_pad, scores, cutoff,    # line 3
                             model.mask_id)
        logits = guided_logits(model, inputs, tokens, task, label, scores, cutoff, guidance_scale)
        unknown = scores <= cutoff[:, None]
        sampled = (logits + noise(logits.shape)).argmax(-1)
        tokens = torch.where(unknown, sampled, tokens)                            # line 4

        confidence = F.log_softmax(logits, dim=-1).gather(-1, tokens[..., None])[..., 0]
        confidence = confidence + temperature * (1 - (t + 1) / steps) * noise(confidence.shape)
        scores = torch.where(unknown, confidence, scores)                         # line 5

        progress = torch.tensor([(t + 1) / steps], dtype=torch.float64, device=scores.device)
        count = (num_masked(mask_ratio(progress, schedule, N), N) if masked_counts is None
                 else masked_counts[t])
        count = torch.minimum(count, unknown.sum(1))        # what is decided is never reopened
        cutoff = cutoff_score(scores, count / N)                                  # line 6
        scores = scores.masked_fill(scores > cutoff[:, None], torch.inf)          # line 7
        last = t == steps - 1
        yield DecodeState(t, inputs, tokens, (scores <= cutoff[:, None]) & (not last), scores)
    # lines 8 and 9: the caller's last state holds z-hat


def gumbel_noise(shape: torch.Size, generator: torch.Generator | None,
                 device: torch.device | str = "cpu") -> Tensor:
    """Standard Gumbel noise: argmax(logits + noise) is a sample of softmax(logits)."""
    uniform = torch.rand(shape, generator=generator, device=device)
    return -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))


def guided_logits(model: nn.Module, inputs: Tensor, tokens: Tensor, task: Tensor, label: Tensor,
                  scores: Tensor, cutoff: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: logits + scale * (logits - unconditional logits), (B, N, K).

    Unconditional is the CG task without a class and without condition tokens (official). The
    paper does not use it: scale 0 is a plain forward pass. Train with class dropout before use.
    """
    if scale == 0:
        return model(inputs, task, label).float()
    everywhere = torch.ones_like(scores, dtype=torch.bool)
    unconditional = commit_mask(tokens, tokens, everywhere, scores, cutoff, model.mask_id)
    logits, baseline = model(
        torch.cat([inputs, unconditional]),
        torch.cat([task, torch.full_like(task, task_index("CG"))]),
        torch.cat([label, torch.full_like(label, model.no_class)])).float().chunk(2)
    return logits + scale * (logits - baseline)


# ---------------------------------------------------------------------------------------------
# Pixels to pixels

@torch.no_grad()
def generate(tokenizer: nn.Module, model: nn.Module, video: Tensor, task: str,
             label: Tensor | None = None, *, frames: int = 1, **decoding) -> Tensor:
    """Do a task on videos: condition -> tokens -> Algorithm 1 -> video.

    video (B, 3, T, H, W) in [0, 1]; only the task's condition is taken from it, and for CG only
    its shape. label (B,) ints in [0, C) for CG and CFP, None for the others. frames as in
    make_condition; decoding: the keywords of commit_decode. Returns (B, 3, T, H, W) in [0, 1];
    the given region is generated anew too, from its refined tokens.
    """
    index, classes = task_index(task), model.no_class
    if TASKS[task].class_conditional:
        if classes == 0:
            raise ValueError(f"{task} needs classes, and this model was trained without any")
        if label is None or label.min() < 0 or label.max() >= classes:
            got = "none" if label is None else f"{label.tolist()}"
            raise ValueError(f"{task} needs a class label in 0..{classes - 1}, got {got}")
    elif label is not None:
        raise ValueError(f"{task} takes no class label; CG and CFP do")
    shape = tokenizer.latent_shape(*video.shape[2:])
    condition_tokens, is_pad = tokenize_condition(tokenizer, video, task, frames)
    if condition_tokens.shape[1] != model.config.num_tokens:
        raise ValueError(f"a {'x'.join(map(str, video.shape[2:]))} video has "
                         f"{condition_tokens.shape[1]} tokens; this transformer was trained on "
                         f"{model.config.num_tokens}: resize or cut the video")
    task_ids = torch.full((len(video),), index, device=video.device)
    labels = torch.full_like(task_ids, classes) if label is None else label
    for state in commit_decode(model, task_ids, labels, condition_tokens, is_pad, **decoding):
        pass
    return tokenizer.decode(state.tokens.view(-1, *shape)).clamp(0, 1)


def draw_samples(tokenizer: nn.Module, model: nn.Module, video: Tensor, label: int | None,
                 path: str | Path, tasks: list[str] | None = None, *, frames: int = 1,
                 samples: int = 2, seed: int = 0, **decoding) -> None:
    """Write a GIF (or a PNG contact sheet): a row per task, given | generated ... | real.

    video (1, 3, T, H, W) in [0, 1]. Tasks that need a class are left out where label is None.
    """
    generator = torch.Generator(video.device).manual_seed(seed)
    rows = []
    for task in tasks or TASKS:
        conditional = TASKS[task].class_conditional
        if conditional and (label is None or model.no_class == 0):
            continue
        labels = torch.full((samples,), label, device=video.device) if conditional else None
        generated = generate(tokenizer, model, video.expand(samples, -1, -1, -1, -1), task,
                             labels, frames=frames, generator=generator, **decoding)
        condition, valid = make_condition(video, task, frames)
        given = torch.where(valid, condition, 0.5 + 0.5 * video.mean()).clamp(0, 1)
        rows.append((f"{task}\n{TASKS[task].title}", [given[0], *generated, video[0]]))
    titles = ["given", *["generated"] * samples, "real"]
    write_grid(path, rows, titles)


def draw_steps(tokenizer: nn.Module, model: nn.Module, video: Tensor, task: str,
               label: Tensor | None, path: str | Path, *, frames: int = 1, steps: int = 12,
               seed: int = 0, **decoding) -> None:
    """Fig. 3: input tokens and output video of some steps, in mid-clip; COMMIT above MaskGIT.

    Above, decoding starts from the condition's tokens (green); below, from [MASK] alone
    (black), as for images. Blue tokens are generated and decided. video (1, 3, T, H, W); label
    (1,) or None, used where the task has classes (CG stands for MaskGIT).
    """
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    shape = tokenizer.latent_shape(*video.shape[2:])
    middle, frame = shape[0] // 2, video.shape[2] // 2
    condition_tokens, is_pad = tokenize_condition(tokenizer, video, task, frames)
    colours = torch.tensor([[0.2, 0.7, 0.3], [0.0, 0.0, 0.0], [0.35, 0.6, 0.95]])
    shown = sorted({round(i * (steps - 1) / 5) for i in range(6)})
    figure, axes = plt.subplots(4, len(shown), figsize=(2 * len(shown), 8.6))
    no_class = torch.full_like(condition_tokens[:, 0], model.no_class)
    starts = {f"COMMIT, {task}": (task, is_pad),
              "MaskGIT: all [MASK]": ("CG", torch.ones_like(is_pad))}
    for row, (title, (prompt, padding)) in enumerate(starts.items()):
        generator = torch.Generator(video.device).manual_seed(seed)
        known = torch.zeros_like(condition_tokens, dtype=torch.bool)
        known_class = TASKS[prompt].class_conditional and label is not None
        states = commit_decode(model, torch.full_like(no_class, task_index(prompt)),
                               label if known_class else no_class, condition_tokens, padding,
                               steps=steps, generator=generator, **decoding)
        for state in states:
            if state.step in shown:
                column = shown.index(state.step)
                kinds = torch.where(known, 2, padding.long())[0].view(shape)[middle].cpu()
                output = tokenizer.decode(state.tokens.view(1, *shape))[0].clamp(0, 1).cpu()
                axes[2 * row, column].imshow(colours[kinds].numpy(), interpolation="nearest")
                axes[2 * row, column].set_title(f"t = {state.step}", fontsize=10)
                axes[2 * row + 1, column].imshow(
                    rearrange(output[:, frame], "c h w -> h w c").numpy())
            known = ~state.unknown
        axes[2 * row, 0].set_ylabel(f"{title}\ninput tokens")
        axes[2 * row + 1, 0].set_ylabel("output video")
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def draw_leak(tokenizer: nn.Module, video: Tensor, other: Tensor, path: str | Path) -> list[float]:
    """Why COMMIT: what one token sees, and what the tokens of a given region give away.

    video, other (1, 3, T, H, W) in [0, 1]. The picture: how much each pixel moves the latent of
    the token in the frame, against the most. Returns three shares: of that influence, what lies
    outside of the token's own pixels; of the tokens of OPC's region, how many change when all
    pixels outside of the region are `other`'s, if they are unmasked as they are, and in COMMIT.
    """
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    T, H, W = video.shape[2:]
    t, h, w = tokenizer.latent_shape(T, H, W)
    token, size = (t // 2, h // 2, w // 2), (T // t, H // h, W // w)
    pixels = video.clone().requires_grad_()
    latent = tokenizer.encoder(pixels)[(0, slice(None), *token)]
    influence = sum(torch.autograd.grad(number, pixels, retain_graph=True)[0].abs().sum((0, 1))
                    for number in latent)                                        # (T, H, W)
    own = tuple(slice(i * extent, (i + 1) * extent) for i, extent in zip(token, size))
    outside = 1 - (influence[own].sum() / influence.sum()).item()

    _, valid = make_condition(video, "OPC")
    changed = torch.where(valid, video, other)
    (before, is_pad), (after, _) = (tokenize_condition(tokenizer, v, "OPC")
                                    for v in (video, changed))
    unmasked = [tokenizer.encode(v).flatten(1) for v in (video, changed)]
    shares = [(x != y)[:, ~is_pad].float().mean().item() for x, y in (unmasked, (before, after))]

    shown = range(0, T, max(1, T // 8))
    figure, axes = plt.subplots(2, len(shown), figsize=(1.5 * len(shown), 3.6))
    for column, frame in zip(axes.T, shown):
        column[0].imshow(rearrange(video[0, :, frame], "c h w -> h w c").numpy())
        column[1].imshow((influence[frame] / influence.max()).sqrt().numpy(), vmin=0, vmax=1,
                         cmap="magma")
        column[0].set_title(f"frame {frame}", fontsize=9)
        for axis in column:
            axis.set(xticks=[], yticks=[])
            if frame in range(T)[own[0]]:
                axis.add_patch(plt.Rectangle((own[2].start - 0.5, own[1].start - 0.5), size[2],
                                             size[1], fill=False, edgecolor="lime", linewidth=2))
    axes[0, 0].set_ylabel("video")
    axes[1, 0].set_ylabel("seen by one token")
    figure.suptitle(f"{outside:.0%} of what moves this token lies outside of its own pixels "
                    "(green)", fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)
    return [outside, *shares]


# ---------------------------------------------------------------------------------------------

def print_steps(num_tokens: int = 1024, steps: int = 12) -> None:
    """The masked counts of line 6 for the three schedules of App. B.3."""
    print(f"ceil(gamma((t+1)/K) N), the tokens still masked after each step; N = {num_tokens}")
    progress = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    for schedule in ("cosine", "uniform", "exp"):
        counts = num_masked(mask_ratio(progress, schedule, num_tokens), num_tokens)
        print(f"  {schedule:8}", *(f"{count:5}" for count in counts[:-1].tolist()), "    0")


def print_leak(run: str, path: str) -> None:
    """The picture and the numbers of draw_leak, for two held-out clips of the run's data."""
    tokenizer, _, config = load_run(run)
    source = open_source(config["train"], config["data"], split="test")
    video, other = (to_float(source.clip(index, None)[0][None]) for index in (0, 1))
    outside, unmasked, committed = draw_leak(tokenizer, video, other, path)
    print(f"\none token: {outside:.0%} of what moves it lies outside of its own pixels\n"
          "central outpainting: tokens of the given region that change with the pixels not given\n"
          f"  unmasked as they are  {unmasked:4.0%}    they give the answer away\n"
          f"  COMMIT                {committed:4.0%}    they know the condition alone\n"
          f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Do the paper's tasks with a trained run.")
    parser.add_argument("run", nargs="?", help="folder of a run, for example runs/toy")
    parser.add_argument("--task", nargs="+", choices=[*TASKS, "all"], default=["all"])
    parser.add_argument("--video", help="any video file; without it, a clip of the run's data")
    parser.add_argument("--clip", type=int, default=0, help="which clip, without --video")
    parser.add_argument("--label", help="class for CG and CFP: its name or number")
    parser.add_argument("--out", default="out.gif", help=".gif, or .png for a contact sheet")
    parser.add_argument("--start", type=int, default=0, help="first frame taken from the video")
    parser.add_argument("--stride", type=int, default=1, help="take every n-th frame")
    parser.add_argument("--frames", type=int, help="condition frames in FP, FI and CFP")
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--steps", type=int, help="K of Algorithm 1")
    parser.add_argument("--schedule", help="cosine, uniform, exp, ...")
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--guidance-scale", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fig3", action="store_true", help="draw Fig. 3 of the task instead")
    options = parser.parse_args()
    try:
        if options.run is None:
            print_steps()
            if not Path("assets/toy").is_dir():
                return
            options.run, options.fig3, options.out = "assets/toy", True, "assets/steps.png"
            options.task = ["OPC"]
            print_leak(options.run, "assets/leak.png")
        decode_run(options)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"decode.py: {error}")


def decode_run(options: argparse.Namespace) -> None:
    """Do what the command line asks; ValueError, in one line, where it makes no sense."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer, model, config = load_run(options.run, device)
    train, names = config["train"], config["data"]["class_names"]
    shape = (train["frames"], train["resolution"], train["resolution"])
    if options.video:
        video, label = load_clip(options.video, shape, options.start, options.stride), None
    else:
        clip, label = open_source(train, config["data"], split="test").clip(options.clip, None)
        video, label = to_float(clip[None]), None if label == NO_LABEL else label
    if options.label is not None:
        label = class_number(options.label, names)
    tasks = [task for task in TASKS if task in options.task or "all" in options.task]
    needing = [task for task in tasks if TASKS[task].class_conditional]
    if "all" not in options.task and needing and label is None:
        raise ValueError(f"{' '.join(needing)} needs --label; the classes of this run are "
                         f"{', '.join(names) or 'none'}")
    if options.label is not None and not needing:
        raise ValueError(f"{' '.join(tasks)} takes no --label; CG and CFP do")
    if options.frames is not None and not {"FP", "FI", "CFP"} & set(tasks):
        raise ValueError(f"--frames says how many frames are given in FP, FI and CFP, "
                         f"not in {' '.join(tasks)}")
    unseen = [task for task in tasks if task not in train["tasks"]]
    if unseen:
        print(f"this run was not trained on {' '.join(unseen)}", file=sys.stderr)
    decoding = dict(steps=options.steps or train["decode_steps"],
                    schedule=options.schedule or train["decode_schedule"],
                    temperature=(train["decode_temperature"] if options.temperature is None
                                 else options.temperature),
                    guidance_scale=options.guidance_scale, seed=options.seed,
                    frames=options.frames or train["condition_frames"])
    video = video.to(device)
    if options.fig3:
        labels = None if label is None else torch.tensor([label], device=device)
        draw_steps(tokenizer, model, video, tasks[0], labels, options.out, **decoding)
    else:
        draw_samples(tokenizer, model, video, label, options.out, tasks, samples=options.samples,
                     **decoding)
    print(f"wrote {options.out}")


def class_number(label: str, names: list[str]) -> int:
    """A class by its name or number. ValueError where the run has no such class."""
    if label in names:
        return names.index(label)
    if label.isdigit() and int(label) < len(names):
        return int(label)
    raise ValueError(f"class {label!r} is unknown; this run has {len(names)} classes"
                     + (f": {', '.join(names)}" if names else ""))


if __name__ == "__main__":
    main()
