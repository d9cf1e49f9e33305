"""commit.py: Sec. 2 and 3.2, Eq. (2)-(4), App. B.1."""
import dataclasses
import inspect
import math

import numpy as np
import oracle
import pytest
import torch
from einops import rearrange

from commit import (MT8, MT10, TASKS, Task, commit_loss, commit_mask, cutoff_score, edge_padding,
                    interpolation, is_padding, make_condition, mask_ratio, moving_strip, nothing,
                    num_masked, task_index, token_cross_entropy, tokenize_condition,
                    vertical_strip)
from tokenizer import TOKENIZERS, VideoTokenizer
from training.build import transformer_config
from training.presets import TrainConfig, refuse_leak
from transformer import MaskedTransformer

N, K, MASK = 24, 10, 99
SMALL = dict(num_layers=1, hidden_size=8, num_heads=1, mlp_size=8)
INTERIOR = [name for name in TASKS if name != "CG"]


@pytest.fixture
def example(generator):
    """tokens, condition tokens (3, N), is_pad (N,), scores (3, N), cutoff (3,)."""
    tokens, condition = (torch.randint(K, (3, N), generator=generator) for _ in range(2))
    is_pad = torch.rand(N, generator=generator) < 0.5
    scores = torch.rand(3, N, generator=generator)
    return tokens, condition, is_pad, scores, torch.tensor([0.2, 0.5, 0.9])


def test_eq_2_equals_the_plain_python_oracle(example):
    tokens, condition, is_pad, scores, cutoff = example
    ours = commit_mask(*example, MASK)
    for b in range(3):
        assert ours[b].tolist() == oracle.commit_mask(
            tokens[b].tolist(), condition[b].tolist(), is_pad.tolist(), scores[b].tolist(),
            cutoff[b].item(), MASK)


def test_the_three_cases_of_eq_2_are_exhaustive_and_disjoint(example):
    """Each token is z-tilde, [MASK] or z, by exactly one rule."""
    _, _, is_pad, scores, cutoff = example
    kinds = commit_mask(torch.full((3, N), 2), torch.full((3, N), 0), is_pad, scores, cutoff, 1)
    low = scores <= cutoff[:, None]
    assert torch.equal(kinds == 0, low & ~is_pad)
    assert torch.equal(kinds == 1, low & is_pad)
    assert torch.equal(kinds == 2, ~low)


def test_eq_2_takes_one_ispad_for_all_or_one_each(example):
    tokens, condition, is_pad, scores, cutoff = example
    each = is_pad.expand(3, N)
    assert torch.equal(commit_mask(*example, MASK),
                       commit_mask(tokens, condition, each, scores, cutoff, MASK))


def test_the_loss_is_the_sum_of_its_parts_eq_4(example, generator):
    tokens, _, is_pad, scores, cutoff = example
    logits = torch.randn(3, N, K, generator=generator)
    loss = commit_loss(logits, tokens, is_pad, scores, cutoff, label_smoothing=0.0)
    torch.testing.assert_close(loss.total, loss.refine + loss.mask + loss.reconstruct)
    log_p = logits.log_softmax(-1)
    expected = -sum(log_p[b, i, tokens[b, i]] for b in range(3) for i in range(N)) / (3 * N)
    torch.testing.assert_close(loss.total, expected)


def test_each_part_of_eq_4_counts_its_own_tokens(example, generator):
    tokens, condition, is_pad, scores, cutoff = example
    logits = torch.randn(3, N, K, generator=generator)
    kinds = commit_mask(torch.full((3, N), 2), torch.full((3, N), 0), is_pad, scores, cutoff, 1)
    each = token_cross_entropy(logits, tokens)
    loss = commit_loss(logits, tokens, is_pad, scores, cutoff, label_smoothing=0.0)
    for kind, part in enumerate((loss.refine, loss.mask, loss.reconstruct)):
        torch.testing.assert_close(part, each[kinds == kind].sum() / (3 * N))


def test_zeroed_weights_give_the_rows_of_table_5(example, generator):
    tokens, _, is_pad, scores, cutoff = example
    logits = torch.randn(3, N, K, generator=generator)
    full = commit_loss(logits, tokens, is_pad, scores, cutoff)
    only_mask = commit_loss(logits, tokens, is_pad, scores, cutoff, weights=(0.0, 1.0, 0.0))
    torch.testing.assert_close(only_mask.total, full.mask)


