"""Two sets of videos that anybody has: what is taken of them, and under which name."""
import json
import math
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from fresh import torchrun

import measure.folders
from data.clips import write_lossless, write_video
from measure.folders import compare
from measure.metrics import ssim
from test_evaluate import Verified

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture
def cheap(monkeypatch):
    """Verified() for I3D; returns a list that grows by the size of each batch it sees."""
    seen = []

    class Counting(Verified):
        def forward(self, video):
            seen.append(len(video))
            return super().forward(video)

    monkeypatch.setattr(measure.folders, "open_judges", lambda metrics, *rest: {
        "fvd": Counting()} if "fvd" in metrics else {})
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
    ask = ["fvd", "psnr", "ssim"]
    arrays = compare(ask, [sets["a"], sets["b"]])
    of_folders = compare(ask, folders)
    assert {name: entry["mean"] for name, entry in arrays.items()} == {
        name: entry["mean"] for name, entry in of_folders.items()}
    a, b = (torch.from_numpy(np.load(sets[name])).movedim(-1, 2) / 255 for name in "ab")
    assert math.isclose(arrays["SSIM"]["mean"], ssim(a, b).mean(), rel_tol=1e-6)


def test_a_set_against_itself_or_a_copy_is_told(sets, tmp_path, cheap):
    copy = folder(tmp_path / "copy", np.load(sets["a"]))
    for other in (sets["a"], copy):
        same = compare(["fvd"], [sets["a"], other])["FVD*"]
        assert abs(same["mean"]) < 1e-9
        assert "both sets are the same videos" in same["not_as_wanted"]


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
        assert part in reasons
    assert "cropped" not in " ".join(of_cut["not_as_wanted"])


def test_every_second_frame_is_what_a_stride_of_two_takes(tmp_path):
    long, other = noise(2, 8, 16, 16, 3), noise(2, 4, 16, 16, 3, seed=1)
    sparse = compare(["psnr"], [folder(tmp_path / "a", long[:, ::2]),
                                folder(tmp_path / "b", other)])
    strided = compare(["psnr"], [folder(tmp_path / "c", long),
                                 folder(tmp_path / "d", other.repeat(2, axis=1))],
                      frames=4, stride=2)
    assert sparse["PSNR"]["mean"] == strided["PSNR*"]["mean"]


def test_gifs_folders_of_frames_and_lossless_videos_are_sets_too(tmp_path):
    videos = noise(2, 9, 32, 32, 3)                 # of more colours than a GIF has
    for number, video in enumerate(videos):
        write_lossless(tmp_path / "mp4" / f"{number}.mp4", video)
        for t, frame in enumerate(video):
            path = tmp_path / "png" / str(number) / f"{t:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            imageio.imwrite(path, frame)
    npy, gif = folder(tmp_path / "npy", videos), folder(tmp_path / "gif", videos, ".gif")
    for lossless in ("png", "mp4"):
        frames = compare(["psnr"], [npy, str(tmp_path / lossless)])
        assert frames["identical_frames"] == dict(count=18)
    lost = compare(["psnr"], [npy, gif])["PSNR*"]
    reasons = " ".join(lost["not_as_wanted"])
    assert "256 colours" in reasons and "stored unlike" in reasons and lost["mean"] < 40


def test_pairs_are_found_by_name_whatever_else_differs(tmp_path, capsys):
    videos = noise(11, 4, 16, 16, 3)
    np.save(tmp_path / "all.npy", videos)               # an array's videos are called by number
    for name in ("{}.npy", "{:06}.npy"):                # by letters, 10 would come before 2
        for number, video in enumerate(videos):
            write_video(tmp_path / name / name.format(number), video)
        found = compare(["psnr"], [str(tmp_path / "all.npy"), str(tmp_path / name)])
        assert found["identical_frames"] == dict(count=44)
    assert "11 pairs by name" in capsys.readouterr().out
    write_video(tmp_path / "{}.npy" / "11.npy", videos[0])
    with pytest.raises(ValueError, match="1 videos of .*have no partner .*first '11'; wanted pai"):
        compare(["psnr"], [str(tmp_path / "all.npy"), str(tmp_path / "{}.npy")])
    write_video(tmp_path / "{:06}.npy" / "0.gif", videos[1])
    with pytest.raises(ValueError, match="has several videos called '0'; wanted pairs"):
        compare(["psnr"], [str(tmp_path / "{:06}.npy")] * 2)


@pytest.mark.parametrize("short", ["real", "fake"])
def test_a_video_that_is_too_short_leaves_its_partner_out_too(tmp_path, cheap, capsys, short):
    videos = dict(real=noise(3, 9, 16, 16, 3), fake=noise(3, 9, 16, 16, 3, seed=1))
    paths = [folder(tmp_path / name, [videos[name][0], videos[name][1][:3 if name == short else 9],
                                      videos[name][2]]) for name in videos]
    entries = compare(["fvd", "psnr"], paths, frames=9)
    assert entries["PSNR*"]["samples"] == 2
    assert any("1 videos too short or broken" in reason
               for reason in entries["PSNR*"]["not_as_wanted"])
    assert "skipped 1.npy: 3 frames" in capsys.readouterr().err


