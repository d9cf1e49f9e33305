"""training/loop.py and processes.py: a run resumes exactly, alone or as several processes."""
import json
import os
import shutil
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
from fresh import python, start, torchrun
from test_train import (GAN, SMALL, TRAINED, Noise, folder, gradients, kept,  # noqa: F401
                        log_of, same, settings, tokenizer_trainee, train_small, weights)

import train
from data.clips import open_source
from measure.report import evaluate_reconstruction, report
from steps import TokenBatch, tokenizer_step, transformer_step
from training.checkpoint import (load_network, load_run, previous, read_checkpoint,
                                 save_checkpoint)
from training.loop import learning_rate, seed_of
from training.processes import average_terms, join_processes
from training.start import build
from training.watch import HeldOut, TokenizerWatch

STAGE_1 = ["--stage", "tokenizer", "--no-report"]


def leave_at(number):
    """An on_step that ends the run after a step."""
    def leave(stage, step, terms):
        if step == number:
            raise KeyboardInterrupt
    return leave


# ---------------------------------------------------------------------------------------------
# Stopped at any moment, a run ends as one that was not

CHANGED = """
import os, signal, sys
sys.path.insert(0, {root!r})
import data.source, train, training.checkpoint
rank = os.environ.get("RANK", "0")
on_step = None
{change}
config, data, options = train.parse(arguments=[each.replace("RANK", rank) for each in {words!r}])
train.run_command(config, data, options, lambda *given, **more: train.train(
    *given, on_step=on_step, **more))
"""


def changed(folder, run, arguments, change):
    """train.py's command with something changed, as code for python -c. Each RANK in the arguments
    is the process's."""
    words = ["toy", "--data", str(folder), "--out", str(run), *SMALL, "--no-report", *arguments]
    return CHANGED.format(root=str(ROOT), change=change, words=words)


KILLED_AT_STEP_3 = """
def on_step(stage, step, terms):
    if (stage.name, step) == ({stage!r}, 3):
        os.kill(os.getpid(), signal.SIGKILL)
"""
KILLED_WHILE_STEP_4_IS_SAVED = """
real, calls = os.{function}, []
def killed(first, *more):
    calls.append(first)
    if len(calls) == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(first, *more)
def on_step(stage, step, terms):
    if (stage.name, step) == ({stage!r}, 3):
        os.{function} = killed
"""


def test_kill_9_in_a_step_or_while_a_checkpoint_is_written_changes_nothing(folder, tmp_path,
                                                                           one_thread):
    """Each time the same command resumes; the weights are at last the same to the bit."""
    run, found = tmp_path / "killed", []
    for stage in ("tokenizer", "transformer"):
        for change in (KILLED_AT_STEP_3.format(stage=stage), *(
                KILLED_WHILE_STEP_4_IS_SAVED.format(stage=stage, function=function, call=call)
                for function, call in (("fsync", 1), ("replace", 1), ("replace", 2)))):
            done = python("-c", changed(folder, run, GAN, change), OMP_NUM_THREADS=1)
            assert done.returncode == -signal.SIGKILL, done.stderr
            found.append(sorted(path.name for path in run.glob(f"{stage}.pt*")))
    for stage, names in (("tokenizer", found[:4]), ("transformer", found[4:])):
        latest, before, writing = (f"{stage}.pt{end}" for end in ("", ".previous", ".writing"))
        assert names == [[latest], [latest, writing], [latest, writing], [before, writing]]
    assert train_small(folder, run, GAN)
    assert train_small(folder, tmp_path / "whole", GAN)
    for stage in ("tokenizer", "transformer"):
        same(weights(run, stage), weights(tmp_path / "whole", stage))


