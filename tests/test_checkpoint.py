"""training/checkpoint.py: a run is never lost, and nothing foreign is loaded."""
import dataclasses
import os
import shutil
import signal
import sys
from dataclasses import dataclass, replace

import pytest
import torch
from conftest import ROOT
from fresh import python, start
from test_loop import STAGE_1, changed, leave_at
from test_train import (SHAPES, SHORT, folder, same, shapes_run, train_small,  # noqa: F401
                        weights)
from torch import nn

import train
from data.moving_shapes import MovingShapes
from tokenizer import TOKENIZERS, TokenizerConfig
from training.checkpoint import (as_plain, from_plain, load_checkpoint, load_network, load_run,
                                 previous, read_checkpoint, save_checkpoint)
from training.presets import PRESETS


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tokenizer.pt"


def state(step, **more):
    return dict(stage="tokenizer", step=step, finished=False, config={}, tokenizer={
        "weight": torch.full((1000,), float(step))}, **more)


def test_what_is_saved_is_loaded_and_the_one_before_is_kept(path):
    for step in (1, 2, 3):
        save_checkpoint(path, state(step))
    loaded = load_checkpoint(path)
    assert loaded["step"] == 3
    assert torch.equal(loaded["tokenizer"]["weight"], torch.full((1000,), 3.0))
    assert loaded["versions"]["torch"] == str(torch.__version__)
    assert read_checkpoint(previous(path))["step"] == 2
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
    elif kind == "a piece missing":
        del content[500:600]
    elif kind == "empty":
        content = bytearray()
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["truncated", "zeroed", "flipped", "a piece missing", "empty"])
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
    torch.save(nn.Linear(2, 2), path)                        # a pickle that would run code
    with pytest.raises(ValueError, match="more than plain data"):
        load_checkpoint(path)
    path.write_text("hello")
    with pytest.raises(ValueError, match="damaged"):
        load_checkpoint(path)
    torch.save(dict(step=1), path)
    with pytest.raises(ValueError, match="not a checkpoint of this project"):
        load_checkpoint(path)
    for number in (1, 2):
        torch.save(dict(format=f"magvit checkpoint {number}"), path)
        with pytest.raises(ValueError, match="of an older format .*; commit 33ed89a is the last"):
            load_checkpoint(path)


SAVES = """
import sys, torch
sys.path.insert(0, {root!r})
from training.checkpoint import save_checkpoint
for step in range(10**6):
    save_checkpoint({path!r}, dict(step=step, weight=torch.full((1_000_000,), float(step))))
"""


def test_kill_9_while_a_checkpoint_is_written_leaves_a_whole_one(path):
    """At ten moments of a process that does nothing but save."""
    for number in range(10):
        saving = start("-c", SAVES.format(root=str(ROOT), path=str(path)), OMP_NUM_THREADS=1)
        while not previous(path).exists() and saving.is_alive():
            saving.join(0.01)
        saving.join(0.05 + 0.037 * number)
        saving.kill()
        saving.join()
        assert saving.exitcode == -signal.SIGKILL
        loaded = load_checkpoint(path)
        assert (loaded["weight"] == loaded["step"]).all()
        previous(path).unlink()                              # so that the next one is waited for


# ---------------------------------------------------------------------------------------------
# A disk that is full, and what is kept

