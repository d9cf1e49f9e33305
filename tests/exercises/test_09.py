"""Exercise 9: Algorithm 1 as printed, without noise: the likeliest code at every place."""
import torch
from course import exercise
from oracle import algorithm_1

from decode import commit_decode

N, K, STEPS, MASK = 12, 6, 4, 6


class Model(torch.nn.Module):
    """Guesses from what it sees: some function of all the tokens."""

    mask_id, no_class, prompts = MASK, 0, ("FP",)

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = torch.randn(K + 1, N, K, generator=generator)

    def forward(self, tokens, task, label):
        seen = self.table[tokens].mean(1)                                          # (B, N, K)
        return 3 * seen + self.table[tokens, torch.arange(N)]


def solution(predict, condition_tokens, is_pad, steps, mask_id):
    model = Model()
    model.forward = lambda tokens, task, label: predict(tokens)
    task = torch.zeros(len(condition_tokens), dtype=torch.long)
    for state in commit_decode(model, task, task, condition_tokens, is_pad, steps=steps,
                               temperature=0.0, noise=torch.zeros):
        pass
    return state.tokens


def check(decode):
    model, steps_seen = Model(), []
    condition = torch.tensor([[1, 2, 3, 4, 5, 0] * 2, [0, 0, 1, 1, 2, 2] * 2])
    is_pad = torch.arange(N) % 3 == 0

    def predict(tokens):
        steps_seen.append(tokens.clone())
        return model(tokens, None, None)

    found = decode(predict, condition, is_pad, STEPS, MASK)
    assert len(steps_seen) == STEPS, "the transformer is asked once a step, for all examples"
    first = torch.where(is_pad, MASK, condition)
    assert torch.equal(steps_seen[0], first), "the first step sees no token, only the condition"
    for b in range(2):
        for step, (z_bar, z_hat, *_) in enumerate(algorithm_1(
                lambda z: model(torch.tensor([z]), None, None)[0].softmax(-1).tolist(),
                condition[b].tolist(), is_pad.tolist(), STEPS, MASK,
                lambda p, t, i: max(range(K), key=p.__getitem__))):
            assert steps_seen[step][b].tolist() == z_bar, (
                f"line 3 in step {step}: the transformer was given other tokens")
        assert found[b].tolist() == z_hat, "line 9: the tokens after the last step"


def all_at_once(predict, condition_tokens, is_pad, steps, mask_id):
    return predict(torch.where(is_pad, mask_id, condition_tokens)).argmax(-1)


def never_reads_its_own(predict, condition_tokens, is_pad, steps, mask_id):
    for _ in range(steps):
        tokens = all_at_once(predict, condition_tokens, is_pad, steps, mask_id)
    return tokens


test_the_answer, test_a_mistake_is_refused = exercise(
    9, "decode(predict, condition_tokens, is_pad, steps, mask_id)", solution, check,
    {"all in one step": all_at_once, "decided tokens are not shown": never_reads_its_own})
