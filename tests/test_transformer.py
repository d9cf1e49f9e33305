"""transformer.py: Sec. 3.2 (p_theta), Sec. 4.1, App. A.2 and its Table 1."""
import math
from dataclasses import replace

import pytest
import torch

from commit import MT10
from transformer import TRANSFORMERS, Attention, MaskedTransformer, TransformerConfig

TINY = TransformerConfig(num_layers=2, hidden_size=16, num_heads=4, mlp_size=32, codebook_size=20,
                         num_tokens=12, num_classes=3)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return TINY.build().eval()


@pytest.fixture
def inputs(generator):
    """tokens (2, 12), task (2,), label (2,)."""
    return (torch.randint(20, (2, 12), generator=generator), torch.tensor([0, 9]),
            torch.tensor([1, 3]))


@pytest.mark.parametrize("size, classes, prompts, expected, within", [
    ("B", 101, 10, 87e6, 5e-3), ("L", 101, 10, 305.5e6, 5e-3), ("H", 101, 10, 634e6, 5e-3),
    ("B", 101, 0, 87_301_991, 0), ("L", 101, 0, 305_567_847, 0), ("H", 101, 0, 634_078_567, 0),
    ("B", 0, 15, 87_236_625, 0), ("L", 174, 15, 305_659_071, 0)])
def test_table_1_parameters_are_the_papers_and_with_the_official_vocabulary_exact(
        size, classes, prompts, expected, within):
    config = replace(TRANSFORMERS[size], num_classes=classes, tasks=tuple(map(str, range(prompts))))
    with torch.device("meta"):
        count = sum(p.numel() for p in config.build().parameters())
    assert count == pytest.approx(expected, rel=within, abs=0)


@pytest.mark.parametrize("tasks", [MT10, ("CFP", "NEW", "CG"), ()])
def test_the_vocabulary_is_codes_classes_no_class_prompts_and_mask(tasks):
    model = replace(TINY, tasks=tasks).build()
    prompts = torch.arange(len(tasks))
    assert model.config.vocabulary_size == 20 + 3 + 1 + len(tasks) + 1 == model.mask_id + 1
    prefix = model.prefix(prompts, torch.full_like(prompts, model.no_class))
    assert prefix.tolist() == [[24 + i, 23] for i in range(len(tasks))]
    without = model.prefix(torch.tensor([0]), torch.tensor([2]))
    assert without.tolist() == ([[24, 22]] if tasks else [[22]])


def test_sec_4_1_the_sequence_is_1026_long_and_official_models_of_one_task_have_no_prompt():
    assert TRANSFORMERS["B"].sequence_length == 1 + 1 + 1024
    assert replace(TRANSFORMERS["B"], tasks=()).sequence_length == 1 + 1024


def test_every_token_sees_every_other_and_both_prefix_tokens(model, inputs):
    tokens, task, label = inputs
    before = model(tokens, task, label)
    assert before.shape == (2, 12, 20)                              # over the codes alone
    first, last = tokens.clone(), tokens.clone()
    first[:, 0] = last[:, 11] = model.mask_id
    for changed in ((first, task, label), (last, task, label), (tokens, 9 - task, label),
                    (tokens, task, label - 1)):
        assert ((before - model(*changed)).abs().amax(-1) > 0).all()


def test_app_a2_attention_is_the_softmax_formula(generator):
    torch.manual_seed(0)
    layer, heads = Attention(TINY).eval(), []
    x = torch.randn(2, 5, 16, generator=generator)
    query, key, value = layer.query_key_value(x).chunk(3, dim=-1)
    for h in range(4):
        q, k, v = (part[..., 4 * h:4 * h + 4] for part in (query, key, value))
        heads.append((q @ k.transpose(1, 2) / math.sqrt(4)).softmax(-1) @ v)
    torch.testing.assert_close(layer(x), layer.out(torch.cat(heads, -1)))


def test_app_a2_blocks_normalize_after_adding_as_berts_do(model, generator):
    block, x = model.blocks[0], torch.randn(2, 5, 16, generator=generator)
    y = block.attention_norm(x + block.attention(x))
    torch.testing.assert_close(block(x), block.mlp_norm(y + block.mlp(y)))
    assert block.mlp_norm.eps == block.attention_norm.eps == model.embedding_norm.eps == 1e-12


def test_the_output_matrix_is_the_token_embedding(model, inputs):
    model(*inputs).sum().backward()
    assert model.token_embedding.weight.grad[:20].any()
    assert [name for name, p in model.named_parameters() if p.shape == (35, 16)] == [
        "token_embedding.weight"]


@pytest.mark.parametrize("kind", ["hidden_dropout", "attention_dropout"])
def test_app_b2_dropout_acts_in_training_only(kind, inputs):
    config = replace(TINY, hidden_dropout=0.0, attention_dropout=0.0)
    model = replace(config, **{kind: 0.5}).build().eval()
    assert torch.equal(model(*inputs), model(*inputs))
    model.train()
    assert not torch.equal(model(*inputs), model(*inputs))


def test_initial_weights_are_cut_at_two_deviations_and_biases_zero(model):
    weight = model.blocks[0].mlp[0].weight.detach()
    assert weight.abs().max() <= 0.04 and weight.std() == pytest.approx(0.0176, rel=0.15)
    assert not model.blocks[0].mlp[0].bias.any() and not model.head_bias.any()


def test_recomputing_activations_changes_no_gradient(model, inputs):
    gradients = []
    for model.recompute in (False, True):
        model.zero_grad()
        model(*inputs).square().sum().backward()
        gradients.append(model.position_embedding.weight.grad.clone())
    torch.testing.assert_close(*gradients)


# ---------------------------------------------------------------------------------------------
# What logits mean: Eq. (3), and lines 4 and 5 of Algorithm 1

@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_eq_3_sums_minus_log_p_of_each_token_in_float32(model, generator, smoothing):
    """Label smoothing (App. B.2) mixes the target with the uniform distribution."""
    logits, tokens = (4 * torch.randn(2, 5, 20, generator=generator)).bfloat16(), torch.arange(10)
    losses = model.cross_entropy(logits, tokens.view(2, 5), smoothing)
    log_p = logits.float().log_softmax(-1).view(10, 20)
    wanted = -(1 - smoothing) * log_p[tokens, tokens] - smoothing * log_p.mean(-1)
    torch.testing.assert_close(losses, wanted.view(2, 5))


def test_line_4_samples_the_softmax_and_line_5_scores_by_log_p_without_the_noise(model, generator):
    torch.manual_seed(0)
    logits = torch.randn(20, generator=generator).expand(2, 5000, 20)
    noise = torch.distributions.Gumbel(0.0, 1.0).sample(logits.shape)
    tokens, log_p = model.sample(logits, noise)
    shares = tokens.flatten().bincount(minlength=20) / 10_000
    assert (shares - logits[0, 0].softmax(0)).abs().max() < 0.02
    assert torch.equal(tokens, (logits + noise).argmax(-1))
    torch.testing.assert_close(log_p, logits[0, 0].log_softmax(0)[tokens])
    likeliest, _ = model.sample(logits, torch.zeros_like(logits))
    assert (likeliest == logits[0, 0].argmax()).all()


def test_a_configuration_knows_its_grid_and_trained_tasks_only_where_training_wrote_them():
    assert TINY.grid == TINY.trained_tasks == () and type(TINY.build()) is MaskedTransformer
