"""Every picture of the README and the docs, computed and drawn: the roof of the house.

Paper   Fig. 2 (tasks), Fig. 3 (steps), Sec. 3.2 (why not simply unmask)

Shapes  assets/toy, or a run of yours -> clips, tokens, samples -> pictures.py -> assets/

Read    FIGURES at the end, then the function of the picture you want to change.

Not here: how to paint (pictures.py); curves of training (tests/ablations.py). Nothing imports this.

Run:    python figures.py                 all of them but real
        python figures.py leak steps      some of them
        python figures.py real RUN        one of a run of yours
"""
from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from commit import (TASKS, commit_mask, cutoff_score, is_padding, make_condition, mask_ratio,
                    num_masked, task_index, tokenize_condition)
from data.moving_shapes import MovingShapes
from data.source import NO_LABEL, load_batch, to_float
from decode import commit_decode, generate, gumbel_noise
from discriminator import (DISCRIMINATORS, Discriminator3d, LeCam, discriminator_loss,
                           generator_loss, r1_penalty)
from measure.report import draw_losses, draw_samples, measurable_tasks
from pictures import (DECIDED, GIVEN, MASKED, PADDED, canvas, cells, draw_curves, draw_ids, strip,
                      write_grid)
from tokenizer import TOKENIZERS, VideoTokenizer
from training.checkpoint import Run, load_run

TOY, ASSETS = Path("assets/toy"), Path("assets")


def held_out_clip(run: Run, index: int) -> tuple[Tensor, int]:
    """Held-out clip `index` as (1, 3, T, H, W) in [0, 1], and its label."""
    clip, label = run.held_out().clip(index, None)
    return to_float(clip[None]), label


# ---------------------------------------------------------------------------------------------
# Sec. 3.2, Fig. 2: what the model is given

def tasks(run: Path = TOY, out: Path = ASSETS) -> None:
    """Fig. 2: a row per task, with the video, what is given of it, its condition, ispad, z-bar."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 64), indexing="ij")
    ground = torch.stack([0.3 + 0.4 * y, 0.5 - 0.2 * y, 0.6 - 0.3 * x])
    disc = torch.stack([(x - c) ** 2 + (y - 0.5) ** 2 < 0.04
                        for c in torch.linspace(0.25, 0.75, 16)])[None]
    video = torch.where(disc, torch.tensor([1.0, 0.8, 0.2])[:, None, None, None],
                        ground[:, None])[None]
    latent_shape, shown = (4, 16, 16), [0, 5, 10, 15]
    scores = torch.rand(1, 1024, generator=torch.Generator().manual_seed(0))
    ratio = mask_ratio(torch.tensor([0.4]))
    cutoff = cutoff_score(scores, ratio)
    titles = ["video V\n4 of 16 frames", "given pixels (green)\n4 of 16 frames",
              "condition V~\n4 of 16 frames", "ispad (white)\n4 latent frames",
              f"masked sequence, {ratio.item():.0%}\n4 latent frames"]
    with canvas(out / "tasks.png", len(TASKS), 5, (16, 12.5), dpi=75) as axes:
        for row, (name, task) in zip(axes, TASKS.items()):
            condition, valid = make_condition(video, name)
            is_pad = is_padding(valid, latent_shape)
            # Eq. (2) on ids that say where a token comes from.
            source = torch.zeros(1, 1024, dtype=torch.long)
            kinds = commit_mask(source + DECIDED, source + GIVEN, is_pad.flatten(), scores, cutoff,
                                mask_id=MASKED)[0].view(latent_shape)
            for axis, picture, title in zip(row, (
                    video[0, :, shown], cells(torch.where(valid, GIVEN, PADDED)[shown]),
                    condition[0, :, shown], cells(torch.where(is_pad, PADDED, GIVEN)),
                    cells(kinds)), titles):
                axis.imshow(strip(picture), interpolation="nearest")
                axis.set_title(title if name == "FP" else "", fontsize=12)
            row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=15)
            row[2].set_xlabel(task.title + (": latent frame 1 is 1 given + 3 copied frames"
                                            if name == "FP" else ""), fontsize=10)


def schedules(run: Path = TOY, out: Path = ASSETS) -> None:
    """gamma: the tokens still masked after each step, for App. B.3's three schedules and "log"."""
    progress = torch.linspace(0, 1, 13)
    curves = {name: (range(13), num_masked(mask_ratio(progress, name), 1024).tolist())
              for name in ("exp", "cosine", "uniform", "log")}
    draw_curves(out / "schedules.png", [("", "step of Algorithm 1",
                                         "tokens still masked, of 1024", curves)], (5.5, 3.2))