@pytest.mark.slow
def test_kill_9_at_twenty_random_moments_changes_nothing(folder, tmp_path):
    words = ["--tokenizer-steps", "600", "--transformer-steps", "600", "--save-every", "5",
             "--no-report"]
    random, begun = np.random.default_rng(0), []
    for _ in range(20):
        begun.append(start(*command(folder, tmp_path / "killed", words)[1:], OMP_NUM_THREADS=1))
        begun[-1].join(2 + 1.5 * random.random())               # a second of it to begin
        begun[-1].kill()
        begun[-1].join()
    assert all(each.exitcode == -signal.SIGKILL for each in begun), "give the run more steps"
    for name in ("killed", "whole"):
        assert execute(folder, tmp_path / name, words).returncode == 0
    for stage in ("tokenizer", "transformer"):
        same(weights(tmp_path / "whole", stage), weights(tmp_path / "killed", stage))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_finishes_the_step_saves_and_leaves(folder, tmp_path, capsys, name):
    """Ctrl-C, the end of a job, a connection that is closed."""
    def listen(stage, step, terms):
        if step == 2:
            os.kill(os.getpid(), getattr(signal, name))

    before = signal.getsignal(getattr(signal, name))
    assert not train_small(folder, tmp_path, ["--save-every", "100"], "tokenizer", on_step=listen)
    assert read_checkpoint(tmp_path / "tokenizer.pt")["step"] == 4       # read in the next step
    assert "the same command resumes from here" in capsys.readouterr().err
    assert signal.getsignal(getattr(signal, name)) is before


