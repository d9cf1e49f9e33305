"""Exercise 7: the COMMIT mask, Eq. (2) (Sec. 3.2)."""
import oracle
import torch

from commit import commit_mask
from exercises.lesson import Exercise

EXERCISE = Exercise("commit_mask(tokens, condition_tokens, is_pad, scores, cutoff, mask_id)",
                    "Sec. 3.2, Eq. (2)", commit_mask)


def test_each_line_of_eq_2_has_its_tokens(answer):
    """z is 1 to 6, z-tilde 11 to 16, [MASK] 99, s* 0.5; the last three hold only padding."""
    got = answer(torch.tensor([[1, 2, 3, 4, 5, 6]]), torch.tensor([[11, 12, 13, 14, 15, 16]]),
                 torch.tensor([False, False, False, True, True, True]),
                 torch.tensor([[0.2, 0.5, 0.8, 0.2, 0.5, 0.8]]), torch.tensor([0.5]), 99)
    EXERCISE.same(got, torch.tensor([[11, 12, 3, 99, 99, 6]]),
                  "scores 0.2 and 0.5 are at most s* = 0.5: z-tilde where something is given, "
                  "[MASK] where all is padding; a score of 0.8 keeps z")


def test_each_sequence_has_its_own_cutoff(answer):
    generator = torch.Generator().manual_seed(0)
    tokens, condition = torch.randint(50, (2, 3, 20), generator=generator)
    scores, is_pad = torch.rand(3, 20, generator=generator), torch.arange(20) % 3 == 0
    cutoff = torch.tensor([0.2, 0.5, 0.9])
    wanted = [oracle.commit_mask(*rows, mask_id=50) for rows in zip(
        tokens.tolist(), condition.tolist(), [is_pad.tolist()] * 3, scores.tolist(),
        cutoff.tolist())]
    EXERCISE.same(answer(tokens, condition, is_pad, scores, cutoff, 50), torch.tensor(wanted),
                  "cut-offs of 0.2, 0.5 and 0.9, for the three sequences of a batch")


def test_with_all_padding_it_is_the_binary_mask_of_maskgit(answer):
    tokens, scores = torch.arange(6)[None], torch.tensor([[0.0, 0.2, 0.4, 0.6, 0.8, 1.0]])
    EXERCISE.same(answer(tokens, tokens + 10, torch.ones(6, dtype=torch.bool), scores,
                         torch.tensor([0.4]), 99), torch.tensor([[99, 99, 99, 3, 4, 5]]),
                  "without a condition only [MASK] and z are left (Sec. 2)")


def strictly_below(tokens, condition_tokens, is_pad, scores, cutoff, mask_id):
    """Hides one token fewer: s* is itself the score of a token that is to be hidden."""
    masked = scores < cutoff[:, None]
    return torch.where(masked, torch.where(is_pad, mask_id, condition_tokens), tokens)


def latent_masking(tokens, condition_tokens, is_pad, scores, cutoff, mask_id):
    """What the paper argues against: the given region's own tokens are shown."""
    return torch.where((scores <= cutoff[:, None]) & is_pad, mask_id, tokens)


def padding_is_always_masked(tokens, condition_tokens, is_pad, scores, cutoff, mask_id):
    shown = torch.where(scores <= cutoff[:, None], condition_tokens, tokens)
    return torch.where(is_pad, mask_id, shown)


def one_cutoff(tokens, condition_tokens, is_pad, scores, cutoff, mask_id):
    return commit_mask(tokens, condition_tokens, is_pad, scores, cutoff[:1], mask_id)


def test_wrong_answers_are_refused():
    for wrong in (strictly_below, latent_masking, padding_is_always_masked):
        EXERCISE.refuses(wrong, by=test_each_line_of_eq_2_has_its_tokens)
    for wrong in (strictly_below, padding_is_always_masked):
        EXERCISE.refuses(wrong, by=test_with_all_padding_it_is_the_binary_mask_of_maskgit)
    EXERCISE.refuses(one_cutoff, by=test_each_sequence_has_its_own_cutoff)
