"""A week on many GPUs: processes that agree, runs that lose nothing, tokens made ahead."""
import errno
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from fresh import python, torchrun
from test_loop import command
from test_train import SMALL, folder, same, train_small, weights  # noqa: F401

import train
from commit import tokenize_condition
from data.clips import VideoFolder
from data.moving_shapes import MovingShapes
from data.source import load_batch
from training.checkpoint import load_checkpoint, load_network, read_checkpoint, save_checkpoint
from training.command import parse
from training.presets import PRESETS
from training.processes import device_of_this_process
from training.stored import make_rows, open_table, write_tokens

SHORT = ["--stage", "tokenizer", "--no-report"]


# ---------------------------------------------------------------------------------------------
# Two processes that find different things

WORKER = """
import os, sys
sys.path.insert(0, {root!r})
from pathlib import Path
import train
rank = os.environ["RANK"]
{change}
sys.argv[1:] = [each.replace("RANK", rank) for each in sys.argv[1:]]
train.main()
"""


def two(tmp_path, folder, run, arguments=(), change="", start=torchrun):
    """Two processes; RANK in the arguments, and `change`, make them differ."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(root=str(ROOT), change=change))
    _, _, *words = command(folder, run, [*SHORT, *arguments])
    return start(2, script, *words)


@pytest.mark.parametrize("other", ["missing", "older", "different"])
def test_a_second_process_with_another_checkpoint_trains_as_one_would(folder, tmp_path, other):
    """Each process has a run folder of its own, as on machines without a common disk."""
    half = ["--tokenizer-steps", "6", "--save-every", "2", "--seed", "0"]
    for seed in ("0", "1") if other == "different" else ("0",):
        run = tmp_path / f"run{seed}"
        train_small(folder, run, half[:4] + ["--seed", seed], "tokenizer")
        state = read_checkpoint(run / "tokenizer.pt.previous")         # of step 4
        shutil.rmtree(run)
        run.mkdir()
        state["config"]["train"]["seed"] = 0
        save_checkpoint(run / "tokenizer.pt", state)
    if other != "different":
        shutil.copytree(tmp_path / "run0", tmp_path / "run1")
    if other == "missing":
        (tmp_path / "run1/tokenizer.pt").unlink()
    elif other == "older":
        old = read_checkpoint(tmp_path / "run1/tokenizer.pt") | dict(step=2)
        save_checkpoint(tmp_path / "run1/tokenizer.pt", old)
    shutil.copytree(tmp_path / "run0", tmp_path / "alone")
    assert two(tmp_path, folder, tmp_path / "alone", half).returncode == 0
    done = two(tmp_path, folder, tmp_path / "runRANK", half)
    assert done.returncode == 0, done.stderr
    same(weights(tmp_path / "alone", "tokenizer"), weights(tmp_path / "run0", "tokenizer"))


def test_processes_with_other_clips_or_settings_are_refused_before_anything_is_written(
        folder, tmp_path):
    fewer = tmp_path / "fewer"
    shutil.copytree(folder, fewer)
    next(iter(sorted(fewer.rglob("*.npy")))).unlink()
    other_clips = f"if rank == '1': sys.argv[sys.argv.index('--data') + 1] = {str(fewer)!r}"
    for name, change, words in (
            ("clips", other_clips, "has clips 5, process 0"),
            ("settings", "if rank == '1': sys.argv += ['--tokenizer-rate', '0.5']",
             "has the settings with digest")):
        done = two(tmp_path, folder, tmp_path / f"{name}RANK", change=change)
        assert done.returncode != 0
        message = " ".join(done.stderr.split())
        assert words in message and "nothing was trained" in message, done.stderr
        assert not list(tmp_path.glob(f"{name}*/*.pt*"))


def test_an_error_of_one_process_ends_all_within_seconds_with_that_error(folder, tmp_path):
    breaks = """
import data.loader
if rank == "1":
    real = data.loader.clip_of
    def clip_of(source, step, *more):
        if step == 3:
            raise OSError("the disk of process 1 is gone")
        return real(source, step, *more)
    data.loader.clip_of = clip_of