def test_a_disk_that_is_full_costs_nothing_but_time(folder, tmp_path):
    """No file may grow beyond a limit that a checkpoint needs: it ends in one line."""
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train_small(folder, run, stage="tokenizer", on_step=leave_at(3))
    before = {path.name: path.read_bytes() for path in run.glob("*.pt*")}
    limit = (run / "tokenizer.pt").stat().st_size // 2
    done = python("-c", changed(folder, run, STAGE_1, f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
"""))
    assert done.returncode == 1
    last = [line for line in done.stderr.splitlines() if line.startswith("train.py:")]
    assert len(last) == 1 and "could not be written" in last[0] and "of step 2" in last[0]
    assert "Traceback" not in done.stderr
    assert {path.name: path.read_bytes() for path in run.glob("*.pt*")} == before
    assert train_small(folder, run, stage="tokenizer")
    assert train_small(folder, tmp_path / "whole", stage="tokenizer")
    same(*(weights(where, "tokenizer") for where in (run, tmp_path / "whole")))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a disk that is always full")
def test_a_full_disk_is_named_and_the_half_written_file_removed(path):
    save_checkpoint(path, state(1))
    os.symlink("/dev/full", f"{path}.writing")
    with pytest.raises(OSError, match="r.pt could not be written .*No space left.* MiB are free"):
        save_checkpoint(path, state(2))
    assert os.listdir(path.parent) == ["tokenizer.pt"] and read_checkpoint(path)["step"] == 1


def test_milestones_are_kept_and_a_run_can_go_back_to_one(folder, tmp_path):
    train_small(folder, tmp_path, ["--keep-every", "3"], "tokenizer")
    end = weights(tmp_path, "tokenizer")
    assert sorted(path.name for path in tmp_path.glob("*-step-*")) == [
        "tokenizer-step-3.pt", "tokenizer-step-6.pt"]
    shutil.copy(tmp_path / "tokenizer-step-3.pt", tmp_path / "tokenizer.pt")
    assert read_checkpoint(tmp_path / "tokenizer.pt")["step"] == 3
    train_small(folder, tmp_path, stage="tokenizer")
    same(end, weights(tmp_path, "tokenizer"))


# ---------------------------------------------------------------------------------------------
# Configurations as plain data

@pytest.mark.parametrize("config", [
    PRESETS["clips"], TOKENIZERS["L"], TOKENIZERS["B"].image_twin(), SHAPES,
    replace(PRESETS["toy"], tokenizer=TOKENIZERS["toy"], discriminator="B", tasks=("FP", "FP"))])
def test_a_configuration_is_the_same_after_it_was_plain_data(path, config):
    save_checkpoint(path, state(1) | dict(config=as_plain(config)))
    plain = load_checkpoint(path)["config"]
    assert plain["type"] == f"{type(config).__module__}.{type(config).__name__}"
    assert from_plain(plain) == config


def test_a_field_that_came_later_has_its_default_and_one_that_is_gone_is_refused_in_a_network():
    plain = as_plain(PRESETS["toy"]) | dict(gone=1)
    del plain["seed"]
    assert from_plain(plain) == PRESETS["toy"]
    with pytest.raises(ValueError, match="TokenizerConfig has gone, which this code does not know"):
        from_plain(as_plain(TOKENIZERS["toy"]) | dict(gone=1))


@pytest.mark.parametrize("name", [
    "os.path.X", "tests.test_checkpoint.Own", "runs.mine.Config", "assets.x.Config",
    "Config", "", "training.checkpoint.Run", "tokenizer.Encoder",
    "tokenizer.gone", "tokenizer.TokenizerConfig.build", "..tests.x.Config",
    "data/../tests/x.Config"])
def test_only_frozen_dataclasses_of_the_project_are_imported(name):
    """Not the rest of the machine, and nothing that may have come with a run."""
    before = set(sys.modules)
    with pytest.raises(ValueError, match="is no configuration that a checkpoint can have"):
        from_plain(dict(type=name))
    assert not {"tests", "runs", "assets"} & (set(sys.modules) - before)


@dataclass(frozen=True)
class Own(TokenizerConfig):
    """A configuration in a file where no checkpoint may look."""


@pytest.mark.parametrize("module", ["__main__", "test_checkpoint"])
def test_a_configuration_that_no_checkpoint_could_find_is_refused_before_training(
        tmp_path, monkeypatch, module):
    """Of the program itself, or of a file elsewhere: else the run would end in a useless file."""
    monkeypatch.setattr(Own, "__module__", module)
    own = Own(**dataclasses.asdict(TOKENIZERS["toy"]))
    with pytest.raises(ValueError, match=f"'{module}.Own' is no configuration that a checkpoint"):
        train.train(replace(PRESETS["toy"], tokenizer=own), SHAPES, tmp_path)
    assert not list(tmp_path.glob("*.pt"))


# ---------------------------------------------------------------------------------------------
# A run

@pytest.fixture
def run(shapes_run, tmp_path):
    return shutil.copytree(shapes_run, tmp_path / "run")


def test_a_run_is_rebuilt_from_its_files_with_the_ema_tokenizer(run):
    loaded, state = load_run(run), read_checkpoint(run / "tokenizer.pt")
    assert torch.equal(loaded.tokenizer.quantizer.codebook, state["ema"]["quantizer.codebook"])
    assert loaded.tokenizer.config == TOKENIZERS["toy"]
    for network in (loaded.tokenizer, loaded.transformer):
        assert not network.training and not any(p.requires_grad for p in network.parameters())
    assert loaded.config == replace(SHORT, adversarial_weight=0.1)
    assert loaded.class_names == MovingShapes().class_names
    assert len(loaded.held_out()) == 64
    raw = load_network(state, averaged=False)
    assert torch.equal(raw.quantizer.codebook, state["tokenizer"]["quantizer.codebook"])


def test_an_exported_run_is_small_and_loads(run):
    done = python("-m", "training.checkpoint", run, run / "small")
    assert done.returncode == 0 and "transformer.pt: " in done.stdout, done.stderr
    small, full = (load_run(each).tokenizer for each in (run / "small", run))
    torch.testing.assert_close(small.quantizer.codebook, full.quantizer.codebook, atol=1e-3,
                               rtol=1e-3)
    assert (run / "small/transformer.pt").stat().st_size < 2.2e6


def test_what_is_missing_or_does_not_belong_together_is_named(run):
    with pytest.raises(FileNotFoundError, match="no run folder .*gone"):
        load_run(run / "gone")
    state = read_checkpoint(run / "transformer.pt")
    state["config"]["network"]["codebook_size"] = 100
    other = from_plain(state["config"]["network"]).build()
    save_checkpoint(run / "transformer.pt", state | dict(transformer=other.state_dict()))
    with pytest.raises(ValueError, match="512 codes and the transformer 100"):
        load_run(run)
    assert load_run(run, stages=("tokenizer",)).transformer is None
    (run / "tokenizer.pt").unlink()
    with pytest.raises(FileNotFoundError, match="no checkpoint .*tokenizer.pt; train first"):
        load_run(run)


@pytest.mark.parametrize("name", ["toy", "clips"])
def test_the_shipped_weights_are_those_of_their_presets_and_small(name):
    run = load_run(ROOT / "assets" / name)
    assert run.config == PRESETS[name] and run.transformer.no_class in (16, 20)
    assert sum(path.stat().st_size for path in run.folder.glob("*.pt")) < 10e6
