"""decode.py: Algorithm 1."""
import dataclasses

import oracle
import pytest
import torch
from conftest import ROOT

import decode
from commit import MT10, TASKS, mask_ratio, num_masked
from decode import commit_decode, fixed_priority, generate, guided_logits, latent_masking
from measure import report
from measure.report import class_number
from tokenizer import TOKENIZERS, VideoTokenizer
from transformer import TRANSFORMERS, MaskedTransformer

N, K = 24, 10


class Table:
    """A stand-in for the transformer: fixed random logits that depend on the input tokens."""

    mask_id, no_class, prompts = K, 3, MT10

    def __init__(self, generator):
        self.weights = torch.randn(N, K + 1, N, K, generator=generator) / 3

    def __call__(self, tokens, task, label):
        position = torch.arange(N)
        logits = torch.stack([self.weights[position, row].sum(0) for row in tokens])
        return logits + label[:, None, None] * 0.1


@pytest.fixture
def model(generator):
    return Table(generator)


@pytest.fixture
def inputs(generator):
    """task, label, condition tokens (2, N), is_pad (N,)."""
    return (torch.zeros(2, dtype=torch.long), torch.tensor([0, 2]),
            torch.randint(K, (2, N), generator=generator),
            torch.rand(N, generator=generator) < 0.6)


def last(states):
    return list(states)[-1]


@pytest.mark.parametrize("steps", [1, 2, 5, 12])
def test_algorithm_1_equals_the_plain_python_oracle(model, inputs, generator, steps):
    """At temperature 0, line by line: inputs, tokens, scores and cut-off of every step."""
    task, label, condition, is_pad = inputs
    token_noise = torch.distributions.Gumbel(0.0, 1.0).sample((steps, 2, N, K))
    draws = iter([noise for t in range(steps) for noise in (token_noise[t], torch.zeros(2, N))])
    states = list(commit_decode(model, *inputs, steps=steps, temperature=0.0,
                                noise=lambda shape: next(draws)))
    for b in range(2):
        def predict(z_bar):
            return model(torch.tensor([z_bar]), task[:1], label[b:b + 1])[0].softmax(-1).tolist()

        def sample(p, t, i):
            return int((torch.tensor(p).log() + token_noise[t, b, i]).argmax())

        for state, (z_bar, z_hat, s, cutoff) in zip(states, oracle.algorithm_1(
                predict, condition[b].tolist(), is_pad.tolist(), steps, K, sample), strict=True):
            assert state.inputs[b].tolist() == z_bar
            assert state.tokens[b].tolist() == z_hat
            if state.step < steps - 1:
                assert state.unknown[b].tolist() == [score <= cutoff for score in s]
                torch.testing.assert_close(
                    state.confidence[b].exp().nan_to_num(posinf=1.0), torch.tensor(s))


@pytest.mark.parametrize("schedule", ["cosine", "uniform", "exp"])
@pytest.mark.parametrize("temperature", [0.0, 4.5, 400.0])
def test_masked_counts_follow_gamma_and_never_grow(model, inputs, generator, schedule, temperature):
    steps = 9
    counts = [state.unknown.sum(1) for state in commit_decode(
        model, *inputs, steps=steps, schedule=schedule, temperature=temperature,
        generator=generator)]
    for t, count in enumerate(counts[:-1]):
        expected = num_masked(mask_ratio(torch.tensor([(t + 1) / steps]), schedule, N), N)
        assert (count == expected).all()
    assert (torch.stack(counts).diff(dim=0) <= 0).all() and (counts[-1] == 0).all()


def test_what_is_decided_stays_and_what_is_unknown_is_condition_or_mask(model, inputs, generator):
    _, _, condition, is_pad = inputs
    before = None
    for state in commit_decode(model, *inputs, steps=8, generator=generator):
        if before is not None:
            known = ~before.unknown
            assert torch.equal(state.tokens[known], before.tokens[known])
            assert torch.equal(state.inputs, torch.where(
                before.unknown, torch.where(is_pad, K, condition), before.tokens))
        before = state
    assert (before.tokens < K).all()


def test_condition_tokens_are_refined_too(model, inputs, generator):
    """Unlike a prefix or an unmasked region, the condition is predicted anew (Sec. 3.2)."""
    _, _, condition, is_pad = inputs
    tokens = last(commit_decode(model, *inputs, generator=generator)).tokens
    assert (tokens != condition)[:, ~is_pad].any()


