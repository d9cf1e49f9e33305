"""Eq. (2) and Algorithm 1 as slow, plain Python, token by token, for the tests to compare with."""
import math


def commit_mask(tokens, condition_tokens, is_pad, scores, cutoff, mask_id):
    """Eq. (2) for one example: lists of N."""
    corrupted = []
    for z, z_tilde, pad, s in zip(tokens, condition_tokens, is_pad, scores):
        if s <= cutoff and not pad:
            corrupted.append(z_tilde)
        elif s <= cutoff and pad:
            corrupted.append(mask_id)
        else:
            corrupted.append(z)
    return corrupted


def ceil_count(ratio, N):
    """ceil(ratio * N), at least 1; a whole number up to rounding is that number."""
    exact = ratio * N
    return max(1, round(exact) if abs(exact - round(exact)) < 1e-6 else math.ceil(exact))


def gamma(r):
    return math.cos(math.pi / 2 * r)


def smallest(scores, n):
    """The n-th smallest, counted from 1."""
    return sorted(scores)[n - 1]


def algorithm_1(predict, condition_tokens, is_pad, steps, mask_id, sample):
    """Algorithm 1 as printed, for one example; yields (inputs, tokens, scores, cutoff) per step.

    predict(z_bar) -> per position a list of K probabilities; sample(probabilities, t, i) -> code.
    """
    N = len(condition_tokens)
    s, cutoff, z_hat = [0.0] * N, 1.0, [0] * N                                     # line 1
    for t in range(steps):                                                         # line 2
        z_bar = commit_mask(z_hat, condition_tokens, is_pad, s, cutoff, mask_id)   # line 3
        p = predict(z_bar)
        redone = [i for i in range(N) if s[i] <= cutoff]
        for i in redone:
            z_hat[i] = sample(p[i], t, i)                                          # line 4
        for i in redone:
            s[i] = p[i][z_hat[i]]                                                  # line 5
        cutoff = smallest(s, ceil_count(gamma((t + 1) / steps), N))                # line 6
        for i in range(N):
            if s[i] > cutoff:
                s[i] = 1.0                                                         # line 7
        yield z_bar, list(z_hat), list(s), cutoff                                  # line 8
