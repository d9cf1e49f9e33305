"""Exercise 8: the loss in three parts, Eq. (3) and (4) (Sec. 3.2)."""
import math

import pytest
import torch
import torch.nn.functional as F

from commit import commit_loss
from exercises.lesson import Exercise

EXERCISE = Exercise(
    "commit_loss(logits, tokens, is_pad, scores, cutoff)",
    "Sec. 3.2, Eq. (3) and (4); their sum over tokens is a mean here",
    lambda *inputs: tuple(commit_loss(*inputs, label_smoothing=0.0)))
PARTS = "total, refine, mask, reconstruct"


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(3, 20, 7, generator=generator),
            torch.randint(7, (3, 20), generator=generator), torch.arange(20) % 3 == 0,
            torch.rand(3, 20, generator=generator), torch.tensor([0.2, 0.5, 0.9]))


def test_guessing_costs_ln_k_and_each_part_its_share(answer):
    """Eight codes, all equally likely. Of four tokens one is z-tilde, one [MASK], two are shown."""
    losses = EXERCISE.parts(answer(
        torch.zeros(1, 4, 8), torch.tensor([[0, 5, 2, 7]]),
        torch.tensor([False, True, True, False]),
        torch.tensor([[0.1, 0.2, 0.8, 0.9]]), torch.tensor([0.5])), PARTS)
    for name, share, got in zip(PARTS.split(", "), (4, 1, 1, 2), losses):
        EXERCISE.same(got, torch.tensor(share / 4 * math.log(8)),
                      f"{name}: {share} of 4 tokens, each -log(1/8), divided by all 4")


def test_each_part_is_the_mean_of_its_own_tokens_over_all(answer, inputs):
    logits, tokens, is_pad, scores, cutoff = inputs
    sums = dict.fromkeys(PARTS.split(", "), 0.0)
    for b in range(3):
        for i in range(20):
            exponentials = [math.exp(x) for x in logits[b, i].tolist()]
            loss = -math.log(exponentials[tokens[b, i]] / sum(exponentials))
            hidden = "mask" if is_pad[i] else "refine"
            part = hidden if scores[b, i] <= cutoff[b] else "reconstruct"
            sums[part] += loss / 60
            sums["total"] += loss / 60
    for (name, wanted), got in zip(sums.items(), EXERCISE.parts(answer(*inputs), PARTS)):
        EXERCISE.same(got, torch.tensor(wanted), f"{name}, of 3 sequences of 20 tokens: the sum "
                                                 "over its tokens of -log p(z_i), divided by 60")


def test_the_loss_is_the_sum_of_its_parts_and_every_token_is_learned_from(answer, inputs):
    logits = inputs[0].clone().requires_grad_()
    total, *parts = EXERCISE.parts(answer(logits, *inputs[1:]), PARTS)
    EXERCISE.same(total, sum(parts), "total = refine + mask + reconstruct, Eq. (4)")
    EXERCISE.holds(total.requires_grad, "the total has a gradient to the logits")
    gradient, = torch.autograd.grad(total, logits)
    EXERCISE.holds(gradient.abs().sum(2).all(), "every token has a gradient, shown ones as well")


def only_masked(logits, tokens, is_pad, scores, cutoff):
    """Eq. (1): MaskGIT's loss. Nobody would learn to correct the condition."""
    masked = (scores <= cutoff[:, None]) & is_pad
    loss = (F.cross_entropy(logits.movedim(2, 1), tokens, reduction="none") * masked).mean()
    return loss, 0 * loss, loss, 0 * loss


def mean_of_its_own(logits, tokens, is_pad, scores, cutoff):
    """Parts of a few tokens would weigh as much as parts of many, and not add up to Eq. (3)."""
    loss = F.cross_entropy(logits.movedim(2, 1), tokens, reduction="none")
    masked = scores <= cutoff[:, None]
    parts = [loss[case].mean() for case in (masked & ~is_pad, masked & is_pad, ~masked)]
    return loss.mean(), *parts


def refine_and_mask_exchanged(*inputs):
    total, refine, mask, reconstruct = EXERCISE.solution(*inputs)
    return total, mask, refine, reconstruct


def test_wrong_answers_are_refused(inputs):
    summed = test_the_loss_is_the_sum_of_its_parts_and_every_token_is_learned_from
    for wrong in (only_masked, mean_of_its_own):
        EXERCISE.refuses(wrong, by=test_guessing_costs_ln_k_and_each_part_its_share)
        EXERCISE.refuses(wrong, summed, inputs)
    EXERCISE.refuses(refine_and_mask_exchanged,
                     test_each_part_is_the_mean_of_its_own_tokens_over_all, inputs)
    EXERCISE.refuses(lambda *inputs: EXERCISE.solution(*inputs)[0],
                     by=test_guessing_costs_ln_k_and_each_part_its_share)