def tokens(run: Path = TOY, out: Path = ASSETS) -> None:
    """A clip of the toy under its token grid, the ids written in."""
    trained = load_run(run)
    video, label = held_out_clip(trained, 23)
    ids = trained.tokenizer.encode(video)[0]
    t, h, w = ids.shape
    with canvas(out / "tokens.png", 2, t, (2.2 * t, 5.2)) as axes:
        for column in range(t):
            frame = rearrange(video[0, :, 4 * column], "c h w -> h w c")
            axes[0, column].imshow(frame.numpy(), extent=(-0.5, w - 0.5, h - 0.5, -0.5))
            axes[0, column].set_title(f"frames {4 * column} to {4 * column + 3}", fontsize=11)
            draw_ids(axes[1, column], ids[column], torch.full((h, w), DECIDED), size=9)
            for axis in axes[:, column]:
                axis.hlines([y + 0.5 for y in range(h - 1)], -0.5, w - 0.5, colors="white", lw=1)
                axis.vlines([x + 0.5 for x in range(w - 1)], -0.5, h - 0.5, colors="white", lw=1)
        axes[0, 0].set_ylabel("first of the\nfour frames", fontsize=11)
        axes[1, 0].set_ylabel("token id, of 128", fontsize=11)
    print(f"  {trained.class_names[label]}: 16x32x32 pixels, {t}x{h}x{w} tokens, "
          f"{len(ids.unique())} different codes")


def conditions(run: Path = TOY, out: Path = ASSETS) -> None:
    """z, z-tilde and z-bar of central outpainting, and how good z-tilde is in each task."""
    trained = load_run(run)
    video, _ = held_out_clip(trained, 23)
    z = trained.tokenizer.encode(video)
    shape = z.shape[1:]
    tilde, is_pad = tokenize_condition(trained.tokenizer, video, "OPC")
    scores = torch.rand(1, z[0].numel(), generator=torch.Generator().manual_seed(1))
    cutoff = cutoff_score(scores, mask_ratio(torch.tensor([0.4])))
    masked = scores <= cutoff[:, None]
    bar = commit_mask(z.flatten(1), tilde, is_pad, scores, cutoff, mask_id=-1)
    right = torch.where(tilde == z.flatten(1), GIVEN, PADDED)
    kinds = torch.where(masked, torch.where(is_pad, MASKED, GIVEN), DECIDED)
    rows = {"z, the video's\ntokens": (z.flatten(1), torch.full_like(tilde, DECIDED)),
            "z-tilde, the condition's\n(green: equal to z)": (
                tilde.masked_fill(is_pad, -1), torch.where(is_pad, PADDED, right)),
            "z-bar, Eq. (2)\ngreen z-tilde, black\n[MASK], blue z": (bar, kinds)}
    with canvas(out / "conditions.png", 3, shape[0], (2.1 * shape[0] + 1, 6.6)) as axes:
        for row, (name, (ids, colours)) in zip(axes, rows.items()):
            for axis, frame, colour in zip(row, ids.view(shape), colours.view(shape)):
                draw_ids(axis, frame, colour, size=9)
            row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10)
        for number, axis in enumerate(axes[0]):
            axis.set_title(f"latent frame {number}", fontsize=10)
    everything, _ = load_batch(trained.held_out(), 0, 64, seed=0, augment=False)
    z = trained.tokenizer.encode(everything).flatten(1)
    for task in (task for task in TASKS if TASKS[task].region(16, 32, 32, *(
            (1,) if TASKS[task].counts_frames else ())).any()):
        tilde, is_pad = tokenize_condition(trained.tokenizer, everything, task)
        share = (tilde == z)[:, ~is_pad].float().mean().item()
        print(f"  {task:4} {share:4.0%} of the condition's tokens are the real clip's")


# ---------------------------------------------------------------------------------------------
# Why COMMIT: what leaking does