def test_a_signal_that_is_ignored_stays_ignored(folder, tmp_path):
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert train_small(folder, tmp_path, stage="tokenizer", on_step=lambda *_: os.kill(
            os.getpid(), signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_in_a_thread_trains_and_leaves_signals_to_the_main_one(folder, tmp_path):
    before, results = signal.getsignal(signal.SIGINT), []

    def listen(stage, step, terms):
        assert threading.current_thread() is thread
        assert signal.getsignal(signal.SIGINT) is before

    thread = threading.Thread(target=lambda: results.append(
        train_small(folder, tmp_path, stage="tokenizer", on_step=listen)))
    thread.start()
    thread.join()
    assert results == [True] and read_checkpoint(tmp_path / "tokenizer.pt")["finished"]


def test_of_two_commands_in_one_folder_the_second_is_refused(folder, tmp_path):
    """The first continues; once it was killed with -9 another may train. Reading is allowed."""
    run, words = tmp_path / "run", ["--tokenizer-steps", "100000", *STAGE_1]
    first = start(*command(folder, run, words)[1:], OMP_NUM_THREADS=1)
    try:
        deadline = time.monotonic() + 60
        while not previous(run / "tokenizer.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        done = python(*command(folder, run, words)[1:], OMP_NUM_THREADS=1)
        assert done.returncode == 1
        assert f"train.py: another command is training in {run}; " in done.stderr
        assert load_run(run, stages=("tokenizer",)).tokenizer.codebook_size == 512
        reached = read_checkpoint(run / "tokenizer.pt")["step"]
    finally:
        first.kill()
        first.join()
    steps = [line["step"] for line in log_of(run)]
    assert len(set(steps)) == len(steps) and reached >= 2
    assert train_small(folder, run, words[:2], "tokenizer", on_step=lambda *_: signal.raise_signal(
        signal.SIGTERM)) is False


# ---------------------------------------------------------------------------------------------
# What a run resumes with

def test_a_checkpoint_of_other_settings_is_refused_and_what_may_change_is_taken(folder, tmp_path):
    run, other_videos = tmp_path / "run", shutil.copytree(folder, tmp_path / "other")
    with pytest.raises(KeyboardInterrupt):
        train_small(folder, run, stage="tokenizer", on_step=leave_at(3))
    with pytest.raises(ValueError, match=r"tokenizer_rate 0.001 there, 0.5 here.*--out another"):
        train_small(folder, run, ["--tokenizer-rate", "0.5"], "tokenizer")
    other = ["--transformer-rate", "0.5", "--tasks", "FP"]           # of stage 2: not yet trained
    train_small(folder, run, [*other, "--accumulate", "2", "--keep-every", "4"])
    assert (run / "tokenizer-step-4.pt").exists()
    before = weights(run, "transformer")
    train_small(folder, run, [*other, "--decode-steps", "3", "--test-data",
                              other_videos], "transformer")
    config = read_checkpoint(run / "transformer.pt")["config"]
    assert config["train"]["decode_steps"] == 3 and config["data"]["test_root"] == str(other_videos)
    same(before, weights(run, "transformer"))
    with pytest.raises(ValueError, match="transformer_rate 0.5 there, 0.002 here"):
        train_small(folder, run, ["--tasks", "FP"], "transformer")


def test_a_setting_that_an_old_checkpoint_does_not_know_had_its_default(folder, tmp_path):
    """It resumes to the same end, and refuses another value by the setting's name."""
    train_small(folder, tmp_path, GAN, "tokenizer")
    end, path = weights(tmp_path, "tokenizer"), tmp_path / "tokenizer.pt"
    state = read_checkpoint(previous(path))
    del state["config"]["train"]["r1_weight"]
    path.unlink()
    save_checkpoint(previous(path), state)
    with pytest.raises(ValueError, match="train.r1_weight 10.0 there, 3.0 here"):
        train_small(folder, tmp_path, [*GAN, "--r1-weight", "3"], "tokenizer")
    assert train_small(folder, tmp_path, GAN, "tokenizer")
    same(end, weights(tmp_path, "tokenizer"))
    assert read_checkpoint(path)["config"]["train"]["r1_weight"] == 10.0


def test_a_half_done_stage_does_not_go_on_with_other_clips_or_another_tokenizer(folder, tmp_path):
    videos, run = shutil.copytree(folder, tmp_path / "videos"), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train_small(videos, run, stage="tokenizer", on_step=leave_at(3))
    gone = sorted(videos.rglob("*.npy"))[0]
    kept_back = gone.rename(tmp_path / "kept.npy")
    with pytest.raises(ValueError, match="trained with other things: clips 6 there, 5 here"):
        train_small(videos, run, stage="tokenizer")
    kept_back.rename(gone)
    assert train_small(videos, run, stage="tokenizer")
    with pytest.raises(KeyboardInterrupt):
        train_small(videos, run, stage="transformer", on_step=leave_at(3))
    state = read_checkpoint(run / "tokenizer.pt")
    state["ema"]["quantizer.codebook"][0] += 1
    save_checkpoint(run / "tokenizer.pt", state)
    with pytest.raises(ValueError, match="trained with other things: tokenizer '.*' there"):
        train_small(videos, run, stage="transformer")


def test_stage_2_learns_from_tokens_made_ahead_and_resumes_to_the_bit(folder, tmp_path):
    """Two augmentations of each clip; other tokens are refused on the way."""
    train_small(folder, tmp_path / "whole", stage="tokenizer")
    for message in ("tokenizing", ""):                                     # the second resumes
        done = python("-m", "training.tokens", tmp_path / "whole", "--out", tmp_path / "tokens",
                      "--copies", "2")
        assert done.returncode == 0 and message in done.stderr, done.stderr
    assert not done.stderr
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    tokens = shutil.copytree(tmp_path / "tokens", tmp_path / "others")
    facts = json.loads((tokens / "tokens.json").read_text())
    assert facts["entries"] == 2 * facts["clips"] == 12
    (tokens / "tokens.json").write_text(json.dumps(facts | dict(seed=7)))

    def stage_2(name, tokens, **options):
        return train_small(folder, tmp_path / name, ["--token-pool", "0"], "transformer",
                           tokens=tmp_path / tokens, **options)

    assert stage_2("whole", "tokens")
    with pytest.raises(KeyboardInterrupt):
        stage_2("parts", "tokens", on_step=leave_at(3))
    with pytest.raises(ValueError, match="trained with other things: tokens"):
        stage_2("parts", "others")
    assert stage_2("parts", "tokens")
    same(*(weights(tmp_path / name, "transformer") for name in ("whole", "parts")))


def test_seeds_differ_by_seed_rank_and_step():
    seeds = {seed_of(seed, rank, step) for seed in range(3) for rank in range(3)
             for step in range(20)}
    assert len(seeds) == 180


# ---------------------------------------------------------------------------------------------
# Several processes

def command(folder, run, arguments=(), processes=1, launcher=()):
    begin = ([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes),
              "--master_port", str(free_port()), *launcher]
             if processes > 1 else [sys.executable])
    return [*begin, str(ROOT / "train.py"), "toy", "--data", str(folder), "--out", str(run), *SMALL,
            *arguments]


def execute(*arguments, **options):
    return subprocess.run(command(*arguments, **options), cwd=ROOT, text=True, capture_output=True,
                          env=os.environ | dict(OMP_NUM_THREADS="1"), timeout=300)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


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


def test_torchrun_trains_both_stages_on_two_processes(folder, tmp_path, one_thread):
    """And logs what one process logs, as long as rounding allows: the first step."""
    train_small(folder, tmp_path / "one", GAN)
    done = execute(folder, tmp_path / "two", [*GAN, "--no-report"], processes=2)
    assert done.returncode == 0, done.stderr
    logs = [log_of(tmp_path / name) for name in ("one", "two")]
    assert len(logs[0]) == len(logs[1]) == 8          # the first step of a stage, and each saved
    other = {"stage", "seconds", "waiting", "clips_per_second", "contrast", "codes",
             "psnr"}                              # a mean of each process's logarithm
    for first, second, error in zip(logs[0][::4], logs[1][::4], (2e-3, 3e-2), strict=True):
        assert first["step"] == second["step"] == 0            # some tokens of stage 2 are others
        for key in first.keys() - other:
            assert first[key] == pytest.approx(second[key], rel=error, abs=2e-5), key
    assert (tmp_path / "two/transformer.pt").exists()


def two(folder, run, arguments=(), change=""):
    """Two processes; RANK in the arguments, and `change`, make them differ."""
    return torchrun(2, "-c", changed(folder, run, [*STAGE_1, *arguments], change))


@pytest.mark.parametrize("other", ["missing", "older", "different"])
def test_a_second_process_with_another_checkpoint_trains_as_one_would(folder, tmp_path, other):
    """Each process has a run folder of its own, as on machines without a common disk."""
    with pytest.raises(KeyboardInterrupt):
        train_small(folder, tmp_path / "run0", stage="tokenizer", on_step=leave_at(4))
    shutil.copytree(tmp_path / "run0", tmp_path / "run1")
    shutil.copytree(tmp_path / "run0", tmp_path / "alone")
    state = read_checkpoint(tmp_path / "run1/tokenizer.pt")
    assert state["step"] == 4
    shutil.rmtree(tmp_path / "run1")
    if other != "missing":
        (tmp_path / "run1").mkdir()
        state["tokenizer"]["quantizer.codebook"] += other == "different"
        save_checkpoint(tmp_path / "run1/tokenizer.pt",
                        state | dict(step=2 if other == "older" else 4))
    for name in ("alone", "runRANK"):
        done = two(folder, tmp_path / name)
        assert done.returncode == 0, done.stderr
    same(weights(tmp_path / "alone", "tokenizer"), weights(tmp_path / "run0", "tokenizer"))


def test_processes_with_other_clips_or_settings_are_refused_before_anything_is_written(
        folder, tmp_path):
    for rank in "01":
        shutil.copytree(folder, tmp_path / f"videos{rank}")
    sorted((tmp_path / "videos1").rglob("*.npy"))[0].unlink()
    for name, arguments, words in (
            ("clips", ["--data", str(tmp_path / "videosRANK")], "has clips 5, process 0"),
            ("settings", ["--tokenizer-rate", "0.RANK1"], "has the settings with digest")):
        done = two(folder, tmp_path / f"{name}RANK", arguments)
        assert done.returncode != 0
        message = " ".join(done.stderr.split())
        assert words in message and "nothing was trained" in message, done.stderr
        assert not list(tmp_path.glob(f"{name}*/*.pt*"))


def test_a_signal_to_one_process_saves_and_ends_both(folder, tmp_path):
    """At the next step whose numbers all of them read."""
    done = two(folder, tmp_path, ["--tokenizer-steps", "1000", "--save-every", "5"], """
step_of = train.tokenizer_step
def signalled(*given):
    os.kill(os.getpid(), signal.SIGTERM) if rank == "1" else None
    return step_of(*given)
train.tokenizer_step = signalled
""")
    assert done.returncode == 0 and "stopped after step 1 of 1000" in done.stderr, done.stderr
    assert read_checkpoint(tmp_path / "tokenizer.pt")["step"] == 1


def test_an_error_of_one_process_ends_all_within_seconds_with_that_error(folder, tmp_path):
    begin = time.monotonic()
    script = tmp_path / "worker.py"
    script.write_text(changed(folder, tmp_path / "run", ["--tokenizer-steps", "2000", *STAGE_1], """
real = data.source.clip_of
def clip_of(source, step, *more):
    if rank == "1" and step == 3:
        raise OSError("the disk of process 1 is gone")
    return real(source, step, *more)
data.source.clip_of = clip_of
"""))
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone",
                           "--nproc_per_node", "2", script], cwd=ROOT, text=True, timeout=200,
                          capture_output=True, env=os.environ | dict(OMP_NUM_THREADS="1"))
    assert done.returncode != 0 and "the disk of process 1 is gone" in done.stderr
    assert time.monotonic() - begin < 60


