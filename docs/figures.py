"""Every picture of the README and the docs, computed and drawn.

Paper   Fig. 2 (tasks), Fig. 3 (steps), Sec. 3.2 (why not simply unmask), App. Figs. 4-5 and 11-12

Shapes  assets/toy, or a run of yours -> clips, tokens, samples -> measure/pictures.py -> assets/

Read    FIGURES at the end, then the function of the picture you want to change; what measures
        influence and seams is in the last part.

Not here: how to paint (measure/pictures.py); curves of training (benchmarks/ablations.py).

Run:    python -m docs.figures                 all of them but real and panorama
        python -m docs.figures leak steps      some of them
        python -m docs.figures real RUN        one of a run of yours
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from commit import (TASKS, commit_mask, cutoff_score, is_padding, make_condition, mask_ratio,
                    num_masked, task_index, tokenize_condition)
from comparisons.baselines import latent_masking
from data.moving_shapes import MovingShapes
from data.source import all_clips, to_float
from decode import commit_decode, generate, seeded_noise
from discriminator import (DISCRIMINATORS, LeCam, discriminator_loss, generator_loss, r1_penalty)
from long_video import decode_long, encode_long, extend, generate_with, outpaint
from measure.metrics import frames_of, psnr
from measure.pictures import (DECIDED, GIVEN, MASKED, PADDED, WRONG, canvas, cells, draw_curves,
                              draw_ids, strip, to_frames, write_grid)
from measure.report import Judge, do_tasks, draw_losses, draw_tasks
from tokenizer import TOKENIZERS
from training.checkpoint import load_run

TOY, ASSETS = Path("assets/toy"), Path("assets")
CLIP = 36                       # the held-out clip that most figures show


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
    cutoff = cutoff_score(scores, num_masked(ratio, 1024))
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
            row[2].set_xlabel(task.title + (": latent frame 0 is 1 given + 3 copied frames"
                                            if name == "FP" else ""), fontsize=10)


def schedules(run: Path = TOY, out: Path = ASSETS) -> None:
    """gamma: the tokens still masked after each step, for App. B.3's three schedules."""
    progress = torch.linspace(0, 1, 13)
    curves = {name: (range(13), num_masked(mask_ratio(progress, name), 1024).tolist())
              for name in ("exp", "cosine", "uniform")}
    draw_curves(out / "schedules.png", [("", "step of Algorithm 1",
                                         "tokens still masked, of 1024", curves)], (5.5, 3.2))


def tokens(run: Path = TOY, out: Path = ASSETS) -> None:
    """A clip of the toy under its token grid, the ids written in."""
    trained = load_run(run)
    video, label = all_clips(trained.held_out())
    video, label = video[CLIP:CLIP + 1], label[CLIP]
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
        axes[1, 0].set_ylabel(f"token id, of {trained.tokenizer.codebook_size}", fontsize=11)
    print(f"  {trained.class_names[label]}: 16x32x32 pixels, {t}x{h}x{w} tokens, "
          f"{len(ids.unique())} different codes")


