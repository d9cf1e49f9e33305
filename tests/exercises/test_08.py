"""Exercise 8: the loss in three parts, Eq. (3) and (4) (Sec. 3.2)."""
import math

import pytest
import torch

from commit import commit_loss
from exercises.lesson import Exercise
from transformer import MaskedTransformer

EXERCISE = Exercise("commit_loss(losses, is_pad, scores, cutoff)",
                    "Sec. 3.2, Eq. (3) and (4); their sum over tokens is a mean here",
                    lambda *inputs: tuple(commit_loss(*inputs)))
PARTS = "total, refine, mask, reconstruct"


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(3, 20, generator=generator), torch.arange(20) % 3 == 0,
            torch.rand(3, 20, generator=generator), torch.tensor([0.2, 0.5, 0.9]))


def test_the_losses_that_are_given_are_minus_log_p_of_the_real_tokens():
    """Eq. (3)'s summand, MaskedTransformer.cross_entropy: of eight equally likely codes, ln 8."""
    logits, tokens = torch.randn(2, 5, 8), torch.randint(8, (2, 5))
    p = logits.softmax(2).gather(2, tokens[..., None])[..., 0]
    losses = MaskedTransformer.cross_entropy(None, logits, tokens)
    torch.testing.assert_close(losses, -p.log())
    assert MaskedTransformer.cross_entropy(None, 0 * logits, tokens).allclose(
        torch.tensor(math.log(8)))


def test_each_part_has_its_share_of_four_tokens(answer):
    """Guessing costs ln 8. Of four tokens one is z-tilde, one [MASK], two are shown."""
    losses = EXERCISE.parts(answer(
        torch.full((1, 4), math.log(8)), torch.tensor([False, True, True, False]),
        torch.tensor([[0.1, 0.2, 0.8, 0.9]]), torch.tensor([0.5])), PARTS)
    for name, share, got in zip(PARTS.split(", "), (4, 1, 1, 2), losses):
        EXERCISE.same(got, torch.tensor(share / 4 * math.log(8)),
                      f"{name}: {share} of 4 tokens, each -log(1/8), divided by all 4")


def test_each_part_is_the_sum_of_its_own_tokens_divided_by_all(answer, inputs):
    losses, is_pad, scores, cutoff = inputs
    sums = dict.fromkeys(PARTS.split(", "), 0.0)
    for b in range(3):
        for i in range(20):
            hidden = "mask" if is_pad[i] else "refine"
            part = hidden if scores[b, i] <= cutoff[b] else "reconstruct"
            sums[part] += losses[b, i].item() / 60
            sums["total"] += losses[b, i].item() / 60
    for (name, wanted), got in zip(sums.items(), EXERCISE.parts(answer(*inputs), PARTS)):
        EXERCISE.same(got, torch.tensor(wanted), f"{name}, of 3 sequences of 20 tokens: the sum "
                                                 "over its tokens, divided by 60")


def test_the_loss_is_the_sum_of_its_parts_and_every_token_is_learned_from(answer, inputs):
    losses = inputs[0].clone().requires_grad_()
    total, *parts = EXERCISE.parts(answer(losses, *inputs[1:]), PARTS)
    EXERCISE.same(total, sum(parts), "total = refine + mask + reconstruct, Eq. (4)")
    EXERCISE.holds(total.requires_grad, "the total has a gradient to the losses")
    gradient, = torch.autograd.grad(total, losses)
    EXERCISE.same(gradient, torch.full((3, 20), 1 / 60), "every token counts, shown ones as well")


def only_masked(losses, is_pad, scores, cutoff):
    """Eq. (1): MaskGIT's loss. Nobody would learn to correct the condition."""
    loss = (losses * ((scores <= cutoff[:, None]) & is_pad)).mean()
    return loss, 0 * loss, loss, 0 * loss


def mean_of_its_own(losses, is_pad, scores, cutoff):
    """Parts of a few tokens would weigh as much as parts of many, and not add up to Eq. (3)."""
    masked = scores <= cutoff[:, None]
    parts = [losses[case].mean() for case in (masked & ~is_pad, masked & is_pad, ~masked)]
    return losses.mean(), *parts


def refine_and_mask_exchanged(*inputs):
    total, refine, mask, reconstruct = EXERCISE.solution(*inputs)
    return total, mask, refine, reconstruct


def test_wrong_answers_are_refused(inputs):
    summed = test_the_loss_is_the_sum_of_its_parts_and_every_token_is_learned_from
    for wrong in (only_masked, mean_of_its_own):
        EXERCISE.refuses(wrong, by=test_each_part_has_its_share_of_four_tokens)
        EXERCISE.refuses(wrong, summed, inputs)
    EXERCISE.refuses(refine_and_mask_exchanged,
                     test_each_part_is_the_sum_of_its_own_tokens_divided_by_all, inputs)
    EXERCISE.refuses(lambda *inputs: EXERCISE.solution(*inputs)[0],
                     by=test_each_part_has_its_share_of_four_tokens)
