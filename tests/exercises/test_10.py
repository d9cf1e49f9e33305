"""Exercise 10: Algorithm 1, the whole loop (Sec. 3.2)."""
import math
from functools import partial

import oracle
import pytest
import torch

from commit import commit_mask, cutoff_score
from decode import commit_decode
from exercises.lesson import Exercise
from transformer import MaskedTransformer

# Codes 0 to 9 are predicted. Condition tokens are 10 to 19 and [MASK] is 20, so that the inputs of
# the model tell what is decided: gamma N is never a whole number with 27 tokens.
N, K, MASK = 27, 10, 20


class Model:
    """Stands in for the transformer; remembers what it was given, and knows only its inputs."""

    mask_id, sample = MASK, MaskedTransformer.sample

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.weights = torch.randn(N, MASK + 1, N, K, generator=generator) / 3
        self.given = []

    def __call__(self, inputs, task=None, label=None):
        self.given.append(inputs.clone())
        return torch.stack([self.weights[torch.arange(N), row].sum(0) for row in inputs])


def solution(model, condition_tokens, is_pad, steps, mask_id):
    nobody = torch.zeros(len(condition_tokens), dtype=torch.long)
    *_, last = commit_decode(model, nobody, nobody, condition_tokens, is_pad, steps=steps,
                             temperature=0.0, noise=torch.zeros)
    return last.tokens


EXERCISE = Exercise("decode(model, condition_tokens, is_pad, steps, mask_id)",
                    "Sec. 3.2, Algorithm 1, and Fig. 3", solution)


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def condition():
    return torch.randint(K, MASK, (2, N), generator=torch.Generator().manual_seed(1))


IS_PAD = torch.arange(N) % 3 > 0                        # every third token holds a given pixel


def test_the_first_step_sees_the_condition_and_nothing_else(answer, model, condition):
    answer(model, condition, IS_PAD, 4, MASK)
    EXERCISE.holds(model.given, "the model is asked")
    EXERCISE.same(model.given[0], condition.where(~IS_PAD, MASK),
                  "line 1 masks everything: z-tilde where something is given, [MASK] elsewhere")


def test_each_step_hides_as_many_as_gamma_says(answer, model, condition):
    """Lines 2 and 6, at twelve steps: 27 tokens, then ceil(27 cos(pi/2 t/12))."""
    answer(model, condition, IS_PAD, 12, MASK)
    hidden = torch.stack([(inputs >= K).sum(1) for inputs in model.given])[:, 0]
    wanted = torch.tensor([math.ceil(N * math.cos(math.pi / 2 * t / 12)) for t in range(12)])
    EXERCISE.same(hidden, wanted, "tokens that are not decided yet, in the inputs of each step")


def test_what_is_decided_stays(answer, model, condition):
    tokens = answer(model, condition, IS_PAD, 12, MASK)
    for before, after in zip(model.given, [*model.given[1:], tokens]):
        decided = before < K
        EXERCISE.holds(after[decided].equal(before[decided]),
                       "line 7: a token whose score was above the cut-off is never predicted again")


@pytest.mark.parametrize("steps", [1, 2, 5, 12])
def test_it_is_algorithm_1(answer, model, condition, steps):
    """Against the plain Python of tests/oracle.py, which takes the likeliest code as well."""
    wanted = []
    for row in condition.tolist():
        *_, (_, z_hat, _, _) = oracle.algorithm_1(
            lambda z_bar: Model()(torch.tensor([z_bar]))[0].softmax(-1).tolist(), row,
            IS_PAD.tolist(), steps, MASK, lambda p, t, i: p.index(max(p)))
        wanted.append(z_hat)
    EXERCISE.same(answer(model, condition, IS_PAD, steps, MASK), torch.tensor(wanted),
                  f"z-hat after {steps} steps, of two sequences")


def loop(model, condition, is_pad, steps, mask_id, *, keep=1, step_behind=0, redo=False):
    """Algorithm 1 once more, with a place for each mistake."""
    scores, cutoff = torch.zeros(condition.shape), torch.ones(len(condition))
    tokens = torch.zeros_like(condition)
    for t in range(steps):
        logits = model(commit_mask(tokens, condition, is_pad, scores, cutoff, mask_id))
        unknown = (scores <= cutoff[:, None]) | redo
        best, code = logits.log_softmax(-1).max(-1)
        tokens, scores = code.where(unknown, tokens), (keep * best).where(unknown, scores)
        count = math.ceil(N * math.cos(math.pi / 2 * (t + 1 - step_behind) / steps))
        cutoff = cutoff_score(scores, torch.tensor([count, count]))
        if not redo:
            scores = scores.masked_fill(scores > cutoff[:, None], torch.inf)
    return tokens


def from_a_blank_canvas(model, condition, is_pad, steps, mask_id):
    """MaskGIT: what was given is not looked at."""
    return loop(model, condition, torch.ones_like(is_pad), steps, mask_id)


def condition_put_back(model, condition, is_pad, steps, mask_id):
    """As if the condition's tokens were those of the video."""
    return loop(model, condition, is_pad, steps, mask_id).where(is_pad, condition)


the_least_sure_stay, decided_anew = partial(loop, keep=-1), partial(loop, redo=True)
one_step_behind = partial(loop, step_behind=1)       # gamma(t / K): the first step decides nothing


def test_the_loop_without_a_mistake_passes(model, condition):
    test_it_is_algorithm_1(loop, model, condition, 5)


@pytest.mark.parametrize("wrong, by", [
    (from_a_blank_canvas, test_the_first_step_sees_the_condition_and_nothing_else),
    (one_step_behind, test_each_step_hides_as_many_as_gamma_says),
    (decided_anew, test_what_is_decided_stays),
    (condition_put_back, test_it_is_algorithm_1), (the_least_sure_stay, test_it_is_algorithm_1)])
def test_wrong_answers_are_refused(wrong, by, model, condition):
    EXERCISE.refuses(wrong, by, model, condition, *[5] * (by is test_it_is_algorithm_1))
