"""checkpoint.py: a run is never lost."""
import os

import pytest
import torch
from torch import nn

from checkpoint import (export, load_checkpoint, load_network, load_run, previous, read_checkpoint,
                        save_checkpoint)
from presets import PRESETS
from tokenizer import TOKENIZERS, VideoTokenizer
from transformer import MaskedTransformer


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tokenizer.pt"


def state(step, **more):
    return dict(stage="tokenizer", step=step, finished=False, config={}, model={
        "weight": torch.full((1000,), float(step))}, **more)


def test_what_is_saved_is_loaded(path):
    save_checkpoint(path, state(3))
    loaded = load_checkpoint(path)
    assert loaded["step"] == 3 and torch.equal(loaded["model"]["weight"], torch.full((1000,), 3.0))
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
    from dataclasses import asdict
    torch.manual_seed(0)
    tokenizer = VideoTokenizer(TOKENIZERS["toy"])
    ema = {name: tensor + 0.01 for name, tensor in tokenizer.state_dict().items()}
    transformer = MaskedTransformer(PRESETS["toy"].transformer_config(16))
    save_checkpoint(tmp_path / "tokenizer.pt", dict(
        stage="tokenizer", step=5, finished=True, model=tokenizer.state_dict(), ema=ema,
        config=dict(tokenizer=asdict(tokenizer.config), train={})))
    save_checkpoint(tmp_path / "transformer.pt", dict(
        stage="transformer", step=5, finished=True, model=transformer.state_dict(),
        config=dict(transformer=asdict(transformer.config), train={})))
    return tmp_path


def test_a_run_is_rebuilt_from_its_files_with_the_ema_tokenizer(run):
    tokenizer, transformer, _ = load_run(run)
    state = read_checkpoint(run / "tokenizer.pt")
    assert torch.equal(tokenizer.quantizer.codebook, state["ema"]["quantizer.codebook"])
    assert tokenizer.config == TOKENIZERS["toy"]
    assert not tokenizer.training and not transformer.training
    assert not any(p.requires_grad for network in (tokenizer, transformer)
                   for p in network.parameters())


def test_an_exported_run_is_small_and_loads(run, tmp_path):
    export(run, tmp_path / "small")
    tokenizer, transformer, _ = load_run(tmp_path / "small")
    full, _, _ = load_run(run)
    torch.testing.assert_close(tokenizer.quantizer.codebook, full.quantizer.codebook, atol=1e-3,
                               rtol=1e-3)
    assert (tmp_path / "small/transformer.pt").stat().st_size < 2.2e6


def test_stages_that_do_not_belong_together_are_refused(run):
    state = read_checkpoint(run / "transformer.pt")
    config = state["config"]["transformer"] | dict(codebook_size=100)
    other = MaskedTransformer(type(PRESETS["toy"].transformer_config(16))(**config))
    state = {k: v for k, v in state.items() if k not in ("format", "versions")}
    save_checkpoint(run / "transformer.pt", state | dict(
        config=dict(transformer=config, train={}), model=other.state_dict()))
    with pytest.raises(ValueError, match="128 codes and the transformer 100"):
        load_run(run)
    assert load_network(read_checkpoint(run / "tokenizer.pt")).codebook_size == 128