def conditions(run: Path = TOY, out: Path = ASSETS) -> None:
    """z, z-tilde and z-bar of central outpainting, and how good z-tilde is in each task."""
    trained = load_run(run)
    tokenizer, (video, _) = trained.tokenizer, all_clips(trained.held_out())
    tokens = tokenizer.encode(video).flatten(1)
    for task in TASKS:
        tilde, is_pad = tokenize_condition(tokenizer, video, task)
        if not is_pad.all():
            share = (tilde == tokens)[:, ~is_pad].float().mean().item()
            print(f"  {task:4} {share:4.0%} of the condition's tokens are the real clip's")

    z, shape = tokens[CLIP:CLIP + 1], tokenizer.latent_shape(*video.shape[2:])
    tilde, is_pad = tokenize_condition(tokenizer, video[CLIP:CLIP + 1], "OPC")
    scores = torch.rand(z.shape, generator=torch.Generator().manual_seed(1))
    cutoff = cutoff_score(scores, num_masked(torch.tensor([0.8]), scores.shape[1]))
    bar = commit_mask(z, tilde, is_pad, scores, cutoff, mask_id=-1)
    given = torch.where(tilde == z, GIVEN, WRONG)                # a condition token, as a colour
    kinds = torch.where(scores > cutoff, DECIDED, torch.where(is_pad, MASKED, given))
    rows = {"z, the tokens\nof the clip": (z, torch.full_like(z, DECIDED)),
            "z-tilde, the tokens\nof the condition\n\ngreen: equal to z\norange: not": (
                tilde.masked_fill(is_pad, -1), torch.where(is_pad, PADDED, given)),
            "z-bar, Eq. (2),\n80 % masked\n\nblack: [MASK]\nblue: z, shown": (bar, kinds)}
    with canvas(out / "conditions.png", 3, shape[0], (2.1 * shape[0] + 1.4, 6.6)) as axes:
        for row, (name, (ids, colours)) in zip(axes, rows.items()):
            for axis, frame, colour in zip(row, ids.view(shape), colours.view(shape)):
                draw_ids(axis, frame, colour, size=11)
            row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=11)
        for number, axis in enumerate(axes[0]):
            axis.set_title(f"latent frame {number}", fontsize=11)


# ---------------------------------------------------------------------------------------------
# Why COMMIT: what leaking does

def leak(run: Path = TOY, out: Path = ASSETS, samples: int = 4) -> None:
    """What a token sees, what unmasked tokens give away, and what that does to frame prediction."""
    trained = load_run(run)
    video, label = all_clips(trained.held_out())
    influence, shares = leaking_shares(trained.tokenizer, video[:1], video[1:2])
    print(f"  one token: {1 - influence[0]:.0%} of the influence on it is from other pixels\n"
          "  OPC, tokens of the given region that change with pixels that are not given: "
          f"unmasked {shares[0]:.0%}, COMMIT {shares[1]:.0%}")
    real_tokens, made, right = trained.tokenizer.encode(video).flatten(1), {}, []

    def leaked(model, task, label, condition_tokens, is_pad, **decoding):
        return commit_decode(model, task, label, real_tokens, is_pad, **decoding)

    for name, decode in (("real tokens", leaked), ("COMMIT", commit_decode)):
        made[name] = torch.cat([generate(
            trained.tokenizer, trained.transformer, video, "FP", decode=decode,
            noise=seeded_noise(seed), **trained.config.decoding) for seed in range(samples)])
        direction = MovingShapes.recognize(made[name])[1]
        right.append((direction == label.repeat(samples) % 4).float().mean().item())
        print(f"  FP from {name}: the real clip's direction in {right[-1]:.0%} of "
              f"{len(direction)} samples on {len(video)} held-out clips")
    judged = Judge()("FP", made["COMMIT"], video.repeat(samples, 1, 1, 1, 1), label.repeat(samples))
    print("  COMMIT's, judged:", *(f"{name} {share:.0%}" for name, share in judged.items()))

    shown = [int((label % 4 == way).nonzero()[0]) for way in range(4)]       # the first of each
    first = video[:, :, :1].expand_as(video)
    columns = {"leaked": made["real tokens"], "COMMIT": made["COMMIT"], "real clip": video}
    rows = []
    for i in shown:
        words = [f"{name} {arrows(each[i:i + 1])}" for name, each in columns.items()]
        rows.append(("\n".join([trained.class_names[label[i]].split()[0], *words]),
                     [first[i], *(each[i] for each in columns.values())]))
    write_grid(out / "leak.gif", rows, ["given: 1 frame", *columns])
    with canvas(out / "leak.png", 1, 3, (13, 3.6), ticks=True) as ((curve, *bars),):
        distance, total = range(len(influence)), torch.tensor(influence).cumsum(0).tolist()
        curve.plot(distance, total, label="up to this distance")
        curve.bar(distance, influence, color="C1", label="at this distance")
        curve.set(ylim=(0, 1), title=f"{1 - influence[0]:.0%} of the influence on a token\n"
                                     "is from outside its supervoxel",
                  xlabel="pixels or frames away from the token's own",
                  ylabel="share of the influence")
        curve.legend(loc="center right")
        for axis, title, values in zip(bars, (
                "given tokens that change with\npixels that are not given (OPC)",
                "real clip's direction, told\nfrom its first frame (FP)"), (shares, right)):
            axis.bar(["real tokens, unmasked", "COMMIT"], values, color=["C3", "C2"], width=0.6)
            axis.set(title=title, ylim=(0, 1.1), yticks=[])
            for place, value in enumerate(values):
                axis.text(place, value + 0.02, f"{value:.0%}", ha="center", fontsize=12)


