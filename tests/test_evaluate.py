"""A run from beginning to end: resumed, shared out, added to, saved, refused.

The judge is cheap here: what counts is which videos it sees, and what its numbers are called.
"""
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fresh import python, start, torchrun
from torch import nn

import evaluate
import measure.judges
from commit import TASKS
from data.clips import DataConfig, read_video, write_video
from data.moving_shapes import MovingShapes
from data.source import NO_LABEL
from decode import commit_decode
from evaluate import evaluate_protocol, noise_of, run_labels, trained_on
from measure.pictures import to_frames
from measure.protocols import PROTOCOLS, real_clips
from measure.report import draw_losses, evaluate_reconstruction, report
from training.checkpoint import as_plain, load_run, save_checkpoint
from training.presets import PRESETS
from training.start import build

ROOT = Path(__file__).parents[1]
DRAWN = DataConfig(dataset="shapes", class_names=tuple(MovingShapes().class_names))


class Verified(nn.Module):
    """Cheap features in the place of I3D; the label is what a checked file gives."""

    weights = "i3d_pretrained_400.pt, git blob a867b87ac3a9, verified"

    def forward(self, video):
        return F.adaptive_avg_pool3d(video, (2, 2, 2)).flatten(1)


def untrained(path, data=DRAWN, config=PRESETS["toy"], stages=("tokenizer", "transformer")):
    """A run folder as train.py leaves it, with networks that have learnt nothing."""
    torch.manual_seed(0)
    path.mkdir(exist_ok=True)
    for stage in stages:
        trainee = build(config, stage, num_classes=len(data.class_names))
        network = trainee.networks["transformer" if stage == "transformer" else "tokenizer"]
        configs = dict(network=network.config, train=config, data=data)
        save_checkpoint(path / f"{stage}.pt", dict(
            stage=stage, step=1, finished=True, **trainee.state(),
            config={part: as_plain(config) for part, config in configs.items()}))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("run"))


@pytest.fixture
def run(made, tmp_path):
    return fresh(made, tmp_path / "run")


def fresh(run, path):
    """The same run in another folder, with nothing measured."""
    path.mkdir(exist_ok=True)
    for name in ("tokenizer.pt", "transformer.pt"):
        (path / name).symlink_to(Path(run, name).resolve())
    return path


@pytest.fixture
def folder(tmp_path):
    """Three videos of 20 frames of 32x40."""
    random = np.random.default_rng(0)
    for number in range(3):
        write_video(tmp_path / "videos" / f"{number}.npy",
                    random.integers(0, 256, (20, 32, 40, 3), dtype=np.uint8))
    return tmp_path / "videos"


@pytest.fixture
def cheap(monkeypatch):
    """Verified() for I3D, of videos as they are, which are not made larger for it; returns a list
    that grows by the size of each batch it sees."""
    seen = []

    class Counting(Verified):
        def forward(self, video):
            seen.append(len(video))
            return super().forward(video)

    monkeypatch.setattr(measure.judges, "i3d_input", lambda video: 2 * video - 1)
    monkeypatch.setattr(evaluate, "open_judges", lambda metrics, *rest: {
        "fvd": Counting()} if "fvd" in metrics else {})
    return seen


SHORT = dict(samples=16, batch=4, decoding=dict(steps=2))
FLAGS = ["--samples", "16", "--batch", "4", "--steps", "2"]


def numbers_of(outcome):
    return {task: {name: (value["mean"], value["deviation"]) for name, value in entries.items()
                   if "mean" in value} for task, entries in outcome["results"].items()}


def cheap_command(tmp_path):
    """evaluate.py with the cheap judge, which waits where SLOW says so."""
    script = tmp_path / "cheap.py"
    script.write_text(f"""import os, sys, time
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]
import evaluate, measure.judges, test_evaluate
measure.judges.i3d_input = lambda video: 2 * video - 1
class Slow(test_evaluate.Verified):
    def forward(self, video):
        time.sleep(float(os.environ.get("SLOW", 0)))
        return super().forward(video)
evaluate.open_judges = lambda metrics, *rest: dict(fvd=Slow())
evaluate.main()
""")
    return script


