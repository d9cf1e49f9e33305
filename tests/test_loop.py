"""training/loop.py: exact resume, many processes, what is logged, what is watched."""
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_train import (GAN, SMALL, TRAINED, folder, gradients, kept, same,  # noqa: F401
                        tokenizer_trainee, train_small, weights)

import train
from data.clips import DataConfig, open_source
from measure.report import evaluate_reconstruction, report
from steps import TokenBatch, tokenizer_step, transformer_step
from tokenizer import TOKENIZERS
from training.build import as_plain, build
from training.checkpoint import load_network, previous, read_checkpoint, save_checkpoint
from training.loop import learning_rate, refuse_other_configuration, seed_of
from training.presets import PRESETS
from training.processes import average_terms, join_processes
from training.watch import TokenizerWatch


# ---------------------------------------------------------------------------------------------
# Exact resume

class Killed(Exception):
    pass


@pytest.mark.parametrize("extra", [[], GAN], ids=["plain", "gan"])
def test_a_run_that_was_killed_ends_bitwise_as_one_that_was_not(folder, tmp_path, monkeypatch,
                                                                extra):
    train_small(folder, tmp_path / "whole", extra)
    for stage, step_name in (("tokenizer", "tokenizer_step"), ("transformer", "transformer_step")):
        step, calls = getattr(train, step_name), iter(range(100))

        def dies(*arguments, step=step, calls=calls):
            if next(calls) == 3:                      # step 3: the checkpoint is of step 2
                raise Killed
            return step(*arguments)

        monkeypatch.setattr(train, step_name, dies)
        with pytest.raises(Killed):
            train_small(folder, tmp_path / "killed", extra, stage)
        assert read_checkpoint(tmp_path / "killed" / f"{stage}.pt")["step"] == 2
        monkeypatch.setattr(train, step_name, step)
        train_small(folder, tmp_path / "killed", extra, stage)
        same(weights(tmp_path / "whole", stage), weights(tmp_path / "killed", stage))


def test_a_signal_finishes_the_step_saves_and_leaves(folder, tmp_path, monkeypatch, capsys):
    step, calls = train.tokenizer_step, iter(range(100))

    def interrupted(*arguments):
        if next(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    monkeypatch.setattr(train, "tokenizer_step", interrupted)
    assert train_small(folder, tmp_path, ["--save-every", "100"], "tokenizer") is False
    assert read_checkpoint(tmp_path / "tokenizer.pt")["step"] == 3
    assert "the same command goes on from here" in capsys.readouterr().err


def test_a_checkpoint_of_another_configuration_is_refused(folder, tmp_path):
    train_small(folder, tmp_path, stage="tokenizer")
    with pytest.raises(ValueError, match=r"tokenizer_rate 0.0004 there, 0.5 here.*--out another"):
        train_small(folder, tmp_path, ["--tokenizer-rate", "0.5"], "tokenizer")
    configs = dict(network=TOKENIZERS["toy"], train=PRESETS["toy"], data=DataConfig(root="videos"))
    refuse_other_configuration(tmp_path, {part: as_plain(each) for part, each in configs.items()},
                               configs | dict(train=replace(PRESETS["toy"], compile=True)))


def test_settings_of_stage_2_may_change_while_stage_1_goes_on(folder, tmp_path):
    """And a finished stage takes over what may change: the held-out videos, the decoding."""
    train_small(folder, tmp_path, stage="tokenizer")
    train_small(folder, tmp_path, ["--transformer-rate", "0.5", "--tasks", "FP"])
    before = weights(tmp_path, "transformer")
    train_small(folder, tmp_path, ["--transformer-rate", "0.5", "--tasks", "FP", "--decode-steps",
                                   "3", "--test-data", str(folder)], "transformer")
    config = read_checkpoint(tmp_path / "transformer.pt")["config"]
    assert config["train"]["decode_steps"] == 3 and config["data"]["test_root"] == str(folder)
    same(before, weights(tmp_path, "transformer"))
    with pytest.raises(ValueError, match="transformer_rate 0.5 there, 0.002 here"):
        train_small(folder, tmp_path, ["--tasks", "FP"], "transformer")


def test_a_setting_that_an_old_checkpoint_does_not_know_had_its_default(folder, tmp_path):
    """It goes on to the same end, and refuses another value by the setting's name."""
    train_small(folder, tmp_path, GAN)
    for stage, (name, *others), default in (("tokenizer", ["r1_weight", "init"], 10.0),
                                            ("transformer", ["weight_decay"], 0.045)):
        end, path = weights(tmp_path, stage), tmp_path / f"{stage}.pt"
        state = read_checkpoint(previous(path))
        assert not state["finished"]
        for unknown in (name, *others):
            del state["config"]["train"][unknown]
        path.unlink()
        save_checkpoint(previous(path), state)
        with pytest.raises(ValueError, match=f"train.{name} {default} there, 3.0 here"):
            train_small(folder, tmp_path, [*GAN, f"--{name.replace('_', '-')}", "3"], stage)
        assert train_small(folder, tmp_path, GAN, stage)
        same(end, weights(tmp_path, stage))
        assert read_checkpoint(path)["config"]["train"].keys() >= {name, *others}


def test_seeds_differ_by_seed_rank_and_step():
    seeds = {seed_of(seed, rank, step) for seed in range(3) for rank in range(3)
             for step in range(20)}
    assert len(seeds) == 180


# ---------------------------------------------------------------------------------------------
# Many processes

def command(folder, run, arguments=(), processes=1, launcher=()):
    start = ([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes),
              "--master_port", str(free_port()), *launcher]
             if processes > 1 else [sys.executable])
    return [*start, str(ROOT / "train.py"), "toy", "--data", str(folder), "--out", str(run), *SMALL,
            *arguments]


