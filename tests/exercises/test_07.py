"""Exercise 7: the loss of Eq. (3) in the three parts of Eq. (4): refine, mask, reconstruct."""
import math

import torch
from course import exercise

from commit import commit_loss


def solution(logits, tokens, is_pad, scores, cutoff):
    return commit_loss(logits, tokens, is_pad, scores, cutoff, label_smoothing=0.0)[1:]


def check(parts):
    N, K = 8, 5
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, N, K, generator=generator)
    tokens = torch.randint(0, K, (2, N), generator=generator)
    is_pad, cutoff = torch.arange(N) >= 5, torch.tensor([0.4, 0.6])
    scores = torch.rand(2, N, generator=generator)
    expected = [0.0, 0.0, 0.0]
    for b in range(2):
        for i in range(N):
            p = [math.exp(x) for x in logits[b, i].tolist()]
            loss = -math.log(p[tokens[b, i]] / sum(p))
            masked = scores[b, i] <= cutoff[b]
            expected[2 if not masked else 1 if is_pad[i] else 0] += loss / (2 * N)
    found = [float(part) for part in parts(logits, tokens, is_pad, scores, cutoff)]
    assert len(found) == 3, "three parts: refine, mask, reconstruct"
    assert all(math.isclose(a, b, abs_tol=1e-5) for a, b in zip(found, expected)), (
        f"got {found}, expected {expected}: each token counts in one part, and each part is its "
        "share of the mean over all tokens, so that the three add up to Eq. (3)")


test_the_answer, test_a_mistake_is_refused = exercise(
    7, "parts(logits, tokens, is_pad, scores, cutoff)", solution, check,
    {"each part a mean of its own": lambda logits, tokens, pad, scores, cutoff: [
        torch.nn.functional.cross_entropy(logits[case], tokens[case]) for case in (
            (scores <= cutoff[:, None]) & ~pad, (scores <= cutoff[:, None]) & pad,
            scores > cutoff[:, None])],
     "only what is masked": lambda *given: [*solution(*given)[:2], torch.zeros(())],
     "padding turned round": lambda logits, tokens, pad, *rest: solution(
         logits, tokens, ~pad, *rest)})
