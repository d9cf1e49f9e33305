"""training/plan.py: what a run costs, counted before it runs."""
import dataclasses
from dataclasses import replace

import pytest
import torch

from training.plan import CountFlop, doubts, flop_of_step, made_up_step, plan
from training.presets import PRESETS, TrainConfig
from training.start import build
from transformer import TRANSFORMERS, Attention

TOY = replace(PRESETS["toy"], precision="float32", adversarial_weight=0.1, token_pool=1,
              transformer=replace(TRANSFORMERS["toy"], num_layers=2))


def test_the_plan_prints_sizes_steps_and_every_setting(monkeypatch):
    monkeypatch.setattr("training.plan.flop_of_step", lambda *_: 1e12)
    text = plan("ucf101-B", PRESETS["ucf101-B"])
    for words in ("a step: 128.00 TFLOP", "40,579,843", "15,339,457", "74 steps per epoch, 37,000",
                  "74,000 steps", "sequence 1026", "4x16x16 tokens of 1024", "999.2 MiB"):
        assert words in text
    assert all(field.name in text for field in dataclasses.fields(TrainConfig))


def test_a_length_that_cannot_be_meant_is_named_and_a_sensible_one_is_not():
    for config in PRESETS.values():
        for stage in ("tokenizer", "transformer"):
            assert doubts(config, stage, config.train_videos) == []
    short = replace(TOY, tokenizer_steps=40, transformer_steps=40)
    assert [words.split(":")[0] for words in doubts(short, "tokenizer", 320)] == [
        "40 steps, and 50 of warm-up",
        "after 40 steps the averaged weights are still 67% those of the start; look at the raw "
        "ones too, or lower --tokenizer-ema"]
    assert len(doubts(short, "transformer", 320)) == 1                  # it has no average


@pytest.mark.parametrize("stage", ["tokenizer", "transformer"])
def test_a_step_without_contents_costs_what_a_real_step_costs(stage):
    step = made_up_step(build(TOY, stage, num_classes=TOY.num_classes), TOY, stage, clips=4)
    with CountFlop() as count:
        step()
    assert count.flop == pytest.approx(4 * flop_of_step(TOY, stage), rel=1e-6)


def test_attention_costs_four_n_squared_d_besides_its_matrices():
    B, N, D = 2, 66, 128
    with torch.no_grad(), CountFlop() as count:
        Attention(TRANSFORMERS["toy"])(torch.zeros(B, N, D))
    assert count.flop == B * (2 * N * D * 3 * D + 4 * N * N * D + 2 * N * D * D)


def test_recomputing_costs_another_forward_pass():
    ratio = flop_of_step(replace(TOY, recompute=True), "transformer") / flop_of_step(
        TOY, "transformer")
    assert 1.1 < ratio < 1.5


@pytest.mark.parametrize("tasks, videos", [(("FP",), 2), (("CG",), 1), (("CG", "OPC"), 1.5)])
def test_stage_2_counts_the_tokens_of_its_batch(tasks, videos):
    """Those of each clip and of its condition, but CG's, which is the same for all clips."""
    tokenizer = TOY.tokenizer_config().build()
    with torch.no_grad(), CountFlop() as count:
        tokenizer.latents(torch.zeros(1, 3, 16, 32, 32))
    fresh, pooled = (flop_of_step(replace(TOY, tasks=tasks, token_pool=pool), "transformer")
                     for pool in (0, 1))
    assert fresh - pooled == pytest.approx(videos * count.flop, rel=1e-3)
