"""Exercise 6: the nearest code, with the gradient straight through (Sec. 3.1)."""
from dataclasses import replace

import torch
from course import exercise

from tokenizer import TOKENIZERS, VectorQuantizer


def solution(latents, codebook):
    K, D = codebook.shape
    quantizer = VectorQuantizer(replace(TOKENIZERS["toy"], codebook_size=K, embedding_dim=D))
    quantizer.codebook.data.copy_(codebook)
    found = quantizer(latents.T.reshape(1, D, -1, 1, 1))
    return found.embeddings.reshape(D, -1).T, found.tokens.flatten()


def check(quantize):
    codebook = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    latents = torch.tensor([[0.1, 0.2], [0.9, -0.3], [0.2, 1.4], [0.6, 0.1]], requires_grad=True)
    embeddings, tokens = quantize(latents, codebook)
    assert tokens.tolist() == [0, 1, 2, 1], "the nearest code in squared distance"
    assert torch.allclose(embeddings, codebook[tokens], atol=1e-6), "forward: the code itself"
    assert embeddings.requires_grad, "no gradient reaches the encoder: it would never learn"
    weight = torch.arange(8.0).view(4, 2)
    (embeddings * weight).sum().backward()
    assert torch.allclose(latents.grad, weight), (
        "backward: the gradient of the embeddings goes to the latents unchanged")


def nearest(latents, codebook):
    return torch.cdist(latents, codebook).argmin(1)


test_the_answer, test_a_mistake_is_refused = exercise(
    6, "quantize(latents, codebook)", solution, check,
    {"no gradient": lambda latents, codebook: (
        codebook[nearest(latents, codebook)], nearest(latents, codebook)),
     "the latents themselves": lambda latents, codebook: (latents, nearest(latents, codebook)),
     "the largest product": lambda latents, codebook: (
         latents + (codebook[(latents @ codebook.T).argmax(1)] - latents).detach(),
         (latents @ codebook.T).argmax(1))})
