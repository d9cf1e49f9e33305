"""comparisons/: what the paper compares with, and the tables."""
import json
import os
import shutil
import sys
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn

from commit import MT8, task_index
from comparisons import arms, tables
from comparisons.arms import ARMS, arm_config, train_arm, way_of
from comparisons.autoregressive import (AutoregressiveConfig, AutoregressiveTransformer,
                                        CausalAttention, CausalBlock, autoregressive_decode,
                                        autoregressive_step)
from comparisons.baselines import (PrefixConfig, WindowConfig, align_prefix, given_tokens,
                                   latent_masking, prefix_decode, prefix_step, with_prefix)
from data.clips import DataConfig
from data.moving_shapes import MovingShapes
from data.source import load_batch
from decode import commit_decode, generate, gumbel_noise, seeded_noise
from measure.report import report
from steps import TokenBatch, Trainee, transformer_step
from tokenizer import TOKENIZERS
from train import train
from training.checkpoint import load_run
from training.presets import PRESETS
from transformer import TRANSFORMERS, TransformerConfig

SIZES = dict(num_layers=2, hidden_size=32, num_heads=2, mlp_size=64, codebook_size=11,
             num_classes=3, num_tokens=12)
SMALL = replace(PRESETS["toy"], tokenizer_steps=2, transformer_steps=2, tokenizer_batch=2,
                transformer_batch=2, token_pool=2, save_every=1, decode_steps=2)
SHAPES = DataConfig(dataset="shapes")


def network(config, kind=None):
    """With weights far enough from 0 that everything that can matter does."""
    torch.manual_seed(0)
    model = (kind(config) if kind else config.build()).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture
def batch(generator):
    """Two sequences of 12 tokens, the first five of them given."""
    tokens, condition = torch.randint(11, (2, 2, 12), generator=generator)
    return TokenBatch("FP", tokens, condition, torch.arange(12) >= 5, torch.tensor([0, 3]),
                      torch.rand(2, 12, generator=generator), torch.tensor([0.3, 0.7]))


# ---------------------------------------------------------------------------------------------
# Table 5: the prefix condition, the parts of Eq. (4)