def test_the_same_generator_gives_the_same_video_and_another_one_another(model, inputs):
    first, again, other = (last(commit_decode(
        model, *inputs, generator=torch.Generator().manual_seed(seed))).tokens
        for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_more_steps_than_tokens_still_end_decided(model, inputs, generator):
    state = last(commit_decode(model, *inputs, steps=2 * N, generator=generator))
    assert not state.unknown.any() and (state.tokens < K).all()


def test_guidance_is_one_formula_and_scale_0_is_none(model, inputs):
    task, label, condition, is_pad = inputs
    scores, cutoff = torch.zeros(2, N), torch.ones(2)
    arguments = (condition, condition, task, label, scores, cutoff)
    plain = guided_logits(model, *arguments, scale=0.0)
    torch.testing.assert_close(plain, model(condition, task, label))
    blank = model(torch.full_like(condition, K), task, torch.full_like(label, 3))
    torch.testing.assert_close(guided_logits(model, *arguments, scale=1.5),
                               plain + 1.5 * (plain - blank))


# ---------------------------------------------------------------------------------------------
# Known tokens (latent masking), and other orders than the confidence's

def test_known_tokens_never_change_and_are_not_counted(model, inputs, generator):
    """Table 5's latent masking: they are read in every step, and N in line 6 is the others."""
    task, label, condition, is_pad = inputs
    unknown = int(is_pad.sum())
    states = list(latent_masking(model, *inputs, steps=5, generator=generator))
    assert all((state.tokens == condition)[:, ~is_pad].all() for state in states)
    assert all((state.inputs == condition)[:, ~is_pad].all() for state in states)
    assert (states[0].inputs[:, is_pad] == K).all()
    for t, state in enumerate(states[:-1]):
        wanted = num_masked(mask_ratio(torch.tensor([(t + 1) / 5], dtype=torch.float64)), unknown)
        assert (state.unknown.sum(1) == wanted).all() and not state.unknown[:, ~is_pad].any()


def test_each_sequence_may_know_tokens_of_its_own(model, inputs, generator):
    task, label, condition, _ = inputs
    known = torch.rand(2, N, generator=generator) < torch.tensor([[0.2], [0.7]])
    states = list(commit_decode(model, task, label, condition, torch.ones(N, dtype=torch.bool),
                                known=known, steps=4, generator=generator))
    wanted = num_masked(mask_ratio(torch.tensor([0.25], dtype=torch.float64)), (~known).sum(1))
    assert torch.equal(states[0].unknown.sum(1), wanted)
    assert (states[-1].tokens == condition)[known].all()


def test_a_sequence_of_known_tokens_has_nothing_to_decode(model, inputs):
    known = torch.ones(2, N, dtype=torch.bool)
    with pytest.raises(ValueError, match="every token of a sequence is known"):
        list(commit_decode(model, *inputs, known=known))


@pytest.mark.parametrize("order", ["random", "halton"])
def test_another_order_changes_which_tokens_stay_and_nothing_else(model, inputs, order):
    def decoded(order):
        return list(commit_decode(model, *inputs, steps=6, order=order, grid=(2, 3, 4),
                                  generator=torch.Generator().manual_seed(0)))
    by_confidence, other = decoded("confidence"), decoded(order)
    assert [s.unknown.sum().item() for s in by_confidence] == [
        s.unknown.sum().item() for s in other]
    assert not torch.equal(by_confidence[2].unknown, other[2].unknown)
    for before, after in zip(other, other[1:]):
        assert (before.tokens == after.tokens)[~before.unknown].all()


def test_haltons_order_is_that_of_its_points(inputs):
    """Digits of the number, behind the point, in bases 5, 3 and 2, by plain Python."""
    def behind_the_point(number, base):
        value, unit = 0.0, 1.0
        while number:
            unit /= base
            number, digit = divmod(number, base)
            value += digit * unit
        return value

    grid, visited = (2, 3, 4), []
    for number in range(1, 1000):
        cell = tuple(int(length * behind_the_point(number, base) + 1e-9)
                     for length, base in zip(grid, (5, 3, 2)))
        if cell not in visited:
            visited.append(cell)
    priority = fixed_priority("halton", torch.zeros(1, N), grid, None)[0].view(grid)
    assert len(visited) == N
    assert [int(-priority[cell]) for cell in visited] == list(range(N))


def test_orders_that_cannot_be_are_refused(model, inputs):
    with pytest.raises(ValueError, match="order 'spiral' is unknown; choose confidence, random"):
        list(commit_decode(model, *inputs, order="spiral"))
    with pytest.raises(ValueError, match=r"needs the grid \(t, h, w\) of the 24 tokens, got None"):
        list(commit_decode(model, *inputs, order="halton"))


# ---------------------------------------------------------------------------------------------
# Pixels to pixels

@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    config = dataclasses.replace(TRANSFORMERS["toy"], num_layers=1, num_classes=3, num_tokens=64)
    return VideoTokenizer(TOKENIZERS["toy"]).eval(), MaskedTransformer(config).eval()


@pytest.mark.parametrize("task", TASKS)
def test_every_task_makes_a_video_in_0_to_1(tiny, task, generator):
    label = torch.tensor([2]) if TASKS[task].class_conditional else None
    video = generate(*tiny, torch.rand(1, 3, 16, 32, 32), task, label, steps=2,
                     generator=generator)
    assert video.shape == (1, 3, 16, 32, 32) and video.min() >= 0 and video.max() <= 1


@pytest.mark.parametrize("task, label, complaint", [
    ("CG", None, r"CG needs a class label in 0..2 \(3: no class\), got none"),
    ("CFP", torch.tensor([4]), r"label in 0..2 \(3: no class\), got \[4\]"),
    ("FP", torch.tensor([1]), "FP takes no class label"),
    ("XX", None, "task 'XX' is unknown")])
def test_what_makes_no_sense_is_refused(tiny, task, label, complaint):
    with pytest.raises(ValueError, match=complaint):
        generate(*tiny, torch.rand(1, 3, 16, 32, 32), task, label)


def test_a_video_of_another_size_is_refused(tiny):
    with pytest.raises(ValueError, match="T=15 frames or pixels; this tokenizer needs"):
        generate(*tiny, torch.rand(1, 3, 15, 32, 32), "FP")
    with pytest.raises(ValueError, match="has 128 tokens; this transformer was trained on 64"):
        generate(*tiny, torch.rand(1, 3, 32, 32, 32), "FP")


def test_zero_steps_are_refused(model, inputs):
    with pytest.raises(ValueError, match="0 decoding steps"):
        next(commit_decode(model, *inputs, steps=0))


def test_classes_have_names_and_numbers():
    assert class_number("walk", ["run", "walk"]) == class_number("1", ["run", "walk"]) == 1
    for bad in ("2", "-1", "fly"):
        with pytest.raises(ValueError, match="is unknown; this run has 2 classes: run, walk"):
            class_number(bad, ["run", "walk"])


def test_a_model_without_prompts_does_its_one_task(tiny, generator):
    """As the official models of one task are."""
    tokenizer, model = tiny
    alone = MaskedTransformer(dataclasses.replace(model.config, num_tasks=0)).eval()
    video = generate(tokenizer, alone, torch.rand(1, 3, 16, 32, 32), "FP", steps=2,
                     generator=generator)
    assert video.shape == (1, 3, 16, 32, 32)


# ---------------------------------------------------------------------------------------------
# The command

@pytest.mark.parametrize("flags, stride", [([], 3), (["--stride", "1"], 1)])
def test_a_video_is_taken_at_the_stride_of_the_run(monkeypatch, flags, stride):
    taken = []
    monkeypatch.setattr(report, "load_clip", lambda path, shape, start, stride: taken.append(
        stride) or torch.zeros(1, 3, *shape))
    monkeypatch.setattr(report, "draw_samples", lambda *_, **settings: None)
    monkeypatch.setattr("sys.argv", ["decode.py", str(ROOT / "assets/clips"), "--video", "in.mp4",
                                     *flags])
    decode.main()
    assert taken == [stride]


def test_without_the_runs_own_videos_one_is_asked_for(monkeypatch):
    monkeypatch.setattr("sys.argv", ["decode.py", str(ROOT / "assets/clips"), "--task", "CG"])
    with pytest.raises(SystemExit, match="no data folder videos; give .* --video"):
        decode.main()
