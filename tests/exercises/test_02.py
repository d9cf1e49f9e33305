"""Exercise 2: the cut-off score s* that masks ceil(gamma N) tokens (Sec. 2, Algorithm 1 line 6)."""
import math

import torch
from course import exercise

from commit import cutoff_score


def check(cutoff):
    scores = torch.tensor([[0.9, 0.1, 0.5, 0.3], [0.2, 0.8, 0.6, 0.4]])
    found = cutoff(scores, torch.tensor([0.5, 0.75]))
    assert found.shape == (2,), "a cut-off for each example"
    assert torch.equal(found, torch.tensor([0.3, 0.6])), "the ceil(ratio N)-th smallest score"
    scores = torch.rand(64, 10, generator=torch.Generator().manual_seed(0))
    ratio = torch.linspace(0.01, 1, 64)
    masked = (scores <= cutoff(scores, ratio)[:, None]).sum(1)
    expected = [math.ceil(round(10 * x, 3)) for x in ratio.tolist()]
    assert masked.tolist() == expected, "as many scores as asked for are at most the cut-off"


test_the_answer, test_a_mistake_is_refused = exercise(
    2, "cutoff(scores, ratio)", cutoff_score, check,
    {"rounded down": lambda scores, ratio: scores.sort(1).values.gather(
        1, (ratio * scores.shape[1]).long().clamp(min=1)[:, None] - 1)[:, 0],
     "the ratio itself": lambda scores, ratio: ratio,
     "the largest": lambda scores, ratio: scores.sort(1, descending=True).values.gather(
         1, (ratio * scores.shape[1]).ceil().long()[:, None] - 1)[:, 0]})
