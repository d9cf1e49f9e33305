"""MAGVIT-v2's token factorization and guidance: factors, their product, the same decoding."""
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import magvit2.factorized as factorized
from commit import codes_of, commit_loss, digits_of, token_cross_entropy
from decode import commit_decode, guided_logits
from magvit2.factorized import (FACTORIZED_TRANSFORMERS, FactorizedConfig, FactorizedTransformer,
                                power_cosine)
from training.build import as_plain, build_transformer, from_plain, transformer_config
from training.presets import PRESETS
from transformer import MaskedTransformer, TransformerConfig

SMALL = FactorizedConfig(num_layers=2, hidden_size=32, num_heads=2, mlp_size=64, hidden_dropout=0.0,
                         attention_dropout=0.0, codebook_size=16, num_tokens=6, num_classes=3)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return FactorizedTransformer(replace(SMALL, initial_deviation=0.3)).eval()


def batch(model, B=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(16, (B, 6), generator=generator)
    tokens[:, ::2] = model.mask_id
    return tokens, torch.zeros(B, dtype=torch.long), torch.ones(B, dtype=torch.long)


def joint(logits):
    """Logits (B, N, K) of the codes whose probability is the product of their digits'."""
    low, high = F.log_softmax(logits, -1).unbind(2)
    return (high[..., :, None] + low[..., None, :]).flatten(-2)


# ---------------------------------------------------------------------------------------------
# Codes and digits

@pytest.mark.parametrize("factors, base", [(1, 64), (2, 8), (3, 4), (6, 2)])
def test_digits_are_those_of_the_code_in_base_k_lowest_first(factors, base):
    codes = torch.arange(64).view(4, 16)
    logits = torch.empty(4, 16, factors, base) if factors > 1 else torch.empty(4, 16, base)
    digits = digits_of(codes, logits)
    assert digits.shape == logits.shape[:-1]
    for code, digit in zip(codes.flatten().tolist(), digits.reshape(64, -1).tolist()):
        assert code == sum(value * base ** place for place, value in enumerate(digit))
        assert all(0 <= value < base for value in digit)
    assert torch.equal(codes_of(digits, base), codes)


def test_a_code_outside_of_the_codebook_is_not_taken_for_another():
    with pytest.raises((IndexError, RuntimeError)):
        token_cross_entropy(torch.zeros(1, 2, 4), torch.tensor([[0, 4]]))


# ---------------------------------------------------------------------------------------------
# The product

def test_the_factors_cross_entropy_is_the_softmax_over_all_codes_where_the_joint_is_a_product(
        model):
    tokens, task, label = batch(model)
    logits = model(tokens, task, label)
    assert logits.shape == (2, 6, 2, 4)
    target = torch.randint(16, (2, 6))
    whole = F.cross_entropy(joint(logits).transpose(1, 2), target, reduction="none")
    assert torch.allclose(token_cross_entropy(logits, target), whole, atol=1e-5)
    scores, is_pad = torch.rand(2, 6), torch.arange(6) > 3
    cutoff = scores.median(1).values
    ours = commit_loss(logits, target, is_pad, scores, cutoff, 0.0)
    theirs = commit_loss(joint(logits), target, is_pad, scores, cutoff, 0.0)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs))


def test_codes_drawn_digit_by_digit_are_drawn_from_the_product():
    torch.manual_seed(0)
    logits = torch.randn(1, 1, 2, 4)
    generator, count = torch.Generator().manual_seed(1), 40_000
    uniform = torch.rand(count, 1, 2, 4, generator=generator)
    drawn = codes_of((logits - torch.log(-torch.log(uniform))).argmax(-1), 4)
    share = torch.bincount(drawn.flatten(), minlength=16) / count
    wanted = joint(logits)[0, 0].exp()
    assert (share - wanted).abs().max() < 4 * (wanted * (1 - wanted) / count).sqrt().max()


def test_algorithm_1_without_noise_decides_as_it_would_on_the_codes_themselves(model):
    class Whole:
        """The same model, its logits spelled out for all 16 codes."""

        mask_id = model.mask_id

        def __call__(self, tokens, task, label):
            return joint(model(tokens, task, label))

    tokens, task, label = batch(model, 4)
    condition, is_pad = torch.randint(16, (4, 6)), torch.arange(6) > 1
    ask = dict(steps=3, temperature=0.0, noise=lambda shape: torch.zeros(shape))
    ours = list(commit_decode(model, task, label, condition, is_pad, **ask))
    theirs = list(commit_decode(Whole(), task, label, condition, is_pad, **ask))
    for a, b in zip(ours, theirs):
        assert torch.equal(a.tokens, b.tokens) and torch.equal(a.unknown, b.unknown)
        assert torch.allclose(a.confidence, b.confidence, atol=1e-5)
    assert ours[-1].tokens.max() < 16


# ---------------------------------------------------------------------------------------------
# The network

@pytest.mark.parametrize("changes, count", [
    (dict(), 306_780_160),                                       # Kinetics-600: 306.78 M
    (dict(num_classes=1000, num_tokens=256, num_tasks=0, task_names=()), 306_753_536)])  # 306.75 M
def test_the_sizes_are_those_of_magvit_v2s_masked_models(changes, count):
    with torch.device("meta"):
        network = FactorizedTransformer(replace(FACTORIZED_TRANSFORMERS["L"], **changes))
    assert sum(p.numel() for p in network.parameters()) == count


