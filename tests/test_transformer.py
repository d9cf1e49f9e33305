"""transformer.py: Sec. 4.1, App. A.2."""
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from commit import MT10
from transformer import TRANSFORMERS, Attention, MaskedTransformer, TransformerConfig

TINY = TransformerConfig(num_layers=2, hidden_size=16, num_heads=4, mlp_size=32, codebook_size=20,
                         num_tokens=12, num_classes=3)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MaskedTransformer(TINY).eval()


def inputs(generator, B=2):
    return (torch.randint(20, (B, 12), generator=generator),
            torch.randint(10, (B,), generator=generator),
            torch.randint(4, (B,), generator=generator))


@pytest.mark.parametrize("size, millions", [("B", 87), ("L", 305.5), ("H", 634)])
def test_parameter_counts_are_the_papers_within_half_a_percent(size, millions):
    with torch.device("meta"):
        model = MaskedTransformer(replace(TRANSFORMERS[size], num_classes=101))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(millions * 1e6, rel=5e-3)


@pytest.mark.parametrize("size, classes, tasks, official", [
    ("B", 101, 0, 87_301_991), ("L", 101, 0, 305_567_847), ("H", 101, 0, 634_078_567),
    ("B", 0, 15, 87_236_625), ("L", 174, 15, 305_659_071)])
def test_with_the_official_vocabulary_the_counts_are_official_to_the_unit(size, classes, tasks,
                                                                          official):
    with torch.device("meta"):
        model = MaskedTransformer(replace(TRANSFORMERS[size], num_classes=classes, num_tasks=tasks))
    assert sum(p.numel() for p in model.parameters()) == official


def test_the_sequence_is_1026_long():
    assert TRANSFORMERS["B"].sequence_length == 1 + 1 + 1024


def test_the_vocabulary_is_codes_classes_prompts_and_mask(model):
    assert TINY.vocabulary_size == 20 + 3 + 1 + 10 + 1
    prefix = model.prefix(torch.tensor([0, 9]), torch.tensor([0, model.no_class]))
    assert prefix.tolist() == [[24, 20], [33, 23]] and model.mask_id == 34


def test_prompts_are_the_papers_ten_or_those_that_the_configuration_names(model):
    assert model.prompts == MT10 and len(MT10) == TINY.num_tasks
    named = replace(TINY, num_tasks=2, task_names=("CFP", "NEW"))
    assert MaskedTransformer(named).prompts == ("CFP", "NEW")
    assert MaskedTransformer(replace(TINY, num_tasks=3)).prompts == MT10[:3]
    assert MaskedTransformer(replace(TINY, num_tasks=0)).prompts == ()
    ids = [model.prefix(torch.tensor([model.prompts.index(task)]), torch.tensor([0]))[0, 0].item()
           for task in model.prompts]
    assert ids == list(range(TINY.codebook_size + TINY.num_classes + 1, model.mask_id))


def test_logits_are_over_the_codes_only(model, generator):
    logits = model(*inputs(generator))
    assert logits.shape == (2, 12, 20)


def test_every_token_sees_every_other_and_both_prefix_tokens(model, generator):
    tokens, task, label = inputs(generator, B=1)
    before = model(tokens, task, label)
    for changed in (model(tokens, (task + 1) % 10, label), model(tokens, task, (label + 1) % 4)):
        assert ((before - changed).abs().amax(-1) > 0).all()
    for i in (0, 11):
        other = tokens.clone()
        other[0, i] = (other[0, i] + 1) % 20
        assert ((before - model(other, task, label)).abs().amax(-1) > 0).all()


def test_attention_is_the_softmax_formula(generator):
    torch.manual_seed(0)
    layer = Attention(TINY).eval()
    x = torch.randn(2, 5, 16, generator=generator)
    query, key, value = layer.query_key_value(x).chunk(3, dim=-1)
    heads = []
    for h in range(4):
        q, k, v = (part[..., 4 * h:4 * h + 4] for part in (query, key, value))
        heads.append((q @ k.transpose(1, 2) / math.sqrt(4)).softmax(-1) @ v)
    torch.testing.assert_close(layer(x), layer.out(torch.cat(heads, -1)))


def test_blocks_normalize_after_adding(model, generator):
    block, x = model.blocks[0], torch.randn(2, 5, 16, generator=generator)
    y = block.attention_norm(x + block.attention(x))
    torch.testing.assert_close(block(x), block.mlp_norm(y + block.mlp(y)))
    assert block.mlp_norm.eps == 1e-12


def test_the_output_matrix_is_the_token_embedding(model, generator):
    model(*inputs(generator)).sum().backward()
    assert model.token_embedding.weight.grad[:20].abs().sum() > 0
    names = [name for name, p in model.named_parameters() if p.shape == (35, 16)]
    assert names == ["token_embedding.weight"]


def test_dropout_acts_in_training_only(model, generator):
    arguments = inputs(generator)
    assert torch.equal(model(*arguments), model(*arguments))
    model.train()
    assert not torch.equal(model(*arguments), model(*arguments))


def test_initial_weights_are_cut_at_two_deviations_and_biases_zero(model):
    weight = model.blocks[0].mlp[0].weight.detach()
    assert weight.abs().max() <= 0.04 and weight.std() == pytest.approx(0.0176, rel=0.15)
    assert model.blocks[0].mlp[0].bias.detach().abs().max() == 0


def test_recomputing_activations_changes_no_gradient(model, generator):
    arguments, gradients = inputs(generator), []
    for model.recompute in (False, True):
        model.zero_grad()
        model(*arguments).square().sum().backward()
        gradients.append(model.position_embedding.weight.grad.clone())
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("tokens, written_out", [(258, True), (66, False)])
def test_long_attention_in_bfloat16_is_written_out_but_in_training(tokens, written_out, generator):
    """On CPUs: in bfloat16 there, in float32 elsewhere, and either way it is the same attention."""
    attention = Attention(TransformerConfig(attention_dropout=0.0))
    heads = torch.randn(3, 2, 4, tokens, 64, generator=generator)
    exact = F.scaled_dot_product_attention(*heads)
    query, key, value = heads.bfloat16()
    for training, causal in ((False, False), (True, False), (False, True)):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            found = attention.train(training).attend(query, key, value, causal=causal)
        fast = written_out and not (training or causal)
        assert found.dtype == (torch.bfloat16 if fast else torch.float32)
        wanted = F.scaled_dot_product_attention(*heads, is_causal=True) if causal else exact
        assert (found - wanted).abs().max() < 0.02 and (found - wanted).std() < 0.002
    assert torch.equal(attention.eval().attend(*heads), exact)
