"""MAGVIT-v2's token factorization and guidance: factors, their product, the same decoding."""
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from commit import commit_loss
from data.moving_shapes import MovingShapes
from decode import commit_decode, seeded_noise
from magvit2.factorized import (FACTORIZED_TRANSFORMERS, FactorizedConfig, FactorizedTransformer,
                                codes_of, digits_of, power_cosine)
from magvit2.presets import PRESETS
from training.checkpoint import as_plain, from_plain
from training.processes import Processes
from training.start import transformer_config, without_weights
from training.tokens import TokenSource
from transformer import MaskedTransformer

SMALL = FactorizedConfig(num_layers=2, hidden_size=32, num_heads=2, mlp_size=64, hidden_dropout=0.0,
                         attention_dropout=0.0, codebook_size=16, num_tokens=6, num_classes=3,
                         initial_deviation=0.3)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SMALL.build().eval()


def batch(model, B=2, seed=0):
    """Sequences of which every other token is [MASK], their tasks and labels."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(16, (B, 6), generator=generator)
    tokens[:, ::2] = model.mask_id
    return tokens, torch.zeros(B, dtype=torch.long), torch.ones(B, dtype=torch.long)


def joint(logits):
    """Logits (B, N, K) of the codes whose probability is the product of their digits'."""
    low, high = F.log_softmax(logits, -1).unbind(2)
    return (high[..., :, None] + low[..., None, :]).flatten(-2)


@pytest.mark.parametrize("factors, base", [(1, 64), (2, 8), (3, 4), (6, 2)])
def test_digits_are_those_of_the_code_in_base_k_lowest_first(factors, base):
    codes = torch.arange(64).view(4, 16)
    digits = digits_of(codes, factors, base)
    assert digits.min() == 0 and digits.max() == base - 1
    assert torch.equal(codes, sum(digits[..., i] * base ** i for i in range(factors)))
    assert torch.equal(codes, codes_of(digits, base))


# ---------------------------------------------------------------------------------------------
# The product

def test_cross_entropy_is_the_softmax_over_all_codes_where_the_joint_is_a_product(model):
    logits = model(*batch(model))
    assert logits.shape == (2, 6, 2, 4)
    target = torch.randint(16, (2, 6))
    ours = model.cross_entropy(logits, target)
    whole = MaskedTransformer.cross_entropy(model, joint(logits), target)
    torch.testing.assert_close(ours, whole, atol=1e-5, rtol=1e-5)
    scores, is_pad = torch.rand(2, 6), torch.arange(6) > 3
    parts = [commit_loss(losses, is_pad, scores, scores.median(1).values, (1.0, 1.0, 1.0))
             for losses in (ours, whole)]
    torch.testing.assert_close(torch.stack(parts[0]), torch.stack(parts[1]), atol=1e-5, rtol=1e-5)
    for code in (-1, 16):                            # no code, and not taken for another
        with pytest.raises((IndexError, RuntimeError)):
            model.cross_entropy(logits, torch.full((2, 6), code))


def test_smoothing_is_of_each_factor(model):
    logits, target = torch.randn(1, 6, 2, 4), torch.randint(16, (1, 6))
    digits = digits_of(target, 2, 4)
    wanted = sum(F.cross_entropy(logits[0, :, i], digits[0, :, i], label_smoothing=0.1,
                                 reduction="none") for i in range(2))
    torch.testing.assert_close(model.cross_entropy(logits, target, 0.1)[0], wanted)


def test_codes_are_drawn_from_the_product_with_its_log_probability(model):
    logits, count = torch.randn(1, 1, 2, 4, generator=torch.Generator().manual_seed(0)), 40_000
    noise = seeded_noise(1)(torch.Size((count, 1, 2, 4)))
    drawn, log_probability = model.sample(logits.expand(count, -1, -1, -1), noise)
    share = torch.bincount(drawn.flatten(), minlength=16) / count
    wanted = joint(logits)[0, 0].exp()
    assert (share - wanted).abs().max() < 4 * (wanted * (1 - wanted) / count).sqrt().max()
    torch.testing.assert_close(log_probability.exp(), wanted[drawn])


def test_algorithm_1_without_noise_decides_as_it_would_on_the_codes_themselves(model):
    class Whole(FactorizedTransformer):
        """The same model, its logits spelled out for all 16 codes."""

        sample = MaskedTransformer.sample

        def forward(self, *given):
            return joint(super().forward(*given))

    whole = Whole(SMALL).eval()
    whole.load_state_dict(model.state_dict())
    (_, task, label), is_pad = batch(model, 4), torch.arange(6) > 1
    condition = torch.randint(16, (4, 6))
    for scale in (0.0, 1.5):
        ours, theirs = (list(commit_decode(
            each, task, label, condition, is_pad, steps=3, temperature=0.0, noise=torch.zeros,
            guidance_scale=scale)) for each in (model, whole))
        for a, b in zip(ours, theirs):
            assert torch.equal(a.tokens, b.tokens) and torch.equal(a.unknown, b.unknown)
            torch.testing.assert_close(a.confidence, b.confidence, atol=1e-5, rtol=1e-5)
        assert ours[-1].tokens.max() < 16


