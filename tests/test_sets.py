"""Two sets of videos that anybody has: what is taken of them, under which name, and only once."""
import json
import math
import os
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from fresh import python, torchrun

import measure.sets
from data.clips import write_lossless, write_video
from measure.metrics import ssim
from measure.sets import compare
from test_evaluate import Verified

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "store"))


@pytest.fixture
def cheap(monkeypatch):
    """Verified() for I3D; returns a list that grows by the size of each batch it sees."""
    seen = []

    class Counting(Verified):
        def forward(self, video):
            seen.append(len(video))
            return super().forward(video)

    monkeypatch.setattr(measure.sets, "open_judges", lambda metrics, *rest: {
        "fvd": Counting()} if {"fvd", "kvd"} & set(metrics) else {})
    return seen


@pytest.fixture
def decoded(monkeypatch):
    """The clips that were read since, by their number."""
    seen = []

    def counted(source, clips, device):
        seen.extend(clip.video for clip in clips)
        return load_clips(source, clips, device)

    load_clips = measure.sets.load_clips
    monkeypatch.setattr(measure.sets, "load_clips", counted)
    return seen


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def sets(tmp_path):
    for seed, (name, shape) in enumerate(dict(
            a=(4, 9, 16, 16, 3), b=(4, 9, 16, 16, 3), c=(6, 9, 16, 16, 3), short=(4, 8, 16, 16, 3),
            small=(4, 9, 12, 16, 3), one=(1, 9, 16, 16, 3)).items()):
        np.save(tmp_path / f"{name}.npy", noise(*shape, seed=seed))
    return {path.stem: str(path) for path in tmp_path.glob("*.npy")}


def folder(path, videos, suffix=".npy"):
    for number, video in enumerate(videos):
        write_video(path / f"{number}{suffix}", video)
    return str(path)


# ---------------------------------------------------------------------------------------------
# Numbers

def test_two_arrays_and_two_folders_give_the_same_numbers(sets, tmp_path, cheap):
    folders = [folder(tmp_path / name, np.load(sets[name])) for name in "ab"]
    ask = ["fvd", "kvd", "psnr", "ssim"]
    arrays = compare(ask, [sets["a"], sets["b"]], batch=3)
    assert arrays == compare(ask, folders, batch=3)
    a, b = (torch.from_numpy(np.load(sets[name])).movedim(-1, 2) / 255 for name in "ab")
    assert math.isclose(arrays["SSIM"]["mean"], ssim(a, b).mean(), rel_tol=1e-6)
    same = compare(["fvd"], [sets["a"], sets["a"]])
    assert abs(same["FVD*"]["mean"]) < 1e-9                     # starred: four videos


def test_lengths_and_sizes_may_differ_once_it_is_said_what_to_take(tmp_path, cheap):
    long, wide = noise(3, 12, 16, 24, 3), noise(3, 9, 16, 16, 3, seed=1)
    mixed = folder(tmp_path / "real", [*long, *wide])
    cut = folder(tmp_path / "cut", [*long[:, :9, :, 4:20], *wide])
    fake = folder(tmp_path / "fake", noise(6, 9, 16, 16, 3, seed=2))
    with pytest.raises(ValueError, match="videos of 9 to 12 frames; say how many.*--frames 16"):
        compare(["fvd"], [mixed, fake])
    with pytest.raises(ValueError, match="2 sizes, such as 16x16 and 24x16; .*--size 128"):
        compare(["fvd"], [mixed, fake], frames=9)
    assert not cheap                                            # before any network has run
    of_mixed = compare(["fvd"], [mixed, fake], frames=9, size=16)["FVD*"]
    of_cut = compare(["fvd"], [cut, fake])["FVD*"]
    assert of_mixed["mean"] == of_cut["mean"]
    reasons = " ".join(of_mixed["not_as_wanted"])
    for part in ("the first frames of videos of up to 12", "cropped from 24x16", "9 frames"):
        assert part in reasons and part.replace("9 frames", "crop") not in " ".join(
            of_cut["not_as_wanted"])


def test_every_second_frame_is_what_a_stride_of_two_takes(tmp_path):
    long, other = noise(2, 8, 16, 16, 3), noise(2, 4, 16, 16, 3, seed=1)
    sparse = compare(["psnr"], [folder(tmp_path / "a", long[:, ::2]),
                                folder(tmp_path / "b", other)])
    strided = compare(["psnr"], [folder(tmp_path / "c", long),
                                 folder(tmp_path / "d", other.repeat(2, axis=1))],
                      frames=4, stride=2)
    assert sparse["PSNR"]["mean"] == strided["PSNR*"]["mean"]


