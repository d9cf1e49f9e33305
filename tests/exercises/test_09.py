"""Exercise 9: a sample and its confidence, lines 4 and 5 of Algorithm 1 (Sec. 3.2)."""
import pytest
import torch

from decode import gumbel_noise
from exercises.lesson import Exercise
from transformer import MaskedTransformer

EXERCISE = Exercise("sample(logits, noise)", "Sec. 3.2, Algorithm 1, lines 4 and 5",
                    lambda *inputs: MaskedTransformer.sample(None, *inputs))
PARTS = "tokens, confidence"
CHANCES = torch.tensor([0.15, 0.8, 0.05])


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), gumbel_noise(shape, generator)


def test_codes_come_up_as_often_as_the_softmax_says(answer):
    logits = (CHANCES.log() + 3).expand(2, 10_000, 3)
    tokens, _ = EXERCISE.parts(answer(logits, draw(2, 10_000, 3)[1]), PARTS)
    EXERCISE.holds(isinstance(tokens, torch.Tensor) and tokens.shape == (2, 10_000)
                   and tokens.dtype == torch.long,
                   "tokens are (B, N) and int64, one code for each place")
    EXERCISE.same(torch.stack([(tokens == k).float().mean() for k in range(3)]), CHANCES,
                  "shares of three codes in 20,000 draws, within 0.02", tolerance=0.02)


def test_chance_is_the_noise_alone(answer):
    logits, noise = draw(2, 50, 4)
    tokens = [EXERCISE.parts(answer(logits, noise), PARTS)[0] for noise in (noise, 1 * noise)]
    EXERCISE.same(tokens[1], tokens[0], "the same noise draws the same tokens")
    likeliest, _ = EXERCISE.parts(answer(logits, 0 * noise), PARTS)
    EXERCISE.same(likeliest, logits.argmax(2), "without noise the likeliest code is drawn")


def test_confidence_is_the_log_probability_of_what_was_drawn(answer):
    logits, noise = draw(2, 30, 5)
    tokens, confidence = EXERCISE.parts(answer(logits, noise), PARTS)
    wanted = torch.tensor([[logits[b, i].softmax(0)[tokens[b, i]].log() for i in range(30)]
                           for b in range(2)])
    EXERCISE.same(confidence, wanted, "log p of the code that was drawn, likely or not")


def surest(logits, noise):
    """No chance at all: every sample of a condition would be the same."""
    confidence, tokens = logits.log_softmax(2).max(2)
    return tokens, confidence


def of_its_own(logits, noise):
    """Right, but nobody could draw the same sample twice."""
    return EXERCISE.solution(logits, gumbel_noise(logits.shape))


def noise_in_the_confidence(logits, noise):
    """The noise decided which code it is; it says nothing of how likely that one was."""
    confidence, tokens = (logits + noise).log_softmax(2).max(2)
    return tokens, confidence


def confidence_of_the_likeliest(logits, noise):
    return EXERCISE.solution(logits, noise)[0], logits.log_softmax(2).amax(2)


def probability(logits, noise):
    tokens, confidence = EXERCISE.solution(logits, noise)
    return tokens, confidence.exp()


@pytest.mark.parametrize("wrong, by", [
    (surest, test_codes_come_up_as_often_as_the_softmax_says),
    (of_its_own, test_chance_is_the_noise_alone),
    (noise_in_the_confidence, test_confidence_is_the_log_probability_of_what_was_drawn),
    (confidence_of_the_likeliest, test_confidence_is_the_log_probability_of_what_was_drawn),
    (probability, test_confidence_is_the_log_probability_of_what_was_drawn)])
def test_wrong_answers_are_refused(wrong, by):
    EXERCISE.refuses(wrong, by)
