"""A run from beginning to end: resumed, shared out, added to, refused.

The judge is cheap here: what counts is which videos it sees, and what its numbers are called.
"""
import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fresh import torchrun
from torch import nn

import evaluate
import measure.features
import measure.jobs
from commit import MT10, TASKS
from data.clips import DataConfig, read_video, write_video
from data.moving_shapes import MovingShapes
from data.source import NO_LABEL, ClipSource
from measure.features import (in_bfloat16, measure_videos, noise_of, run_labels, trained_on)
from measure.jobs import Request, fake_rows, flop_of_sample, open_job, real_rows
from measure.protocols import PROTOCOLS, real_clips
from measure.report import report
from measure.rows import rows_on_disk
from measure.speed import measure_speed, print_speed
from pictures import to_frames
from training.build import as_plain, build
from training.checkpoint import load_run, save_checkpoint
from training.processes import Processes
from training.presets import PRESETS

ROOT = Path(__file__).parents[1]


class Verified(nn.Module):
    """Cheap features in the place of I3D; the label is what a checked file gives."""

    weights = "i3d_pretrained_400.pt, git blob a867b87ac3a9, verified"

    def forward(self, video):
        return F.adaptive_avg_pool3d(video, (2, 2, 2)).flatten(1)


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """This machine's store of features is another one for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "store"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder as train.py leaves it, with networks that have learnt nothing."""
    return untrained(tmp_path_factory.mktemp("run"), DataConfig(
        dataset="shapes", class_names=tuple(MovingShapes().class_names)))


def untrained(path, data):
    torch.manual_seed(0)
    path.mkdir(exist_ok=True)
    for stage in ("tokenizer", "transformer"):
        trainee = build(PRESETS["toy"], stage, num_classes=len(data.class_names))
        configs = dict(network=trainee.networks[stage].config, train=PRESETS["toy"], data=data)
        save_checkpoint(path / f"{stage}.pt", dict(
            stage=stage, step=1, finished=True, **trainee.state(),
            config={part: as_plain(config) for part, config in configs.items()}))
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

    monkeypatch.setattr(measure.features, "i3d_input", lambda video: 2 * video - 1)
    monkeypatch.setattr(measure.jobs, "open_judges", lambda metrics, *rest: {
        "fvd": Counting()} if {"fvd", "kvd"} & set(metrics) else {})
    return seen


SHORT = dict(samples=16, batch=4, decoding=dict(steps=2))


def numbers_of(outcome):
    return {task: {name: (value["mean"], value["deviation"]) for name, value in entries.items()
                   if "mean" in value} for task, entries in outcome["results"].items()}


def fresh(run, tmp_path):
    """The same run in another folder, with nothing stored."""
    tmp_path.mkdir(exist_ok=True)
    for name in ("tokenizer.pt", "transformer.pt"):
        (tmp_path / name).symlink_to(run / name)
    return tmp_path