def test_gifs_folders_of_frames_and_lossless_videos_are_sets_too(tmp_path, cheap):
    videos = noise(2, 9, 32, 32, 3)                 # of more colours than a GIF has
    for number, video in enumerate(videos):
        write_lossless(tmp_path / "mp4" / f"{number}.mp4", video)
        for t, frame in enumerate(video):
            path = tmp_path / "png" / str(number) / f"{t:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            imageio.imwrite(path, frame)
    npy, gif = folder(tmp_path / "npy", videos), folder(tmp_path / "gif", videos, ".gif")
    frames = compare(["psnr"], [npy, str(tmp_path / "png")])
    assert "PSNR" in frames and frames["identical_frames"] == dict(count=18)
    coded = compare(["psnr"], [npy, str(tmp_path / "mp4")])
    assert coded["identical_frames"] == dict(count=18)
    assert any("coded unlike" in reason for reason in coded["PSNR*"]["not_as_wanted"])
    lost = compare(["psnr"], [npy, gif])["PSNR*"]
    assert any("256 colours" in reason for reason in lost["not_as_wanted"]) and lost["mean"] < 40



def test_pairs_are_found_by_name_whatever_else_lies_there_before(tmp_path, capsys):
    videos = noise(3, 4, 16, 16, 3)
    real = folder(tmp_path / "real", videos)
    fake = tmp_path / "fake"
    for name in (2, 0, 1):
        write_video(fake / f"{name}.npy", videos[name] // 2)
    compare(["psnr"], [real, str(fake)])
    assert "3 pairs by name" in capsys.readouterr().out
    write_video(fake / "3.npy", videos[0])
    with pytest.raises(ValueError, match="1 videos of .*fake have no partner .*first '3'"):
        compare(["psnr"], [real, str(fake)])


def test_an_arrays_videos_are_called_by_their_numbers(tmp_path):
    videos = noise(11, 1, 16, 16, 3)
    np.save(tmp_path / "all.npy", videos)               # by letters, 10 would come before 2
    for name in ("{}.npy", "{:06}.npy"):
        each = tmp_path / name
        for number, video in enumerate(videos):
            write_video(each / name.format(number), video)
        entry = compare(["psnr"], [str(tmp_path / "all.npy"), str(each)])
        assert entry["identical_frames"] == dict(count=11)


def test_videos_of_one_name_in_one_folder_make_no_pairs(tmp_path):
    videos = noise(2, 4, 16, 16, 3)
    real = folder(tmp_path / "real", videos)
    write_video(tmp_path / "real" / "0.gif", videos[1])
    with pytest.raises(ValueError, match="real has several videos called '0'; wanted pairs"):
        compare(["psnr"], [real, real])


def test_folders_of_frames_may_have_points_in_their_names(tmp_path):
    for name in ("clip.v1", "clip.v2"):
        (tmp_path / "real" / name).mkdir(parents=True)
        imageio.imwrite(tmp_path / "real" / name / "0.png", noise(16, 16, 3, seed=len(name)))
    entries = compare(["psnr"], [str(tmp_path / "real")] * 2)
    assert entries["identical_frames"] == dict(count=2)
    assert entries["PSNR*"]["not_as_wanted"] == ["both sets are the same videos"]


def test_a_video_that_is_too_short_leaves_its_partner_out_too(tmp_path, capsys):
    videos = noise(3, 6, 16, 16, 3)
    real = folder(tmp_path / "real", videos)
    fake = folder(tmp_path / "fake", [videos[0] // 2, videos[1][:3], videos[2] // 2])
    entry = compare(["psnr"], [real, fake], frames=6)["PSNR*"]
    assert entry["samples"] == 2
    assert any("1 videos too short or broken" in reason for reason in entry["not_as_wanted"])
    assert "skipped 1.npy: 3 frames" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------
# Only once

def test_another_number_and_another_fake_set_read_only_what_is_new(sets, cheap, decoded):
    first = compare(["fvd"], [sets["a"], sets["b"]])
    assert sorted(decoded) == sorted([*range(4)] * 2)
    again = compare(["fvd", "kvd"], [sets["a"], sets["b"]])
    assert len(decoded) == 8 and again["FVD*"] == first["FVD*"]
    compare(["fvd"], [sets["a"], sets["c"]])
    assert len(decoded) == 8 + 6                                # the real set was known
    compare(["psnr"], [sets["a"], sets["b"]])
    assert len(decoded) == 14 + 8                               # each of the pairs, once
    compare(["fvd", "psnr"], [sets["a"], sets["b"]])
    assert len(decoded) == 22


def test_the_same_names_and_sizes_with_other_pixels_are_other_videos(tmp_path, cheap):
    real = folder(tmp_path / "real", noise(4, 9, 16, 16, 3))
    before = compare(["fvd"], [real, folder(tmp_path / "fake", noise(4, 9, 16, 16, 3, seed=1))])
    after = compare(["fvd"], [real, folder(tmp_path / "fake", noise(4, 9, 16, 16, 3, seed=2))])
    assert before["FVD*"]["mean"] != after["FVD*"]["mean"]
    assert cheap == [4, 4, 4]


def test_a_stopped_comparison_goes_on(sets, tmp_path, cheap, monkeypatch):
    whole = compare(["fvd"], [sets["a"], sets["c"]], batch=2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another store"))
    calls, real = [], measure.sets.measure_videos

    def killed(*arguments):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(1)
        return real(*arguments)

    monkeypatch.setattr(measure.sets, "measure_videos", killed)
    with pytest.raises(KeyboardInterrupt):
        compare(["fvd"], [sets["a"], sets["c"]], batch=2)
    monkeypatch.setattr(measure.sets, "measure_videos", real)
    del cheap[:]
    assert compare(["fvd"], [sets["a"], sets["c"]], batch=2) == whole
    assert cheap == [2, 2]                                      # of five batches, three were there


def test_features_can_be_passed_on_without_the_videos(sets, tmp_path, cheap, monkeypatch):
    file, numbers = str(tmp_path / "real.npz"), str(tmp_path / "numbers.json")
    whole = compare(["fvd", "kvd"], [sets["a"], sets["b"]], save_features=file, json_file=numbers)
    assert json.loads(Path(numbers).read_text())["numbers"] == whole
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another store"))
    os.remove(sets["a"])
    again = compare(["fvd", "kvd"], [sets["b"]], real_features=file)
    assert {name: entry["mean"] for name, entry in again.items()} == {
        name: entry["mean"] for name, entry in whole.items()}
    assert {name: entry["not_as_wanted"] for name, entry in again.items()} == {
        name: entry["not_as_wanted"] for name, entry in whole.items()}
    with pytest.raises(ValueError, match="is of size '16x16'; wanted '8x8'"):
        compare(["fvd"], [sets["b"]], real_features=file, size=8)
    with pytest.raises(ValueError, match="psnr of stored features; they compare videos"):
        compare(["psnr"], [sets["b"]], real_features=file)
    with pytest.raises(FileNotFoundError, match="--save-features FILE writes them"):
        compare(["fvd"], [sets["b"]], real_features=str(tmp_path / "none.npz"))


def test_stored_features_bring_the_reasons_for_a_star_of_their_videos(tmp_path, cheap, monkeypatch):
    real = folder(tmp_path / "real", noise(6, 12, 24, 32, 3), ".gif")
    fake = folder(tmp_path / "fake", noise(2, 9, 16, 16, 3, seed=1))
    file = str(tmp_path / "real.npz")
    whole = compare(["fvd"], [real, fake], frames=9, size=16, save_features=file)["FVD*"]
    again = compare(["fvd"], [fake], frames=9, size=16, real_features=file)["FVD*"]
    assert again == whole and again["samples"] == 2             # the fakes', not the reals'
    reasons = " ".join(again["not_as_wanted"])
    for part in ("2 videos a fold", "up to 12", "from 32x24", "256 colours", "coded unlike"):
        assert part in reasons
    del cheap[:]
    with pytest.raises(FileNotFoundError, match="--save-features FILE writes them"):
        compare(["fvd"], [folder(tmp_path / "new", noise(2, 9, 16, 16, 3, seed=2))],
                real_features="none.npz")
    assert not cheap                                            # told before any network has run


def test_two_processes_end_with_the_numbers_of_one(sets, tmp_path, cheap, one_thread):
    alone = compare(["fvd", "psnr"], [sets["a"], sets["b"]], batch=1)
    script = tmp_path / "cheap.py"
    script.write_text(f"""import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]
import evaluate, measure.sets, test_evaluate
measure.sets.open_judges = lambda metrics, *rest: dict(fvd=test_evaluate.Verified())
evaluate.main()
""")
    torchrun(2, script, "fvd,psnr", sets["a"], sets["b"], "--batch", "1", "--json",
             tmp_path / "numbers.json",
             XDG_CACHE_HOME=tmp_path / "another store").check_returncode()
    assert json.loads((tmp_path / "numbers.json").read_text())["numbers"] == alone


@pytest.mark.skipif(not (SHARED / "odd_videos").is_dir(), reason="../shared/odd_videos is not here")
def test_videos_as_people_have_them_get_a_number_with_every_reason(cheap, decoded):
    entry = compare(["fvd"], [str(SHARED / "clips" / "ucf101"), str(SHARED / "odd_videos")],
                    frames=16, size=64)["FVD*"]
    reasons = " ".join(entry["not_as_wanted"])
    for part in ("below 2,048", "the first frames of videos of up to", "cropped from",
                 "too short or broken", "256 colours", "coded unlike"):
        assert part in reasons
    assert sorted(decoded) == sorted([*range(cheap[0]), *range(cheap[1])])      # each once


# ---------------------------------------------------------------------------------------------
# Refusals

@pytest.mark.parametrize("metrics, chosen, folds, message", [
    ("fvd", "a", 1, "fvd of 1 sets; it takes two"),
    ("is", "a b", 1, "it takes one"),
    ("fvd", "short short", 1, "8 frames; I3D needs at least 9"),
    ("psnr", "a c", 1, "2 videos of .*c.npy have no partner .*first '4'; wanted pairs"),
    ("fvd", "a b", 3, "4 and 4 videos; wanted at least 6, a multiple of 3 for the folds"),
    ("fvd", "a b", 4, "at least 8"),
    ("fvd", "a small", 1, "2 sizes, such as 16x12 and 16x16"),
    ("fvd", "a nowhere", 1, "neither a folder of videos nor a .npy"),
    ("fvd", "a one", 1, "4 and 1 videos; wanted at least 2$"),
    ("fvd,is", "a b", 1, "9 frames; IS takes exactly 16"),
    ("fvd,fvdd", "a b", 1, "number 'fvdd'; choose from fvd kvd is psnr ssim lpips")])
def test_sets_that_do_not_fit_are_refused_in_one_line(sets, cheap, metrics, chosen, folds, message):
    paths = [sets.get(name, name) for name in chosen.split()]
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        compare(metrics.split(","), paths, folds=folds)
    assert "\n" not in str(error.value) and not cheap


@pytest.mark.parametrize("options, message", [
    (dict(frames=0), "frames 0; wanted 1 or more"), (dict(stride=0), "stride 0"),
    (dict(size=-8), "size -8"), (dict(batch=0), "batch 0"), (dict(folds=0), "folds 0"),
    (dict(size=8), "clips of 8x8 pixels; ssim needs 11x11"),
    (dict(real_features="none.npz"), "psnr ssim of stored features; they compare videos")])
def test_numbers_that_make_no_sense_are_refused_before_any_network_runs(sets, cheap, options,
                                                                        message):
    with pytest.raises(ValueError, match=message):
        compare(["fvd", "psnr", "ssim"], [sets["a"], sets["b"]], **options)
    assert not cheap


def test_a_missing_judge_is_told_before_any_video_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(measure.sets, "open_sets", None)
    with pytest.raises(FileNotFoundError, match="model.ckpt.data.* is missing"):
        compare(["fvd"], ["real", "fake"], weights=tmp_path)


def test_features_that_nobody_needs_are_not_asked_for(sets, tmp_path):
    for more in (dict(save_features="f.npz"), dict(real_features="f.npz")):
        with pytest.raises(ValueError, match="is needs no features of real videos; fvd and kvd do"):
            compare(["is"], [sets["a"]], **more)


def test_a_store_that_cannot_be_written_is_told_in_one_line(sets, tmp_path):
    (tmp_path / "file").touch()
    done = python("evaluate.py", "psnr", sets["a"], sets["b"], XDG_CACHE_HOME=tmp_path / "file")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "Not a directory" in done.stderr


def test_an_empty_folder_and_a_wrong_array_are_refused(sets, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no video in .*empty"):
        compare(["psnr"], [str(tmp_path / "empty"), sets["a"]])
    np.save(tmp_path / "float.npy", np.zeros((2, 9, 16, 16, 3)))
    with pytest.raises(ValueError, match="float64.*wanted uint8"):
        compare(["psnr"], [str(tmp_path / "float.npy"), sets["a"]])