def test_a_prefix_model_with_an_empty_prefix_is_plain_masked_modelling(batch):
    prefix, plain = network(PrefixConfig(**SIZES)), network(TransformerConfig(**SIZES))
    task, everywhere = torch.tensor([1, 1]), torch.ones(12, dtype=torch.bool)
    assert torch.equal(prefix(batch.tokens, task, batch.label),
                       plain(batch.tokens, task, batch.label))
    ours, theirs = (list(decode(model, task, batch.label, batch.condition_tokens, everywhere,
                                steps=4, noise=seeded_noise(0)))
                    for decode, model in ((prefix_decode, prefix), (commit_decode, plain)))
    assert torch.equal(ours[-1].tokens, theirs[-1].tokens)
    whole = batch._replace(is_pad=everywhere)
    for step, model in ((prefix_step, prefix), (transformer_step, plain)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        step(Trainee(dict(transformer=model), dict(transformer=optimizer)), whole, SMALL)
    for ours, theirs in zip(prefix.parameters(), plain.parameters()):
        assert torch.equal(ours, theirs)


def test_a_prefix_is_read_and_a_shorter_one_stands_next_to_the_sequence(batch):
    model = network(PrefixConfig(**SIZES, prefix_length=7))

    def logits(prefix):
        return with_prefix(model, prefix)(batch.tokens, torch.tensor([1, 1]), batch.label)

    given = batch.condition_tokens[:, :5]
    other = given.clone()
    other[:, 2] = (other[:, 2] + 1) % 11
    assert not torch.equal(logits(given), logits(other))
    padded = torch.cat([torch.full((2, 2), model.mask_id), given], dim=1)
    assert torch.equal(logits(given), logits(padded))
    with pytest.raises(ValueError, match="20 tokens for a sequence of 12 and a prefix of at most"):
        logits(batch.condition_tokens[:, :8])


def trainee_of(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return Trainee(dict(transformer=model), dict(transformer=optimizer))


def test_a_prefix_step_has_the_parts_of_the_loss_that_need_no_condition_in_the_sequence(batch):
    """Eq. (2) has two cases left, and the loss two parts: nothing is to be refined."""
    trainee = trainee_of(network(PrefixConfig(**SIZES, prefix_length=5)))
    terms = prefix_step(trainee, batch, SMALL)
    assert terms["refine"] == 0 and terms["mask"] > 0 and terms["reconstruct"] > 0
    assert terms["loss"] == pytest.approx((terms["mask"] + terms["reconstruct"]).item())
    with pytest.raises(ValueError, match="accumulate is 2; a prefix model takes a batch at once"):
        prefix_step(trainee, batch, replace(SMALL, accumulate=2))


@pytest.mark.parametrize("weights, still", [((0.0, 1.0, 0.0), ("refine", "reconstruct")),
                                            ((0.0, 1.0, 1.0), ("refine",)), ((1.0,) * 3, ())])
def test_the_weights_of_a_run_are_those_of_its_steps(batch, weights, still):
    """Table 5's arms differ in nothing else: what weighs nothing is no part of the loss."""
    terms = transformer_step(trainee_of(network(TransformerConfig(**SIZES))), batch,
                             replace(SMALL, loss_weights=weights))
    parts = {name: terms[name].item() for name in ("refine", "mask", "reconstruct")}
    assert {name for name, value in parts.items() if value == 0} == set(still)
    assert terms["loss"].item() == pytest.approx(sum(parts.values()), rel=1e-5)


def test_a_place_in_the_prefix_starts_as_the_place_it_stands_for():
    model = network(PrefixConfig(**SIZES, prefix_length=3))
    given = torch.zeros(12, dtype=torch.bool)
    given[[1, 4, 10]] = True
    align_prefix(model, given)
    places = model.position_embedding.weight
    assert torch.equal(places[-15:-12], places[-12:][given])


@pytest.mark.parametrize("task, count", [("FP", 256), ("FI", 512), ("OPC", 256), ("OPV", 512),
                                         ("OPH", 512), ("OPD", 640), ("IPC", 768), ("IPD", 832)])
def test_a_prefix_is_as_long_as_ispad_says(task, count):
    """Of 4 x 16 x 16 tokens. The paper's 1,024 to 1,792 has at most 768: see the differences."""
    class Sizes(torch.nn.Linear):
        def latent_shape(self, *shape):
            return 4, 16, 16

        def encode(self, video):
            return torch.zeros(len(video), 4, 16, 16, dtype=torch.long)

    assert given_tokens(Sizes(1, 1), task, (16, 128, 128)).sum() == count


# ---------------------------------------------------------------------------------------------
# Table 6: attention in windows

def windows(grid, sizes, layers=1):
    return network(WindowConfig(**SIZES | dict(
        num_layers=layers, num_tokens=int(np.prod(grid))), grid=grid, windows=sizes))


def seen(model, place):
    """Which tokens' change changes the logits at a place, as the grid of booleans."""
    torch.manual_seed(0)
    N = model.config.num_tokens
    tokens, zero = torch.randint(11, (1, N)), torch.zeros(N, dtype=torch.long)
    others = tokens.repeat(N, 1)
    others[range(N), range(N)] = (others[range(N), range(N)] + 1) % 11
    changed = model(others, zero, zero)[:, place] != model(tokens, zero[:1], zero[:1])[:, place]
    return changed.any(-1).view(model.config.grid)


def test_a_window_sees_nothing_outside_of_it():
    grid = (2, 4, 4)
    for window in ((1, 4, 4), (2, 2, 2)):
        inside = torch.zeros(grid, dtype=torch.bool)
        inside[1:, 2:, 2:] = window == (2, 2, 2)
        inside[0, 2:, 2:] |= window == (2, 2, 2)
        inside[1] |= window == (1, 4, 4)
        assert torch.equal(seen(windows(grid, (window,)), 31), inside)


def test_two_blocks_of_different_windows_see_all_together():
    model = windows((2, 4, 4), ((1, 4, 4), (2, 2, 2)), layers=2)
    assert seen(model, 31).all()


def test_prompt_and_class_reach_every_window_and_carry_nothing_between_them():
    model = windows((2, 4, 4), ((1, 4, 4), (1, 2, 2)), layers=2)
    tokens, zero = torch.randint(11, (1, 32)), torch.zeros(1, dtype=torch.long)
    for other in ((zero + 1, zero), (zero, zero + 1)):
        assert (model(tokens, *other) != model(tokens, zero, zero)).any(-1).all()
    assert not seen(model, 31)[0].any()                 # nothing of the other frame, by any way


def test_one_window_of_the_whole_grid_is_plain_attention():
    """But for prompt and class, which see only themselves: in one block no token notices."""
    window = windows((2, 4, 4), ((2, 4, 4),))
    plain = network(TransformerConfig(**SIZES | dict(num_layers=1, num_tokens=32)))
    tokens, zero = torch.randint(11, (2, 32)), torch.zeros(2, dtype=torch.long)
    torch.testing.assert_close(window(tokens, zero, zero), plain(tokens, zero, zero))


def test_latent_masking_counts_and_decodes_the_hidden_tokens_alone(batch):
    """Against Algorithm 1 written out on the whole sequence, with the known ones above any cut-off."""
    model, task, steps = network(TransformerConfig(**SIZES)), torch.tensor([1, 1]), 4
    noise = seeded_noise(0)
    tokens, hidden = batch.condition_tokens.clone(), batch.is_pad
    unknown = hidden.expand(2, 12)
    for t in range(steps):
        inputs = torch.where(unknown, model.mask_id, tokens)
        logits = model(inputs, task, batch.label)
        drawn = (logits + noise(logits.shape)).argmax(-1)
        tokens = torch.where(unknown, drawn, tokens)
        confidence = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
        confidence = confidence + 4.5 * (1 - (t + 1) / steps) * noise(confidence.shape)
        scores = confidence.masked_fill(~unknown, torch.inf)
        left = int(np.ceil(np.round(np.cos((t + 1) / steps * np.pi / 2) * int(hidden.sum()), 3)))
        unknown = scores <= scores.sort(dim=1).values[:, left - 1:left] if left else unknown & False
    states = list(latent_masking(model, task, batch.label, batch.condition_tokens, hidden,
                                 steps=steps, noise=seeded_noise(0)))
    assert torch.equal(states[-1].tokens, tokens)


# ---------------------------------------------------------------------------------------------
# Table 6, Fig. 5: the autoregressive model

@pytest.fixture
def gpt():
    return network(AutoregressiveConfig(**SIZES, prefix_length=7))


class OfficialBlock(CausalBlock):
    """Norms before attention and MLP."""

    def forward(self, x):
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class OfficialTransformer(AutoregressiveTransformer):
    """The official autoregressive network: a table of its own for the output, a norm before it,
    and no biases in attention."""

    block_type = OfficialBlock

    def __init__(self, config):
        super().__init__(config)
        self.embedding_norm, self.head_bias = nn.Identity(), None
        self.head = nn.Sequential(nn.LayerNorm(config.hidden_size),
                                  nn.Linear(config.hidden_size, config.vocabulary_size))
        for block in self.blocks:
            block.attention.query_key_value.bias = block.attention.out.bias = None

    def predict(self, x):
        return self.head(x)[..., :self.config.codebook_size]


@pytest.mark.parametrize("size, codes, tokens, count", [
    ("B", 2 ** 10, 1024, 87_383_298), ("L", 2 ** 10, 1024, 305_364_994),
    ("L", 2 ** 18, 1025, 840_400_898),                           # MAGVIT-v2, Table 8: 840M
    ("L", 2 ** 18, 1280, 840_662_018)])                          # with a place for each token
def test_the_official_network_has_table_8s_parameters(size, codes, tokens, count):
    config = AutoregressiveConfig(**vars(replace(
        TRANSFORMERS[size], codebook_size=codes, num_tokens=tokens, tasks=())))
    with torch.device("meta"):
        model = OfficialTransformer(config)
    assert sum(p.numel() for p in model.parameters()) == count


def write(model, batch, seed=0, **options):
    (state,) = autoregressive_decode(
        model, torch.tensor([1, 1]), batch.label, batch.condition_tokens, batch.is_pad,
        **dict(noise=seeded_noise(seed)) | options)
    return state.tokens


def test_each_token_is_drawn_from_the_logits_that_training_gives_it(gpt, batch):
    """The oracle: the forward pass of training on the finished sequence, and the same noise."""
    tokens, noise = write(gpt, batch), torch.Generator().manual_seed(0)
    sequence = torch.cat([batch.condition_tokens[:, ~batch.is_pad], tokens], dim=1)
    logits = gpt(sequence, torch.tensor([1, 1]), batch.label)
    for place in range(12):
        drawn = (logits[:, place] + gumbel_noise((2, 11), noise)).argmax(-1)
        assert torch.equal(tokens[:, place], drawn)


def test_after_the_condition_one_query_is_sent_a_step(gpt, batch, monkeypatch):
    queries, attend = [], CausalAttention.attend
    monkeypatch.setattr(CausalAttention, "attend", lambda self, query, key, value: (
        queries.append((query.shape[2], key.shape[2])) or attend(self, query, key, value)))
    write(gpt, batch)
    # prompt, class, room for seven, start; then a token at a time, in each of two blocks
    assert queries == [(10, 10)] * 2 + [(1, 1)] * 2 * 11


def test_no_token_is_told_by_itself_or_by_those_behind_it(gpt, batch):
    sequence = torch.cat([batch.condition_tokens[:, :5], batch.tokens], dim=1)
    task = torch.tensor([1, 1])
    logits = gpt(sequence, task, batch.label)
    for place in (0, 4, 11):
        other = sequence.clone()
        other[:, 5 + place] = (other[:, 5 + place] + 1) % 11
        changed = (gpt(other, task, batch.label) != logits).any(-1)
        assert not changed[:, :place + 1].any() and changed[:, place + 1:].all()
    other = sequence.clone()
    other[:, 0] = (other[:, 0] + 1) % 11
    assert (gpt(other, task, batch.label) != logits).any(-1).all()       # the condition tells all


def test_its_step_is_the_cross_entropy_of_all_tokens_in_parts_or_at_once(gpt, batch):
    sequence = torch.cat([batch.condition_tokens[:, :5], batch.tokens], dim=1)
    logits = gpt(sequence, torch.full((2,), task_index(batch.task)), batch.label)
    wanted = -logits.log_softmax(-1).gather(-1, batch.tokens[..., None]).mean()
    for accumulate in (1, 2):
        terms = autoregressive_step(
            trainee_of(gpt), batch, replace(
                SMALL, accumulate=accumulate, label_smoothing=0.0, precision="float32"))
        assert terms["loss"].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_after_an_accident_it_trains_and_what_it_cannot_do_is_refused(gpt, batch):
    def broken(shape):
        raise RuntimeError("no more noise")

    with pytest.raises(RuntimeError, match="no more noise"):
        write(gpt, batch, noise=broken)
    assert all(block.attention.room == 0 and block.attention.memory is None for block in gpt.blocks)
    with pytest.raises(ValueError, match="8 given tokens for a prefix of 7"):
        write(gpt, batch._replace(is_pad=torch.arange(12) >= 8))
    with pytest.raises(ValueError, match="or guidance"):
        write(gpt, batch, guidance_scale=1.0)


# ---------------------------------------------------------------------------------------------
# Arms: each trains, stops, goes on, and is used as any other run

@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """A folder with a tokenizer.pt and an image.pt."""
    folder = tmp_path_factory.mktemp("tokenizers")
    shutil.copy(ROOT / "assets/toy/tokenizer.pt", folder)
    train(SMALL, SHAPES, folder, stage="image", draw=False)
    return folder


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_of_the_paper_fits_its_clips(name):
    """At full size, on BAIR: the sequences of Tables 5 and 6."""
    size = TOKENIZERS["B-64px"]
    tokenizer = (size.image_twin() if ARMS[name].image else size).build()
    tokenizer.encode = lambda video: torch.zeros(len(video), *tokenizer.latent_shape(
        *video.shape[2:]), dtype=torch.long)
    config = arm_config(name, PRESETS["bair-B"], tokenizer).transformer
    prefix = {"fp-prefix": 256, "autoregressive": 256, "mt-prefix": 832}.get(name, 0)
    assert config.sequence_length == 2 + prefix + (4096 if ARMS[name].image else 1024)
    if name == "maskvit":
        assert config.windows == ((1, 16, 16), (16, 4, 4))       # a frame; 4x4 of all frames


@pytest.mark.parametrize("name", ["mt-prefix", "autoregressive", "maskvit", "mt-one-prompt"])
def test_an_arm_that_was_stopped_goes_on_to_the_same_weights(name, tokenizers, tmp_path,
                                                              monkeypatch):
    whole = train_arm(name, SMALL, SHAPES, tmp_path / "whole", tokenizers)
    step = ARMS[name].step

    def stopping(*arguments):
        terms = step(*arguments)
        os.kill(os.getpid(), 15)                   # what a cluster sends: the step is finished
        return terms

    monkeypatch.setitem(ARMS, name, replace(ARMS[name], step=stopping))
    assert train_arm(name, SMALL, SHAPES, tmp_path / "parts", tokenizers) is None
    monkeypatch.undo()
    parts = train_arm(name, SMALL, SHAPES, tmp_path / "parts", tokenizers)
    for ours, theirs in zip(parts.transformer.parameters(), whole.transformer.parameters()):
        assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match="transformer_steps 2 there, 3 here"):
        train_arm(name, replace(SMALL, transformer_steps=3), SHAPES, tmp_path / "parts", tokenizers)
    written = (tmp_path / "parts/transformer.pt").stat().st_mtime_ns
    train_arm(name, SMALL, SHAPES, tmp_path / "parts", tokenizers)      # finished: nothing is done
    assert (tmp_path / "parts/transformer.pt").stat().st_mtime_ns == written


def test_a_run_of_an_arm_is_measured_by_its_own_command(tokenizers, tmp_path, monkeypatch, capsys):
    """evaluate.py, whose Algorithm 1 cannot decode it, names that command (test_evaluate)."""
    train_arm("autoregressive", SMALL, SHAPES, tmp_path / "run", tokenizers)
    monkeypatch.setattr(sys, "argv", [
        "tables.py", "evaluate", str(tmp_path / "run"), "--protocol", "own", "--metrics", "psnr",
        "--samples", "2", "--batch", "2"])
    tables.main()
    assert "PSNR" in capsys.readouterr().out


def test_an_arm_without_its_tokenizer_says_how_to_train_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="maskgit-2d needs one: python train.py PRESET"):
        train_arm("maskgit-2d", SMALL, SHAPES, tmp_path / "run", ROOT / "assets/toy")
    assert not (tmp_path / "run").exists()