@pytest.mark.slow
def test_torchrun_restarts_a_killed_worker_and_ends_right(folder, tmp_path):
    steps = ["--tokenizer-steps", "60", "--save-every", "5", *STAGE_1]
    assert execute(folder, tmp_path / "whole", steps, processes=2).returncode == 0
    running = subprocess.Popen(command(folder, tmp_path / "killed", steps, processes=2,
                                       launcher=["--max-restarts", "3"]), cwd=ROOT,
                               env=os.environ | dict(OMP_NUM_THREADS="1"))
    deadline = time.time() + 60
    while not (tmp_path / "killed/tokenizer.pt").exists() and time.time() < deadline:
        time.sleep(0.05)
    workers = subprocess.run(["pgrep", "-P", str(running.pid)], capture_output=True, text=True)
    os.kill(int(workers.stdout.split()[0]), signal.SIGKILL)
    assert running.wait(120) == 0
    same(weights(tmp_path / "whole", "tokenizer"), weights(tmp_path / "killed", "tokenizer"))


# ---------------------------------------------------------------------------------------------
# Guards

def test_numbers_that_are_not_finite_end_the_run_and_never_reach_a_checkpoint(folder, tmp_path):
    """A rate that is far too high, which the step after it shows."""
    with pytest.raises(FloatingPointError, match="step 3 of the tokenizer: .*loss.* not finite.*"
                                                 "last good checkpoint is .* of step 2"):
        train_small(folder, tmp_path, ["--tokenizer-rate", "1e30"], "tokenizer")
    state = read_checkpoint(tmp_path / "tokenizer.pt")
    assert state["step"] == 2
    assert all(tensor.isfinite().all() for tensor in state["tokenizer"].values())