# ---------------------------------------------------------------------------------------------
# Resumed, shared out

def test_killed_at_any_moment_and_started_again_it_ends_with_the_same_numbers(
        run, made, tmp_path, cheap, one_thread):
    whole = numbers_of(evaluate_protocol(run, "toy", **SHORT))
    assert cheap == [4] * 8                                     # four batches of reals and fakes
    again = fresh(made, tmp_path / "again")
    command = cheap_command(tmp_path), again, "--protocol", "toy", *FLAGS
    process = start(*command, OMP_NUM_THREADS=1, SLOW=0.3)
    while len(list(again.glob("evaluation/*/[0-9]*.npz"))) < 5:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    there = {path: path.stat().st_mtime_ns for path in again.glob("evaluation/*/[0-9]*.npz")}
    assert 5 <= len(there) < 8 and not (again / "evaluation-toy.json").exists()
    broken = min(there)
    broken.write_bytes(broken.read_bytes()[:100])               # and a disk has failed
    del there[broken]
    done = python(*command, OMP_NUM_THREADS=1)
    assert f"{broken} is broken" in done.stderr and done.returncode == 0
    assert all(path.stat().st_mtime_ns == changed for path, changed in there.items())
    outcome = json.loads((again / "evaluation-toy.json").read_text())
    assert numbers_of(outcome) == whole
    assert set(outcome["results"]["FP"]) == {"FVD*", "PSNR*", "SSIM*"}
    assert all(value["not_as_wanted"] for value in outcome["results"]["FP"].values())
    assert "FVD*" in done.stdout and "FVD " not in done.stdout


def test_two_processes_end_with_the_numbers_of_one(run, made, tmp_path, cheap, one_thread):
    alone = numbers_of(evaluate_protocol(run, "toy", **SHORT))
    place = fresh(made, tmp_path / "two")
    torchrun(2, cheap_command(tmp_path), place, "--protocol", "toy", *FLAGS).check_returncode()
    assert numbers_of(json.loads((place / "evaluation-toy.json").read_text())) == alone
    assert len(list(place.glob("evaluation/*/*.npz"))) == 8


def test_more_samples_tasks_and_metrics_keep_the_rows_that_are_there(run, cheap):
    first = evaluate_protocol(run, "own", **SHORT | dict(samples=8, metrics=["fvd"]))
    files = {path: path.stat().st_mtime_ns for path in run.rglob("*.npz")}
    del cheap[:]
    evaluate_protocol(run, "own", **SHORT | dict(metrics=["fvd"]))
    assert len(files) == 4 and cheap == [4] * 4                 # those of 8 more samples
    assert all(path.stat().st_mtime_ns == time for path, time in files.items())
    both = evaluate_protocol(run, "own", **SHORT | dict(samples=8, metrics=["psnr"]))
    assert len(cheap) == 4                                      # PSNR needs no judge
    again = evaluate_protocol(run, "own", **SHORT | dict(samples=8, metrics=["fvd"]))
    assert len(cheap) == 4 and again["results"]["FP"]["FVD*"] == first["results"]["FP"]["FVD*"]
    assert set(again["results"]["FP"]) == {"FVD*", "PSNR*"} and set(both["results"]) == {"FP"}
    evaluate_protocol(run, "own", **SHORT | dict(samples=8, metrics=["fvd"], tasks=["CG"]))
    outcome = json.loads((run / "evaluation-own.json").read_text())
    assert set(outcome["results"]) == {"FP", "CG"} and len(cheap) == 6
    other = evaluate_protocol(run, "own", **SHORT | dict(samples=8, metrics=["psnr"], seed=1))
    assert set(other["results"]["FP"]) == {"PSNR*"}             # of other samples