def test_a_stopped_evaluation_goes_on_and_ends_with_the_same_numbers(run, tmp_path, cheap,
                                                                    monkeypatch, capsys):
    whole = numbers_of(evaluate.evaluate_protocol(run, "toy", **SHORT))
    assert cheap == [4] * 8                                     # four batches of reals and fakes
    again, calls = fresh(run, tmp_path), []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another store"))

    def killed(*arguments):
        if len(calls) == 6:
            raise KeyboardInterrupt
        calls.append(1)
        return measure_videos(*arguments)

    monkeypatch.setattr(measure.jobs, "measure_videos", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate.evaluate_protocol(again, "toy", **SHORT)
    monkeypatch.setattr(measure.jobs, "measure_videos", measure_videos)
    damaged = sorted(again.glob("features/FP-*/*.npz"))[0]
    damaged.write_bytes(damaged.read_bytes()[:100])             # and one file is broken
    del cheap[:]
    outcome = evaluate.evaluate_protocol(again, "toy", **SHORT)
    assert len(cheap) == 3                                      # two were left, one was broken
    assert numbers_of(outcome) == whole
    assert json.loads((again / "evaluation-toy.json").read_text()) == outcome
    assert set(outcome["results"]["FP"]) == {"FVD*", "PSNR*", "SSIM*"}
    assert all(value["not_as_wanted"] for value in outcome["results"]["FP"].values())
    printed = capsys.readouterr().out
    assert "FVD*" in printed and "FVD " not in printed


def test_more_samples_keep_those_that_are_there(run, tmp_path, cheap):
    place = fresh(run, tmp_path)
    evaluate.evaluate_protocol(place, "toy", **SHORT | dict(samples=8))
    files = {path: path.stat().st_mtime_ns for path in place.rglob("*.npz")}
    evaluate.evaluate_protocol(place, "toy", **SHORT)
    assert len(files) == 4 and all(path.stat().st_mtime_ns == time for path, time in files.items())


def test_samples_shared_by_three_places_are_those_of_one(run, tmp_path, cheap, monkeypatch):
    alone = numbers_of(evaluate.evaluate_protocol(run, "toy", **SHORT))
    place = fresh(run, tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another store"))
    clips = real_clips(MovingShapes("test"), PROTOCOLS["toy"], 16, 0)
    for rank in (2, 1):                 # without torchrun nobody waits: they read what there is
        monkeypatch.setattr(measure.jobs, "from_first", lambda read, processes: read())
        job = open_job(place, "toy", None, Request(**SHORT), "weights", Processes(rank, 3))
        for work in (lambda: fake_rows(job, "FP", clips), lambda: real_rows(job, clips)):
            with pytest.raises(FileNotFoundError, match="start the same command again"):
                work()
    del cheap[:]
    assert numbers_of(evaluate.evaluate_protocol(place, "toy", **SHORT)) == alone
    assert len(cheap) == 2 * 2                              # batches 0 and 3; the rest was there


def test_two_processes_end_with_the_numbers_of_one(run, tmp_path, cheap, one_thread, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a store"))
    alone = numbers_of(evaluate.evaluate_protocol(fresh(run, tmp_path / "alone"), "toy", **SHORT))
    script = tmp_path / "cheap.py"
    script.write_text(f"""import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]
import evaluate, measure.features, measure.jobs, test_evaluate
measure.features.i3d_input = lambda video: 2 * video - 1
measure.jobs.open_judges = lambda metrics, *rest: dict(fvd=test_evaluate.Verified())
evaluate.main()
""")
    place = fresh(run, tmp_path)
    torchrun(2, script, place, "--protocol", "toy", "--samples", "16", "--batch", "4", "--steps",
             "2", XDG_CACHE_HOME=tmp_path / "another store").check_returncode()
    assert numbers_of(json.loads((place / "evaluation-toy.json").read_text())) == alone


def test_every_sample_has_noise_of_its_own_whatever_its_batch():
    cpu = torch.device("cpu")
    together = noise_of(0, "FP", range(4), cpu)
    first, second = together(torch.Size([4, 5, 3])), together(torch.Size([4, 5]))
    alone = noise_of(0, "FP", range(2, 3), cpu)
    assert torch.equal(alone(torch.Size([1, 5, 3]))[0], first[2])
    assert torch.equal(alone(torch.Size([1, 5]))[0], second[2])
    assert len({x.item() for x in first[:, 0, 0]}) == 4
    assert not torch.equal(noise_of(0, "FI", range(4), cpu)(torch.Size([4, 5, 3])), first)


def test_reconstruction_and_tasks_make_tables_4_and_7(run, tmp_path, cheap, capsys):
    outcome = evaluate.evaluate_protocol(fresh(run, tmp_path), "toy", **SHORT,
                                         tasks=["reconstruction", "CG", "FI"])
    results = outcome["results"]
    assert results["reconstruction"]["codes"]["of"] == 128
    assert 1 <= results["reconstruction"]["codes"]["used"] <= 128
    printed = capsys.readouterr().out
    assert "FI       CG  average" in printed
    assert any("Table 7" in reason for reason in results["reconstruction"]["FVD*"]["not_as_wanted"])


def test_folders_of_videos_serve_as_real_clips(run, folder, tmp_path, cheap):
    outcome = evaluate.evaluate_protocol(fresh(run, tmp_path), "bair", DataConfig(str(folder)),
                                         **SHORT, metrics=["fvd", "psnr"], infinity=True)
    assert outcome["real_clips"] == 3 and outcome["real_videos"] == 3
    assert set(outcome["results"]["FP"]) == {"FVD*", "FVD_inf*", "PSNR*"}
    reasons = " ".join(outcome["results"]["FP"]["PSNR*"]["not_as_wanted"])
    for part in ("16 samples", "3 test videos", "resolution 32", "2 steps"):
        assert part in reasons


# ---------------------------------------------------------------------------------------------
# Protocol "own": anybody's clips

class Noise(ClipSource):
    """A data set with nothing but the three methods that training needs."""

    def __init__(self, first=0):
        self.first = first

    def __len__(self):
        return 5

    def clip(self, index, random=None):
        noise = np.random.default_rng(self.first + index)
        return noise.integers(0, 256, (16, 32, 32, 3), dtype=np.uint8), NO_LABEL


def test_clips_of_three_methods_can_be_evaluated(run, tmp_path, cheap):
    place = fresh(run, tmp_path)
    outcome = evaluate.evaluate_protocol(place, "own", data=Noise(), **SHORT)
    assert (outcome["real_clips"], outcome["real_videos"]) == (5, 5)
    assert outcome["decoding"] == PRESETS["toy"].decoding | dict(steps=2)
    assert set(outcome["results"]["FP"]) == {"FVD*", "PSNR*", "SSIM*"}
    assert json.loads((place / "evaluation-own.json").read_text()) == outcome
    seen = len(cheap)
    assert numbers_of(evaluate.evaluate_protocol(place, "own", Noise(), **SHORT)) == numbers_of(
        outcome) and len(cheap) == seen                         # all of it was stored
    other = evaluate.evaluate_protocol(place, "own", Noise(100), **SHORT)
    assert numbers_of(other) != numbers_of(outcome) and len(cheap) == 2 * seen


def test_without_data_the_held_out_clips_of_the_run_are_real(run, folder, tmp_path, cheap):
    drawn = evaluate.evaluate_protocol(fresh(run, tmp_path), "own", **SHORT)
    assert (drawn["real_videos"], drawn["real_clips"]) == (64, 16)
    same = evaluate.evaluate_protocol(tmp_path, "own", MovingShapes("test"), **SHORT)
    assert numbers_of(drawn) == numbers_of(same)
    videos, learned = "those the run was trained on", []
    for name, data in (("held-out", DataConfig("gone", test_root=str(folder))),
                       ("trained-on", DataConfig(str(folder)))):
        (tmp_path / name).mkdir()
        outcome = evaluate.evaluate_protocol(untrained(tmp_path / name, data), "own", **SHORT)
        assert outcome["real_videos"] == 3 and set(outcome["results"]["FP"]) == {
            "FVD*", "PSNR*", "SSIM*"}
        reasons = outcome["results"]["FP"]["PSNR*"]["not_as_wanted"]
        assert "protocol own is no benchmark" in reasons[0]
        learned.append(any(videos in reason for reason in reasons))
    assert learned == [False, True]


def test_protocol_toy_is_for_runs_on_the_drawn_clips(folder, tmp_path, cheap):
    place = untrained(tmp_path, DataConfig(str(folder)))
    with pytest.raises(ValueError, match="protocol toy is for .* take --protocol own"):
        evaluate.evaluate_protocol(place, "toy", **SHORT)


def test_a_run_on_an_object_says_what_to_do_when_its_clips_are_asked_for(tmp_path, cheap):
    place = untrained(tmp_path, DataConfig(dataset="object Noise"))
    for ask in (lambda: load_run(place).held_out(), lambda: report(place),
                lambda: evaluate.evaluate_protocol(place, "own", **SHORT)):
        with pytest.raises(ValueError, match="on 'object Noise', which is not on disk; give that "
                           "object to the Python function, or videos with --data or --video"):
            ask()
    assert evaluate.evaluate_protocol(place, "own", Noise(), **SHORT)["real_videos"] == 5


def test_of_the_rooms_that_measure_only_the_report_and_its_judge_know_the_drawn_clips():
    rooms = [ROOT / "evaluate.py", *(ROOT / "measure").glob("*.py")]
    assert len(rooms) > 8
    assert {room.name for room in rooms if re.search(
        "moving_?shapes", room.read_text(), re.IGNORECASE)} == {"report.py", "toy.py"}


@pytest.mark.parametrize("windows, starts", [(None, {2}), ("random", set(range(5)))])
def test_own_takes_the_middle_of_each_video_or_random_clips(run, folder, windows, starts):
    job = open_job(run, "own", DataConfig(str(folder)),
                   Request(samples=40, windows=windows, metrics=["psnr"]), None, Processes())
    assert {clip.start for clip in real_clips(job.source, job.protocol, 40)} == starts
    with pytest.raises(ValueError, match="only own has a choice"):
        open_job(run, "bair", DataConfig(str(folder)), Request(windows="random"), None, Processes())


def test_a_relative_list_of_videos_does_not_hide_what_was_trained_on(run, folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    learned = load_run(untrained(folder.parent / "run", DataConfig("videos", split="lists/a.txt")))
    for split, known in (("lists/a.txt", True), ("lists/../lists/a.txt", True),
                         (str(folder.parent / "lists" / "a.txt"), True), ("lists/b.txt", False)):
        assert trained_on(learned, DataConfig("videos", split=split)) is known


# ---------------------------------------------------------------------------------------------
# Nothing is made twice, nothing is lost

def test_a_number_that_is_added_later_makes_no_row_twice(run, tmp_path, cheap):
    place = fresh(run, tmp_path)
    ask = SHORT | dict(tasks=["FP"])
    first = evaluate.evaluate_protocol(place, "own", metrics=["fvd"], **ask)
    seen = len(cheap)
    both = evaluate.evaluate_protocol(place, "own", metrics=["psnr", "kvd"], **ask)
    assert len(cheap) == seen                                   # KVD is of FVD's features
    assert set(both["results"]["FP"]) == {"FVD*", "KVD*", "PSNR*"}
    assert both["results"]["FP"]["FVD*"] == first["results"]["FP"]["FVD*"]


def test_tasks_asked_for_later_are_added_to_the_json_unless_samples_differ(run, tmp_path, cheap):
    place = fresh(run, tmp_path)
    for tasks, known in ((["FP"], {"FP"}), (["CG"], {"FP", "CG"}), (["FP"], {"FP", "CG"})):
        evaluate.evaluate_protocol(place, "own", tasks=tasks, **SHORT)
        outcome = json.loads((place / "evaluation-own.json").read_text())
        assert set(outcome["results"]) == known
    outcome = evaluate.evaluate_protocol(place, "own", tasks=["FI"], seed=1, **SHORT)
    assert set(outcome["results"]) == {"FI"}


def test_reals_are_measured_once_for_all_runs_on_a_machine(run, tmp_path, cheap):
    evaluate.evaluate_protocol(run, "own", tasks=["reconstruction"], **SHORT)
    seen = len(cheap)
    place = untrained(tmp_path / "other", load_run(run).data)
    evaluate.evaluate_protocol(place, "own", tasks=["reconstruction"], **SHORT)
    assert len(cheap) == seen + 4                               # four batches of fakes alone


def test_features_of_the_reals_can_be_passed_on_and_are_checked(run, tmp_path, cheap, monkeypatch):
    place, file = fresh(run, tmp_path), str(tmp_path / "real.npz")
    whole = evaluate.evaluate_protocol(place, "own", save_features=file, **SHORT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another store"))
    seen = len(cheap)
    again = evaluate.evaluate_protocol(place, "own", real_features=file, **SHORT)
    assert numbers_of(again) == numbers_of(whole) and len(cheap) == seen
    for other, words in ((dict(seed=1), "seed 0'; wanted .*seed 1"), (dict(samples=8), "clips 16")):
        with pytest.raises(ValueError, match=words):
            evaluate.evaluate_protocol(place, "own", real_features=file, **SHORT | other)


def test_saved_videos_are_the_samples_to_the_last_bit(run, tmp_path, cheap):
    place, saved = fresh(run, tmp_path), tmp_path / "saved"
    ask = SHORT | dict(tasks=["CG"], metrics=["fvd"])
    plain = evaluate.evaluate_protocol(place, "own", **ask)
    assert numbers_of(evaluate.evaluate_protocol(place, "own", save=str(saved), **ask)
                      ) == numbers_of(plain)                    # made again, since none was there
    files, seen = sorted(saved.glob("CG/*.mp4")), len(cheap)
    assert [file.stem for file in files] == [f"{i:06}" for i in range(16)]
    evaluate.evaluate_protocol(place, "own", save=str(saved), **ask)
    assert len(cheap) == seen
    videos = torch.from_numpy(np.stack([read_video(file) for file in files]))
    video = videos.movedim(-1, 1).float() / 255
    loaded = load_run(place)
    job = open_job(place, "own", None, Request(**ask), "weights", Processes())
    clips = real_clips(job.source, job.protocol, 16)
    real, label = measure.jobs.load_clips(job.source, clips[:4], torch.device("cpu"))
    sample, _ = measure.jobs.sample_videos(loaded, "CG", real, label, job.request.decoding, 0, 0)
    assert all((to_frames(ours) == to_frames(theirs)).all() for ours, theirs in zip(sample, video))


def test_folds_may_be_others_and_are_starred(run, folder, tmp_path, cheap):
    outcome = evaluate.evaluate_protocol(fresh(run, tmp_path), "bair", DataConfig(str(folder)),
                                         **SHORT | dict(folds=2, metrics=["fvd"]))
    entry = outcome["results"]["FP"]["FVD*"]
    assert (entry["folds"], entry["samples"]) == (2, 16)
    assert "2 folds; wanted 4" in entry["not_as_wanted"]


def test_table_4_on_ssv2_takes_cg_from_train_videos_and_the_rest_from_test(run, tmp_path,
                                                                          monkeypatch, capsys):
    asked = []

    def one(run, name, data, *, tasks, **rest):
        asked.append((name, Path(data.split).name, tasks))
        return dict(results={task: {"FVD": dict(mean=float(len(asked)))} for task in tasks})

    monkeypatch.setattr(evaluate, "evaluate_protocol", one)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", str(run), "--protocol", "ssv2-mt", "--data",
                                      str(tmp_path), "--split", "validation.json", "--tasks",
                                      "MT10", "--train-split", "train.json"])
    evaluate.main()
    assert asked == [("ssv2", "train.json", ["CG"]),
                     ("ssv2-mt", "validation.json", [task for task in MT10 if task != "CG"])]
    assert "1.9" in capsys.readouterr().out                     # (1 + 9 x 2) / 10


def test_frames_equal_to_the_real_ones_are_counted_apart_and_the_json_stays_valid(
        run, tmp_path, cheap, monkeypatch, capsys):
    monkeypatch.setattr(measure.jobs, "sample_videos", lambda run, task, video, *rest: (video, {}))
    place = fresh(run, tmp_path)
    outcome = evaluate.evaluate_protocol(place, "own", **SHORT | dict(metrics=["psnr", "ssim"]))
    assert outcome["results"]["FP"]["identical_frames"] == dict(count=16 * 16)
    assert outcome["results"]["FP"]["PSNR*"]["mean"] is None
    assert "256 frames are identical" in capsys.readouterr().out

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    json.loads((place / "evaluation-own.json").read_text(), parse_constant=refuse)


def test_float32_is_what_samples_are_made_in_and_bfloat16_is_starred(run, tmp_path, cheap):
    assert Request().precision == "float32"
    assert not in_bfloat16("float32", torch.device("cpu"))
    assert in_bfloat16("bf16", torch.device("cpu"))
    outcome = evaluate.evaluate_protocol(fresh(run, tmp_path), "own", precision="bf16", **SHORT)
    assert any("bfloat16" in reason
               for reason in outcome["results"]["FP"]["FVD*"]["not_as_wanted"])


# ---------------------------------------------------------------------------------------------
# Names, speed

def test_labels_are_matched_by_name_not_by_number():
    source = MovingShapes("test")
    mapped = run_labels(torch.tensor([0, 15]), source, source.class_names[::-1])
    assert mapped.tolist() == [15, 0]
    with pytest.raises(ValueError, match="square right.*unknown to the run"):
        run_labels(torch.tensor([0]), source, ["a", "b"])
    with pytest.raises(ValueError, match="no classes"):
        run_labels(torch.tensor([-1]), source, source.class_names)


def test_what_an_evaluation_takes_grows_with_the_steps_of_decoding():
    one, twelve, twenty_three = (flop_of_sample(replace(PROTOCOLS["own"], steps=steps),
                                                PRESETS["toy"]) for steps in (1, 12, 23))
    assert twelve - one == twenty_three - twelve > 0
    judged = 55.6e9                                     # I3D on 16 frames (measure.networks)
    assert judged < one < 1.1 * judged


def test_speed_is_split_into_its_parts(run, capsys):
    rows = measure_speed(run, resolutions=(16, 32, 64), repeats=1, most_tokens=64)
    assert [row["resolution"] for row in rows] == [16, 32, 64]
    assert [row["sequence"] for row in rows] == [4 * 2 * 2 + 2, 66, 258]
    assert [row.get("weights") for row in rows] == ["random", "trained", None]
    parts = rows[1]["transformer_seconds"] + rows[1]["tokenizer_seconds"]
    assert math.isclose(rows[1]["frames_per_second"], 16 / parts, rel_tol=0.05)
    print_speed(rows)
    assert "left out: 256 tokens" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------
# Refusals

@pytest.mark.parametrize("options, message", [
    (dict(samples=2), "2 samples; the 4 folds of bair need a multiple of 4, at least 8"),
    (dict(samples=10), "10 samples"), (dict(batch=0), "batch 0; wanted 1 or more"),
    (dict(samples=8), "model.ckpt.data.* is missing .*save https.*--random-weights"),
    (dict(samples=8, metrics=["psnr"]), "needs --data, the folder of its test videos")])
def test_an_evaluation_that_cannot_be_done_is_refused_before_it_starts(run, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        evaluate.evaluate_protocol(run, "bair", weights="no/such/folder", **options)
    assert "\n" not in str(error.value)


def test_a_wrong_weight_file_is_refused(run, tmp_path):
    (tmp_path / "i3d_pretrained_400.pt").write_bytes(b"something else")
    with pytest.raises(ValueError, match="wanted git blob a867"):
        evaluate.evaluate_protocol(run, "toy", samples=8, weights=tmp_path)


def test_stored_rows_come_back_in_order_and_once(tmp_path):
    calls = []

    def compute(part, first, missing):
        calls.append((list(part), first))
        return {name: torch.tensor([[float(item)] for item in part]) for name in missing}

    wanted = {"x": "x of weights 1"}
    for _ in range(2):
        rows = rows_on_disk(tmp_path, list(range(7)), 3, compute, Processes(), "x", wanted)
        assert rows["x"].flatten().tolist() == list(range(7))
    assert calls == [([0, 1, 2], 0), ([3, 4, 5], 3), ([6], 6)]
    rows = rows_on_disk(tmp_path, list(range(8)), 3, compute, Processes(), "x", wanted)
    assert rows["x"].shape == (8, 1)
    assert calls[3:] == [([6, 7], 6)]                           # the last batch has grown
    wanted["y"] = "y"
    rows_on_disk(tmp_path, list(range(8)), 3, compute, Processes(), "x", wanted)
    assert len(calls) == 7                                      # one more metric, once a batch
    rows_on_disk(tmp_path, list(range(8)), 3, compute, Processes(), "x", {"x": "x of weights 2"})
    assert len(calls) == 10                                     # other weights are other rows
    rows_on_disk(tmp_path, list(range(8)), 3, compute, Processes(), "x", {"y": "y"})
    assert len(calls) == 10                                     # and nothing was lost


def test_a_new_task_changes_the_noise_of_no_other(monkeypatch):
    before = noise_of(0, "CFP", range(2), torch.device("cpu"))(torch.Size([2, 5]))
    monkeypatch.setattr("commit.TASKS", dict(NEW=TASKS["FP"], **TASKS))
    after = noise_of(0, "CFP", range(2), torch.device("cpu"))(torch.Size([2, 5]))
    assert torch.equal(before, after)
