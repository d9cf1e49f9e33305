"""Exercise 8: a sample of softmax(logits) as an argmax, by Gumbel noise (Algorithm 1 line 4)."""
import torch
from course import exercise


def solution(logits, uniform):
    return (logits - torch.log(-torch.log(uniform))).argmax(-1)


def check(sample):
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0])
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(40_000, 4, generator=generator).clamp(1e-20, 1 - 1e-7)
    drawn = sample(logits.expand(40_000, 4), uniform)
    assert drawn.shape == (40_000,) and drawn.dtype == torch.int64
    share = torch.bincount(drawn, minlength=4) / 40_000
    assert (share - logits.softmax(0)).abs().max() < 0.01, (
        f"drawn {share.tolist()}, softmax {logits.softmax(0).tolist()}: argmax(logits + g) with "
        "g = -log(-log(u)) is a sample of softmax(logits)")
    same = sample(logits.expand(40_000, 4), uniform)
    assert torch.equal(drawn, same), "all chance is in `uniform`: the same noise, the same sample"


test_the_answer, test_a_mistake_is_refused = exercise(
    8, "sample(logits, uniform)", solution, check,
    {"no chance": lambda logits, uniform: logits.argmax(-1),
     "plain noise": lambda logits, uniform: (logits + uniform).argmax(-1),
     "a sign lost": lambda logits, uniform: (logits + torch.log(-torch.log(uniform))).argmax(-1)})