def execute(*arguments, **options):
    environment = os.environ | dict(OMP_NUM_THREADS="1")
    return subprocess.run(command(*arguments, **options), env=environment, cwd=ROOT, text=True,
                          capture_output=True, timeout=300)


def one_step_of_each_stage(rank, world, port, result):
    """Gradients of both stages, GAN included, on this process's share of a fixed batch of four."""
    torch.set_num_threads(1)
    if world > 1:
        os.environ |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank),
                           WORLD_SIZE=str(world))
        join_processes("gloo")
        group = weakref.ref(torch.distributed.group.WORLD)
    generator = torch.Generator().manual_seed(0)
    share = slice(rank * 4 // world, (rank + 1) * 4 // world)
    trainee, config = tokenizer_trainee()
    config = replace(config, lecam_weight=1.0)
    video = torch.rand(4, 3, 16, 32, 32, generator=generator)
    terms = average_terms(tokenizer_step(trainee, video[share], config))
    found = {f"{name} {key}": g for name in TRAINED
             for key, g in gradients(trainee.networks[name]).items()}
    found |= {f"lecam {k}": v for k, v in trainee.networks["lecam"].state_dict().items()}

    trainee = kept(build(config, "transformer", num_classes=16))
    tokens = torch.randint(128, (2, 4, 64), generator=generator)[:, share]
    draws = (torch.rand(4, 64, generator=generator)[share],
             torch.rand(4, generator=generator)[share])
    batch = TokenBatch("OPC", *tokens, torch.arange(64) % 3 > 0,
                       torch.zeros(len(tokens[0]), dtype=torch.long), *draws)
    terms |= {f"transformer {k}": v for k, v in
              average_terms(transformer_step(trainee, batch, config)).items()}
    found |= {f"transformer {key}": g for key, g in
              gradients(trainee.networks["transformer"]).items()}
    found |= {f"term {k}": v for k, v in terms.items() if v.ndim == 0 and k != "contrast"}
    if rank == 0:
        torch.save(found, result)
    if world > 1:
        torch.distributed.destroy_process_group()
        assert group() is None               # or its threads would outlive it, and abort the exit


def test_two_processes_with_half_the_batch_equal_one(tmp_path):
    """To 1e-5 of the largest, in both stages, GAN included: the entropy's mean code and LeCam's
    means are taken over all processes, not over each one's share."""
    one_step_of_each_stage(0, 1, 0, tmp_path / "one")
    torch.multiprocessing.start_processes(
        one_step_of_each_stage, (2, free_port(), tmp_path / "two"), nprocs=2,
        start_method="forkserver")                                           # see fresh.py
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one", "two"))
    assert one.keys() == two.keys()
    largest = {kind: max(one[name].abs().max() for name in one if name.startswith(kind))
               for kind in (*TRAINED, "transformer", "lecam", "term")}
    for name in one:
        scale = largest[name.split()[0]]
        assert (one[name] - two[name]).abs().max() <= 1e-5 * scale, name


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_torchrun_trains_both_stages_on_two_processes(folder, tmp_path, one_thread):
    """And logs what one process logs, as long as rounding allows: the first step."""
    train_small(folder, tmp_path / "one", GAN)
    done = execute(folder, tmp_path / "two", [*GAN, "--no-report"], processes=2)
    assert done.returncode == 0, done.stderr
    logs = [[json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
            for name in ("one", "two")]
    assert len(logs[0]) == len(logs[1]) == 4          # the first and the last step of each stage
    for first, second in zip(logs[0][::2], logs[1][::2]):
        assert first["step"] == second["step"] == 0
        for key in first.keys() - {"stage", "seconds", "contrast", "codes", "pace"}:
            assert first[key] == pytest.approx(second[key], rel=2e-3, abs=2e-5), key
    assert (tmp_path / "two/transformer.pt").exists()


@pytest.mark.slow
def test_torchrun_restarts_a_killed_worker_and_ends_right(folder, tmp_path):
    steps = ["--tokenizer-steps", "60", "--save-every", "5", "--stage", "tokenizer", "--no-report"]
    assert execute(folder, tmp_path / "whole", steps, processes=2).returncode == 0
    environment = os.environ | dict(OMP_NUM_THREADS="1")
    running = subprocess.Popen(command(folder, tmp_path / "killed", steps, processes=2,
                                       launcher=["--max-restarts", "3"]), env=environment, cwd=ROOT)
    deadline = time.time() + 60
    while not (tmp_path / "killed/tokenizer.pt").exists() and time.time() < deadline:
        time.sleep(0.05)
    workers = subprocess.run(["pgrep", "-P", str(running.pid)], capture_output=True, text=True)
    os.kill(int(workers.stdout.split()[0]), signal.SIGKILL)
    assert running.wait(120) == 0
    same(weights(tmp_path / "whole", "tokenizer"), weights(tmp_path / "killed", "tokenizer"))


@pytest.mark.slow
def test_kill_9_at_twenty_random_moments_changes_nothing(folder, tmp_path):
    arguments = ["--tokenizer-steps", "1500", "--transformer-steps", "1500", "--save-every", "5",
                 "--no-report"]
    assert execute(folder, tmp_path / "whole", arguments).returncode == 0
    environment = os.environ | dict(OMP_NUM_THREADS="1")
    random, kills = np.random.default_rng(0), 0
    while kills < 20:
        running = subprocess.Popen(command(folder, tmp_path / "killed", arguments), cwd=ROOT,
                                   env=environment, stderr=subprocess.DEVNULL)
        try:
            running.wait(3 + 1.5 * random.random())
            break
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
            kills += 1
    assert kills == 20, f"killed {kills} times only: give the run more steps"
    assert execute(folder, tmp_path / "killed", arguments).returncode == 0
    for stage in ("tokenizer", "transformer"):
        same(weights(tmp_path / "whole", stage), weights(tmp_path / "killed", stage))


# ---------------------------------------------------------------------------------------------
# Guards

def terms(**more):
    return dict(loss=torch.tensor(1.0), reconstruction=torch.tensor(0.01),
                tokens=torch.arange(64), contrast=torch.tensor(0.2)) | more


def watched(watch, step, terms):
    terms = terms | watch.measure(step, terms)
    return watch(step, {name: term.item() for name, term in terms.items() if term.ndim == 0})


def test_a_loss_that_is_not_finite_stops_the_run_and_names_it(folder, tmp_path, monkeypatch):
    step, calls = train.tokenizer_step, iter(range(100))

    def diverges(*arguments):
        result = step(*arguments)
        return result | dict(entropy=torch.tensor(math.nan)) if next(calls) == 3 else result

    monkeypatch.setattr(train, "tokenizer_step", diverges)
    with pytest.raises(FloatingPointError, match="step 3 of the tokenizer: entropy not finite.*"
                                                 "last good checkpoint is .* of step 2"):
        train_small(folder, tmp_path, stage="tokenizer")


@pytest.mark.parametrize("more, words", [
    (dict(tokens=torch.zeros(4, dtype=torch.long)), "only 1 of 64 codes"),
    (dict(contrast=torch.tensor(0.001)), "of one colour"),
    (dict(discriminator=torch.tensor(0.001)), "discriminator wins outright")])
def test_what_goes_wrong_is_named_once_with_what_to_try(capsys, more, words):
    watch = TokenizerWatch(64)
    for step in range(500):
        watched(watch, step, terms(**more))
    message = capsys.readouterr().err
    assert message.count("warning") == 1 and words in message and ("--" in message)


def test_a_healthy_run_is_left_in_peace(capsys):
    watch = TokenizerWatch(64)
    for step in range(500):
        shown = watched(watch, step, terms(discriminator=torch.tensor(1.3)))
    assert shown == dict(psnr=20.0, codes=64) and capsys.readouterr().err == ""


def test_the_learning_rate_warms_up_and_falls_to_zero():
    rates = [learning_rate(step, 2.0, 10, 100) for step in range(101)]
    assert rates[0] == 0 and rates[10] == 2.0 and rates[55] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0) and max(rates) == 2.0


# ---------------------------------------------------------------------------------------------
# What is logged, and who may listen

def test_the_log_has_every_term_of_both_stages(folder, tmp_path):
    train_small(folder, tmp_path, GAN)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {"reconstruction", "codebook", "commitment", "entropy", "generator", "discriminator",
            "r1", "lecam", "psnr", "codes"} <= set(lines[0])
    assert {"loss", "refine", "mask", "reconstruct", "transformer gradient"} <= set(lines[-1])


def test_a_listener_hears_every_step_and_its_numbers_are_logged(folder, tmp_path):
    heard, seen = [], {}

    def listen(stage, step, terms):
        heard.append((stage, step))
        assert torch.isfinite(terms["loss"]) and stage.networks[stage].training
        seen[stage] = {name: tensor.clone()
                       for name, tensor in stage.networks[stage].state_dict().items()}
        return dict(ours=torch.tensor(0.5), words=f"{stage} {step}") if step == 3 else None

    assert train_small(folder, tmp_path, ["--tokenizer-steps", "12"], on_step=listen)
    assert heard == [*(("tokenizer", step) for step in range(12)),
                     *(("transformer", step) for step in range(6))]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [
        *(("tokenizer", step) for step in (0, 3, 10, 11)),
        *(("transformer", step) for step in (0, 3, 5))]
    for line in lines:
        assert ("ours" in line) == (line["step"] == 3)
    assert lines[1]["ours"] == 0.5 and lines[1]["words"] == "tokenizer 3" and "psnr" in lines[1]
    for stage in ("tokenizer", "transformer"):           # after the step: what the checkpoint has
        same(seen[stage], read_checkpoint(tmp_path / f"{stage}.pt")[stage])


def test_a_run_in_a_thread_trains_and_leaves_signals_to_the_main_one(folder, tmp_path):
    before, results = signal.getsignal(signal.SIGINT), []

    def listen(stage, step, terms):
        assert threading.current_thread() is thread
        assert signal.getsignal(signal.SIGINT) is before

    thread = threading.Thread(target=lambda: results.append(
        train_small(folder, tmp_path, on_step=listen)))
    thread.start()
    thread.join()
    assert results == [True] and read_checkpoint(tmp_path / "transformer.pt")["finished"]


def test_a_short_run_warns_about_its_average_and_reports_the_raw_weights_too(folder, tmp_path,
                                                                             capsys):
    said = []
    for name, decay in (("short", "0.99"), ("enough", "0.5")):
        train_small(folder, tmp_path / name, ["--tokenizer-ema", decay, "--tasks", "CG"])
        said.append(capsys.readouterr().err)
    assert "warning: after 6 steps the averaged weights are still 94% those of the start" in said[0]
    assert "averaged weights" not in said[1]
    averaged = report(tmp_path / "enough")
    assert "reconstruction_not_averaged" not in averaged
    both = report(tmp_path / "short")
    assert "by the weights that were not averaged" in capsys.readouterr().out
    state = read_checkpoint(tmp_path / "short/tokenizer.pt")
    source = open_source(DataConfig(root=str(folder)), (8, 16, 16))
    for key, which in (("reconstruction", True), ("reconstruction_not_averaged", False)):
        network = load_network(state, averaged=which)
        assert both[key] == pytest.approx(evaluate_reconstruction(network, source, 6))
    assert both["reconstruction"] != both["reconstruction_not_averaged"]