def test_label_smoothing_mixes_with_the_uniform_distribution(generator):
    logits, tokens = torch.randn(2, 5, K, generator=generator), torch.zeros(2, 5, dtype=torch.long)
    log_p = logits.log_softmax(-1)
    expected = -(0.9 * log_p[..., 0] + 0.1 * log_p.mean(-1))
    torch.testing.assert_close(token_cross_entropy(logits, tokens, 0.1), expected)


# ---------------------------------------------------------------------------------------------
# Mask ratio and cut-off (Sec. 2)

@pytest.mark.parametrize("schedule", ["cosine", "uniform", "exp", "log", "pow2", "pow0.5",
                                      "poly:-1,0,1"])
def test_gamma_falls_from_one_to_nothing(schedule):
    r = torch.linspace(1e-6, 1, 101, dtype=torch.float64)
    ratio = mask_ratio(r, schedule, 1024)
    assert (ratio.diff() <= 1e-12).all() and ratio.max() <= 1 and ratio.min() >= 1e-6
    assert ratio[0] > 0.99 and ratio[-1] < 1e-3


def test_poly_is_the_polynomial_of_falling_powers():
    assert mask_ratio(torch.tensor([0.25]), "poly:-0.5,-0.5,1").item() == pytest.approx(
        -0.5 * 0.25 ** 2 - 0.5 * 0.25 + 1)


def test_masked_counts_are_ceil_gamma_n():
    for t in range(1, 13):
        ratio = mask_ratio(torch.tensor([t / 12], dtype=torch.float64))
        assert num_masked(ratio, 1024).item() == oracle.ceil_count(oracle.gamma(t / 12), 1024)


@pytest.mark.parametrize("ratio, expected", [(0.0, 1), (1e-9, 1), (0.5, 12), (0.5 + 1e-8, 12),
                                             (0.51, 13), (1.0, 24)])
def test_half_of_24_is_12_whatever_rounding_says(ratio, expected):
    assert num_masked(torch.tensor([ratio]), 24).item() == expected


def test_the_cutoff_is_the_nth_smallest_score(generator):
    scores = torch.rand(4, N, generator=generator)
    ratio = torch.tensor([0.0, 0.3, 0.77, 1.0])
    cutoff = cutoff_score(scores, ratio)
    for b in range(4):
        n = oracle.ceil_count(ratio[b].item(), N)
        assert cutoff[b] == oracle.smallest(scores[b].tolist(), n)
        assert (scores[b] <= cutoff[b]).sum() == n


@pytest.mark.parametrize("schedule", ["cosin", "pow", "powx", "poly:", "poly:1,b"])
def test_an_unknown_schedule_is_refused(schedule):
    with pytest.raises(ValueError, match="mask schedule"):
        mask_ratio(torch.tensor([0.5]), schedule)


# ---------------------------------------------------------------------------------------------
# Tasks (App. B.1)

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
@pytest.mark.parametrize("shape", [(16, 32, 32), (16, 24, 40)])
def test_each_region_is_that_of_app_b1(task, shape):
    _, valid = make_condition(torch.zeros(1, 3, *shape), task)
    assert np.array_equal(valid.numpy(), region(task, *shape))


@pytest.mark.parametrize("task", TASKS)
def test_a_region_takes_the_given_frames_where_its_task_counts_them_and_only_there(task):
    row = TASKS[task]
    counted = ["condition_frames"] if row.counts_frames else []
    assert [*inspect.signature(row.region).parameters] == ["T", "H", "W", *counted]
    valid = row.region(16, 8, 12, *(2 for _ in counted))
    assert valid.shape == (16, 8, 12) and valid.dtype == torch.bool
    one, two = (make_condition(torch.zeros(1, 3, 16, 8, 12), task, n)[1] for n in (1, 2))
    assert torch.equal(two, valid) and torch.equal(one, two) != row.counts_frames


@pytest.mark.parametrize("task", INTERIOR)
def test_the_given_pixels_are_kept_as_they_are(task, generator):
    video = torch.rand(2, 3, 16, 32, 32, generator=generator)
    condition, valid = make_condition(video, task)
    assert torch.equal(condition * valid, video * valid)


