"""commit.py: Sec. 2 and 3.2, Eq. (2)-(4), App. B.1."""
import inspect
import math
from types import SimpleNamespace

import numpy as np
import oracle
import pytest
import torch
from einops import rearrange

from commit import (MT8, MT10, TASKS, Task, commit_loss, commit_mask, cutoff_score, edge_padding,
                    is_padding, make_condition, mask_ratio, num_masked, task_index,
                    tokenize_condition, vertical_strip)
from tokenizer import TOKENIZERS

N, K, MASK = 24, 10, 99


@pytest.fixture
def example(generator):
    """tokens, condition tokens (3, N), is_pad (N,), scores (3, N), cutoff (3,), itself a score."""
    tokens, condition = (torch.randint(K, (3, N), generator=generator) for _ in range(2))
    is_pad = torch.rand(N, generator=generator) < 0.5
    scores = torch.rand(3, N, generator=generator)
    return tokens, condition, is_pad, scores, cutoff_score(scores, torch.tensor([5, 12, 22]))


# ---------------------------------------------------------------------------------------------
# The multivariate mask and its loss (Sec. 3.2)

def test_eq_2_equals_the_plain_python_oracle(example):
    tokens, condition, is_pad, scores, cutoff = example
    ours = commit_mask(*example, MASK)
    for b in range(3):
        assert ours[b].tolist() == oracle.commit_mask(
            tokens[b].tolist(), condition[b].tolist(), is_pad.tolist(), scores[b].tolist(),
            cutoff[b].item(), MASK)
    each = commit_mask(tokens, condition, is_pad.expand(3, N), scores, cutoff, MASK)
    assert torch.equal(each, ours)                           # one ispad for all, or one for each


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.5, 0.0)])
def test_eq_4_is_eq_3_in_three_parts_each_of_its_own_tokens(example, generator, weights):
    """z-tilde, [MASK] or z: every token is in one part. Zeroed weights: the rows of Table 5."""
    _, _, is_pad, scores, cutoff = example
    losses = torch.rand(3, N, generator=generator)
    cases = commit_mask(torch.full((3, N), 2), torch.full((3, N), 0), is_pad, scores, cutoff, 1)
    loss = commit_loss(losses, is_pad, scores, cutoff, weights)
    for case, part in enumerate((loss.refine, loss.mask, loss.reconstruct)):
        torch.testing.assert_close(part, weights[case] * losses[cases == case].sum() / (3 * N))
    torch.testing.assert_close(loss.total, loss.refine + loss.mask + loss.reconstruct)
    if weights == (1.0, 1.0, 1.0):
        torch.testing.assert_close(loss.total, losses.mean())


# ---------------------------------------------------------------------------------------------
# Mask ratio and cut-off (Sec. 2)

@pytest.mark.parametrize("schedule, half", [
    ("cosine", math.cos(math.pi / 4)), ("uniform", 0.5), ("exp", 1 - 1024 ** -0.5)])
def test_gamma_falls_from_one_to_nothing(schedule, half):
    r = torch.linspace(0, 1, 101, dtype=torch.float64)
    ratio = mask_ratio(r, schedule, 1024)
    assert (ratio.diff() <= 1e-12).all() and ratio[50] == pytest.approx(half)
    assert 0.99 < ratio[0] <= 1 and ratio[-1] == 1e-6


@pytest.mark.parametrize("schedule", ["cosin", "pow2", "log", ""])
def test_an_unknown_schedule_is_refused(schedule):
    with pytest.raises(ValueError, match="is unknown; choose cosine, uniform or exp"):
        mask_ratio(torch.tensor([0.5]), schedule)


@pytest.mark.parametrize("ratio, expected", [(0.0, 1), (1e-9, 1), (0.5, 12), (0.50000006, 12),
                                             (0.51, 13), (1.0, 24)])
def test_half_of_24_is_12_whatever_rounding_says(ratio, expected):
    count = num_masked(torch.tensor([ratio]), 24)
    assert count.item() == expected and count.dtype == torch.int64


@pytest.mark.parametrize("tokens", [24, 1024, 18_000])
def test_sec_2_the_cutoff_is_the_ceil_gamma_n_th_smallest_score(tokens, generator):
    """With counts that are no power of two, a count that went through float32 was off by one."""
    progress = torch.arange(1, 201, dtype=torch.float64) / 200
    count = num_masked(mask_ratio(progress), tokens)
    assert count.tolist() == [oracle.ceil_count(oracle.gamma(r), tokens) for r in progress.tolist()]
    scores = torch.randperm(tokens, generator=generator).float().expand(200, -1)
    cutoff = cutoff_score(scores, count)
    assert cutoff.tolist() == [oracle.smallest(range(tokens), n) for n in count.tolist()]
    assert torch.equal((scores <= cutoff[:, None]).sum(1), count)


