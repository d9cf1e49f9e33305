"""Exercise 9: a sample and its confidence, lines 4 and 5 of Algorithm 1 (Sec. 3.2)."""
import pytest
import torch

from decode import commit_decode
from exercises.lesson import Exercise


class Fixed:
    """A model that answers the same logits to everything."""

    mask_id = -1

    def __init__(self, logits):
        self.logits = logits

    def __call__(self, inputs, task, label):
        return self.logits


def solution(logits, generator):
    """One step of Algorithm 1, after which all N tokens are still ranked."""
    B, N, _ = logits.shape
    nobody = torch.zeros(B, dtype=torch.long)
    state, = commit_decode(Fixed(logits), nobody, nobody, torch.zeros(B, N, dtype=torch.long),
                           torch.ones(N, dtype=torch.bool), steps=1, temperature=0.0,
                           generator=generator, masked_counts=torch.full((1, B), N))
    return state.tokens, state.confidence


EXERCISE = Exercise("sample(logits, generator)", "Sec. 3.2, Algorithm 1, lines 4 and 5", solution)
PARTS = "tokens, confidence"
CHANCES = torch.tensor([0.15, 0.8, 0.05])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_codes_come_up_as_often_as_the_softmax_says(answer):
    logits = (CHANCES.log() + 3).expand(2, 10_000, 3)
    tokens, _ = EXERCISE.parts(answer(logits, seeded()), PARTS)
    EXERCISE.holds(isinstance(tokens, torch.Tensor) and tokens.shape == (2, 10_000)
                   and tokens.dtype == torch.long,
                   "tokens are (B, N) and int64, one code for each place")
    EXERCISE.same(torch.stack([(tokens == k).float().mean() for k in range(3)]), CHANCES,
                  "shares of three codes in 20,000 draws, within 0.02", tolerance=0.02)


def test_each_place_draws_for_itself_and_from_the_generator(answer):
    logits = torch.zeros(2, 50, 4)
    one, again, other = (EXERCISE.parts(answer(logits, seeded(seed)), PARTS)[0]
                         for seed in (0, 0, 1))
    EXERCISE.holds(one.equal(again), "the same generator draws the same tokens")
    EXERCISE.holds(not one.equal(other), "another seed draws other tokens")
    EXERCISE.holds(not one[0].equal(one[1]), "two sequences of a batch are drawn independently")


def test_confidence_is_the_log_probability_of_what_was_drawn(answer):
    logits = torch.randn(2, 30, 5, generator=seeded())
    tokens, confidence = EXERCISE.parts(answer(logits, seeded(1)), PARTS)
    wanted = torch.tensor([[logits[b, i].softmax(0)[tokens[b, i]].log() for i in range(30)]
                           for b in range(2)])
    EXERCISE.same(confidence, wanted, "log p of the code that was drawn, likely or not")


def surest(logits, generator):
    """No chance at all: every sample of a condition would be the same."""
    confidence, tokens = logits.log_softmax(2).max(2)
    return tokens, confidence


def normal_noise(logits, generator):
    """argmax(logits + noise) samples the softmax for Gumbel noise only."""
    tokens = (logits + torch.randn(logits.shape, generator=generator)).argmax(2)
    return tokens, logits.log_softmax(2).gather(2, tokens[..., None])[..., 0]


def confidence_of_the_likeliest(logits, generator):
    return EXERCISE.solution(logits, generator)[0], logits.log_softmax(2).amax(2)


def probability(logits, generator):
    tokens, confidence = EXERCISE.solution(logits, generator)
    return tokens, confidence.exp()


def without_generator(logits, generator):
    return EXERCISE.solution(logits, None)


@pytest.mark.parametrize("wrong, by", [
    (surest, test_codes_come_up_as_often_as_the_softmax_says),
    (normal_noise, test_codes_come_up_as_often_as_the_softmax_says),
    (without_generator, test_each_place_draws_for_itself_and_from_the_generator),
    (confidence_of_the_likeliest, test_confidence_is_the_log_probability_of_what_was_drawn),
    (probability, test_confidence_is_the_log_probability_of_what_was_drawn)])
def test_wrong_answers_are_refused(wrong, by):
    EXERCISE.refuses(wrong, by)
