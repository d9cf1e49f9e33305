"""Exercise 4: nearest code, straight-through gradient (Sec. 3.1)."""
import pytest
import torch
from torch.func import functional_call

from exercises.lesson import Exercise
from tokenizer import TokenizerConfig, VectorQuantizer


def solution(latents, codebook):
    codes, width = codebook.shape
    quantizer = VectorQuantizer(TokenizerConfig(codebook_size=codes, embedding_dim=width))
    quantized = functional_call(quantizer, {"codebook": codebook}, latents)
    return quantized.embeddings, quantized.tokens


EXERCISE = Exercise("quantize(latents, codebook)", "Sec. 3.1, f_T, and Sec. 3.2 of van den Oord et "
                    "al. 2017, the paper's [62]", solution)
PARTS = "embeddings, tokens"


@pytest.fixture
def latents():
    return torch.randn(2, 5, 2, 3, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def codebook():
    return 2 * torch.randn(7, 5, generator=torch.Generator().manual_seed(1))


def test_a_token_is_the_nearest_code(answer):
    """Near is squared distance: (3, 3) is 8 away from (1, 1) and 10 from (4, 0)."""
    codebook = torch.tensor([[0.0, 0.0], [1.0, 1.0], [4.0, 0.0]])
    latents = torch.tensor([[0.9, 0.8], [3.0, 3.0], [3.0, 0.5]]).T.view(1, 2, 1, 1, 3)
    _, tokens = EXERCISE.parts(answer(latents, codebook), PARTS)
    EXERCISE.same(tokens, torch.tensor([[[[1, 1, 2]]]]),
                  "the latents (0.9, 0.8), (3, 3), (3, 0.5) and codes (0, 0), (1, 1), (4, 0)")


def test_every_place_of_the_grid_gets_its_own_code(answer, latents, codebook):
    embeddings, tokens = EXERCISE.parts(answer(latents, codebook), PARTS)
    wanted, codes = torch.zeros(2, 2, 3, 4, dtype=torch.long), codebook.tolist()
    for b, t, h, w in torch.cartesian_prod(*map(torch.arange, wanted.shape)).tolist():
        z = latents[b, :, t, h, w].tolist()
        distances = [sum((x - y) ** 2 for x, y in zip(z, code)) for code in codes]
        wanted[b, t, h, w] = distances.index(min(distances))
    EXERCISE.same(tokens, wanted, "tokens (B, t, h, w) are indices of the nearest codes")
    EXERCISE.same(embeddings, codebook[wanted].permute(0, 4, 1, 2, 3),
                  "embeddings (B, D, t, h, w) are those codes, laid out as the latents are")


def test_the_gradient_goes_straight_through_to_the_latents(answer, latents, codebook):
    latents, codebook = latents.requires_grad_(), codebook.requires_grad_()
    embeddings, _ = EXERCISE.parts(answer(latents, codebook), PARTS)
    slope = torch.linspace(-1, 1, latents.numel()).view(latents.shape)
    EXERCISE.holds(embeddings.requires_grad, "embeddings have a gradient")
    to_latents, to_codes = torch.autograd.grad((embeddings * slope).sum(), (latents, codebook),
                                               allow_unused=True)
    EXERCISE.holds(to_latents is not None, "the gradient of the embeddings reaches the latents")
    EXERCISE.same(to_latents, slope, "the latents get the embeddings' gradient as it is")
    EXERCISE.holds(to_codes is None or not to_codes.any(),
                   "no gradient goes from the embeddings to the codebook: a loss of its own, "
                   "codebook_loss in tokenizer.py, moves that")


def largest_product(latents, codebook):
    """Long codes win."""
    tokens = torch.einsum("bdthw,kd->bkthw", latents, codebook).argmax(1)
    codes = codebook[tokens].movedim(-1, 1)
    return latents + (codes - latents).detach(), tokens


def without_straight_through(latents, codebook):
    """argmin has no gradient: the encoder would never learn."""
    tokens = EXERCISE.solution(latents, codebook)[1]
    return codebook[tokens].movedim(-1, 1), tokens


def latents_as_they_are(latents, codebook):
    return latents, EXERCISE.solution(latents, codebook)[1]


def test_wrong_answers_are_refused(latents, codebook):
    EXERCISE.refuses(largest_product, by=test_a_token_is_the_nearest_code)
    for wrong, by in (
            (latents_as_they_are, test_every_place_of_the_grid_gets_its_own_code),
            (without_straight_through, test_the_gradient_goes_straight_through_to_the_latents)):
        EXERCISE.refuses(wrong, by, latents, codebook)