def test_the_command_trains_an_arm_and_names_those_there_are(tokenizers, tmp_path, monkeypatch,
                                                             capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(PRESETS, "toy", SMALL)
    monkeypatch.setattr(sys, "argv", ["arms.py", "fp-mask", str(tokenizers), "toy", "--out",
                                      str(tmp_path / "run")])
    arms.main()
    assert load_run(tmp_path / "run").config.loss_weights == (0.0, 1.0, 0.0)
    sys.argv[1] = "gpt"
    with pytest.raises(SystemExit, match="ARM is one of unc, fp, mt"):
        arms.main()


# ---------------------------------------------------------------------------------------------
# Table 4: models of one task, and generation without classes

class Nameless(MovingShapes):
    """Clips without classes."""

    def __init__(self, split="train"):
        super().__init__(split)
        self.class_names = []

    def clip(self, index, random=None):
        return super().clip(index, random)[0], -1

    @property
    def held_out(self):
        return Nameless("test")


def test_generation_without_classes_is_unconditional_everywhere(tokenizers, tmp_path):
    """Trained on CG alone where there are no classes, as train.py leaves it."""
    shutil.copy(tokenizers / "tokenizer.pt", tmp_path)
    train(replace(SMALL, tasks=("CG",)), Nameless(), tmp_path, stage="transformer", draw=False)
    run, video = load_run(tmp_path), torch.zeros(2, 3, 16, 32, 32)
    assert generate(run.tokenizer, run.transformer, video, "CG", steps=2).shape == video.shape
    assert run.tasks == ["CG"]
    numbers = report(tmp_path, clips=2, source=Nameless("test"))
    assert "CG" in numbers["tasks"] and "class_conditional_generation" not in numbers
    with pytest.raises(ValueError, match="CFP needs classes, and this model was trained without"):
        generate(run.tokenizer, run.transformer, video, "CFP")


def test_a_model_of_one_task_does_the_others_under_its_own_prompt(tokenizers, tmp_path):
    """FP by Algorithm 1; UNC by latent masking, which is Table 5's row and Table 6's MaskGIT."""
    fp, unc, mt = (train_arm(name, SMALL, SHAPES, tmp_path / name, tokenizers)
                   for name in ("fp", "unc", "mt"))
    label = torch.tensor([3])
    assert fp.how("OPC") == dict(prompt="FP") and mt.how("OPC") == {}
    assert way_of(fp) is way_of(mt) is None and way_of(unc) is latent_masking
    with pytest.raises(ValueError, match="python -m comparisons.tables evaluate"):
        unc.how("OPC")
    assert unc.how("OPC", decode=way_of(unc)) == dict(prompt="CG", decode=latent_masking)
    assert unc.how("CG", label)["label"].tolist() == [unc.transformer.no_class]
    prompts = []

    def watched(model, task, label, *arguments, **decoding):
        prompts.append(task.tolist())
        return commit_decode(model, task, label, *arguments, **decoding)

    for keywords in (fp.how("OPC"), mt.how("OPC")):
        generate(fp.tokenizer, fp.transformer, torch.zeros(1, 3, 16, 32, 32), "OPC", steps=1,
                 **keywords | dict(decode=watched))
    assert prompts == [[task_index("FP")], [task_index("OPC")]]


def test_the_control_trains_and_uses_one_prompt(tokenizers, tmp_path, monkeypatch):
    prompts = set()

    def step(trainee, batch, config):
        prompts.add(batch.task)
        return transformer_step(trainee, batch, config)

    monkeypatch.setitem(ARMS, "mt-one-prompt", replace(ARMS["mt-one-prompt"], step=step))
    train_arm("mt-one-prompt", SMALL, SHAPES, tmp_path / "run", tokenizers)
    assert prompts == {"FP"}


def test_the_presets_of_table_4_differ_in_tasks_and_decoding():
    for data, row in (("bair", "bair-unc"), ("ssv2", "ssv2-unc"), ("ssv2", "ssv2-fp")):
        one, other = asdict(PRESETS[f"{data}-B"]), asdict(PRESETS[f"{row}-B"])
        differ = {name for name in one if one[name] != other[name]}
        assert differ <= {"tasks", "class_dropout", "decode_schedule", "decode_temperature"}
    assert PRESETS["bair-unc-B"].tasks == PRESETS["ssv2-unc-B"].tasks == ("CG",)
    assert PRESETS["ssv2-unc-B"].class_dropout == 1.0
    assert PRESETS["bair-unc-L"].transformer_epochs == 800
    assert PRESETS["ssv2-fp-B"].transformer_epochs == 720


# ---------------------------------------------------------------------------------------------
# The tables

@pytest.mark.parametrize("task", MT8)
def test_the_real_clips_are_right_in_every_task_and_others_are_not(task):
    video, label = tables.held_out()
    valid = tables.make_condition(video, task)[1]

    def share(made):
        return tables.right(made, video, label, valid, task).float().mean().item()

    assert share(video) == 1 and share(torch.full_like(video, 0.5)) == 0
    # Backwards the direction is wrong, but for clips of which the condition shows nothing, and in
    # FP, where one frame leaves it open.
    hidden = ~((video.amax(1) - video.amin(1) > 0.15) & valid).flatten(1).any(1)
    wanted = 1.0 if task == "FP" else hidden.float().mean().item()
    assert share(video.flip(2)) == pytest.approx(wanted)


def test_flicker_is_what_still_pixels_do():
    video = torch.zeros(1, 3, 4, 2, 2)
    video[:, :, 2:, 0] = 1.0                            # the upper row moves once
    decoded = video.clone()
    decoded[:, :, 0, 1] = 0.5                           # the lower row should stand still
    # 2 rows x 3 steps, less the upper row's one: of 5 pairs, one moves by half of 255
    assert tables.flicker(decoded, video) == pytest.approx(255 * 0.5 / 5)
    assert tables.flicker(video, video) == 0


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("comparisons")


@pytest.mark.parametrize("table", tables.TABLES)
def test_a_table_is_one_command_and_goes_on_where_it_was(table, shared, monkeypatch, capsys):
    """Two steps and two clips: the rows are there, and a second call trains nothing again.

    The tables share the arms that they have in common, as in runs/comparisons.
    """
    clips = load_batch(MovingShapes("test"), 0, 2, 0, augment=False)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(tables, "held_out", lambda: clips)
    monkeypatch.setitem(PRESETS, "toy", SMALL)
    small = {"fig5": dict(size="toy", resolutions=(32, 64), batches=(1,), most_tokens=256),
             "7": dict(inflated_steps=2)}
    monkeypatch.setitem(tables.TABLES, table, partial(tables.TABLES[table],
                                                      **small.get(table, {})))
    monkeypatch.setattr(sys, "argv", ["tables.py", table, "--steps", "2", "--out", str(shared)])
    tables.main()
    folder, name = shared / "seed-0", f"table{table}" if table.isdigit() else table
    text = (folder / f"{name}.txt").read_text()
    assert text in capsys.readouterr().out
    rows = json.loads((folder / f"{name}.json").read_text())
    assert len(rows) == {"4": 12, "5": 7, "6": 7, "7": 8, "fig5": 6}[table]   # with the header
    assert {len(row) for row in rows} == {len(rows[0])} and "the paper" in text
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*.pt")}
    assert written or table == "fig5"
    monkeypatch.setattr(tables, "measure", lambda *_, **how: (0.0, 0.0))      # was done above
    monkeypatch.setattr(tables, "flop_of_step", lambda *_: 0.0)
    if table != "fig5":
        tables.main()
    assert written == {path: path.stat().st_mtime_ns for path in folder.rglob("*.pt")}


def test_the_answers_own_tokens_are_an_oracle(tokenizers, tmp_path, monkeypatch):
    clips = load_batch(MovingShapes("test"), 0, 8, 0, augment=False)
    monkeypatch.setattr(tables, "held_out", lambda: clips)
    run = train_arm("unc", SMALL, SHAPES, tmp_path / "unc", tokenizers)
    honest, oracle = (tables.measure(run, "OPD", **how) for how in (
        {}, dict(decode=tables.with_real_tokens(run))))
    assert oracle[1] > honest[1]


def test_rows_of_real_runs_are_what_evaluate_measured(tmp_path):
    run = tmp_path / "bair-mt"
    run.mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no evaluation-\*.json; measure it first"):
        tables.from_runs([str(run)])
    for protocol, tasks, star in (("bair", ["FP"], ""), ("bair-debiased", MT8, "*")):
        (run / f"evaluation-{protocol}.json").write_text(json.dumps(dict(
            protocol=protocol, results={
                task: {f"FVD{star}": dict(mean=10.0 * number), "PSNR": dict(mean=3.0)}
                for number, task in enumerate(tasks, 1)})))
    header, *rows = tables.from_runs([str(run)])
    assert header[1:] == (*MT8, "average of eight")
    assert rows == [("bair-mt, bair-debiased", *(f"{10 * n}.0*" for n in range(1, 9)), "45.0*"),
                    ("bair-mt, bair", "10.0", *[""] * 8)]