def test_other_weights_settings_or_pixels_are_measured_anew(run, folder, tmp_path, cheap):
    data, ask = DataConfig(str(folder)), SHORT | dict(metrics=["fvd"])
    before = evaluate_protocol(run, "own", data, **ask)
    seen = len(cheap)
    for options in (dict(), dict(decoding=dict(steps=3)), dict(decoding=dict(
            steps=2, guidance_scale=1.0))):
        evaluate_protocol(run, "own", data, **ask | options)
        seen += 4 * bool(options)                               # the real rows stay
        assert len(cheap) == seen
    video = folder / "0.npy"
    np.save(video, np.load(video)[::-1])                        # of the same name, length and size
    after = evaluate_protocol(run, "own", data, **ask)
    assert numbers_of(after) != numbers_of(before)


def test_every_sample_has_noise_of_its_own_whatever_its_batch(monkeypatch):
    cpu = torch.device("cpu")
    together = noise_of(0, "FP", range(4), cpu)
    first, second = together(torch.Size([4, 5, 3])), together(torch.Size([4, 5]))
    alone = noise_of(0, "FP", range(2, 3), cpu)
    assert torch.equal(alone(torch.Size([1, 5, 3]))[0], first[2])
    assert torch.equal(alone(torch.Size([1, 5]))[0], second[2])
    assert len({x.item() for x in first[:, 0, 0]}) == 4
    assert not torch.equal(noise_of(0, "FI", range(4), cpu)(torch.Size([4, 5, 3])), first)
    before = noise_of(0, "CFP", range(2), cpu)(torch.Size([2, 5]))
    monkeypatch.setattr("commit.TASKS", dict(NEW=TASKS["FP"], **TASKS))
    assert torch.equal(before, noise_of(0, "CFP", range(2), cpu)(torch.Size([2, 5])))


# ---------------------------------------------------------------------------------------------
# What is measured

def test_reconstruction_and_tasks_make_tables_4_and_7(run, cheap, capsys):
    results = evaluate_protocol(run, "toy", **SHORT, tasks=["reconstruction", "CG", "FI"])["results"]
    assert results["reconstruction"]["codes"]["of"] == 512
    used = results["reconstruction"]["codes"]["used"]
    printed = capsys.readouterr().out
    assert 1 <= used <= 512 and f"{used} of 512 codes used" in printed
    assert "FI       CG  average" in printed
    assert any("Table 7" in reason for reason in results["reconstruction"]["FVD*"]["not_as_wanted"])


@pytest.mark.parametrize("stage", ["tokenizer", "image"])
def test_table_7_needs_stage_1_alone_or_the_2d_vq(tmp_path, cheap, stage):
    run = untrained(tmp_path / "run", stages=(stage,))
    outcome = evaluate_protocol(run, "own", **SHORT, tasks=["reconstruction"])
    assert set(outcome["results"]["reconstruction"]) >= {"FVD*", "PSNR*", "SSIM*", "codes"}
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        evaluate_protocol(run, "own", **SHORT)


def test_folders_of_videos_serve_as_real_clips(run, folder, cheap):
    outcome = evaluate_protocol(run, "bair", DataConfig(str(folder)), **SHORT,
                                metrics=["fvd", "psnr"], folds=2)
    assert outcome["real_clips"] == 3 and outcome["real_videos"] == 3
    assert set(outcome["results"]["FP"]) == {"FVD*", "PSNR*"}
    reasons = " ".join(outcome["results"]["FP"]["PSNR*"]["not_as_wanted"])
    for part in ("16 samples", "3 test videos", "resolution 32", "2 steps", "2 folds; wanted 4"):
        assert part in reasons


def test_a_guided_number_says_so(run, cheap):
    plain = evaluate_protocol(run, "toy", **SHORT)
    guided = evaluate_protocol(run, "toy", **SHORT | dict(decoding=dict(
        steps=2, guidance_scale=1.5)))
    assert numbers_of(guided) != numbers_of(plain)
    assert any("guidance 1.5" in reason
               for reason in guided["results"]["FP"]["PSNR*"]["not_as_wanted"])
    unguided = evaluate_protocol(run, "toy", **SHORT | dict(decoding=dict(
        steps=2, guidance_scale=0.0)))
    assert unguided == plain