def test_two_factors_cannot_say_that_they_agree(model):
    """The best of them for codes 00, 11, 22, 33 is uniform: twice the entropy of the codes."""
    logits = torch.zeros(1, 1, 2, 4, requires_grad=True)
    agreeing = torch.tensor([[0], [5], [10], [15]])
    loss = model.cross_entropy(logits.expand(4, -1, -1, -1), agreeing).mean()
    assert math.isclose(loss.item(), 2 * math.log(4), rel_tol=1e-6)
    gradient, = torch.autograd.grad(loss, logits)
    assert gradient.abs().max() < 1e-7                           # no better one is near


# ---------------------------------------------------------------------------------------------
# The network

@pytest.mark.parametrize("changes, count", [
    (dict(), 306_780_160),                                       # Kinetics-600: 306.78 M
    (dict(num_classes=1000, num_tokens=256, tasks=()), 306_753_536)])        # pictures: 306.75 M
def test_the_sizes_are_those_of_magvit_v2s_masked_models(changes, count):
    network = without_weights(replace(FACTORIZED_TRANSFORMERS["L"], **changes).build)
    assert sum(p.numel() for p in network.parameters()) == count


def test_an_embedding_is_the_sum_of_the_factors_and_mask_covers_whole_positions(model):
    tokens, task, label = batch(model)
    prefix, vectors = model.embed(tokens, task, label).split((2, 6), dim=1)
    table = model.token_embedding.weight             # 3 classes, "no class", 10 prompts, [MASK]
    assert len(table) == 15 and torch.equal(vectors[:, ::2], table[-1].expand(2, 3, -1))
    assert torch.equal(prefix[0], table[[4, 1]])                 # the first prompt, class 1
    low, high = (each.weight for each in model.digit_embeddings)
    code = tokens[0, 1].item()
    torch.testing.assert_close(vectors[0, 1], low[code % 4] + high[code // 4])


def test_each_head_is_tied_to_the_table_of_its_own_factor(model):
    tokens, task, label = batch(model)
    tokens[:, 1::2] = tokens[0, 1]                               # one code is shown, and [MASK]
    other = (tokens[0, 1] // 4 + 1) % 4                          # a digit that it has not
    before = model(tokens, task, label)
    with torch.no_grad():
        model.digit_embeddings[1].weight[other] += torch.randn(32)
    moved = (model(tokens, task, label) - before).abs().amax((0, 1))         # (factors, K_f)
    assert moved[1, other] > 1e-3 and moved[0].max() == 0


def test_a_step_moves_every_parameter(model):
    model.cross_entropy(model(*batch(model)), torch.randint(16, (2, 6))).mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_the_presets_predict_factors_and_a_checkpoint_says_so():
    config = transformer_config(PRESETS["k600-v2"], num_classes=0)
    assert (config.codebook_size, config.factor_size, config.num_tokens) == (2 ** 18, 512, 1280)
    plain = as_plain(config)
    assert plain["type"] == "magvit2.factorized.FactorizedConfig" and from_plain(plain) == config
    toy = transformer_config(replace(PRESETS["toy-v2"], transformer="toy"), num_classes=16)
    assert isinstance(toy.build(), FactorizedTransformer) and toy.factor_size == 32
    with pytest.raises(ValueError, match="1000 codes are no 2 factors"):
        replace(SMALL, codebook_size=1000)


# ---------------------------------------------------------------------------------------------
# Guidance

@pytest.mark.parametrize("power", [1.0, 3.0])
def test_the_power_cosine_rises_from_none_to_all_as_mdt_defines_it(power):
    scale = power_cosine(24.0, power)
    assert scale(0.0) == 0 and math.isclose(scale(1.0), 24)
    for progress in (0.25, 0.5, 0.9):
        s = 1 + (25 - 1) * (1 - math.cos(math.pi * progress ** power)) / 2       # u + s (c - u)
        conditional, unconditional = 0.7, -0.4
        ours = conditional + scale(progress) * (conditional - unconditional)
        assert math.isclose(ours, unconditional + s * (conditional - unconditional), rel_tol=1e-9)


def test_classes_are_dropped_as_often_as_a_run_asks(tmp_path):
    """Guidance's unconditional half, App. A.1: the label of one clip in ten becomes "no class"."""
    config = replace(PRESETS["toy-v2"], frames=1, inflate="", tasks=("CG",), class_dropout=0.1,
                     transformer_batch=64, token_pool=8, precision="float32")
    tokenizer = config.tokenizer_config().build()
    source = TokenSource(tokenizer, MovingShapes("train", 1), config, Processes(), 16,
                         pool=tmp_path / "pool")
    labels = torch.cat([source(step).label for step in range(40)])
    source.close()
    assert 0.07 < (labels == 16).float().mean() < 0.13 and labels.unique().numel() > 4