"""
    begin = time.monotonic()
    done = two(tmp_path, folder, tmp_path / "run", ["--tokenizer-steps", "2000"], breaks,
               start=lambda *line: subprocess.run(
                   [sys.executable, "-m", "torch.distributed.run", "--standalone",
                    "--nproc_per_node", *map(str, line)], cwd=ROOT, text=True, capture_output=True,
                   env=os.environ | dict(OMP_NUM_THREADS="1"), timeout=200))
    assert done.returncode != 0 and "the disk of process 1 is gone" in done.stderr
    assert time.monotonic() - begin < 60


# ---------------------------------------------------------------------------------------------
# What a run goes on with

def leave_at(number):
    def leave(stage, step, terms):
        if step == number:
            raise KeyboardInterrupt
    return leave


def test_a_half_done_stage_does_not_go_on_with_other_clips(folder, tmp_path):
    videos = tmp_path / "videos"
    shutil.copytree(folder, videos)
    with pytest.raises(KeyboardInterrupt):
        train_small(videos, tmp_path / "run", stage="tokenizer", on_step=leave_at(3))
    gone = sorted(videos.rglob("*.npy"))[0]
    kept = gone.rename(tmp_path / "kept.npy")
    with pytest.raises(ValueError, match="half done .*clips 6 there, 5 here"):
        train_small(videos, tmp_path / "run", stage="tokenizer")
    kept.rename(gone)
    assert train_small(videos, tmp_path / "run", ["--accumulate", "2"], "tokenizer")


def test_a_half_done_stage_2_does_not_go_on_with_another_tokenizer(folder, tmp_path):
    train_small(folder, tmp_path, stage="tokenizer")
    with pytest.raises(KeyboardInterrupt):
        train_small(folder, tmp_path, stage="transformer", on_step=leave_at(3))
    state = read_checkpoint(tmp_path / "tokenizer.pt")
    state["ema"]["quantizer.codebook"][0] += 1
    save_checkpoint(tmp_path / "tokenizer.pt", state)
    with pytest.raises(ValueError, match="half done .*tokenizer '.*' there"):
        train_small(folder, tmp_path, stage="transformer")


def test_frame_prediction_on_folders_has_no_rows_for_classes(folder, tmp_path):
    """Kinetics lies in folders named like classes, which no task of its run asks for."""
    for tasks, classes in (("FP", 0), ("CG", 2)):
        train_small(folder, tmp_path / tasks, ["--tasks", tasks])
        state = read_checkpoint(tmp_path / tasks / "transformer.pt")
        assert state["config"]["network"]["num_classes"] == classes


def test_something_something_is_not_mirrored():
    """"Pulling something from left to right" is a class."""
    assert not any(PRESETS[name].flip for name in PRESETS if name.startswith("ssv2"))
    assert PRESETS["ucf101-B"].flip


# ---------------------------------------------------------------------------------------------
# Files

FULL = """
import resource, sys
sys.path.insert(0, {root!r})
import train
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
sys.argv[1:] = {arguments!r}
train.main()
"""


def test_a_disk_that_is_full_costs_nothing_but_time(folder, tmp_path):
    """No file may grow beyond a limit that a checkpoint needs: it ends in one line."""
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train_small(folder, run, stage="tokenizer", on_step=leave_at(3))
    before = {path.name: path.read_bytes() for path in run.glob("*.pt*")}
    limit = (run / "tokenizer.pt").stat().st_size // 2
    arguments = ["toy", "--data", str(folder), "--out", str(run), *SMALL, *SHORT]
    done = python("-c", FULL.format(root=str(ROOT), size=limit, arguments=arguments))
    assert done.returncode == 1
    last = [line for line in done.stderr.splitlines() if line.startswith("train.py:")]
    assert len(last) == 1 and "could not be written" in last[0] and "of step 2" in last[0]
    assert "Traceback" not in done.stderr
    assert {path.name: path.read_bytes() for path in run.glob("*.pt*")} == before
    assert train_small(folder, run, stage="tokenizer")
    assert train_small(folder, tmp_path / "whole", stage="tokenizer")
    same(*(weights(where, "tokenizer") for where in (run, tmp_path / "whole")))


def test_a_full_disk_is_named_and_the_half_written_file_removed(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "x.pt", dict(step=1))

    def full(state, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="x.pt could not be written .*No space left.* MiB are free"):
        save_checkpoint(tmp_path / "x.pt", dict(step=2))
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]
    assert read_checkpoint(tmp_path / "x.pt")["step"] == 1


def test_milestones_are_kept_and_a_run_can_go_back_to_one(folder, tmp_path):
    train_small(folder, tmp_path, ["--keep-every", "3"], "tokenizer")
    end = weights(tmp_path, "tokenizer")
    assert sorted(path.name for path in tmp_path.glob("*-step-*")) == [
        "tokenizer-step-3.pt", "tokenizer-step-6.pt"]
    shutil.copy(tmp_path / "tokenizer-step-3.pt", tmp_path / "tokenizer.pt")
    assert read_checkpoint(tmp_path / "tokenizer.pt")["step"] == 3
    train_small(folder, tmp_path, stage="tokenizer")
    same(end, weights(tmp_path, "tokenizer"))


def test_checkpoints_can_go_by_the_clock(folder, tmp_path, monkeypatch):
    """Twenty minutes in the paper's presets; here a minute passes with each look at the clock."""
    clock = iter(range(0, 10**6, 60))
    monkeypatch.setattr("training.checkpoint.time.monotonic", lambda: next(clock))
    saved = []
    monkeypatch.setattr("training.checkpoint.save_checkpoint",
                        lambda path, state: saved.append(state["step"]))
    train_small(folder, tmp_path, ["--save-every", "0", "--save-minutes", "2"], "tokenizer")
    assert saved[-1] == 6 and 1 < len(saved) < 6
    assert PRESETS["ucf101-B"].save_minutes == 20 and not PRESETS["ucf101-B"].save_every


