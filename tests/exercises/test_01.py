"""Exercise 1: the cosine schedule gamma (Sec. 2)."""
import math

import pytest
import torch

from commit import mask_ratio
from exercises.lesson import Exercise

EXERCISE = Exercise("mask_ratio(r)", "Sec. 2, on gamma, and App. B.2: the cosine schedule",
                    lambda r: mask_ratio(r))


def test_it_is_a_quarter_of_a_cosine(answer):
    r = torch.tensor([0, 1 / 3, 1 / 2, 2 / 3, 1])
    EXERCISE.same(answer(r), torch.tensor([1, 3 ** 0.5 / 2, 0.5 ** 0.5, 0.5, 0]),
                  "gamma at 0, 1/3, 1/2, 2/3 and 1 is the cosine of 0, 30, 45, 60 and 90 degrees",
                  tolerance=1e-4)


def test_it_falls_slowly_at_first_and_ever_steeper(answer):
    ratio = answer(torch.linspace(0, 1, 21))
    EXERCISE.same(ratio[[0, -1]], torch.tensor([1.0, 0.0]), "gamma falls from 1 to 0", 1e-4)
    falls = ratio[:-1] - ratio[1:]
    EXERCISE.holds((falls > 0).all() and (falls[1:] > falls[:-1] - 1e-6).all(),
                   "gamma falls from each r to the next, and each time by more than before")


def test_training_hides_two_thirds_of_the_tokens_on_average(answer):
    ratio = answer((torch.arange(1000) + 0.5) / 1000)
    EXERCISE.same(ratio.mean(), torch.tensor(2 / math.pi),
                  "the mean of gamma(r) over r in [0, 1] is 2 / pi, or 64 %", tolerance=1e-3)


@pytest.mark.parametrize("wrong", [
    pytest.param(lambda r: 1 - r, id="a straight line"),
    pytest.param(lambda r: (1 + torch.cos(math.pi * r)) / 2, id="half a wave, not a quarter"),
    pytest.param(lambda r: torch.cos(r * math.pi / 2).tolist(), id="a list")])
def test_wrong_answers_are_refused(wrong):
    EXERCISE.refuses(wrong, by=test_it_is_a_quarter_of_a_cosine)


def test_a_sine_that_begins_with_nothing_is_refused():
    EXERCISE.refuses(lambda r: torch.sin(r * math.pi / 2),
                     by=test_it_falls_slowly_at_first_and_ever_steeper)
    EXERCISE.refuses(lambda r: 1 - r, by=test_training_hides_two_thirds_of_the_tokens_on_average)