class Noise:
    """A data set with nothing but what training needs."""

    class_names = ()

    def __init__(self, first=0, shape=(16, 32, 32, 3)):
        self.first, self.shape = first, shape

    def __len__(self):
        return 5

    def clip(self, index, random=None):
        noise = np.random.default_rng(self.first + index)
        return noise.integers(0, 256, self.shape, dtype=np.uint8), NO_LABEL


def test_clips_of_an_object_can_be_evaluated(run, cheap):
    outcome = evaluate_protocol(run, "own", data=Noise(), **SHORT)
    assert (outcome["real_clips"], outcome["real_videos"]) == (5, 5)
    assert outcome["decoding"] == PRESETS["toy"].decoding | dict(steps=2)
    assert json.loads((run / "evaluation-own.json").read_text()) == outcome
    seen = len(cheap)
    assert evaluate_protocol(run, "own", Noise(), **SHORT) == outcome and len(cheap) == seen
    other = evaluate_protocol(run, "own", Noise(100), **SHORT)
    assert numbers_of(other) != numbers_of(outcome) and len(cheap) == 2 * seen


def test_without_data_the_held_out_clips_of_the_run_are_real(run, folder, tmp_path, cheap):
    drawn = evaluate_protocol(run, "own", **SHORT)
    assert (drawn["real_videos"], drawn["real_clips"]) == (64, 16)
    assert numbers_of(drawn) == numbers_of(evaluate_protocol(run, "own", MovingShapes("test"),
                                                             **SHORT))
    videos, learned = "those the run was trained on", []
    for name, data in (("held-out", DataConfig("gone", test_root=str(folder))),
                       ("trained-on", DataConfig(str(folder)))):
        outcome = evaluate_protocol(untrained(tmp_path / name, data), "own", **SHORT)
        reasons = outcome["results"]["FP"]["PSNR*"]["not_as_wanted"]
        assert outcome["real_videos"] == 3 and "protocol own is no benchmark" in reasons[0]
        learned.append(any(videos in reason for reason in reasons))
    assert learned == [False, True]