@pytest.mark.parametrize("task", TASKS)
def test_what_is_not_given_has_no_influence_on_the_condition(task, generator):
    video, other = torch.rand(2, 1, 3, 16, 32, 32, generator=generator)
    _, valid = make_condition(video, task)
    changed = torch.where(valid, video, other)
    assert torch.equal(make_condition(video, task)[0], make_condition(changed, task)[0])


def test_frame_prediction_repeats_the_last_given_frame(generator):
    video = torch.rand(1, 3, 16, 8, 8, generator=generator)
    for frames in (1, 5):
        condition, _ = make_condition(video, "FP", frames)
        assert torch.equal(condition[:, :, frames:],
                           video[:, :, frames - 1:frames].expand(-1, -1, 16 - frames, -1, -1))


def test_frame_interpolation_draws_a_straight_line(generator):
    video = torch.rand(1, 3, 16, 8, 8, generator=generator)
    condition, _ = make_condition(video, "FI")
    torch.testing.assert_close(condition.diff(dim=2),
                               ((video[:, :, -1] - video[:, :, 0]) / 15)[:, :, None].expand(
                                   -1, -1, 15, -1, -1))


@pytest.mark.parametrize("task", ["OPC", "OPV", "OPH"])
def test_outpainting_pads_with_the_nearest_given_pixel(task, generator):
    video = torch.rand(1, 3, 2, 8, 8, generator=generator)
    condition, valid = make_condition(video, task)
    given = valid[0].nonzero()
    for y in range(8):
        for x in range(8):
            near = given[((given - torch.tensor([y, x])) ** 2).sum(1).argmin()]
            assert torch.equal(condition[..., y, x], video[..., near[0], near[1]])


@pytest.mark.parametrize("task", ["OPD", "IPC", "IPD", "CG"])
def test_the_other_tasks_pad_with_black(task, generator):
    condition, valid = make_condition(torch.rand(1, 3, 16, 16, 16, generator=generator), task)
    assert (condition[..., ~valid] == 0).all()


def test_ispad_means_only_padding_in_the_supervoxel():
    valid = torch.zeros(4, 8, 8, dtype=torch.bool)
    valid[3, 7, 7] = True                                        # one pixel of the last supervoxel
    is_pad = is_padding(valid, (2, 2, 2))
    assert not is_pad[1, 1, 1] and is_pad.sum() == 7


@pytest.mark.parametrize("task", TASKS)
def test_ispad_of_each_task_counts_supervoxels_by_hand(task):
    valid = region(task, 16, 32, 32)
    blocks = rearrange(valid, "(t a) (h b) (w c) -> t h w (a b c)", t=4, h=8, w=8)
    _, ours = make_condition(torch.zeros(1, 3, 16, 32, 32), task)
    assert np.array_equal(is_padding(ours, (4, 8, 8)).numpy(), ~blocks.any(-1))


def test_pixels_outside_the_condition_change_nothing_at_masked_positions(generator):
    """The causality that the paper argues for: no leak through the tokenizer's receptive field."""
    torch.manual_seed(0)
    tokenizer = VideoTokenizer(dataclasses.replace(TOKENIZERS["toy"], residual_gain=1.0))
    video, other = torch.rand(2, 1, 3, 16, 32, 32, generator=generator)
    for task in ("OPC", "IPD", "FP"):
        _, valid = make_condition(video, task)
        condition, is_pad = tokenize_condition(tokenizer, video, task)
        changed, _ = tokenize_condition(tokenizer, torch.where(valid, video, other), task)
        everything = torch.zeros(1, 64), torch.ones(1)
        inputs = [commit_mask(tokenizer.encode(video).flatten(1), tokens, is_pad, *everything, 999)
                  for tokens in (condition, changed)]
        assert torch.equal(*inputs)
        # the same tokens, unmasked directly as MaskGIT would, do change
        direct = [tokenizer.encode(v).flatten(1)[:, ~is_pad]
                  for v in (video, torch.where(valid, video, other))]
        assert not torch.equal(*direct)


def test_where_nothing_is_given_one_clip_of_padding_is_tokenized_for_all(generator, monkeypatch):
    torch.manual_seed(0)
    tokenizer = VideoTokenizer(TOKENIZERS["toy"])
    video = torch.rand(3, 3, 16, 32, 32, generator=generator)
    each = torch.cat([tokenize_condition(tokenizer, clip[None], "CG")[0] for clip in video])
    seen, encode = [], tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda clips: seen.append(len(clips)) or encode(clips))
    assert torch.equal(tokenize_condition(tokenizer, video, "CG")[0], each)
    assert tokenize_condition(tokenizer, video, "FP")[0].shape == each.shape and seen == [1, 3]