def terms(**more):
    return dict(loss=torch.tensor(1.0), reconstruction=torch.tensor(0.01),
                tokens=torch.arange(64), contrast=torch.tensor(0.2)) | more


@pytest.mark.parametrize("more, words", [
    (dict(tokens=torch.zeros(4, dtype=torch.long)), "only 1 of 64 codes"),
    (dict(contrast=torch.tensor(0.001)), "of one colour"),
    (dict(discriminator=torch.tensor(0.001)), "discriminator wins outright"),
    (dict(discriminator=torch.tensor(1.3)), "")])
def test_what_goes_wrong_is_named_once_with_what_to_try(capsys, more, words):
    """A healthy run, the last one, is left in peace."""
    watch = TokenizerWatch(64)
    for step in range(500):
        shown = watch(step, terms(**more))
    message = capsys.readouterr().err
    assert message.count("warning") == bool(words) == (" --" in message) and words in message
    assert shown["psnr"] == pytest.approx(20.0)
    assert shown["codes"] == (1 if "codes" in words else 64)


def test_the_learning_rate_warms_up_and_falls_to_zero():
    rates = [learning_rate(step, 2.0, 10, 100) for step in range(101)]
    assert rates[0] == 0 and rates[10] == 2.0 and rates[40] == pytest.approx(1.5)
    assert rates[100] == pytest.approx(0) and max(rates) == 2.0


# ---------------------------------------------------------------------------------------------
# What is logged, and who may listen