def test_the_log_tells_the_pace(folder, tmp_path):
    train_small(folder, tmp_path)
    for line in map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines()):
        assert line["pace"]["clips_per_second"] > 0 and 0 <= line["pace"]["waiting"] <= 1
        assert line["pace"]["tflops"] > 0


# ---------------------------------------------------------------------------------------------
# Tokens made ahead of time, and looks at held-out clips

def test_stage_2_learns_from_tokens_made_ahead_and_resumes_to_the_bit(folder, tmp_path):
    """Two augmentations of each clip; a run that was stopped ends as one that was not."""
    train_small(folder, tmp_path / "whole", stage="tokenizer")
    done = python("-m", "training.stored", tmp_path / "whole", "--out", tmp_path / "tokens",
                  "--copies", "2")
    assert done.returncode == 0, done.stderr
    table = open_table(tmp_path / "tokens")
    assert len(table) == 2 * table.facts["clips"]
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    flags, tokens = ["--token-pool", "0"], str(tmp_path / "tokens")
    train_small(folder, tmp_path / "whole", flags, "transformer", tokens=tokens)

    def leave(stage, step, terms):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_small(folder, tmp_path / "parts", flags, "transformer", tokens=tokens, on_step=leave)
    with pytest.raises(ValueError, match="half done.*tokens|tokens.*half done|trained with other"):
        shutil.copytree(tmp_path / "tokens", tmp_path / "others")
        path = tmp_path / "others/tokens.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | dict(seed=7)))
        train_small(folder, tmp_path / "parts", flags, "transformer",
                    tokens=str(tmp_path / "others"))
    train_small(folder, tmp_path / "parts", flags, "transformer", tokens=tokens)
    same(*(weights(tmp_path / name, "transformer") for name in ("whole", "parts")))


