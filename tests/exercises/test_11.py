"""Exercise 11: the Frechet distance of two Gaussians, of which FVD is made (Sec. 4, App. B.3)."""
import math

import pytest
import torch

from exercises.lesson import Exercise
from measure.metrics import frechet_distance

EXERCISE = Exercise("frechet_distance(mean1, covariance1, mean2, covariance2)",
                    "App. B.3 on FVD, and Unterthiner et al. 2018, the paper's [60]",
                    frechet_distance)


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def check(answer, inputs, wanted, why, tolerance=1e-6):
    got = answer(*inputs)
    EXERCISE.holds(isinstance(got, float) or getattr(got, "numel", lambda: 0)() == 1,
                   f"it returns one number, got {type(got).__name__}")
    EXERCISE.same(torch.as_tensor(got).double().flatten(), double([wanted]), why, tolerance)


def spread(seed, size, rank):
    """A random covariance of so many clips' features, and its mean."""
    draws = torch.randn(rank + 1, size, generator=torch.Generator().manual_seed(seed),
                        dtype=torch.float64)
    return draws.mean(0), draws.T.cov()


def test_of_two_bells_it_is_their_distance_and_that_of_their_widths(answer):
    check(answer, (double([1.0]), double([[4.0]]), double([4.0]), double([[9.0]])), 10.0,
          "means 1 and 4, variances 4 and 9: (1 - 4)^2 + (2 - 3)^2")


def test_equal_gaussians_are_at_distance_0(answer):
    gaussian = spread(0, size=6, rank=20)
    check(answer, (*gaussian, *gaussian), 0.0, "twice the same Gaussian")


def test_the_root_is_that_of_the_product_of_matrices(answer):
    """In two dimensions it has a closed form: tr M^(1/2) = (tr M + 2 det(M)^(1/2))^(1/2)."""
    one, other = double([[4.0, 1.0], [1.0, 2.0]]), double([[1.0, 0.5], [0.5, 3.0]])
    (a, b), (c, d) = (one @ other).tolist()
    root = math.sqrt(a + d + 2 * math.sqrt(a * d - b * c))
    check(answer, (double([0.0, 0.0]), one, double([3.0, 4.0]), other),
          25 + 4 + 2 + 1 + 3 - 2 * root,
          "two tilted ellipses, their means 5 apart: 25 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2)")


def test_fewer_clips_than_features_are_no_trouble(answer):
    """Four clips span three of eight dimensions: C1 C2 has no inverse, and roundings below 0."""
    gaussian = spread(1, size=8, rank=3)
    check(answer, (*gaussian, *gaussian), 0.0,
          "a covariance of rank 3 in 8 dimensions, twice: no NaN, and no epsilon on the diagonal",
          tolerance=1e-5)
    flat, upright = torch.diag(double([4.0, 0.0])), torch.diag(double([0.0, 9.0]))
    check(answer, (double([0.0, 0.0]), flat, double([0.0, 0.0]), upright), 13.0,
          "two lines at a right angle have nothing in common: 4 + 9 - 0")


def by_root_of(product):
    def wrong(mean1, covariance1, mean2, covariance2):
        return ((mean1 - mean2).square().sum() + (covariance1 + covariance2).trace()
                - 2 * product(covariance1, covariance2).trace())
    return wrong


def symmetric_root(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T


element_by_element = by_root_of(lambda one, other: (one @ other).clamp(min=0).sqrt())
roots_apart = by_root_of(lambda one, other: symmetric_root(one) @ symmetric_root(other))


def not_squared(mean1, covariance1, mean2, covariance2):
    return (frechet_distance(0 * mean1, covariance1, 0 * mean2, covariance2)
            + (mean1 - mean2).norm())


def with_epsilon(mean1, covariance1, mean2, covariance2):
    """1e-3 on the diagonals keeps the root real, and changes the distance."""
    more = 1e-3 * torch.eye(len(mean1), dtype=torch.float64)
    return frechet_distance(mean1, covariance1 + more, mean2, covariance2 + more)


# An eigenvalue of -1e-17 has no root: the whole distance is not a number.
root_without_clipping = by_root_of(lambda one, other: torch.diag(
    (torch.linalg.eigvals(one @ other).real - 1e-17).sqrt()))


@pytest.mark.parametrize("wrong, by", [
    (element_by_element, test_the_root_is_that_of_the_product_of_matrices),
    (roots_apart, test_the_root_is_that_of_the_product_of_matrices),
    (not_squared, test_of_two_bells_it_is_their_distance_and_that_of_their_widths),
    (with_epsilon, test_fewer_clips_than_features_are_no_trouble),
    (root_without_clipping, test_fewer_clips_than_features_are_no_trouble),
    (lambda *inputs: None, test_equal_gaussians_are_at_distance_0)])
def test_wrong_answers_are_refused(wrong, by):
    EXERCISE.refuses(wrong, by)