def leak(run: Path = TOY, out: Path = ASSETS) -> None:
    """What a token sees, what unmasked tokens give away, and what that does to frame prediction."""
    trained = load_run(run)
    influence, shares = leaking_shares(trained.tokenizer, *(held_out_clip(trained, i)[0]
                                                            for i in (0, 1)))
    distance = list(range(len(influence)))
    draw_curves(out / "leak.png", [
        ("what moves one token", "pixels away from the token's own", "share of the influence",
         {"at this distance": (distance, influence),
          "up to this distance": (distance, torch.tensor(influence).cumsum(0).tolist())})],
        (5.5, 3.2))
    print(f"  one token: {1 - influence[0]:.0%} of what moves it lies outside of its own pixels\n"
          "  OPC, tokens of the given region that change with pixels that are not given: "
          f"unmasked {shares[0]:.0%}, COMMIT {shares[1]:.0%}")

    video, label = load_batch(trained.held_out(), 0, 64, seed=0, augment=False)
    grid = trained.tokenizer.latent_shape(*video.shape[2:])
    real = trained.tokenizer.encode(video).flatten(1)
    honest, is_pad = tokenize_condition(trained.tokenizer, video, "FP")
    model, results = trained.transformer, {}
    prompt = torch.full((len(video),), task_index("FP", model.prompts))
    for name, condition in (("leaked", real), ("COMMIT", honest)):
        for state in commit_decode(model, prompt, torch.full_like(prompt, model.no_class),
                                   condition, is_pad, **trained.config.decoding,
                                   generator=torch.Generator().manual_seed(0)):
            pass
        generated = trained.tokenizer.decode(state.tokens.view(-1, *grid)).clamp(0, 1)
        direction = MovingShapes.recognize(generated)[1]
        results[name] = generated, direction == label % 4
        print(f"  frame prediction, {name:6}: the real clip's direction in "
              f"{results[name][1].float().mean():.0%} of {len(video)} held-out clips")
    told = (results["leaked"][1] & ~results["COMMIT"][1]).nonzero()[:4, 0].tolist()
    first = video[:, :, :1].expand_as(video)
    write_grid(out / "leak.gif", [
        (trained.class_names[label[i]], [first[i], results["leaked"][0][i],
                                         results["COMMIT"][0][i], video[i]]) for i in told],
        ["given", "tokens leaked", "COMMIT", "real"])


