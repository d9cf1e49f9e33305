"""training/checkpoint.py: a run is never lost, and old ones are still understood."""
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import train
from data.clips import DataConfig
from data.moving_shapes import MovingShapes
from tokenizer import TOKENIZERS
from training.build import as_plain, build, differences, from_plain
from training.checkpoint import (export, load_checkpoint, load_network, load_run, previous,
                                 read_checkpoint, save_checkpoint)
from training.presets import PRESETS
from transformer import TRANSFORMERS, MaskedTransformer

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tokenizer.pt"


def state(step, **more):
    return dict(stage="tokenizer", step=step, finished=False, config={}, tokenizer={
        "weight": torch.full((1000,), float(step))}, **more)


def test_what_is_saved_is_loaded(path):
    save_checkpoint(path, state(3))
    loaded = load_checkpoint(path)
    assert loaded["step"] == 3
    assert torch.equal(loaded["tokenizer"]["weight"], torch.full((1000,), 3.0))
    assert loaded["versions"]["torch"] == str(torch.__version__)


def test_the_previous_one_is_kept(path):
    for step in (1, 2, 3):
        save_checkpoint(path, state(step))
    assert read_checkpoint(path)["step"] == 3 and read_checkpoint(previous(path))["step"] == 2
    assert sorted(os.listdir(path.parent)) == ["tokenizer.pt", "tokenizer.pt.previous"]


def damage(path, kind):
    content = bytearray(path.read_bytes())
    if kind == "truncated":
        content = content[:len(content) // 2]
    elif kind == "zeroed":
        content = bytearray(len(content))
    elif kind == "flipped":                                  # a few bytes in the weights themselves
        middle = content.index(torch.full((8,), 2.0).numpy().tobytes())
        content[middle:middle + 8] = bytes(8)
    elif kind == "empty":
        content = bytearray()
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["truncated", "zeroed", "flipped", "empty"])
def test_a_damaged_checkpoint_is_refused_and_the_previous_one_used(path, capsys, kind):
    save_checkpoint(path, state(1))
    save_checkpoint(path, state(2))
    damage(path, kind)
    assert load_checkpoint(path)["step"] == 1
    message = capsys.readouterr().err
    assert "damaged" in message and "using tokenizer.pt.previous of step 1" in message
    assert message.count("\n") == 1
    previous(path).unlink()
    with pytest.raises(ValueError, match="tokenizer.pt is damaged"):
        load_checkpoint(path)


def test_foreign_files_are_refused_in_one_line(path):
    torch.save(dict(step=1), path)
    with pytest.raises(ValueError, match="not a checkpoint of this project"):
        load_checkpoint(path)
    torch.save(nn.Linear(2, 2), path)                        # a pickle that would run code
    with pytest.raises(ValueError, match="more than plain data"):
        load_checkpoint(path)
    path.write_text("hello")
    with pytest.raises(ValueError, match="damaged"):
        load_checkpoint(path)


def test_a_kill_at_any_moment_of_saving_leaves_a_whole_checkpoint(path, monkeypatch):
    """Stop at each system call of save_checkpoint in turn; one of the two files always loads."""
    save_checkpoint(path, state(1))
    save_checkpoint(path, state(2))
    for name in ("fsync", "replace"):
        for when in (1, 2):
            calls = iter(range(1, 10))
            real = getattr(os, name)

            def killed(*arguments, real=real, calls=calls, when=when):
                if next(calls) == when:
                    raise KeyboardInterrupt
                return real(*arguments)

            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(os, name, killed)
                save_checkpoint(path, state(3))
            assert load_checkpoint(path)["step"] in (1, 2, 3)


def test_a_missing_run_or_stage_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run folder .*gone"):
        load_run(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="no checkpoint .*tokenizer.pt; train first"):
        load_run(tmp_path)