def test_each_sequence_has_its_own_cutoff(generator):
    scores, count = torch.rand(4, N, generator=generator), torch.tensor([1, 8, 19, N])
    assert cutoff_score(scores, count).tolist() == [
        oracle.smallest(row, n) for row, n in zip(scores.tolist(), count.tolist())]


# ---------------------------------------------------------------------------------------------
# The ten tasks (App. B.1)

def region(task, T, H, W, frames=1):
    """App. B.1 again, pixel by pixel: is (t, y, x) given?"""
    moving = [round(x) for x in np.linspace(0, W // 2, T)]      # Python rounds halves to even, too

    def inside(t, y, x):
        rows, columns = H // 4 <= y < H * 3 // 4, W // 4 <= x < W * 3 // 4
        strip = moving[t] <= x < moving[t] + W // 2
        return {"FP": t < frames, "CFP": t < frames, "FI": t < frames or t >= T - frames,
                "OPC": rows and columns, "OPV": columns, "OPH": rows, "OPD": strip,
                "IPC": not (rows and columns), "IPD": not (rows and strip), "CG": False}[task]

    return np.array([[[inside(t, y, x) for x in range(W)] for y in range(H)] for t in range(T)])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("shape, frames", [((16, 32, 32), 1), ((16, 24, 40), 5)])
def test_each_region_is_that_of_app_b1_and_ispad_where_a_supervoxel_has_none_of_it(task, shape,
                                                                                   frames):
    _, valid = make_condition(torch.zeros(1, 3, *shape), task, frames)
    wanted = region(task, *shape, frames)
    assert np.array_equal(valid.numpy(), wanted)
    blocks = rearrange(wanted, "(t a) (h b) (w c) -> t h w (a b c)", a=4, b=4, c=4)
    grid = blocks.shape[:3]
    assert np.array_equal(is_padding(valid, grid).numpy(), ~blocks.any(-1))


@pytest.mark.parametrize("task", TASKS)
def test_a_region_takes_the_given_frames_where_its_task_counts_them_and_only_there(task):
    counted = ["condition_frames"] if TASKS[task].counts_frames else []
    assert [*inspect.signature(TASKS[task].region).parameters] == ["T", "H", "W", *counted]
    assert (task in ("FP", "FI", "CFP")) == TASKS[task].counts_frames


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("frames", [1, 7])
def test_sec_3_2_the_condition_keeps_what_is_given_and_nothing_else_leaks_into_it(task, frames,
                                                                                  generator):
    """A task of your own in TASKS is tried here, too: were its padding to leak, it would train
    happily."""
    video, other = torch.rand(2, 2, 3, 16, 32, 32, generator=generator)
    condition, valid = make_condition(video, task, frames)
    assert torch.equal(condition * valid, video * valid)
    assert torch.equal(make_condition(torch.where(valid, video, other), task, frames)[0], condition)


@pytest.mark.parametrize("frames", [1, 5])
def test_app_b1_frame_prediction_repeats_the_last_given_frame(frames, generator):
    video = torch.rand(1, 3, 16, 8, 8, generator=generator)
    rest = make_condition(video, "FP", frames)[0][:, :, frames:]
    assert torch.equal(rest, video[:, :, frames - 1:frames].expand_as(rest))


@pytest.mark.parametrize("frames", [1, 3])
def test_app_b1_frame_interpolation_draws_a_straight_line(frames, generator):
    video = torch.rand(1, 3, 16, 8, 8, generator=generator)
    line = make_condition(video, "FI", frames)[0][:, :, frames - 1:17 - frames]
    slope = (video[:, :, 16 - frames] - video[:, :, frames - 1]) / (17 - 2 * frames)
    torch.testing.assert_close(line.diff(dim=2), slope[:, :, None].expand_as(line[:, :, 1:]))


@pytest.mark.parametrize("task", ["OPC", "OPV", "OPH"])
def test_app_b1_outpainting_pads_with_the_nearest_given_pixel(task, generator):
    video = torch.rand(1, 3, 2, 8, 8, generator=generator)
    condition, valid = make_condition(video, task)
    given = valid[0].nonzero()
    for y in range(8):
        for x in range(8):
            near = given[((given - torch.tensor([y, x])) ** 2).sum(1).argmin()]
            assert torch.equal(condition[..., y, x], video[..., near[0], near[1]])


@pytest.mark.parametrize("task", ["OPD", "IPC", "IPD", "CG"])
def test_app_b1_the_other_tasks_pad_with_black(task, generator):
    condition, valid = make_condition(torch.rand(1, 3, 16, 16, 16, generator=generator), task)
    assert (condition[..., ~valid] == 0).all()


def test_one_given_pixel_is_enough_for_a_supervoxel():
    valid = torch.zeros(4, 8, 8, dtype=torch.bool)
    valid[3, 7, 7] = True
    is_pad = is_padding(valid, (2, 2, 2))
    assert not is_pad[1, 1, 1] and is_pad.sum() == 7


@pytest.mark.parametrize("task, frames, first", [
    ("FP", 1, "1111 0000"), ("FP", 5, "1111 1111"), ("FP", 4, "1111 1111"),
    ("OPD", 1, "1100 1110")])
def test_a_first_latent_that_lacks_frames_counts_its_first_frame_for_them(task, frames, first):
    """A causal tokenizer's: 17 frames are 5 latents, the first of which stands for one frame."""
    causal = SimpleNamespace(lead=3, latent_shape=lambda T, H, W: ((T + 3) // 4, H, W // 2),
                             encode=lambda video: torch.zeros(1, 5, 1, 4, dtype=torch.long))
    _, is_pad = tokenize_condition(causal, torch.zeros(1, 3, 17, 1, 8), task, frames)
    assert is_pad.shape == (20,)
    assert "".join("01"[not pad] for pad in is_pad[:8]) == first.replace(" ", "")


@pytest.mark.parametrize("task", ["OPC", "IPD", "FP"])
def test_sec_3_2_hidden_pixels_leak_into_the_given_regions_tokens_but_not_into_eq_2(task,
                                                                                    generator):
    """No leak through the tokenizer's receptive field: what the paper argues for."""
    torch.manual_seed(1)
    tokenizer = TOKENIZERS["toy"].build()
    video, other = torch.rand(2, 1, 3, 16, 32, 32, generator=generator)
    pair = video, torch.where(make_condition(video, task)[1], video, other)
    conditions = [tokenize_condition(tokenizer, each, task) for each in pair]
    tokens, is_pad = tokenizer.encode(video).flatten(1), conditions[0][1]
    assert torch.equal(*(commit_mask(tokens, condition, is_pad, torch.zeros(1, 64), torch.ones(1),
                                     999) for condition, _ in conditions))
    direct = [tokenizer.encode(each).flatten(1)[:, ~is_pad] for each in pair]   # latent masking
    assert not torch.equal(*direct)


def test_where_nothing_is_given_one_clip_of_padding_is_tokenized_for_all(generator, monkeypatch):
    torch.manual_seed(0)
    tokenizer, seen = TOKENIZERS["toy"].build(), []
    video = torch.rand(3, 3, 16, 32, 32, generator=generator)
    each = torch.cat([tokenize_condition(tokenizer, clip[None], "CG")[0] for clip in video])
    encode = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda clips: seen.append(len(clips)) or encode(clips))
    assert torch.equal(tokenize_condition(tokenizer, video, "CG")[0], each)
    assert tokenize_condition(tokenizer, video, "FP")[0].shape == each.shape and seen == [1, 3]


@pytest.mark.parametrize("frames, task", [(0, "FP"), (16, "FP"), (8, "FI"), (-1, "CFP")])
def test_a_condition_that_gives_nothing_or_all_is_refused(frames, task):
    with pytest.raises(ValueError, match="condition frames"):
        make_condition(torch.zeros(1, 3, 16, 8, 8), task, frames)


# ---------------------------------------------------------------------------------------------
# Prompts, and tasks of one's own

def test_there_are_ten_tasks_and_two_use_the_class():
    assert " ".join(TASKS) == "FP FI OPC OPV OPH OPD IPC IPD CG CFP"
    assert tuple(TASKS) == MT10 and MT8 == MT10[:8]
    assert [name for name, task in TASKS.items() if task.class_conditional] == ["CG", "CFP"]
    assert [name for name, task in TASKS.items() if task.needs_classes] == ["CFP"]


def test_a_new_task_moves_no_prompt_and_joins_none_of_the_papers_sets(monkeypatch):
    monkeypatch.setitem(TASKS, "NEW", Task("a strip in time", vertical_strip, edge_padding))
    assert "NEW" not in MT10
    assert [task_index(task) for task in MT10] == list(range(10))
    assert task_index("NEW", ("FP", "NEW", "CG")) == 1 and task_index("NEW", ()) == 0


@pytest.mark.parametrize("task, prompts, complaint", [
    ("XY", MT10, "'XY' is unknown; choose from FP FI OPC"),
    ("XY", (), "'XY' is unknown"),
    ("CG", ("FP", "FI"), "no prompt for CG; it was trained with prompts for FP FI")])
def test_a_task_without_a_prompt_is_refused(task, prompts, complaint):
    with pytest.raises(ValueError, match=complaint):
        task_index(task, prompts)