def test_two_processes_end_with_the_numbers_of_one(sets, tmp_path, cheap, one_thread, monkeypatch):
    monkeypatch.setattr(measure.folders, "BATCH", 1)
    alone = compare(["fvd", "psnr"], [sets["a"], folder(tmp_path / "b", np.load(sets["b"]))])
    script = tmp_path / "cheap.py"
    script.write_text(f"""import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]
import evaluate, measure.folders, test_evaluate
measure.folders.BATCH = 1
measure.folders.open_judges = lambda metrics, *rest: dict(fvd=test_evaluate.Verified())
evaluate.main()
""")
    torchrun(2, script, "fvd,psnr", sets["a"], tmp_path / "b", "--json",
             tmp_path / "numbers.json").check_returncode()
    assert json.loads((tmp_path / "numbers.json").read_text())["numbers"] == alone


@pytest.mark.skipif(not (SHARED / "odd_videos").is_dir(), reason="../shared/odd_videos is not here")
def test_videos_as_people_have_them_get_a_number_with_every_reason(cheap):
    entry = compare(["fvd"], [str(SHARED / "clips" / "ucf101"), str(SHARED / "odd_videos")],
                    frames=16, size=64)["FVD*"]
    reasons = " ".join(entry["not_as_wanted"])
    for part in ("below 2,048", "the first frames of videos of up to", "cropped from",
                 "too short or broken", "256 colours", "stored unlike"):
        assert part in reasons


@pytest.mark.skipif(not (SHARED / "cases").is_dir(), reason="../shared/cases is not here")
@pytest.mark.parametrize("case, real, fake", [
    ("rotated_phones", "real", "fake"), ("rotated_phones", "real_upright", "fake_upright")])
def test_clips_that_a_phone_has_turned_are_compared_upright(case, real, fake):
    found = compare(["psnr"], [str(SHARED / "cases" / case / name) for name in (real, fake)])
    assert abs(next(iter(found.values()))["mean"] - 18.3) < 0.3


# ---------------------------------------------------------------------------------------------
# Features that stand for a folder

def test_features_stand_for_their_videos_and_bring_the_reasons_for_a_star(tmp_path, cheap):
    real = folder(tmp_path / "real", noise(6, 12, 24, 32, 3), ".gif")
    fake = folder(tmp_path / "fake", noise(2, 9, 16, 16, 3, seed=1))
    file = str(tmp_path / "real.npz")
    whole = compare(["fvd"], [real, fake], frames=9, size=16, save_features=file)["FVD*"]
    del cheap[:]
    again = compare(["fvd"], [file, fake], frames=9, size=16)["FVD*"]
    assert again == whole and again["samples"] == 2 and cheap == [2]    # the fakes' alone
    reasons = " ".join(again["not_as_wanted"])
    for part in ("2 videos;", "up to 12", "from 32x24", "256 colours", "stored unlike"):
        assert part in reasons
    assert abs(compare(["fvd"], [file, file])["FVD*"]["mean"]) < 1e-9
    del cheap[:]
    with pytest.raises(ValueError, match=r"is of size \[16, 16\]; wanted \[8, 8\]"):
        compare(["fvd"], [file, fake], frames=9, size=8)
    with pytest.raises(ValueError, match="psnr of stored features; fvd alone compares them"):
        compare(["psnr"], [file, fake])
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="holds no features with their facts"):
        compare(["fvd"], [str(tmp_path / "other.npz"), fake], frames=9, size=16)
    assert not cheap


# ---------------------------------------------------------------------------------------------
# Refusals

@pytest.mark.parametrize("metrics, chosen, message", [
    ("fvd", "a", "fvd of 1 sets; it takes two"),
    ("is", "a b", "it takes one"),
    ("fvd", "short short", "8 frames; I3D needs at least 9"),
    ("psnr", "a c", "2 videos of .*c.npy have no partner .*first '4'; wanted pairs"),
    ("fvd", "a small", "2 sizes, such as 16x12 and 16x16"),
    ("fvd", "a nowhere", "neither a folder of videos nor a .npy"),
    ("fvd", "a nowhere.npz", "neither a folder of videos nor a .npy or .npz"),
    ("fvd", "a one", "4 and 1 videos; wanted at least 2$"),
    ("fvd,is", "a b", "9 frames; IS takes exactly 16")])
def test_sets_that_do_not_fit_are_refused_in_one_line(sets, cheap, metrics, chosen, message):
    paths = [sets.get(name, name) for name in chosen.split()]
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        compare(metrics.split(","), paths)
    assert "\n" not in str(error.value) and not cheap


@pytest.mark.parametrize("options, message", [
    (dict(frames=0), "frames 0; wanted 1 or more"), (dict(stride=0), "stride 0"),
    (dict(size=-8), "size -8"), (dict(size=8), "clips of 8x8 pixels; ssim needs 11x11")])
def test_numbers_that_make_no_sense_are_refused_before_any_network_runs(sets, cheap, options,
                                                                        message):
    with pytest.raises(ValueError, match=message):
        compare(["fvd", "psnr", "ssim"], [sets["a"], sets["b"]], **options)
    assert not cheap


def test_a_missing_judge_is_told_before_any_video_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(measure.folders, "inspect_set", None)
    with pytest.raises(FileNotFoundError, match="model.ckpt.data.* is missing"):
        compare(["fvd"], ["real", "fake"], weights=tmp_path)
    with pytest.raises(ValueError, match="number 'kvd'; choose from fvd is psnr ssim lpips"):
        compare(["kvd"], ["real", "fake"])


def test_an_empty_folder_and_a_wrong_array_are_refused(sets, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no video in .*empty"):
        compare(["psnr"], [str(tmp_path / "empty"), sets["a"]])
    np.save(tmp_path / "float.npy", np.zeros((2, 9, 16, 16, 3)))
    with pytest.raises(ValueError, match="float64.*wanted uint8"):
        compare(["psnr"], [str(tmp_path / "float.npy"), sets["a"]])