@pytest.fixture
def run(tmp_path):
    """A run folder of untrained networks; the tokenizer's EMA differs from its weights."""
    torch.manual_seed(0)
    for stage in ("tokenizer", "transformer"):
        network = build(PRESETS["toy"], stage, num_classes=16).networks[stage]
        networks = {stage: network.state_dict()}
        if stage == "tokenizer":
            networks["ema"] = {name: tensor + 0.01 for name, tensor in networks[stage].items()}
        save_checkpoint(tmp_path / f"{stage}.pt", dict(
            stage=stage, step=5, finished=True, **networks,
            config=dict(network=as_plain(network.config), train=as_plain(PRESETS["toy"]),
                        data=as_plain(DataConfig(dataset="shapes")))))
    return tmp_path


def test_a_run_is_rebuilt_from_its_files_with_the_ema_tokenizer(run):
    loaded = load_run(run)
    tokenizer, transformer = loaded.tokenizer, loaded.transformer
    state = read_checkpoint(run / "tokenizer.pt")
    assert torch.equal(tokenizer.quantizer.codebook, state["ema"]["quantizer.codebook"])
    assert tokenizer.config == TOKENIZERS["toy"]
    assert not tokenizer.training and not transformer.training
    assert not any(p.requires_grad for network in (tokenizer, transformer)
                   for p in network.parameters())
    assert loaded.config == PRESETS["toy"] and loaded.data == DataConfig(dataset="shapes")
    raw = load_network(state, averaged=False)
    assert torch.equal(raw.quantizer.codebook, state["tokenizer"]["quantizer.codebook"])


def test_an_exported_run_is_small_and_loads(run, tmp_path):
    export(run, tmp_path / "small")
    small, full = (load_run(each).tokenizer for each in (tmp_path / "small", run))
    torch.testing.assert_close(small.quantizer.codebook, full.quantizer.codebook, atol=1e-3,
                               rtol=1e-3)
    assert (tmp_path / "small/transformer.pt").stat().st_size < 2.2e6


def test_stages_that_do_not_belong_together_are_refused(run):
    state = read_checkpoint(run / "transformer.pt")
    config = state["config"] | dict(network=state["config"]["network"] | dict(codebook_size=100))
    other = MaskedTransformer(from_plain(config["network"]))
    state = {k: v for k, v in state.items() if k not in ("format", "versions")}
    save_checkpoint(run / "transformer.pt",
                    state | dict(config=config, transformer=other.state_dict()))
    with pytest.raises(ValueError, match="128 codes and the transformer 100"):
        load_run(run)
    assert load_network(read_checkpoint(run / "tokenizer.pt")).codebook_size == 128


# ---------------------------------------------------------------------------------------------
# Checkpoints of format 1, as they were written before the networks had names of their own

SHORT = replace(PRESETS["toy"], tokenizer_steps=4, tokenizer_warmup=1, transformer_steps=4,
                transformer_warmup=1, tokenizer_batch=2, transformer_batch=4, token_pool=8,
                save_every=2, precision="float32", adversarial_weight=0.1)
LATER = {"train": {"type", "init", "discriminator", "inflate", "lpips_weights", "recompute"},
         "network": {"type", "latent_gain", "task_names"}, "data": {"type", "dataset"}}