@pytest.mark.parametrize("frames, task", [(0, "FP"), (16, "FP"), (8, "FI"), (-1, "CFP")])
def test_a_condition_that_gives_nothing_or_all_is_refused(frames, task):
    with pytest.raises(ValueError, match="condition frames"):
        make_condition(torch.zeros(1, 3, 16, 8, 8), task, frames)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("condition_frames", [1, 2, 5, 7])
def test_no_padding_of_the_ten_tasks_leaks(task, condition_frames):
    refuse_leak(task, (16, 16, 16), condition_frames)


@pytest.mark.parametrize("task", ["OPD", "IPC", "IPD"])
def test_edges_repeated_around_a_region_with_holes_are_refused_as_a_leak(task, monkeypatch):
    monkeypatch.setitem(TASKS, task, dataclasses.replace(TASKS[task], padding=edge_padding))
    with pytest.raises(ValueError, match=rf"the padding of {task} \(edge_padding\) depends on"):
        refuse_leak(task, (16, 16, 16))


def test_the_leak_of_pixels_that_are_given_later_is_found_too(monkeypatch):
    """Within the box around a strip that moves, every pixel is given in some frame."""
    def left_in_the_end(T, H, W):
        return moving_strip(T, H, W).flip(0) & vertical_strip(T, H, W)

    monkeypatch.setitem(TASKS, "NEW", Task("of one's own", left_in_the_end, edge_padding))
    with pytest.raises(ValueError, match="the model would be shown the answer"):
        refuse_leak("NEW", (16, 16, 16))


def test_an_unknown_task_is_refused_with_the_list():
    with pytest.raises(ValueError, match="'XY' is unknown; choose from FP FI OPC"):
        task_index("XY")


@pytest.fixture
def new_task():
    """A task of one's own, written in the middle of TASKS."""
    before = dict(TASKS)
    rows = [*before.items()]
    rows[3:3] = [("NEW", Task("a strip in time", vertical_strip, edge_padding))]
    TASKS.clear()
    TASKS.update(rows)
    yield "NEW"
    TASKS.clear()
    TASKS.update(before)


def test_a_new_task_moves_no_prompt_and_joins_none_of_the_papers_sets(new_task):
    assert [*TASKS].index(new_task) == 3
    assert MT8 == ("FP", "FI", "OPC", "OPV", "OPH", "OPD", "IPC", "IPD")
    assert MT10 == (*MT8, "CG", "CFP")
    assert [task_index(task) for task in MT10] == list(range(10))
    assert [task_index(task, (*MT10, new_task)) for task in (*MT10, new_task)] == list(range(11))
    refuse_leak(new_task, (16, 16, 16))


def test_a_model_has_ten_prompts_and_more_only_for_tasks_it_was_trained_on(new_task):
    for tasks, prompts in ((("FP",), MT10), (("FP", new_task), (*MT10, new_task))):
        config = transformer_config(TrainConfig(tasks=tasks), num_classes=0)
        assert MaskedTransformer(dataclasses.replace(config, **SMALL)).prompts == prompts
        assert config.num_tasks == len(prompts)


def test_a_task_without_a_prompt_is_refused(new_task):
    with pytest.raises(ValueError, match="no prompt for NEW; it was trained with prompts for FP"):
        task_index(new_task)
    with pytest.raises(ValueError, match="no prompt for CG; it was trained with prompts for FP FI"):
        task_index("CG", ("FP", "FI"))


def test_there_are_ten_tasks_and_two_use_the_class():
    assert len(TASKS) == 10
    assert [name for name, task in TASKS.items() if task.class_conditional] == ["CG", "CFP"]
    assert math.isclose(mask_ratio(torch.tensor([0.5])).item(), math.cos(math.pi / 4), rel_tol=1e-6)


@pytest.mark.parametrize("padding", [interpolation, edge_padding])
def test_a_padding_that_does_not_go_with_its_region_is_refused_in_one_line(padding, monkeypatch):
    monkeypatch.setitem(TASKS, "NEW", Task("of one's own", nothing, padding))
    with pytest.raises(ValueError, match="the padding of NEW"):
        refuse_leak("NEW", (16, 16, 16))
