"""Exercise 11: the Frechet distance between two Gaussians, the FVD's last step (App. B.3)."""
import math

import torch
from course import exercise

from measure.metrics import frechet_distance


def check(distance):
    zero, one = torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    assert math.isclose(distance(zero, one, zero, one), 0, abs_tol=1e-9)
    assert math.isclose(distance(zero + 2, one, zero, one), 12, rel_tol=1e-9), "|mean - mean'|^2"
    assert math.isclose(distance(zero, 4 * one, zero, 9 * one), 3, rel_tol=1e-9), (
        "in one dimension it is (deviation - deviation')^2: here (2 - 3)^2, three times")
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, 3, dtype=torch.float64, generator=generator)
    a, b = a @ a.T + 0.1 * one, b @ b.T + 0.1 * one              # these do not commute
    trace = torch.linalg.eigvals(a @ b).real.clamp(min=0).sqrt().sum()
    expected = (a.trace() + b.trace() - 2 * trace).item()
    assert math.isclose(distance(zero, a, zero, b), expected, rel_tol=1e-6), (
        "the root is that of the matrix product, not of its entries")
    assert math.isclose(distance(zero, a, zero, b), distance(zero, b, zero, a), rel_tol=1e-6)


test_the_answer, test_a_mistake_is_refused = exercise(
    11, "distance(mean1, covariance1, mean2, covariance2)", frechet_distance, check,
    {"roots of entries": lambda m, a, n, b: ((m - n).square().sum() + (
        a + b - 2 * (a * b).clamp(min=0).sqrt()).trace()).item(),
     "no root": lambda m, a, n, b: ((m - n).square().sum() + (a + b - 2 * a @ b).trace()).item(),
     "means alone": lambda m, a, n, b: (m - n).square().sum().item()})
