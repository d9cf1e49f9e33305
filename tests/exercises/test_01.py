"""Exercise 1: the cosine mask schedule gamma (Sec. 2)."""
import math

import torch
from course import exercise

from commit import mask_ratio


def check(cosine):
    r = torch.tensor([0.0, 1 / 3, 1 / 2, 2 / 3])
    expected = torch.tensor([1.0, math.sqrt(3) / 2, math.sqrt(2) / 2, 0.5])
    assert torch.allclose(cosine(r), expected, atol=1e-6), "gamma(r) = cos(pi r / 2)"
    fine = cosine(torch.linspace(0, 1, 101))
    assert abs(fine[-1]) < 1e-5, "gamma(1) = 0: nothing is masked in the end"
    assert (fine.diff() < 0).all(), "gamma falls all the way"
    assert (fine.diff().diff() < 1e-6).all(), "gamma is concave: few tokens are decided at first"


test_the_answer, test_a_mistake_is_refused = exercise(
    1, "cosine(r)", mask_ratio, check,
    {"a straight line": lambda r: 1 - r,
     "half a period too much": lambda r: torch.cos(math.pi * r),
     "the sine": lambda r: torch.sin(math.pi / 2 * r)})
