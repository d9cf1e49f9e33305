"""Exercise 2: the cut-off score s* (Sec. 2)."""
import pytest
import torch

from commit import cutoff_score
from exercises.lesson import Exercise

EXERCISE = Exercise("cutoff_score(scores, count)", "Sec. 2: s* is the ceil(gamma N)-th smallest "
                    "score, counted from 1", cutoff_score)


@pytest.mark.parametrize("count, wanted", [(1, 0.1), (2, 0.3), (3, 0.5), (5, 0.9)])
def test_it_is_the_nth_smallest_score(answer, count, wanted):
    scores = torch.tensor([[0.9, 0.1, 0.5, 0.3, 0.7]])
    EXERCISE.same(answer(scores, torch.tensor([count])), torch.tensor([wanted]),
                  f"of 0.1 0.3 0.5 0.7 0.9 number {count}, counted from 1")


def test_each_sequence_hides_as_many_tokens_as_its_own_count_says(answer):
    scores = torch.rand(4, 37, generator=torch.Generator().manual_seed(0))
    before, count = scores.clone(), torch.tensor([10, 37, 19, 28])
    cutoff = answer(scores, count)
    wanted = torch.tensor([sorted(row)[n - 1] for row, n in zip(before.tolist(), count.tolist())])
    EXERCISE.same(cutoff, wanted, "each row of scores has its own count and its own cut-off")
    EXERCISE.same((before <= cutoff[:, None]).sum(1), count,
                  "so many of 37 scores are at or below the cut-off")
    EXERCISE.same(scores, before, "the scores themselves stay in their places")


def counted_from_0(scores, count):
    return scores.sort(1).values.gather(1, count[:, None].clamp(max=scores.shape[1] - 1))[:, 0]


def from_the_top(scores, count):
    return -EXERCISE.solution(-scores, count)


def one_count_for_all(scores, count):
    return EXERCISE.solution(scores, count[:1].expand_as(count))


def sorted_in_place(scores, count):
    return scores.copy_(scores.sort(1).values).gather(1, count[:, None] - 1)[:, 0]


@pytest.mark.parametrize("wrong, by, more", [
    (counted_from_0, test_it_is_the_nth_smallest_score, (2, 0.3)),
    (from_the_top, test_it_is_the_nth_smallest_score, (2, 0.3)),
    (one_count_for_all, test_each_sequence_hides_as_many_tokens_as_its_own_count_says, ()),
    (sorted_in_place, test_each_sequence_hides_as_many_tokens_as_its_own_count_says, ())])
def test_wrong_answers_are_refused(wrong, by, more):
    EXERCISE.refuses(wrong, by, *more)