# ---------------------------------------------------------------------------------------------
# Fig. 3: what happens between the steps

def steps(run: Path = TOY, out: Path = ASSETS, task: str = "OPD", clip: int = 10) -> None:
    """Input tokens and output video of some steps; below, the same condition by latent masking."""
    trained = load_run(run)
    tokenizer, model, (video, label) = trained.tokenizer, trained.transformer, all_clips(
        trained.held_out())
    grid, count = tokenizer.latent_shape(*video.shape[2:]), trained.config.decode_steps
    condition, is_pad = tokenize_condition(tokenizer, video, task)
    prompt = torch.full((len(video),), task_index(task, model.config.tasks))
    sequences = {name: list(decode(
        model, prompt, torch.full_like(prompt, model.no_class), condition, is_pad,
        noise=seeded_noise(0), **trained.config.decoding))
        for name, decode in (("COMMIT", commit_decode), ("tokens kept", latent_masking))}
    shown, frames = sorted({round(i * (count - 1) / 4) for i in range(5)}), [2, 6, 10, 14]
    with canvas(out / "steps.png", 5, len(shown), (3.1 * len(shown), 5.2), dpi=75) as axes:
        for row, (name, sequence) in enumerate(sequences.items()):
            unknown = torch.ones_like(is_pad)
            decided = torch.where(is_pad | (name == "COMMIT"), DECIDED, GIVEN)
            for state in sequence:
                if state.step in shown:
                    kinds = torch.where(unknown, torch.where(is_pad, MASKED, GIVEN), decided)
                    large = kinds.view(grid).repeat_interleave(8, 1).repeat_interleave(8, 2)
                    decoded = tokenizer.decode(state.tokens[clip].view(1, *grid))[0].clamp(0, 1)
                    above, below = axes[2 * row:2 * row + 2, shown.index(state.step)]
                    above.imshow(strip(cells(large)), interpolation="nearest")
                    below.imshow(strip(decoded[:, frames]))
                    axes[0, shown.index(state.step)].set_title(f"step {state.step + 1} of {count}")
                unknown = state.unknown[clip]
            axes[2 * row, 0].set_ylabel(f"{name}\ninput", fontsize=9)
            axes[2 * row + 1, 0].set_ylabel("output", fontsize=9)
            made = tokenizer.decode(sequence[-1].tokens.view(-1, *grid)).clamp(0, 1)
            right = (MovingShapes.recognize(made)[0] == label // 4).float().mean()
            print(f"  {task}, {name}: {-10 * (made - video).square().mean().log10():.1f} dB, "
                  f"the right shape in {right:.0%} of {len(video)} clips")
        given, valid = make_condition(video, task)
        for axis, title, pixels in zip(axes[4], (
                "given pixels", "condition V~", "V~ as its tokens say it", "the real clip"), (
                torch.where(valid, video, 0.6), given, tokenizer.decode(condition.view(-1, *grid)),
                video)):
            axis.imshow(strip(pixels[clip][:, frames]))
            axis.set_xlabel(title)
        axes[4, 4].axis("off")


# ---------------------------------------------------------------------------------------------
# Any length, any width (App. Figs. 4-5 and 11-12)

def windows(run: Path = TOY, out: Path = ASSETS) -> None:
    """What changes when a clip passes together with more frames; the error at windows' seams."""
    tokenizer, (video, _) = load_run(run).tokenizer, all_clips(MovingShapes("test"))
    loop = video[CLIP:CLIP + 1].repeat(1, 1, 4, 1, 1)             # its motion has a period of 16
    for name, film in (("the same motion continues", loop), ("cuts to other clips", rearrange(
            video[CLIP:CLIP + 4], "b c t h w -> 1 c (b t) h w"))):
        for length, changed, quality in context_shares(tokenizer, film):
            print(f"  {name}: within {length} frames {changed:4.0%} of the tokens change, "
                  f"{quality:.1f} dB")
    curves = {}
    for overlap in (0, 4, 8):
        errors = 255 * seam_errors(tokenizer, loop, overlap)
        starts = torch.arange(16 - overlap, 64, 16 - overlap) - 1
        print(f"  overlap {overlap}: steps from frame to frame are wrong by {errors.mean():.2f} of "
              f"255, into a new window by {errors[starts].mean():.2f}, at most {errors.max():.2f}")
        curves[f"overlap {overlap}"] = range(1, 64), errors.tolist()
    draw_curves(out / "windows.png", [("", "frame", "error of the step to it, of 255", curves)])


def panorama(run: Path = Path("runs/every-start"), out: Path = ASSETS) -> None:
    """16 columns become 96 by vertical outpainting, five times on each side."""
    video, label = all_clips(MovingShapes("test"))
    wide = outpaint(generate_with(load_run(run)), video[..., 8:24], 32, right=5, left=5)
    period = psnr(frames_of(wide[..., 32:]), frames_of(wide[..., :-32])).mean(1)
    for name, which in (("sideways", label % 4 < 2), ("up or down", label % 4 > 1)):
        print(f"  shapes that move {name}: {period[which].mean():.1f} dB between the panorama and "
              f"itself 32 pixels on ({which.sum()} clips)")
    write_grid(out / "panorama.gif", [
        (name, [F.pad(video[row, ..., 8:24], (40, 40), value=0.5), wide[row]])
        for name, row in (("moves sideways", 8), ("moves up", 61))], ["given", "painted"])


def longer(run: Path = TOY, out: Path = ASSETS) -> None:
    """16 frames become 64 by frame prediction, with 1, 4 or 8 frames of each clip given."""
    trained, rows = load_run(run), []
    video, label = all_clips(trained.held_out())
    for count in (1, 4, 8):
        made = extend(generate_with(trained), video, 64, condition_frames=count)
        shapes, directions = zip(*(MovingShapes.recognize(part) for part in made.split(16, dim=2)))
        same = [(way == label % 4).float().mean().item() for way in directions]
        right = [(shape == label // 4).float().mean().item() for shape in shapes]
        print(f"  {count} given: right shape in each 16 frames", *(f"{x:4.0%}" for x in right),
              "  right direction", *(f"{x:4.0%}" for x in same))
        rows.append((f"{count} given\neach time", [made[CLIP]]))
    write_grid(out / "longer.gif", rows, ["64 frames"])


# ---------------------------------------------------------------------------------------------
# Samples, losses

def samples(run: Path = TOY, out: Path = ASSETS) -> None:
    """The README's hero: ten tasks on a held-out clip, four samples each, and where they move."""
    trained, rows, count = load_run(run), [], 4
    video, label = (each[CLIP:CLIP + 1] for each in all_clips(trained.held_out()))
    several, grey = video.expand(count, -1, -1, -1, -1), 0.5 + 0.5 * video.mean()
    for task, made, condition, valid in do_tasks(trained, several, label.expand(count),
                                                 seeded_noise(0)):
        given = torch.where(valid, condition, grey).clamp(0, 1)
        rows.append((f"{task}\n{TASKS[task].title}\nsamples {arrows(made)}\nreal clip "
                     f"{arrows(video)}", [given[0], *made, video[0]]))
    write_grid(out / "samples.gif", rows, ["given", *["sample"] * count, "real clip"])
    print(f"  held-out clip {CLIP}: {trained.class_names[label[0]]}")


def arrows(video: Tensor) -> str:
    """Where the shapes of some videos move, as the toy's plain rule reads it from the pixels."""
    signs = dict(zip(MovingShapes.directions, "\u2192\u2190\u2193\u2191"))
    directions = MovingShapes.recognize(video)[1].tolist()
    return " ".join(signs[MovingShapes.directions[way]] if way >= 0 else "?" for way in directions)


def real(run: Path = Path("runs/clips"), out: Path = ASSETS) -> None:
    """The ten tasks on a clip of a run on real videos."""
    trained = load_run(run)
    source = trained.held_out()
    clip, label = source.clip(len(source) // 4, None)
    draw_tasks(trained, to_float(clip[None]), torch.tensor([label]), out / "real.gif", samples=1)


def loss(run: Path = TOY, out: Path = ASSETS) -> None:
    """The curves of the shipped run's log, beside the log."""
    draw_losses(run / "log.jsonl", run / "loss.png")


# ---------------------------------------------------------------------------------------------
# Where each loss's gradient goes

def gradients(run: Path = TOY, out: Path = ASSETS) -> None:
    """A table of losses and networks. Green: followed. Hatched: there, but steps.py cuts it."""
    torch.manual_seed(0)
    tokenizer = TOKENIZERS["toy"].build()
    video = F.interpolate(torch.rand(2, 3, 4, 4, 4), (16, 32, 32), mode="trilinear")
    norms = gradient_norms(tokenizer, DISCRIMINATORS["toy"].build(), video)
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
                    axis.text(x + 0.5, y + 0.5, f"{norm:.1e}", ha="center", va="center", fontsize=8)
        axis.set(xlim=(0, len(parts)), ylim=(len(norms), 0))
        axis.set_xticks([x + 0.5 for x in range(len(parts))], parts)
        axis.set_yticks([y + 0.5 for y in range(len(norms))], norms)
        axis.xaxis.tick_top()
        axis.tick_params(length=0)


# ---------------------------------------------------------------------------------------------
# What is measured for them: who sees what, and who moves whom

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


def context_shares(tokenizer: nn.Module, video: Tensor, lengths: tuple[int, ...] = (16, 32, 64),
                   window: int = 16) -> list[tuple[int, float, float]]:
    """For each length: the share of the first window's tokens that change when it is encoded as
    part of so many frames, and its PSNR then. video (1, 3, T, H, W) in [0, 1].

    Group norm spans (T, H, W): each token depends on all frames that pass together, and statistics
    over more frames than in training are none that the network knows.
    """
    rows, real = [], video[:, :, :window]
    alone = tokenizer.encode(real)
    for length in lengths:
        tokens = tokenizer.encode(video[:, :, :length])
        decoded = tokenizer.decode(tokens)[:, :, :window].clamp(0, 1)
        changed = (tokens[:, :alone.shape[1]] != alone).float().mean().item()
        rows.append((length, changed, psnr(frames_of(decoded), frames_of(real)).mean().item()))
    return rows


def seam_errors(tokenizer: nn.Module, video: Tensor, overlap: int, window: int = 16) -> Tensor:
    """How wrong each step from frame to frame is after decoding, (T - 1,): the mean absolute
    difference of decoded and real steps. video (1, 3, T, H, W) in [0, 1]."""
    tokens = encode_long(tokenizer, to_frames(video[0]), window, overlap)
    decoded = decode_long(tokenizer, tokens, overlap, video.shape[3:], video.shape[2])
    decoded = to_float(np.stack(list(decoded))[None])
    return (decoded.diff(dim=2) - video.diff(dim=2)).abs().mean(dim=(0, 1, 3, 4))


FIGURES = {figure.__name__: figure for figure in (
    tasks, schedules, tokens, conditions, leak, steps, windows, panorama, longer, samples,
    gradients, loss, real)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m docs.figures", description="Draw figures.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=" ".join(FIGURES))
    *names, last = parser.parse_args().names or [""]
    run = Path(last) if last and last not in FIGURES and Path(last).is_dir() else None
    names += [last] * (run is None and bool(last))
    if unknown := [name for name in names if name not in FIGURES]:
        sys.exit(f"figures.py: {unknown[0]} is no run and no figure; choose from "
                 + " ".join(FIGURES))
    for name in names or [name for name in FIGURES if name not in ("real", "panorama")]:
        print(name, flush=True)
        try:
            FIGURES[name](*([run] if run else []))
        except FileNotFoundError as error:
            sys.exit(f"figures.py: {name}: {error}")


if __name__ == "__main__":
    main()