def test_stored_tokens_are_those_of_the_clips_and_their_conditions(folder, tmp_path):
    train_small(folder, tmp_path, stage="tokenizer")
    config, data, _ = parse(["toy", "--data", str(folder), *SMALL, "--tasks", "FP", "CFP", "OPC"])
    source = VideoFolder(folder, config.clip_shape)
    tokenizer = load_network(load_checkpoint(tmp_path / "tokenizer.pt"))
    write_tokens(tokenizer, source, config, tmp_path / "tokens")
    table = open_table(tmp_path / "tokens")
    video, label = load_batch(source, 0, 32, config.seed)
    entries = np.array([3, 0, 5])
    for task in ("FP", "CFP", "OPC"):
        tokens, condition, is_pad, labels = table.take(entries, task, torch.device("cpu"))
        assert torch.equal(tokens, tokenizer.encode(video[entries]).flatten(1))
        there, pad = tokenize_condition(tokenizer, video[entries], task, 1)
        assert torch.equal(condition, there) and torch.equal(is_pad, pad)
        assert torch.equal(labels, label[entries])


def test_tokens_of_another_tokenizer_are_refused(folder, tmp_path):
    for name, seed in (("one", "0"), ("other", "1")):
        train_small(folder, tmp_path / name, ["--seed", seed], "tokenizer")
    config, _, _ = parse(["toy", "--data", str(folder), *SMALL])
    write_tokens(load_network(load_checkpoint(tmp_path / "one/tokenizer.pt")),
                 VideoFolder(folder, config.clip_shape), config, tmp_path / "tokens")
    with pytest.raises(ValueError, match="the tokens are of another run: tokenizer"):
        train_small(folder, tmp_path / "other", ["--seed", "1"], "transformer",
                    tokens=tmp_path / "tokens")
    (tmp_path / "tokens/0000000.npy").unlink()
    with pytest.raises(FileNotFoundError, match="0000000.npy is missing, 1 of 1 files"):
        open_table(tmp_path / "tokens")


def test_the_token_pool_is_made_once_and_kept_with_the_run(folder, tmp_path, monkeypatch):
    train_small(folder, tmp_path / "one")
    assert (tmp_path / "one/pool/tokens.json").exists()
    whole = weights(tmp_path / "one", "transformer")
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    made = []
    monkeypatch.setattr("training.stored.make_rows", lambda *given: made.append(given) or
                        make_rows(*given))
    for path in (tmp_path / "one").glob("transformer.pt*"):
        path.unlink()
    train_small(folder, tmp_path / "one", stage="transformer")
    assert not made
    same(whole, weights(tmp_path / "one", "transformer"))
    for path in (tmp_path / "other").glob("*.pt*"):            # another tokenizer, the old pool
        path.unlink()
    train_small(folder, tmp_path / "other", ["--seed", "1"])
    assert len(made) == 1
    assert open_table(tmp_path / "other/pool").facts["seed"] == 1


def test_held_out_clips_are_looked_at_and_training_does_not_notice(folder, tmp_path):
    train_small(folder, tmp_path / "blind")
    train_small(folder, tmp_path / "seeing", ["--evaluate-every", "3"])
    for stage in ("tokenizer", "transformer"):
        same(*(weights(tmp_path / name, stage) for name in ("blind", "seeing")))
        assert (tmp_path / f"seeing/held_out-{stage}.png").exists()
    lines = [json.loads(line) for line in (tmp_path / "seeing/log.jsonl").read_text().splitlines()]
    looks = [(line["stage"], line["step"], sorted(line["held_out"])) for line in lines
             if "held_out" in line]
    losses = [f"loss at {ratio}" for ratio in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert looks == [(stage, step, names) for stage, names in (
        ("tokenizer", ["psnr"]), ("transformer", losses)) for step in (2, 5)]


def test_a_data_set_object_without_held_out_clips_is_looked_at_itself(tmp_path):
    """It stands for itself, as in the report."""
    config = replace(PRESETS["toy"], tokenizer_steps=2, token_pool=8, evaluate_every=2,
                     tokenizer_batch=2)
    source = type("Mine", (MovingShapes,), dict(held_out=None))()
    assert train.train(config, source, tmp_path, stage="tokenizer", draw=False)
    assert "psnr" in json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["held_out"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or torch.cuda.is_available(),
                    reason="it is the C library of Linux that is told, where CPUs compute")
def test_memory_that_a_tensor_left_is_there_for_the_next_one():
    """64 MB are 16,384 pages; a new block from the system would cost a fault for each."""
    device = device_of_this_process()
    faults = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2 ** 26, dtype=torch.uint8, device=device)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert max(faults[1:]) < 1000
