"""Exercise 2: the cut-off score s* (Sec. 2)."""
import math

import pytest
import torch

from commit import cutoff_score
from exercises.lesson import Exercise

EXERCISE = Exercise("cutoff_score(scores, ratio)", "Sec. 2: s* is the ceil(gamma N)-th smallest "
                    "score, counted from 1", cutoff_score)


def test_it_is_the_nth_smallest_score(answer):
    """Of five scores: a third of them is 1.67, so the 2nd smallest; half is 2.5, so the 3rd."""
    for ratio, wanted in ((0.3, 0.3), (0.5, 0.5), (0.9, 0.9), (1.0, 0.9)):
        scores = torch.tensor([[0.9, 0.1, 0.5, 0.3, 0.7]])
        EXERCISE.same(answer(scores, torch.tensor([ratio])), torch.tensor([wanted]),
                      f"ceil({ratio} x 5) = {math.ceil(ratio * 5)}: of 0.1 0.3 0.5 0.7 0.9 it is "
                      f"the one at that place")


def test_at_least_one_token_is_hidden(answer):
    EXERCISE.same(answer(torch.tensor([[0.4, 0.2, 0.8]]), torch.tensor([1e-6])),
                  torch.tensor([0.2]), "a ratio of almost nothing still hides one token")


def test_each_sequence_hides_the_share_that_its_own_ratio_says(answer):
    scores = torch.rand(4, 37, generator=torch.Generator().manual_seed(0))
    before, ratio = scores.clone(), torch.tensor([0.25, 1.0, 0.5, 0.75])
    cutoff = answer(scores, ratio)
    wanted = torch.tensor([sorted(row)[math.ceil(share * 37) - 1]
                           for row, share in zip(before.tolist(), ratio.tolist())])
    EXERCISE.same(cutoff, wanted, "each row of scores has its own ratio and its own cut-off")
    EXERCISE.same((before <= cutoff[:, None]).sum(1), torch.tensor([10, 37, 19, 28]),
                  "so many of 37 scores are at or below the cut-off")
    EXERCISE.same(scores, before, "the scores themselves stay in their places")


def floor(scores, ratio):
    count = (ratio * scores.shape[1]).floor().long().clamp(min=1)
    return scores.sort(1).values.gather(1, count[:, None] - 1)[:, 0]


def from_the_top(scores, ratio):
    return -EXERCISE.solution(-scores, ratio)


def quantile(scores, ratio):
    return torch.stack([row.quantile(share) for row, share in zip(scores, ratio)])


@pytest.mark.parametrize("wrong", [floor, from_the_top, quantile])
def test_wrong_answers_are_refused(wrong):
    EXERCISE.refuses(wrong, by=test_it_is_the_nth_smallest_score)


def test_one_ratio_for_the_whole_batch_is_refused():
    EXERCISE.refuses(lambda scores, ratio: EXERCISE.solution(scores, ratio[:1].expand_as(ratio)),
                     by=test_each_sequence_hides_the_share_that_its_own_ratio_says)
    EXERCISE.refuses(lambda scores, ratio: 0 * ratio, by=test_at_least_one_token_is_hidden)