def as_format_1(state):
    """What the code of format 1 would have written in a state's place."""
    name = "transformer" if state["stage"] == "transformer" else "tokenizer"
    names = {name: "model", f"optimizer {name}": "optimizer model"}
    old = {names.get(key, key): value for key, value in state.items() if key not in ("origin", "facts")}
    config = {part: {key: list(value) if isinstance(value, tuple) and part == "data" else value
                     for key, value in values.items() if key not in LATER[part]}
              for part, values in state["config"].items()}
    config["train"] |= dict(dataset=state["config"]["data"]["dataset"], checkpointing=False,
                            padding=config["train"]["padding"] or "reflect")
    config[state["stage"]] = config.pop("network")
    return old | dict(format="magvit checkpoint 1", config=config)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run of today, on the drawn clips; of each stage there is step 2 as well."""
    run = tmp_path_factory.mktemp("whole")
    train.train(SHORT, DataConfig(dataset="shapes"), run, draw=False)
    return run


@pytest.fixture
def old_run(whole, tmp_path):
    """The same as format 1 had it, stopped after step 2 of each stage."""
    for name in ("tokenizer.pt", "transformer.pt"):
        torch.save(as_format_1(read_checkpoint(previous(whole / name))), tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("name", ["toy", "clips"])
def test_the_shipped_weights_are_those_of_their_presets_and_small(name):
    run = load_run(ROOT / "assets" / name)
    assert differences(run.config, PRESETS[name]) == {} and run.transformer.no_class in (16, 20)
    assert sum(path.stat().st_size for path in run.folder.glob("*.pt")) < 10e6


def test_a_run_of_format_1_loads(old_run, whole):
    written = torch.load(old_run / "tokenizer.pt", weights_only=True)
    assert {"format", "versions", "stage", "step", "finished", "config", "model", "ema", "lecam",
            "discriminator", "optimizer model", "optimizer discriminator"} == written.keys()
    assert written["config"].keys() == {"tokenizer", "train", "data"}
    run = load_run(old_run)
    assert run.config == SHORT and run.data == load_run(whole).data
    assert run.data.dataset == "shapes" and run.class_names == MovingShapes().class_names
    assert run.tokenizer.config == TOKENIZERS["toy"]
    assert run.transformer.config == replace(TRANSFORMERS["toy"], num_classes=16)
    assert len(run.held_out()) == 64
    for stage, network in (("tokenizer", run.tokenizer), ("transformer", run.transformer)):
        today = load_network(read_checkpoint(previous(whole / f"{stage}.pt"))).state_dict()
        assert all(torch.equal(today[name], tensor)
                   for name, tensor in network.state_dict().items())
    state = load_checkpoint(old_run / "tokenizer.pt")
    assert torch.equal(load_network(state, averaged=False).quantizer.codebook,
                       written["model"]["quantizer.codebook"])


@pytest.mark.parametrize("stage", ["tokenizer", "transformer"])
def test_a_run_of_format_1_goes_on_to_the_same_end(old_run, whole, stage):
    if stage == "transformer":                                   # on the tokenizer at its end
        torch.save(as_format_1(read_checkpoint(whole / "tokenizer.pt")), old_run / "tokenizer.pt")
    with pytest.raises(ValueError, match="train.adversarial_weight 0.1 there, 0.0 here"):
        train.train(replace(SHORT, adversarial_weight=0.0), DataConfig(dataset="shapes"), old_run,
                    stage=stage, draw=False)
    assert train.train(SHORT, DataConfig(dataset="shapes"), old_run, stage=stage, draw=False)
    ends = [read_checkpoint(run / f"{stage}.pt") for run in (whole, old_run)]
    assert ends[0]["config"] == ends[1]["config"] and ends[1]["step"] == 4
    for part in {"tokenizer", "ema", "discriminator", "transformer"} & ends[0].keys():
        assert ends[0][part].keys() == ends[1][part].keys()
        assert all(torch.equal(tensor, ends[1][part][name])
                   for name, tensor in ends[0][part].items()), part


def test_a_2d_tokenizer_of_format_1_loads_and_so_does_one_with_zeros_around(tmp_path):
    zeros = replace(SHORT, padding="zeros", codebook_from_data=False, adversarial_weight=0.0,
                    tokenizer=replace(TOKENIZERS["toy"], latent_gain=1.0))
    train.train(zeros, DataConfig(dataset="shapes"), tmp_path, stage="image", draw=False)
    today = read_checkpoint(tmp_path / "image.pt")
    old = as_format_1(today)
    old["config"]["train"]["tokenizer"] = "toy"
    torch.save(old, tmp_path / "image.pt")
    state = read_checkpoint(tmp_path / "image.pt")
    network = load_network(state)
    assert network.config == load_network(today).config and network.config.padding == "zeros"
    assert state["config"]["train"]["padding"] == "zeros" and network.config.latent_gain == 1.0
