"""Exercise 5: Eq. (2), the multivariate mask."""
import torch
from course import exercise
from oracle import commit_mask as oracle

from commit import commit_mask

MASK = 99


def check(commit_mask):
    generator = torch.Generator().manual_seed(0)
    tokens, condition = torch.randint(0, 9, (2, 3, 20), generator=generator)
    is_pad = torch.rand(20, generator=generator) < 0.5
    scores, cutoff = torch.rand(3, 20, generator=generator), torch.tensor([0.2, 0.5, 0.8])
    scores[1, 7] = 0.5                                   # exactly at the cut-off
    is_pad[7] = True
    found = commit_mask(tokens, condition, is_pad, scores, cutoff, MASK)
    for i in range(3):
        expected = oracle(*(x.tolist() for x in (tokens[i], condition[i], is_pad, scores[i])),
                          cutoff[i].item(), MASK)
        assert found[i].tolist() == expected, (
            "read the three lines of Eq. (2); a score that equals the cut-off is masked")


test_the_answer, test_a_mistake_is_refused = exercise(
    5, "commit_mask(tokens, condition_tokens, is_pad, scores, cutoff, mask_id)", commit_mask, check,
    {"below instead of at most": lambda z, c, p, s, cut, m: commit_mask(z, c, p, s, cut - 1e-6, m),
     "condition tokens shown everywhere": lambda z, c, p, s, cut, m: torch.where(
         p, commit_mask(z, c, p, s, cut, m), c),
     "the plain mask of Eq. (1)": lambda z, c, p, s, cut, m: torch.where(
         s <= cut[:, None], m, z),
     "padding turned round": lambda z, c, p, s, cut, m: commit_mask(z, c, ~p, s, cut, m)})