def leaking_shares(tokenizer: nn.Module, video: Tensor, other: Tensor
                   ) -> tuple[list[float], list[float]]:
    """video, other (1, 3, T, H, W) in [0, 1]. First: of all that moves the latent in the middle,
    the share at each distance in pixels from the token's own pixels. Second: of the tokens of
    OPC's region, the share that changes when all pixels outside of it are `other`'s, if they are
    unmasked as they are, and in COMMIT."""
    sizes, grid = video.shape[2:], tokenizer.latent_shape(*video.shape[2:])
    place = [length // 2 for length in grid]
    pixels = video.clone().requires_grad_()
    latent = tokenizer.latents(pixels)[(0, slice(None), *place)]
    influence = sum(torch.autograd.grad(number, pixels, retain_graph=True)[0].abs().sum((0, 1))
                    for number in latent)                                        # (T, H, W)
    away = torch.zeros(sizes)
    for axis, (size, cell, i) in enumerate(zip(sizes, grid, place)):
        first, last = i * size // cell, (i + 1) * size // cell - 1
        position = torch.arange(size)
        steps = torch.maximum(first - position, position - last).clamp(min=0)
        away = torch.maximum(away, steps.view([-1 if a == axis else 1 for a in range(3)]).float())
    by_distance = torch.zeros(int(away.max()) + 1).scatter_add_(0, away.flatten().long(),
                                                                influence.flatten())
    changed = torch.where(make_condition(video, "OPC")[1], video, other)
    (before, is_pad), (after, _) = (tokenize_condition(tokenizer, v, "OPC")
                                    for v in (video, changed))
    unmasked = [tokenizer.encode(v).flatten(1) for v in (video, changed)]
    return ((by_distance / by_distance.sum()).tolist(),
            [(x != y)[:, ~is_pad].float().mean().item() for x, y in (unmasked, (before, after))])


# ---------------------------------------------------------------------------------------------
# Fig. 3: what happens between the steps

def steps(run: Path = TOY, out: Path = ASSETS, task: str = "FP", clip: int = 23) -> None:
    """Input tokens and output video of some steps; below, the same condition by latent masking."""
    trained = load_run(run)
    video, label = held_out_clip(trained, clip)
    grid = trained.tokenizer.latent_shape(*video.shape[2:])
    condition, is_pad = tokenize_condition(trained.tokenizer, video, task)
    count = trained.config.decode_steps
    shown = sorted({round(i * (count - 1) / 4) for i in range(5)})
    model, one = trained.transformer, torch.zeros(1, dtype=torch.long)
    arguments = (model, one + task_index(task, model.prompts), one + model.no_class)
    commit = commit_decode(*arguments, condition, is_pad, **trained.config.decoding,
                           generator=torch.Generator().manual_seed(0))
    states = {"COMMIT": [(state.tokens, ~state.unknown, is_pad) for state in commit],
              "latent masking": list(latent_masking(*arguments, condition, ~is_pad, count))}
    with canvas(out / "steps.png", 4, len(shown), (3.1 * len(shown), 5.2), dpi=75) as axes:
        for row, (name, sequence) in enumerate(states.items()):
            decided = torch.zeros_like(condition, dtype=torch.bool)
            for step, (ids, next_decided, padding) in enumerate(sequence):
                if step in shown:
                    kinds = torch.where(decided, DECIDED, torch.where(padding, MASKED, GIVEN))
                    decoded = trained.tokenizer.decode(ids.view(1, *grid)).clamp(0, 1)[0]
                    above, below = axes[2 * row:2 * row + 2, shown.index(step)]
                    above.imshow(strip(cells(kinds.view(grid))), interpolation="nearest")
                    above.set_title(f"{name}: into step {step}", fontsize=10)
                    below.imshow(strip(decoded[:, [0, 5, 10, 15]]))
                decided = next_decided
            axes[2 * row, 0].set_ylabel("tokens\n(4 latent frames)", fontsize=8)
            axes[2 * row + 1, 0].set_ylabel("predicted video\n(4 of 16 frames)", fontsize=8)
    given = make_condition(video, task)[1]
    for name, sequence in states.items():
        decoded = trained.tokenizer.decode(sequence[-1][0].view(1, *grid)).clamp(0, 1)
        error = (decoded - video).square()[given.expand_as(video)].mean()
        print(f"  {name:15} {-10 * error.log10():.1f} dB inside the given region of {task}")


@torch.no_grad()
def latent_masking(model: nn.Module, task: Tensor, label: Tensor, condition: Tensor,
                   given: Tensor, count: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """MaskGIT's decoding with the condition's tokens put in as known, never to change.

    Returns per step: the best guess (1, N), what is decided after it, and what was [MASK]'s place.
    """
    generator, N = torch.Generator().manual_seed(0), int((~given).sum())
    known, guess, states = given[None].clone(), condition.clone(), []
    for t in range(count):
        inputs = torch.where(known, guess, model.mask_id)
        logits = model(inputs, task, label).float()
        sampled = (logits + gumbel_noise(logits.shape, generator)).argmax(-1)
        guess = torch.where(known, guess, sampled)
        sure = logits.log_softmax(-1).gather(-1, guess[..., None])[..., 0]
        sure = sure.masked_fill(known, torch.inf)
        left = N * mask_ratio(torch.tensor((t + 1) / count)).item()
        keep = len(given) - (math.ceil(left - 1e-3) if t < count - 1 else 0)
        known = torch.zeros_like(known).scatter(1, sure.topk(keep).indices, True)
        states.append((guess, known, ~given))
    return states


# ---------------------------------------------------------------------------------------------
# Samples, losses

def samples(run: Path = TOY, out: Path = ASSETS) -> None:
    """The README's hero: ten tasks on a held-out clip. And how much of it is memory."""
    trained = load_run(run)
    video, label = held_out_clip(trained, 23)
    draw_samples(trained, video, label, out / "samples.gif", list(TASKS),
                 **trained.config.decoding)
    clips = to_float(torch.stack([torch.from_numpy(MovingShapes().clip(i)[0])
                                  for i in range(320)]).numpy()).flatten(1)
    held_out, _ = load_batch(trained.held_out(), 0, 64, seed=0, augment=False)
    made = torch.cat([generate(trained.tokenizer, trained.transformer, held_out, "FP",
                               generator=torch.Generator().manual_seed(seed),
                               **trained.config.decoding) for seed in range(4)]).flatten(1)
    nearest = (torch.cdist(made, clips).square() / made.shape[1]).amin(1)
    recited = int((-10 * nearest.log10() > 20).sum())
    print(f"  {trained.class_names[label]}; of {len(made)} frame predictions on held-out clips, "
          f"{recited} are a training clip (above 20 dB)")


def real(run: Path = Path("runs/asl"), out: Path = ASSETS) -> None:
    """The ten tasks on a clip of a run on real videos."""
    trained = load_run(run)
    source = trained.held_out()
    clip, label = source.clip(len(source) // 4, None)
    draw_samples(trained, to_float(clip[None]), None if label == NO_LABEL else label,
                 out / "real.gif", measurable_tasks(trained), samples=1, **trained.config.decoding)


def loss(run: Path = TOY, out: Path = ASSETS) -> None:
    """The curves of the shipped run's log, beside the log."""
    draw_losses(run / "log.jsonl", run / "loss.png")


# ---------------------------------------------------------------------------------------------
# Where each loss's gradient goes

def gradients(run: Path = TOY, out: Path = ASSETS) -> None:
    """A table of losses and networks. Green: followed. Hatched: there, but steps.py cuts it."""
    torch.manual_seed(0)
    tokenizer = VideoTokenizer(replace(TOKENIZERS["toy"], residual_gain=1.0))
    video = F.interpolate(torch.rand(2, 3, 4, 4, 4), (16, 32, 32), mode="trilinear")
    norms = gradient_norms(tokenizer, Discriminator3d(DISCRIMINATORS["toy"]), video)
    parts = list(next(iter(norms.values())))
    adversary = {"discriminator", "R1", "LeCam"}               # the losses that D is trained on
    with canvas(out / "gradients.png", 1, 1, (6, 3.4), ticks=True) as axes:
        axis = axes[0, 0]
        for y, (name, row) in enumerate(norms.items()):
            for x, (part, norm) in enumerate(row.items()):
                followed = (name in adversary) == (part == "discriminator")
                colour = "white" if not norm else "#7bc67e" if followed else "#e5e5e5"
                axis.fill_between([x, x + 1], y, y + 1, facecolor=colour, edgecolor="#a0a0a0",
                                  hatch="////" if norm and not followed else "")
                if norm and followed:
                    axis.text(x + 0.5, y + 0.5, f"{norm:.1e}", ha="center", va="center",
                              fontsize=8)
        axis.set(xlim=(0, len(parts)), ylim=(len(norms), 0))
        axis.set_xticks([x + 0.5 for x in range(len(parts))], parts)
        axis.set_yticks([y + 0.5 for y in range(len(norms))], norms)
        axis.xaxis.tick_top()
        axis.tick_params(length=0)


def gradient_norms(tokenizer: nn.Module, discriminator: nn.Module, video: Tensor
                   ) -> dict[str, dict[str, float]]:
    """How far each loss of stage 1 reaches: the norm of its gradient in each part; 0: none.

    video (B, 3, T, H, W) in [0, 1]. Losses as in steps.tokenizer_pass, before it cuts any.
    """
    output, real = tokenizer(video), video.clone().requires_grad_()
    fake_logits, real_logits = discriminator(output.reconstruction), discriminator(real)
    losses = {"reconstruction": F.mse_loss(output.reconstruction, video),
              "codebook": output.codebook_loss, "commitment": output.commitment_loss,
              "entropy": output.entropy_loss, "generator": generator_loss(fake_logits),
              "discriminator": discriminator_loss(real_logits, fake_logits),
              "R1": r1_penalty(real_logits, real),
              "LeCam": LeCam()(real_logits.mean(), fake_logits.mean())}
    named = list(tokenizer.named_parameters())
    parts = {part: [p for name, p in named if name.startswith(part)]
             for part in ("encoder", "quantizer", "decoder")}
    parts["discriminator"] = list(discriminator.parameters())
    return {name: {part: nn.utils.get_total_norm([g for g in torch.autograd.grad(
        loss, parameters, retain_graph=True, allow_unused=True) if g is not None]).item()
        for part, parameters in parts.items()} for name, loss in losses.items()}


FIGURES = {figure.__name__: figure for figure in (
    tasks, schedules, tokens, conditions, leak, steps, samples, gradients, loss, real)}


def main() -> None:
    names = [name for name in sys.argv[1:] if name in FIGURES]
    rest = [name for name in sys.argv[1:] if name not in FIGURES]
    if rest and not Path(rest[0]).is_dir():
        sys.exit(f"figures.py: {rest[0]} is no run and no figure; choose from {' '.join(FIGURES)}")
    for name in names or [name for name in FIGURES if name != "real"]:
        print(name, flush=True)
        try:
            FIGURES[name](*(Path(run) for run in rest))
        except FileNotFoundError as error:
            sys.exit(f"figures.py: {name}: {error}")


if __name__ == "__main__":
    main()
