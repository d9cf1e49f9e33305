"""training/plan.py: what a run costs, counted before it runs."""
import dataclasses
from dataclasses import replace

import pytest
import torch
from conftest import computing_on

from tokenizer import TOKENIZERS, VideoTokenizer
from training.build import build
from training.plan import Count, StepCost, count_step, doubts, plan, step_cost, step_on
from training.presets import PRESETS, TrainConfig
from transformer import TRANSFORMERS, Attention

TOY = replace(PRESETS["toy"], precision="float32", token_pool=0,
              transformer=replace(TRANSFORMERS["toy"], num_layers=2))


def test_the_plan_prints_sizes_steps_and_every_setting(monkeypatch):
    monkeypatch.setattr("training.plan.step_cost", lambda *_: StepCost(1e12, 1e10, 2**30, 2**31))
    text = plan("ucf101-B", PRESETS["ucf101-B"])
    for words in ("128.00 TFLOP and 1.28 to make its tokens", "1.00 GiB and 2.00 GiB for each clip",
                  "36 clips fit 80 GB, a batch in 4 parts", "40,579,843", "15,339,457",
                  "74 steps per epoch, 37,000 steps", "74,000 steps", "sequence 1026",
                  "4x16x16 tokens of 1024"):
        assert words in text
    assert all(field.name in text for field in dataclasses.fields(TrainConfig))


def test_a_length_that_cannot_be_meant_is_named_and_a_sensible_one_is_not(monkeypatch):
    monkeypatch.setattr("training.plan.step_cost", lambda *_: StepCost(1e12, 1e10, 2**30, 2**31))
    for config in PRESETS.values():
        for stage in ("tokenizer", "transformer"):
            assert doubts(config, stage, config.train_videos) == []
    short = replace(TOY, tokenizer_steps=40, transformer_steps=40)
    assert [words.split(":")[0] for words in doubts(short, "tokenizer", 320)] == [
        "40 steps, and 50 of warm-up",
        "after 40 steps the averaged weights are still 67% those of the start; look at the raw "
        "ones too, or lower --tokenizer-ema"]
    assert len(doubts(short, "image", 320)) == 2              # it has an average of its own
    assert len(doubts(short, "transformer", 320)) == 1        # and this has none
    assert plan("toy", short).count("warning: ") == 3


def test_bytes_are_those_of_the_tensors_alive_and_views_are_free():
    with Count() as count:
        x = torch.zeros(1000)                                      # 4,000 bytes
        y = x.view(10, 100).t()
        assert count.bytes == 4000
        z = x + 1
        assert count.bytes == 8000
        del z
        z = x.double()
        assert count.bytes == count.most_bytes == 12_000
        del x, y, z
    assert count.bytes == 0 and count.most_bytes == 12_000


def test_a_matrix_product_is_two_flop_per_multiplication_and_its_gradient_twice_that():
    a, b = torch.ones(2, 3, requires_grad=True), torch.ones(3, 5, requires_grad=True)
    with Count() as count:
        product = (a @ b).sum()
        assert count.flop == 2 * 2 * 3 * 5
        product.backward()
    assert count.flop == 3 * 2 * 2 * 3 * 5


@pytest.fixture
def two_threads():
    """With one, torch computes 1x1x1 convolutions in another way, which takes a little more."""
    yield from computing_on(2)


@pytest.mark.parametrize("stage", ["tokenizer", "transformer"])
def test_a_step_without_contents_costs_what_a_real_step_costs(two_threads, stage):
    config = replace(TOY, adversarial_weight=0.1, token_pool=1)
    with Count() as count:
        trainee = build(config, stage, num_classes=config.num_classes)
        step = step_on(trainee, config, stage, clips=3)
        step()
        step()                                                     # no more than the first took
    flop, most_bytes = count_step(config, stage, clips=3)
    assert count.flop == 2 * flop
    assert count.most_bytes == pytest.approx(most_bytes, rel=1e-3)


@pytest.mark.parametrize("stage, change", [
    ("tokenizer", dict(adversarial_weight=0.1, recompute=True)),
    ("transformer", dict(recompute=True)), ("transformer", dict(accumulate=3))])
def test_memory_grows_by_the_same_amount_with_every_clip(stage, change):
    config = replace(TOY, token_pool=1, **change)
    cost = step_cost(config, stage)
    assert count_step(config, stage, 50)[1] == pytest.approx(cost.fixed + 50 * cost.per_clip,
                                                             rel=0.02)


@pytest.mark.parametrize("stage", ["tokenizer", "transformer"])
def test_a_second_pass_holds_nothing_of_the_first_but_its_gradients(stage):
    config = replace(TOY, adversarial_weight=0.1)
    (flop, once), (flop_of_one, twice) = (
        count_step(replace(config, accumulate=passes), stage, clips=8) for passes in (1, 2))
    networks = build(config, stage, num_classes=config.num_classes).networks
    gradients = 4 * sum(p.numel() for network in networks.values() for p in network.parameters()
                        if p.requires_grad)
    batch = 4 * 8 * 3 * 16 * 32 * 32                             # eight more clips wait, in float32
    assert flop_of_one == pytest.approx(flop, rel=1e-3)
    assert once <= twice <= once + gradients + 1.1 * batch


@pytest.mark.parametrize("stage", ["tokenizer", "transformer"])
def test_recomputing_trades_memory_for_arithmetic(stage):
    keeps, recomputes = (step_cost(replace(TOY, token_pool=1, recompute=recompute), stage)
                         for recompute in (False, True))
    assert recomputes.per_clip < 0.6 * keeps.per_clip
    assert 1.1 < recomputes.flop_per_clip / keeps.flop_per_clip < 1.5


def test_attention_costs_four_n_squared_d_besides_its_matrices():
    B, N, D = 2, 66, 128
    with torch.no_grad(), Count() as count:
        Attention(TRANSFORMERS["toy"])(torch.zeros(B, N, D))
    assert count.flop == B * (2 * N * D * 3 * D + 4 * N * N * D + 2 * N * D * D)


@pytest.mark.parametrize("tasks, videos", [(("FP",), 2), (("CG",), 1), (("CG", "OPC"), 1.5)])
def test_stage_2_counts_the_tokens_of_its_next_batch(tasks, videos):
    """Those of each clip and of its condition, but CG's, which is the same for all clips."""
    tokenizer = VideoTokenizer(TOKENIZERS["toy"])
    with Count() as count:
        tokenizer.encode(torch.zeros(1, 3, 16, 32, 32))
    cost = step_cost(replace(TOY, tasks=tasks), "transformer")
    assert cost.tokens_per_clip == pytest.approx(videos * count.flop, rel=1e-3)
    pooled = step_cost(replace(TOY, tasks=tasks, token_pool=1), "transformer")
    assert pooled.tokens_per_clip == 0 and pooled.fixed < cost.fixed
    assert pooled.per_clip == cost.per_clip and pooled.flop_per_clip == cost.flop_per_clip