def test_a_relative_list_of_videos_does_not_hide_what_was_trained_on(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    learned = load_run(untrained(folder.parent / "run", DataConfig("videos", split="lists/a.txt")))
    for split, known in (("lists/a.txt", True), ("lists/../lists/a.txt", True),
                         (str(folder.parent / "lists" / "a.txt"), True), ("lists/b.txt", False)):
        assert trained_on(learned, DataConfig("videos", split=split)) is known


def test_frames_equal_to_the_real_ones_are_counted_apart_and_the_json_stays_valid(
        run, cheap, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "make_samples", lambda run, task, video, *rest: (video, {}))
    outcome = evaluate_protocol(run, "own", **SHORT | dict(metrics=["psnr", "ssim"]))
    assert outcome["results"]["FP"]["identical_frames"] == dict(count=16 * 16)
    assert outcome["results"]["FP"]["PSNR*"]["mean"] is None
    assert "256 frames are identical" in capsys.readouterr().out

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    json.loads((run / "evaluation-own.json").read_text(), parse_constant=refuse)


def test_bfloat16_is_starred(run, cheap, monkeypatch):
    monkeypatch.setattr(evaluate, "autocast", lambda precision, device: torch.autocast(
        device.type, enabled=False))                            # not every CPU has it
    outcome = evaluate_protocol(run, "own", precision="bf16", **SHORT)
    assert outcome["precision"] == "bf16"
    assert any("bfloat16" in reason
               for reason in outcome["results"]["FP"]["FVD*"]["not_as_wanted"])


def test_labels_are_matched_by_name_not_by_number():
    source = MovingShapes("test")
    mapped = run_labels(torch.tensor([0, 15]), source.class_names, source.class_names[::-1])
    assert mapped.tolist() == [15, 0]
    with pytest.raises(ValueError, match="square right.*unknown to the run"):
        run_labels(torch.tensor([0]), source.class_names, ["a", "b"])
    with pytest.raises(ValueError, match="no classes"):
        run_labels(torch.tensor([-1]), source.class_names, source.class_names)


def test_another_way_to_decode_is_asked_in_the_place_of_algorithm_1(run, cheap):
    plain = evaluate_protocol(run, "own", **SHORT)
    calls = []

    def counted(*arguments, **keywords):
        calls.append(keywords["steps"])
        return commit_decode(*arguments, **keywords)

    again = evaluate_protocol(run, "own", decode=counted, **SHORT)
    assert calls == [2] * 4 and numbers_of(again) == numbers_of(plain)


# ---------------------------------------------------------------------------------------------
# Saved videos, and files that somebody has cut

def test_saved_videos_are_the_samples_to_the_last_bit(run, tmp_path, cheap):
    saved, ask = tmp_path / "saved", SHORT | dict(tasks=["CG"], metrics=["fvd"], samples=14,
                                                  folds=1)
    plain = evaluate_protocol(run, "own", **ask)
    assert evaluate_protocol(run, "own", save=str(saved), **ask) == plain       # made again
    files, seen = sorted(saved.glob("CG/*.mp4")), len(cheap)
    assert [file.stem for file in files] == [f"{i:06}" for i in range(14)]
    files[2].unlink()
    evaluate_protocol(run, "own", save=str(saved), **ask)
    assert len(cheap) == seen and files[2].exists()             # no judge sees it again
    videos = np.stack([read_video(file) for file in files])
    source, loaded = MovingShapes("test"), load_run(run)
    clips = real_clips(source, PROTOCOLS["own"], 4)
    real, label = measure.judges.load_clips(source, clips, torch.device("cpu"))
    asked = evaluate.complete("own", ask)
    asked.decode, asked.decoding = None, PRESETS["toy"].decoding | asked.decoding
    sample, _ = evaluate.make_samples(loaded, "CG", real, label, source.class_names, 0, asked)
    assert all((to_frames(ours) == theirs).all() for ours, theirs in zip(sample, videos))


def test_a_folder_of_other_samples_is_refused_before_any_is_made(run, tmp_path, cheap):
    saved, ask = tmp_path / "saved", SHORT | dict(tasks=["CG"], metrics=["fvd"], save=str(
        tmp_path / "saved"))
    evaluate_protocol(run, "own", **ask)
    said = json.loads((saved / "CG.json").read_text())
    assert said["run"] == str(run.resolve()) and said["settings"]["decoding"]["steps"] == 2
    evaluate_protocol(run, "own", **ask | dict(samples=20))                     # more of the same
    del cheap[:]
    for other in (dict(decoding=dict(steps=3)), dict(seed=1), dict(samples=8)):
        with pytest.raises(ValueError, match="CG holds 0000.*not of these samples; give --save an"):
            evaluate_protocol(run, "own", **ask | other)
    (saved / "CG" / "stray.mp4").touch()
    with pytest.raises(ValueError, match="CG holds stray.mp4, which is not of these samples"):
        evaluate_protocol(run, "own", **ask | dict(samples=20))
    (saved / "FP").mkdir()
    (saved / "FP" / "000000.mp4").touch()                       # of whom nobody knows
    with pytest.raises(ValueError, match="FP holds 000000.mp4"):
        evaluate_protocol(run, "own", **ask | dict(tasks=["FP"]))
    assert not cheap


def test_a_cut_file_of_numbers_is_named_put_aside_and_made_anew(run, cheap, capsys):
    outcome = evaluate_protocol(run, "own", **SHORT)
    file = run / "evaluation-own.json"
    file.write_text(file.read_text()[:200])
    assert evaluate_protocol(run, "own", **SHORT) == outcome
    assert f"{file} is broken: put aside as evaluation-own.json.broken" in capsys.readouterr().err
    assert json.loads(file.read_text()) == outcome
    assert len((run / "evaluation-own.json.broken").read_text()) == 200


def test_a_cut_line_of_the_log_is_named_and_left_out(tmp_path, capsys):
    log = tmp_path / "log.jsonl"
    lines = [json.dumps(dict(stage="tokenizer", step=step, psnr=20.0 + step)) for step in range(4)]
    log.write_text("\n".join([*lines[:2], lines[2][:15], "[]", "null", *lines[3:], ""]))
    draw_losses(log, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 1000
    assert [f"line {number}, is broken" in capsys_line for number, capsys_line in
            zip((3, 4, 5), capsys.readouterr().err.splitlines())] == [True] * 3


# ---------------------------------------------------------------------------------------------
# The report

def test_reconstruction_is_measured_by_batches(made):
    tokenizer, source = load_run(made).tokenizer, MovingShapes("test")
    sizes, encode = [], tokenizer.encode
    tokenizer.encode = lambda video: sizes.append(len(video)) or encode(video)
    by_batches = evaluate_reconstruction(tokenizer, source, 10, batch=4)
    assert sizes == [4, 4, 2]
    assert by_batches == evaluate_reconstruction(tokenizer, source, 10, batch=10)


def test_a_run_on_an_object_says_what_to_do_when_its_clips_are_asked_for(tmp_path, cheap):
    place = untrained(tmp_path / "run", DataConfig(dataset="object Noise"))
    for ask in (lambda: load_run(place).held_out(), lambda: report(place),
                lambda: evaluate_protocol(place, "own", **SHORT)):
        with pytest.raises(ValueError, match="on 'object Noise', which is not on disk; give that "
                           "object to the Python function, or videos with --data or --video"):
            ask()
    assert evaluate_protocol(place, "own", Noise(), **SHORT)["real_videos"] == 5


# ---------------------------------------------------------------------------------------------
# Refusals, before the first sample

@pytest.mark.parametrize("options, message", [
    (dict(samples=2), "2 samples; the 4 folds of bair need a multiple of 4, at least 8"),
    (dict(samples=10), "10 samples"), (dict(samples=0), "0 samples"),
    (dict(batch=0), "batch 0; wanted 1 or more"), (dict(folds=0), "folds 0"),
    (dict(seed=-1), "seed -1"), (dict(tasks=["FPP"]), "task 'FPP' is unknown"),
    (dict(metrics=["kvd"]), "number 'kvd'; choose from fvd is psnr"),
    (dict(windows=3), "'windows' cannot be asked for; wanted some of tasks, metrics"),
    (dict(samples=8), "model.ckpt.data.* is missing .*save https.*--random-weights"),
    (dict(samples=8, metrics=["psnr"]), "needs --data, the folder of its test videos")])
def test_an_evaluation_that_cannot_be_done_is_refused_before_it_starts(made, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        evaluate_protocol(made, "bair", weights="no/such/folder", **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("changes, options, data, message", [
    (dict(), dict(tasks=["CFP"]), DataConfig(dataset="shapes"),
     "CFP needs classes, and .* was trained without any"),
    (dict(tasks=("CG",)), dict(tasks=["FP"]), DRAWN,
     "trained on CG alone, and FP has a condition.*python -m comparisons.tables evaluate"),
    (dict(), dict(tasks=["CG"], data=Noise()), DRAWN, "the real videos have no classes"),
    (dict(), dict(data=Noise(shape=(16, 32, 40, 3))), DRAWN,
     r"real clips are \(16, 32, 40, 3\); this run takes \(16, 32, 32, 3\)"),
    (dict(condition_frames=16), dict(tasks=["FP"]), DRAWN, "16 condition frames for FP"),
    (dict(frames=8), dict(metrics=["fvd"]), DRAWN, "8 frames; I3D needs at least 9"),
    (dict(frames=8), dict(metrics=["is"]), DRAWN, "8 frames; IS takes exactly 16"),
    (dict(), dict(decoding=dict(steps=0)), DRAWN, "steps 0; wanted a number, 1 or more"),
    (dict(), dict(decoding=dict(temperature=float("nan"))), DRAWN, "temperature nan"),
    (dict(), dict(decoding=dict(guidance_scale=-1.0)), DRAWN, "guidance_scale -1.0"),
    (dict(), dict(decoding=dict(schedule="halton")), DRAWN, "schedule 'halton' is unknown"),
    (dict(), dict(decoding=dict(order="random")), DRAWN, "decoding has no 'order'")])
def test_what_a_run_cannot_do_is_refused_before_the_first_sample(
        tmp_path, cheap, monkeypatch, changes, options, data, message):
    monkeypatch.setattr(evaluate, "open_judges", lambda *rest: {"fvd": Verified()})
    monkeypatch.setattr(evaluate, "make_samples", None)
    run = untrained(tmp_path / "run", data, replace(PRESETS["toy"], **changes))
    with pytest.raises(ValueError, match=message) as error:
        evaluate_protocol(run, "own", **SHORT | options)
    assert "\n" not in str(error.value)


def test_a_transformer_of_comparisons_is_measured_by_its_own_command(run, cheap, monkeypatch):
    loaded = load_run(run)
    loaded.transformer.__class__ = type("PrefixTransformer", (type(loaded.transformer),), dict(
        __module__="comparisons.baselines"))
    monkeypatch.setattr(evaluate, "open_run", lambda *rest: loaded)
    with pytest.raises(ValueError, match="a PrefixTransformer, which Algorithm 1 does not decode; "
                       f"use python -m comparisons.tables evaluate {run}"):
        evaluate_protocol(run, "own", **SHORT)
    assert not cheap
    assert evaluate_protocol(run, "own", decode=commit_decode, **SHORT)["results"]["FP"]


def test_a_run_of_one_task_does_others_under_its_own_prompt(tmp_path, cheap):
    run = untrained(tmp_path / "run", config=replace(PRESETS["toy"], tasks=("FP",)))
    assert "FI" in evaluate_protocol(run, "own", **SHORT, tasks=["FI"])["results"]


def test_protocol_toy_is_for_runs_on_the_drawn_clips(folder, tmp_path, cheap):
    place = untrained(tmp_path / "run", DataConfig(str(folder)))
    with pytest.raises(ValueError, match="protocol toy is for .* take --protocol own"):
        evaluate_protocol(place, "toy", **SHORT)


@pytest.mark.parametrize("words, message", [
    ("RUN --metrics psnr", "--metrics says nothing of a report; it is for a protocol"),
    ("RUN --protocol own --size 8", "--size says nothing of a protocol; it is for two folders"),
    ("fvd A B --steps 3", "--steps says nothing of two folders"),
    ("RUN --protocol own --split a.txt", "--split needs --data"),
    ("RUN --samples 0", "0 samples; wanted 1 or more"),
    ("fvd A B --frames 0", "frames 0; wanted 1 or more"),
    ("fvd A B --json numbers.txt", "suffix '.txt'; choose from .json"),
    ("fvd A B --save-features /", "choose from .npz"),
    ("nowhere", "no run folder nowhere")])
def test_flags_that_make_no_sense_are_refused_by_name(made, capsys, words, message):
    with pytest.raises(SystemExit) as error:
        evaluate.main([str(made) if word == "RUN" else word for word in words.split()])
    assert re.search(re.escape(message), str(error.value)) and "\n" not in str(error.value)


def test_it_ends_well_without_a_home_on_an_ascii_terminal_and_before_head(made, tmp_path):
    place = fresh(made, tmp_path / "run")
    words = ("evaluate.py", place, "--protocol", "toy", "--random-weights", "--metrics", "psnr",
             *FLAGS)
    done = python(*words, HOME="", PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and "Traceback" not in done.stderr and "PSNR*" in done.stdout
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert "Traceback" not in process.communicate()[1] and process.returncode == 0