def test_a_listener_hears_every_step_and_its_numbers_are_logged(folder, tmp_path):
    """The log has every term of both stages, and how fast they went."""
    heard, seen = [], {}

    def listen(stage, step, terms):
        name = stage.name
        heard.append((name, step))
        assert torch.isfinite(terms["loss"]) and stage.networks[name].training
        seen[name] = {key: tensor.clone() for key, tensor in
                      stage.networks[name].state_dict().items()}
        return dict(ours=torch.tensor(0.5), words=f"{name} {step}") if step == 3 else None

    arguments = [*GAN, "--tokenizer-steps", "12", "--save-every", "0"]
    assert train_small(folder, tmp_path, arguments, on_step=listen)
    assert heard == [*(("tokenizer", step) for step in range(12)),
                     *(("transformer", step) for step in range(6))]
    lines = log_of(tmp_path)
    assert [(line["stage"], line["step"]) for line in lines] == [
        *(("tokenizer", step) for step in (0, 3, 10, 11)),
        *(("transformer", step) for step in (0, 3, 5))]
    for line in lines:
        assert ("ours" in line) == (line["step"] == 3)
        assert line["clips_per_second"] > 0 and 0 <= line["waiting"] <= 1 and "stop" not in line
    assert lines[1]["ours"] == 0.5 and lines[1]["words"] == "tokenizer 3"
    assert {"reconstruction", "codebook", "commitment", "entropy", "generator", "discriminator",
            "r1", "lecam", "psnr", "codes", "rate", "seconds"} <= set(lines[0])
    assert {"loss", "refine", "mask", "reconstruct", "transformer gradient"} <= set(lines[-1])
    for stage in ("tokenizer", "transformer"):           # after the step: what the checkpoint has
        same(seen[stage], read_checkpoint(tmp_path / f"{stage}.pt")[stage])


def test_a_line_that_a_kill_has_cut_short_is_ended_first(folder, tmp_path):
    (tmp_path / "log.jsonl").write_text('{"stage": "tok')
    train_small(folder, tmp_path, ["--tokenizer-steps", "1"], "tokenizer")
    broken, line = (tmp_path / "log.jsonl").read_text().splitlines()
    assert broken == '{"stage": "tok' and json.loads(line)["step"] == 0


def test_held_out_clips_are_looked_at_and_training_does_not_notice(folder, tmp_path):
    for name, flags in (("blind", []), ("seeing", ["--evaluate-every", "3"])):
        train_small(folder, tmp_path / name, flags)
    for stage in ("tokenizer", "transformer"):
        same(*(weights(tmp_path / name, stage) for name in ("blind", "seeing")))
    assert (tmp_path / "seeing/held_out.png").exists()
    looks = [(line["stage"], line["step"], sorted(line["held_out"]))
             for line in log_of(tmp_path / "seeing") if "held_out" in line]
    losses = [f"loss at {ratio}" for ratio in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert looks == [(stage, step, names) for stage, names in (
        ("tokenizer", ["psnr"]), ("transformer", losses)) for step in (2, 5)]
    # An object that keeps no clips back is looked at itself.
    config = replace(settings("")[0], evaluate_every=6)
    assert train.train(config, Noise(), tmp_path / "object", stage="tokenizer", draw=False)
    assert "psnr" in log_of(tmp_path / "object")[-1]["held_out"]


def test_the_look_tells_the_class_where_training_tells_it(tmp_path):
    """"No class" was never trained without class dropout: 3.34 nats would be shown, not 2.48."""
    run = load_run(ROOT / "assets/toy")
    look = HeldOut(run.config, run.held_out(), tmp_path).look_at_transformer(run.transformer,
                                                                              run.tokenizer)
    assert look["loss at 0.9"] == pytest.approx(2.48, abs=0.02)


def test_a_short_run_reports_the_weights_that_were_not_averaged_too(folder, tmp_path):
    for name, decay, warned in (("short", "0.99", True), ("enough", "0.5", False)):
        train_small(folder, tmp_path / name, ["--tokenizer-ema", decay, "--tasks", "CG"])
        assert ("reconstruction_not_averaged" in report(tmp_path / name)) == warned
    state = read_checkpoint(tmp_path / "short/tokenizer.pt")
    source = open_source(settings(folder)[1], (8, 16, 16))
    both = json.loads((tmp_path / "short/metrics.json").read_text())
    for key, averaged in (("reconstruction", True), ("reconstruction_not_averaged", False)):
        network = load_network(state, averaged=averaged)
        assert both[key] == pytest.approx(evaluate_reconstruction(network, source, 6))
    assert both["reconstruction"] != both["reconstruction_not_averaged"]