def test_an_embedding_is_the_sum_of_the_factors_and_mask_covers_whole_positions(model):
    tokens, task, label = batch(model)
    vectors = model.embed(tokens, task, label)[:, 2:]
    mask = model.token_embedding.weight[-1]
    assert torch.equal(vectors[:, ::2], mask.expand(2, 3, -1))
    low, high = (table.weight for table in model.digit_embeddings)
    code = tokens[0, 1].item()
    assert torch.allclose(vectors[0, 1], low[code % 4] + high[code // 4])


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
    tokens, task, label = batch(model)
    loss = token_cross_entropy(model(tokens, task, label), torch.randint(16, (2, 6))).mean()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_a_codebook_that_is_no_power_is_refused_in_one_line():
    with pytest.raises(ValueError, match="1000 codes are no 2 factors") as error:
        replace(SMALL, codebook_size=1000)
    assert "\n" not in str(error.value)


def test_the_presets_of_the_sequel_predict_factors_and_a_checkpoint_says_so():
    config = transformer_config(PRESETS["k600-v2"], num_classes=0)
    assert (config.codebook_size, config.factor_size, config.num_tokens) == (2 ** 18, 512, 1280)
    assert from_plain(as_plain(config)) == config
    toy = transformer_config(replace(PRESETS["toy-v2"], transformer="v2 toy"), num_classes=16)
    network = build_transformer(toy)
    assert isinstance(network, FactorizedTransformer) and network.config.factor_size == 32
    with pytest.raises(ValueError, match="transformer 'v2 H' is unknown; .*v2 L, v2 toy"):
        transformer_config(replace(PRESETS["toy-v2"], transformer="v2 H"), num_classes=0)


def test_two_factors_cannot_say_that_they_agree():
    """The best of them for codes 00, 11, 22, 33 is uniform: twice the entropy of the codes."""
    logits = torch.zeros(1, 4, 2, 4, requires_grad=True)
    loss = token_cross_entropy(logits, torch.tensor([[0, 5, 10, 15]])).mean()
    assert math.isclose(loss.item(), 2 * math.log(4), rel_tol=1e-6)
    (gradient,) = torch.autograd.grad(token_cross_entropy(
        logits.expand(4, -1, -1, -1), torch.tensor([[0], [5], [10], [15]]).expand(4, 4)
    ).mean(), logits)
    assert gradient.abs().max() < 1e-7                           # no better one is near


# ---------------------------------------------------------------------------------------------
# Guidance

def test_guidance_is_logits_plus_scale_times_what_the_class_adds(model):
    tokens, task, label = batch(model)
    scores, cutoff = torch.rand(2, 6), torch.full((2,), 0.5)
    masked = torch.where(scores <= 0.5, model.mask_id, torch.randint(16, (2, 6)))
    plain = model(masked, task, label)
    no_class = torch.full_like(label, model.no_class)
    unconditional = model(torch.where(scores <= 0.5, model.mask_id, tokens % 16),
                          torch.full_like(task, 8), no_class)
    guided = guided_logits(model, masked, tokens % 16, task, label, scores, cutoff, 2.5)
    assert torch.allclose(guided, plain + 2.5 * (plain - unconditional), atol=1e-4)


@pytest.mark.parametrize("power", [1.0, 3.0])
def test_the_power_cosine_rises_from_none_to_all_as_mdt_defines_it(power):
    scale = power_cosine(24.0, power)
    assert scale(0.0) == 0 and math.isclose(scale(1.0), 24)
    for progress in (0.25, 0.5, 0.9):
        s = 1 + (25 - 1) * (1 - math.cos(math.pi * progress ** power)) / 2       # u + s (c - u)
        conditional, unconditional = 0.7, -0.4
        ours = conditional + scale(progress) * (conditional - unconditional)
        assert math.isclose(ours, unconditional + s * (conditional - unconditional), rel_tol=1e-9)
    with pytest.raises(ValueError, match="wanted above 0"):
        power_cosine(1.0, 0.0)


def test_decoding_asks_a_scale_that_changes_at_each_step(model):
    tokens, task, label = batch(model)
    asked = []

    def scale(progress):
        asked.append(progress)
        return 0.0

    condition, is_pad = torch.zeros(2, 6, dtype=torch.long), torch.ones(6, dtype=torch.bool)
    changing, plain = ([state.tokens for state in commit_decode(
        model, task, label, condition, is_pad, steps=4, guidance_scale=each,
        generator=torch.Generator().manual_seed(0))] for each in (scale, 0.0))
    assert asked == [0.0, 0.25, 0.5, 0.75]
    assert all(torch.equal(a, b) for a, b in zip(changing, plain))


def test_a_model_of_whole_codes_is_what_it_was():
    """One factor: digits are the codes, and nothing is added."""
    torch.manual_seed(0)
    whole = MaskedTransformer(TransformerConfig(**{
        name: value for name, value in vars(SMALL).items() if name != "factors"}))
    logits = whole(*batch(whole))
    tokens = torch.randint(16, (2, 6))
    assert digits_of(tokens, logits) is not None and torch.equal(digits_of(tokens, logits), tokens)
    assert torch.equal(token_cross_entropy(logits, tokens), F.cross_entropy(
        logits.transpose(1, 2), tokens, reduction="none"))


def test_the_room_shows_its_idea(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["factorized.py"])
    factorized.main()
    assert "306,780,160" in capsys.readouterr().out
