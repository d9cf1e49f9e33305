"""data/files.py and prepare.py: what lies in a folder, official lists, the index, raw archives.

Each layout is written as its publishers ship it, in miniature, and read back.
"""
import csv
import json
import os
import shutil
import struct
import subprocess
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
from PIL import Image

import data.files
from conftest import ROOT
from data import prepare
from data.clips import DataConfig, VideoFolder, open_source, read_video, write_video
from data.files import count_frames, find_layout, list_text, name_below
from data.source import NO_LABEL, fingerprint
from fresh import python
from test_data import case, moving_box

CLIP = (16, 24, 24)


def video_of(value, frames=20):
    """A grey video that tells which one it is, and which frame: value + 2 t."""
    levels = (value + 2 * np.arange(frames)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (frames, 24, 24, 3)).copy()


def level(clip):
    return int(clip[0, 0, 0, 0])


def names(layout, root):
    return [path.relative_to(root).as_posix() for path in layout.clips]


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")
    return root


# ---------------------------------------------------------------------------------------------
# The definition of a data set

def test_hidden_folders_are_no_classes_and_are_counted(capsys):
    root = case("folders/hidden")
    found = find_layout(root)
    assert found.class_names == ["run", "walk"]
    assert names(found, root) == ["run/a.mp4", "walk/b.mp4"]
    VideoFolder(root, (4, 16, 16))
    said, = capsys.readouterr().err.splitlines()
    assert said.startswith("left out: ") and "5 hidden folders" in said and "hidden files" in said


def test_links_to_folders_are_followed_each_once(tmp_path):
    root = tmp_path / "linked"                     # the case, whose link copies may have lost
    for name in ("run", "walk"):
        shutil.copytree(case("folders/links") / name, root / name)
    (root / "jump").symlink_to(case("folders/disk2/jump"))
    found = find_layout(root)
    assert found.class_names == ["jump", "run", "walk"]
    assert names(found, root) == ["jump/c.mp4", "jump/d.mp4", "run/a.mp4", "walk/b.mp4"]


def test_links_never_lead_in_circles(tmp_path):
    touch(tmp_path, "run/a.mp4", "walk/b.mp4")
    (tmp_path / "run" / "again").symlink_to(tmp_path / "walk")
    (tmp_path / "circle").symlink_to(tmp_path)
    (tmp_path / "run" / "gone.mp4").symlink_to("nowhere.mp4")
    found = find_layout(tmp_path)
    assert names(found, tmp_path) == ["run/a.mp4", "walk/b.mp4"]
    assert "link that leads nowhere" in " ".join(found.left_out)
    assert "2 links to a folder that is used already" in found.left_out


def test_a_stray_video_leaves_the_classes_as_they_are(tmp_path, capsys):
    root = case("folders/stray")
    found = find_layout(root)
    assert len(found.class_names) > 1 and all("/" in name for name in names(found, root))
    assert found.left_out == ("1 video beside the class folders",)
    touch(tmp_path, "a.mp4", "b.mp4", "more/c.mp4")
    found = find_layout(tmp_path)                          # a flat folder with one folder in it
    assert found.class_names == [] and found.labels == [NO_LABEL] * 3


def test_a_preview_beside_folders_of_frames_is_not_all_that_is_used(capsys):
    root = case("folders/preview")
    found = find_layout(root)
    assert found.name == "frames" and len(found.clips) == 6 and found.left_out == ("1 video",)
    VideoFolder(root, (16, 16, 16))
    assert "left out: 1 video" in capsys.readouterr().err


def test_a_frame_of_two_kinds_counts_once():
    folder = case("frames_twice") / "run" / "clip"
    assert inspect_of(folder)["frames"] == len(read_video(folder)) == 16
    assert "16 pictures twice or of other names" in find_layout(case("frames_twice")).left_out


def inspect_of(folder):
    return count_frames([folder], folder.parent, None)[folder.name]


def test_all_that_ffmpeg_reads_is_taken():
    root = case("folders/many_kinds")
    source = VideoFolder(root, (4, 16, 16))
    assert [path.name for path, _ in source.videos] == sorted(
        path.name for path in (root / "run").iterdir()) and len(source) == 12
    for index in range(12):
        assert source.clip(index)[0].std() > 0


@pytest.mark.parametrize("stems", [
    [f"frame-{t:06}.color" for t in range(12)], [f"cam0_{t:04}" for t in range(12)],
    [str(t) for t in range(12)], [f"20240131_120501_{t}" for t in range(12)],
    [f"{t:04}_left" for t in range(12)], [f"1305031102.{t}75304" for t in range(12)],
    [f"{time}.{t:06}" for time in (1305031102, 1305031103) for t in range(6)], list("abcd")])
def test_many_ways_to_number_frames_are_one_clip_in_order(tmp_path, stems):
    for stem in stems[::-1]:
        touch(tmp_path, f"clip/{stem}.png")
    assert [path.name for path in find_layout(tmp_path).clips] == ["clip"]
    ordered = data.files.pictures_of(tmp_path / "clip")
    expected = sorted(stems) if "1305031102.1075304" in stems else stems
    assert [path.stem for path in ordered] == expected


def test_folders_of_frames_are_clips_in_the_order_of_their_numbers(tmp_path, capsys):
    write_frames(tmp_path / "run" / "a", video_of(0))                        # 0.png .. 19.png
    write_frames(tmp_path / "walk" / "b", video_of(100), ".jpg", "frame_{:05}")
    (tmp_path / "walk" / "b" / "._frame_00000.jpg").write_bytes(b"left by a file manager")
    source = VideoFolder(tmp_path, CLIP)
    assert source.class_names == ["run", "walk"] and source.labels == [0, 1]
    assert source.clip(0)[0][:, 0, 0, 0].tolist() == [2 * t for t in range(2, 18)]
    assert abs(level(source.clip(1)[0]) - 104) < 3
    assert "2 folders of pictures" in capsys.readouterr().err
    assert read_video(tmp_path / "run" / "a", start=3, count=4, stride=2)[:, 0, 0, 0].tolist() == [
        6, 10, 14, 18]


def write_frames(folder, video, suffix=".png", name="{}"):
    folder.mkdir(parents=True)
    for t, frame in enumerate(video):
        imageio.imwrite(folder / (name.format(t) + suffix), frame)


def test_a_broken_frame_is_named_and_its_clip_replaced(tmp_path, capsys):
    for name in "abc":
        write_frames(tmp_path / name, video_of(ord(name)))
    (tmp_path / "a" / "9.png").write_bytes((tmp_path / "a" / "8.png").read_bytes()[:40])
    imageio.imwrite(tmp_path / "b" / "9.png", np.zeros((9, 8, 3), np.uint8))
    source = VideoFolder(tmp_path, CLIP)
    for _ in range(2):
        assert level(source.clip(0)[0]) == ord("c") + 4
    said = capsys.readouterr().err
    assert said.count("a/9.png") == 1
    assert said.count("b cannot be decoded: frame 9 is 8x9 pixels, the first is 24x24") == 1


def test_a_folder_that_mixes_the_frames_of_two_cameras_is_refused(tmp_path):
    for name in ("left_000", "left_001", "right_000", "right_001"):
        imageio.imwrite(tmp_path / f"{name}.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="left_000.png and right_000.png; give each clip its own"):
        find_layout(tmp_path)
    assert len(find_layout(tmp_path, "images").clips) == 4


def test_pictures_are_clips_of_one_frame_when_asked_for(tmp_path):
    random = np.random.default_rng(0)
    for name in ("cat/1.JPEG", "cat/2.png", "dog/3.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        imageio.imwrite(tmp_path / name, random.integers(255, size=(40, 60, 3), dtype=np.uint8))
    imageio.imwrite(tmp_path / "dog" / "grey.png", np.full((30, 50), 77, np.uint8))
    source = open_source(DataConfig(tmp_path, layout="images"), CLIP, flip=True)
    assert len(source) == 4 and source.class_names == ["cat", "dog"]
    clips = [source.clip(1, np.random.default_rng(seed))[0] for seed in range(6)]
    assert all(clip.shape == (1, 24, 24, 3) for clip in clips)
    assert len({clip.tobytes() for clip in clips}) >= 4
    assert (source.clip(3)[0] == 77).all() and source.clip(3)[1] == 1


def test_random_crops_have_80_to_100_percent_of_a_picture_at_its_own_aspect_ratio(tmp_path):
    """MAGVIT-v2, App. A.1. The picture says of each pixel where it was: red is x, green is y."""
    y, x = np.mgrid[:120, :160].astype(np.uint8)
    imageio.imwrite(tmp_path / "1.png", np.stack([x, y, 0 * x], axis=-1))
    config = DataConfig(tmp_path, layout="images")
    source, whole = (open_source(config, (1, 64, 64), crop=crop) for crop in (0.8, 1.0))
    sides = []
    for seed in range(40):
        clip = source.clip(0, np.random.default_rng(seed))[0].astype(float)[0]
        assert clip.shape == (64, 64, 3)
        # An inner stretch, since resampling has fewer neighbours at the edges.
        wide, high = ((clip[52, 52, axis] - clip[12, 12, axis]) / 40 * 64 for axis in (0, 1))
        assert abs(wide - high) < 4                              # nothing is squeezed
        sides.append(high / 120)
    assert 0.78 < min(sides) < 0.84 and 0.96 < max(sides) < 1.02
    assert (source.clip(0)[0] == whole.clip(0)[0]).all()         # the centre has all of it
    again = source.clip(0, np.random.default_rng(3))[0]
    assert (again == source.clip(0, np.random.default_rng(3))[0]).all()


def test_what_is_left_out_is_said_in_one_line_with_the_empty_classes(tmp_path, capsys):
    write_video(tmp_path / "run" / "a.npy", video_of(0))
    imageio.imwrite(tmp_path / "run" / "a.jpg", video_of(0)[0])          # a thumbnail
    touch(tmp_path, "run/notes.txt", "run/b.srt", "walk/.DS_Store", ".git/config")
    write_video(tmp_path / "walk" / "short.npy", video_of(0, 3))
    source = VideoFolder(tmp_path, CLIP)
    *skipped, said = capsys.readouterr().err.splitlines()
    assert len(source) == 1 and source.class_names == ["run", "walk"] and len(skipped) == 1
    assert said.endswith("; classes without a clip: walk")
    for part in ("1 hidden folder", "1 hidden file", "2 files of other kinds", "1 picture"):
        assert part in said


def test_layouts_that_are_unknown_or_absent_are_refused(tmp_path):
    with pytest.raises(ValueError, match="choose from auto images"):
        find_layout(tmp_path, "kinetics")
    with pytest.raises(FileNotFoundError, match="no picture in .*; wanted files like one.png"):
        find_layout(tmp_path, "images")
    with pytest.raises(FileNotFoundError, match="no video in .*python -m data.prepare"):
        find_layout(tmp_path)


@pytest.mark.parametrize("train, val", [("train", "val"), ("train_256", "val_256"),
                                        ("videos_train", "videos_val")])
def test_a_folder_of_train_and_val_is_refused_instead_of_being_two_classes(tmp_path, train, val):
    root = touch(tmp_path / "k600", f"{train}/yoga/a.npy", f"{val}/yoga/a.npy")
    with pytest.raises(ValueError, match=f"{train} and {val}, parts of a data set and no classes; "
                       f"give one of them to --data: .*k600/{train}"):
        find_layout(root)
    assert find_layout(root / train).class_names == ["yoga"]
    touch(root, "walking/a.npy")
    assert find_layout(root).class_names == [train, val, "walking"]


@pytest.mark.parametrize("root, clip", [("videos", "videos/a/one.mp4"), (".", "a/one.mp4"),
                                        ("/", "/a/one.mp4"), ("/videos/", "/videos/one.mp4"),
                                        ("videos", "videos")])
def test_a_clips_name_is_its_path_below_the_folder(root, clip):
    assert name_below(Path(root), Path(clip)) == str(Path(clip).relative_to(Path(root)))


def test_held_out_videos_that_are_trained_on_are_refused(tmp_path):
    for name in ("a/x/1", "a/x/2", "b/x/1"):
        write_video(tmp_path / f"{name}.npy", moving_box())
    (tmp_path / "link").symlink_to(tmp_path / "a")
    a = tmp_path / "a"
    for other, how in ((a, "is"), (a / "x", "lies inside of"), (tmp_path, "contains"),
                       (tmp_path / "link", "is"), (tmp_path / "b" / ".." / "a", "is")):
        with pytest.raises(ValueError, match=f"--test-data .* {how} --data"):
            open_source(DataConfig(a, test_root=other), (4, 8, 8))
    for name in ("train", "test"):
        (tmp_path / f"{name}.txt").write_text(f"x/{1 + (name == 'test')}.npy\n")
    lists = [tmp_path / "train.txt", tmp_path / "test.txt"]
    with pytest.raises(ValueError, match="are the same list"):
        open_source(DataConfig(a, split=lists[0], test_split=lists[0]), (4, 8, 8))
    assert len(open_source(DataConfig(a, test_root=tmp_path / "b"), (4, 8, 8), held_out=True)) == 1
    both = DataConfig(a, split=lists[0], test_split=lists[1])
    assert [open_source(both, (4, 8, 8), held_out=held).videos[0][0].name
            for held in (False, True)] == ["1.npy", "2.npy"]


def test_held_out_clips_have_the_numbers_that_the_run_gives_their_classes(tmp_path):
    """By name: a test folder may lack classes, have others, or none at all."""
    classes = {"train": ["a", "b", "c"], "test": ["b", "d"], "flat": ["."]}
    for split, names_of_split in classes.items():
        for name in names_of_split:
            write_video(tmp_path / split / name / f"{split}.npy", np.zeros((8, 8, 8, 3), np.uint8))
    config = DataConfig(tmp_path / "train")
    train = open_source(config, (8, 8, 8))
    for split, labels in (("test", [1, NO_LABEL]), ("flat", [NO_LABEL])):
        source = open_source(replace(config, class_names=tuple(train.class_names),
                                     test_root=tmp_path / split), (8, 8, 8), held_out=True)
        assert (source.labels, source.class_names) == (labels, ["a", "b", "c"])


# ---------------------------------------------------------------------------------------------
# Official lists

SAME = "plain tab comma comment crlf_blank backslash leading_dot bom bom_in_classind utf16 twice"


@pytest.mark.parametrize("name", [*SAME.split(), "with_folder", "bom_noclassind"])
def test_a_list_means_the_same_whichever_program_wrote_it(name):
    root, split = case("folders/ucf"), case(f"folders/lists/{name}/train.txt")
    found = find_layout(root, split=split)
    assert found.class_names == ["Archery", "Basketball", "Biking"]
    assert sorted(zip(names(found, root), found.labels)) == [
        (path, label) for path, label in zip(names(find_layout(root), root), [0, 0, 1, 1, 2, 2])]
    assert bool(found.left_out) == (name == "twice")
    if name == "twice":
        assert "entries of train.txt for videos that it names twice" in found.left_out[-1]


def test_lists_that_number_from_0_or_are_empty():
    root = case("folders/ucf")
    found = find_layout(root, split=case("folders/lists/numbers_from_0_noclassind/train.txt"))
    assert found.class_names == ["Archery", "Basketball", "Biking"]
    assert all(found.class_names[label] == path.parent.name
               for path, label in zip(found.clips, found.labels))
    with pytest.raises(ValueError, match="none of the 0 videos of train.txt.*it is empty"):
        find_layout(root, split=case("folders/lists/empty/train.txt"))


def test_cases_accents_and_spaces_of_names_are_those_of_the_folders(tmp_path):
    decomposed = unicodedata.normalize("NFD", "Café")
    touch(tmp_path / "data", f"{decomposed}/v.mp4", "Tai Chi/my video 1.mp4", "ARCHERY/V.MP4")
    found = find_layout(tmp_path / "data", split=case("folders/lists/nfc.txt"))
    assert [path.name for path in found.clips] == ["v.mp4"]
    its = found.class_names[found.labels[0]]
    assert len(found.class_names) == 3 and unicodedata.normalize("NFC", its) == "Café"
    found = find_layout(tmp_path / "data", split=case("folders/lists/sp.txt"))
    assert [path.name for path in found.clips] == ["my video 1.mp4"]
    assert found.class_names[found.labels[0]] == "Tai Chi"
    (tmp_path / "list.txt").write_text("archery/v.mp4\n")
    found = find_layout(tmp_path / "data", split=tmp_path / "list.txt")
    assert len(found.class_names) == 3 and found.class_names[found.labels[0]] == "ARCHERY"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be",
                                      "latin-1"])
def test_a_list_is_read_in_any_encoding(tmp_path, encoding):
    text = "café/v.mp4 1\r\n"
    (tmp_path / "list.txt").write_bytes(text.encode(encoding))
    assert list_text(tmp_path / "list.txt") == text


def test_kinetics_and_something_something_are_read_as_people_save_them(tmp_path):
    touch(tmp_path, "abc_000007_000017.mp4")
    for name in ("k_plain", "k_bom", "k_float"):
        found = find_layout(tmp_path, split=case(f"folders/lists/{name}.csv"))
        assert found.class_names == ["yoga"] and found.labels == [0]
    with pytest.raises(ValueError, match="k_short_row.csv, line 3, has 'yoga'; wanted label,"):
        find_layout(tmp_path, split=case("folders/lists/k_short_row.csv"))
    split = case("folders/lists/ss/train.json")                          # of a spreadsheet
    rows = json.loads(list_text(split))
    touch(tmp_path, *(f"{row['id']}.webm" for row in rows))
    assert len(find_layout(tmp_path, split=split).clips) == len(rows)


UCF101 = {"Basketball": 3, "ApplyLipstick": 2, "YoYo": 1}    # not in alphabetical order


@pytest.fixture
def ucf101(tmp_path):
    """UCF-101/Class/v_Class_gNN_cNN.avi, two groups of each; lists and classInd beside."""
    for name in UCF101:
        for group in ("01", "08"):
            touch(tmp_path / "videos", f"{name}/v_{name}_g{group}_c01.avi")
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    for name, line in (("classInd", "{number} {name}"),
                       ("trainlist01", "{name}/v_{name}_g08_c01.avi {number}"),
                       ("testlist01", "{name}/v_{name}_g01_c01.avi")):
        (lists / f"{name}.txt").write_bytes("".join(
            line.format(name=name, number=number) + "\r\n"
            for name, number in UCF101.items()).encode())
    return tmp_path / "videos", lists


def test_the_lists_of_ucf101_pick_videos_and_number_the_classes(ucf101):
    root, lists = ucf101
    for name, group in (("trainlist01", 8), ("testlist01", 1)):
        found = find_layout(root, split=lists / f"{name}.txt")
        assert found.class_names == ["YoYo", "ApplyLipstick", "Basketball"]
        assert [path.stem for path in found.clips] == [f"v_{name}_g0{group}_c01" for name in UCF101]
        assert found.labels == [2, 1, 0]
    assert len(find_layout(root).clips) == 6


def test_without_classind_the_classes_are_sorted_and_agree_between_lists(ucf101):
    root, lists = ucf101
    (lists / "classInd.txt").unlink()
    (lists / "testlist01.txt").write_text("YoYo/v_YoYo_g01_c01.avi\n")
    train, test = (find_layout(root, split=lists / f"{name}list01.txt")
                   for name in ("train", "test"))
    assert train.class_names == test.class_names == ["ApplyLipstick", "Basketball", "YoYo"]
    assert test.labels == [2]


def test_a_flat_copy_of_ucf101_has_its_classes_in_the_names_of_files(tmp_path):
    root = touch(tmp_path / "videos", "v_YoYo_g01_c01.avi", "v_ApplyLipstick_g01_c01.avi")
    found = find_layout(root)
    assert found.class_names == ["ApplyLipstick", "YoYo"] and found.labels == [0, 1]
    (tmp_path / "classInd.txt").write_text("1 ApplyEyeMakeup\n2 ApplyLipstick\n3 YoYo\n")
    (tmp_path / "trainlist01.txt").write_text("YoYo/v_YoYo_g01_c01.avi 3\n")
    listed = find_layout(root, split=tmp_path / "trainlist01.txt")
    assert names(listed, root) == ["v_YoYo_g01_c01.avi"] and listed.labels == [2]


def test_videos_missing_from_a_list_are_counted_and_all_missing_is_refused(ucf101):
    root, lists = ucf101
    (root / "YoYo" / "v_YoYo_g08_c01.avi").unlink()
    found = find_layout(root, split=lists / "trainlist01.txt")
    assert len(found.clips) == 2
    assert "1 of the 3 videos of trainlist01.txt are not in" in found.left_out[-1]
    with pytest.raises(ValueError, match="none of the 3 videos of trainlist01.txt"):
        find_layout(root / "YoYo", split=lists / "trainlist01.txt")
    with pytest.raises(FileNotFoundError, match="no split list"):
        find_layout(root, split=lists / "gone.txt")


@pytest.mark.parametrize("lines, message", [
    ("YoYo/v_YoYo_g08_c01.avi 3", "but classInd.txt says that 'YoYo' is 1"),
    ("Dance/v_Dance_g08_c01.avi 1", "classInd.txt says that 'Dance' is no class"),
    ("one.avi 1\none.avi 2", "has 'one.avi' in 'ApplyLipstick' and in 'YoYo'; wanted one")])
def test_a_list_that_contradicts_the_classes_is_refused(ucf101, lines, message):
    root, lists = ucf101
    touch(root, "one.avi")
    (lists / "mine.txt").write_text(lines)
    with pytest.raises(ValueError, match=message):
        find_layout(root, split=lists / "mine.txt")


@pytest.fixture
def something(tmp_path):
    """Something-Something-V2: brackets in the templates, and numbers as strings."""
    root = touch(tmp_path / "20bn", *(f"{name}.webm" for name in (74225, 116154, 198186, 7)))
    lists = tmp_path / "labels"
    lists.mkdir()
    (lists / "labels.json").write_text(json.dumps({
        "Holding something": "1", "Putting something on something": "0", "Poking something": "2"}))
    (lists / "train.json").write_text(json.dumps([
        {"id": "198186", "label": "holding a cup", "template": "Holding [something]",
         "placeholders": ["a cup"]},
        {"id": "74225", "label": "putting x on y", "template":
         "Putting [something] on [something]", "placeholders": ["x", "y"]},
        {"id": "999", "label": "poking a", "template": "Poking [something]"}]))
    return root, lists


def test_something_something_is_labelled_by_its_templates(something):
    root, lists = something
    found = find_layout(root, split=lists / "train.json")
    assert found.class_names == ["Putting something on something", "Holding something",
                                 "Poking something"]
    assert names(found, root) == ["198186.webm", "74225.webm"] and found.labels == [1, 0]
    assert "1 of the 3 videos of train.json are not in" in found.left_out[-1]


def test_something_somethings_other_files_are_refused_in_one_line(something):
    root, lists = something

    def refused(error, message, name="train"):
        with pytest.raises(error, match=message):
            find_layout(root, split=lists / f"{name}.json")

    (lists / "test.json").write_text('[{"id": "7"}]')
    refused(ValueError, "the test list has no classes", "test")
    (lists / "cut.json").write_text('[{"id": "7", ')
    refused(ValueError, "cut.json is no JSON file", "cut")
    (lists / "labels.json").write_text('{"Holding something": "0"}')
    refused(ValueError, "has the class 'Poking something', labels.json has not")
    (lists / "labels.json").write_text('["Holding something"]')
    refused(ValueError, "labels.json should be like")
    (lists / "labels.json").unlink()
    refused(FileNotFoundError, "no labels.json beside")


KINETICS = {"abseiling": ("aaaaaaaaaaa", 7), "yoga": ("-b_b-bbbbbb", 120)}


@pytest.mark.parametrize("flat", [True, False])
def test_kinetics_csv_names_clips_by_video_and_seconds_wherever_they_lie(tmp_path, flat):
    for label, (name, start) in KINETICS.items():
        folder = "train" if flat else f"train/{label}"
        touch(tmp_path, f"{folder}/{name}_{start:06}_{start + 10:06}.mp4")
    with open(tmp_path / "train.csv", "w") as file:
        rows = csv.writer(file)
        rows.writerow("label youtube_id time_start time_end split".split())
        rows.writerows([label, name, start, start + 10, "train"]
                       for label, (name, start) in KINETICS.items())
        rows.writerow(["zumba", "gone_______", 0, 10, "train"])      # videos vanish from YouTube
    found = find_layout(tmp_path / "train", split=tmp_path / "train.csv")
    assert found.class_names == ["abseiling", "yoga", "zumba"] and found.labels == [0, 1]
    assert [path.name[:3] for path in found.clips] == ["aaa", "-b_"]
    assert "1 of the 3 videos of train.csv are not" in found.left_out[-1]
    (tmp_path / "test.csv").write_text("youtube_id,time_start,time_end,split\na,1,2,test\n")
    with pytest.raises(ValueError, match="the test list has no labels"):
        find_layout(tmp_path / "train", split=tmp_path / "test.csv")


# ---------------------------------------------------------------------------------------------
# The index

def boxes(folder, letters):
    for name in letters:
        write_video(folder / f"{name}.npy", moving_box(8, 16, 24))
    return sorted(folder.iterdir())


@pytest.fixture
def inspected(monkeypatch):
    """The names of the files that are opened to be counted."""
    opened, inspect = [], data.files.inspect
    monkeypatch.setattr(data.files, "inspect",
                        lambda path: opened.append(path.name) or inspect(path))
    return opened


def test_only_files_that_are_new_changed_or_were_broken_are_opened_again(
        tmp_path, capsys, inspected):
    root, index = tmp_path / "videos", tmp_path / "index.json"
    boxes(root, "abc")
    whole = (root / "a.npy").read_bytes()
    (root / "a.npy").write_bytes(b"")
    assert len(VideoFolder(root, (8, 16, 16), index=index)) == 2
    assert "skipped a.npy: breaks after 0 frames" in capsys.readouterr().err
    assert sorted(json.loads(index.read_text())) == ["b.npy", "c.npy"] and len(inspected) == 3
    (root / "a.npy").write_bytes(whole)
    write_video(root / "b.npy", moving_box(30))
    assert len(VideoFolder(root, (8, 16, 16), index=index)) == 3
    assert sorted(inspected[3:]) == ["a.npy", "b.npy"]
    assert json.loads(index.read_text())["b.npy"]["frames"] == 30
    VideoFolder(root, (8, 16, 16), index=index)
    assert len(inspected) == 5


def test_counting_that_is_interrupted_resumes(tmp_path, monkeypatch):
    index, paths, counted = tmp_path / "index.json", [tmp_path / f"{i}.npy" for i in range(9)], []
    facts = dict(frames=8, height=8, width=8, keys=[], error="")

    def interrupted(path):
        if path.stem == "6":
            raise KeyboardInterrupt
        return facts

    monkeypatch.setattr(data.files, "inspect", interrupted)
    with pytest.raises(KeyboardInterrupt):
        count_frames(paths, tmp_path, index)
    monkeypatch.setattr(data.files, "inspect", lambda path: counted.append(path.stem) or facts)
    assert len(count_frames(paths, tmp_path, index)) == 9 and sorted(counted) == ["6", "7", "8"]
    assert os.listdir(tmp_path) == ["index.json"]


@pytest.mark.parametrize("broken", ["", "[]", '{"a.npy": {"stamp"', "\0" * 100])
def test_a_broken_index_is_named_put_aside_and_made_anew(tmp_path, broken, capsys):
    root, index = tmp_path / "videos", tmp_path / "index.json"
    boxes(root, "ab")
    index.write_text(broken)
    assert len(VideoFolder(root, (8, 16, 16), index=index)) == 2
    said, = capsys.readouterr().err.splitlines()
    assert f"{index} is broken" in said and "made anew" in said
    assert Path(f"{index}.broken").read_text() == broken and len(json.loads(index.read_text())) == 2
    index.write_text(json.dumps({"a.npy": 7, "b.npy": {"stamp": []}}))
    assert len(VideoFolder(root, (8, 16, 16), index=index)) == 2
    assert len(VideoFolder(root, (8, 16, 16), index=tmp_path / "videos/a.npy/index.json")) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_folder_that_moves_is_the_same_data(tmp_path):
    boxes(tmp_path / "here", "ab")
    before = fingerprint(VideoFolder(tmp_path / "here", (8, 16, 16)))
    (tmp_path / "here").rename(tmp_path / "there")
    assert fingerprint(VideoFolder(tmp_path / "there", (8, 16, 16))) == before
    (tmp_path / "there/a.npy").rename(tmp_path / "there/c.npy")
    assert fingerprint(VideoFolder(tmp_path / "there", (8, 16, 16))) != before


# ---------------------------------------------------------------------------------------------
# Damage of any kind: a file is named, those beside it are as they were

def damaged(content, random):
    """Bytes that were cut, or changed in some places, in the header, or by a piece."""
    content, kind = bytearray(content), random.integers(4)
    if kind == 0:
        return content[:random.integers(len(content))]
    if kind == 3:
        place = random.integers(len(content))
        content[place:place + random.integers(1, 200)] = random.bytes(int(random.integers(100)))
    else:
        for _ in range(random.integers(1, 20)):
            content[random.integers(len(content) if kind == 1 else min(len(content), 120))] ^= 85
    return content


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.gif", "a.npy", "a.webp"])
def test_damaged_videos_end_nothing_and_change_no_clip_beside_them(tmp_path, name):
    whole = tmp_path / "made" / name
    write_video(tmp_path / "data" / "z.npy", moving_box())
    expected = VideoFolder(tmp_path / "data", (4, 16, 16)).clip(0)[0]
    if name.endswith(".webp"):
        first, *others = map(Image.fromarray, moving_box())
        whole.parent.mkdir()
        first.save(whole, save_all=True, append_images=others, lossless=True)
    else:
        write_video(whole, moving_box())
    random = np.random.default_rng(0)
    for _ in range(12):
        (tmp_path / "data" / name).write_bytes(damaged(whole.read_bytes(), random))
        source = VideoFolder(tmp_path / "data", (4, 16, 16))
        clips = [source.clip(index)[0] for index in range(len(source))]
        assert source.videos[-1][0].name == "z.npy" and np.array_equal(clips[-1], expected)


@pytest.mark.parametrize("name", ["ucf101", "something"])
def test_damaged_lists_are_read_or_refused_in_one_line(name, request):
    root, lists = request.getfixturevalue(name)
    random = np.random.default_rng(0)
    for path in sorted(lists.iterdir()):
        content = path.read_bytes()
        for _ in range(100):
            path.write_bytes(damaged(content, random))
            for split in sorted(lists.glob("*train*")):
                try:
                    assert find_layout(root, split=split).clips
                except (ValueError, FileNotFoundError) as error:
                    assert len(str(error).splitlines()) == 1 and path.suffix in str(error)
        path.write_bytes(content)


# ---------------------------------------------------------------------------------------------
# BAIR: a writer of TFRecords, as short as the format allows

def varint(number):
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def example(features):
    """tf.train.Example of {key: bytes, or a list of floats}."""
    entries = b""
    for key, value in features.items():
        kind, packed = (1, value) if isinstance(value, bytes) else (
            2, struct.pack(f"<{len(value)}f", *value))
        entries += field(1, field(1, key.encode()) + field(2, field(kind, field(1, packed))))
    return field(1, entries)


def framed(data_of_record):
    """A record; zeros for its checksums, which are not looked at."""
    return struct.pack("<Q", len(data_of_record)) + bytes(4) + data_of_record + bytes(4)


def robot(value, frames=30):
    """A record as in softmotion30_44k: two cameras, an action and a position per frame."""
    features = {}
    for t in reversed(range(frames)):                  # a map has no order
        image = np.full((64, 64, 3), value + 2 * t, np.uint8)
        image[:, 32:] = (10, 20, 30)
        features[f"{t}/image_main/encoded"] = bytes(64 * 64 * 3)
        features[f"{t}/image_aux1/encoded"] = image.tobytes()
        features[f"{t}/action"] = [0.5] * 4
        features[f"{t}/endeffector_pos"] = [0.1] * 3
    return example(features)


def shard(value, frames=20):
    """A record of bair_robot_pushing_small: each camera a list of PNGs."""
    def listed(key, items):
        feature = field(1, b"".join(field(1, item) for item in items))
        return field(1, field(1, key.encode()) + field(2, feature))

    pictures = [imageio.imwrite("<bytes>", np.full((64, 64, 3), value + 2 * t, np.uint8),
                                extension=".png") for t in range(frames)]
    return framed(field(1, listed("image_main", [pictures[0]] * frames)
                        + listed("image_aux1", pictures)))


@pytest.fixture
def robots(tmp_path):
    """softmotion30_44k: train with two files, of three records and one; test with one."""
    root = tmp_path / "softmotion30_44k"
    for part in ("train", "test"):
        (root / part).mkdir(parents=True)
    (root / "train/traj_0_to_2.tfrecords").write_bytes(
        b"".join(framed(robot(v)) for v in (0, 50, 100)))
    (root / "train/traj_3_to_3.tfrecords").write_bytes(framed(robot(150)))
    (root / "test/traj_0_to_0.tfrecords").write_bytes(framed(robot(20)))
    return root


def test_bair_becomes_lossless_videos_without_tensorflow(robots, tmp_path):
    assert prepare.prepare_bair(robots, tmp_path / "out") == dict(train=4, test=1)
    assert "tensorflow" not in sys.modules
    source = VideoFolder(tmp_path / "out/train", (16, 64, 64))
    assert len(source) == 4 and source.class_names == []
    for index, value in enumerate((0, 50, 100, 150)):
        clip, label = source.clip(index)
        assert clip.shape == (16, 64, 64, 3) and label == NO_LABEL
        assert [frame[0, 0].tolist() for frame in clip] == [[value + 2 * t] * 3
                                                            for t in range(7, 23)]
        assert (clip[:, :, 32:] == (10, 20, 30)).all()
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.mp4")}
    path = next(iter(made))
    path.unlink()                                          # as if the command had been stopped
    assert prepare.prepare_bair(robots, tmp_path / "out") == dict(train=4, test=1)
    assert [each for each, time in made.items() if each.stat().st_mtime_ns != time] == [path]
    assert prepare.prepare_bair(robots / "train", tmp_path / "one") == dict(train=4)


@pytest.mark.parametrize("cut, kept", [(1, 2), (5, 2), (400_000, 2), (800_000, 1)])
def test_a_file_that_was_cut_is_named_and_used_up_to_there(robots, tmp_path, capsys, cut, kept):
    path = robots / "train/traj_0_to_2.tfrecords"
    path.write_bytes(path.read_bytes()[:-cut])
    assert prepare.prepare_bair(robots, tmp_path / "out") == dict(train=kept + 1, test=1)
    said, = capsys.readouterr().err.splitlines()
    assert f"traj_0_to_2.tfrecords from record {kept} on: the file ends in the middle" in said


def test_a_wrong_length_ends_its_file_there_and_says_so(robots, tmp_path, capsys):
    path = robots / "train/traj_0_to_2.tfrecords"
    content = bytearray(path.read_bytes())
    content[5] ^= 255
    path.write_bytes(content)
    assert prepare.prepare_bair(robots, tmp_path / "out") == dict(train=1, test=1)
    assert "from record 0 on: the file ends in the middle of it, or" in capsys.readouterr().err


@pytest.mark.parametrize("place", [12, 15, 16, 20, 40])
def test_a_record_with_a_flipped_byte_in_its_structure_is_whole_or_named(
        robots, tmp_path, capsys, place):
    path = robots / "train/traj_0_to_2.tfrecords"
    content = bytearray(path.read_bytes())
    content[place] ^= 255                              # in the first record, after its header
    path.write_bytes(content)
    made = prepare.prepare_bair(robots, tmp_path / "out")
    said = capsys.readouterr().err.splitlines()
    videos = {each.stem: level(read_video(each)) for each in (tmp_path / "out/train").iterdir()}
    assert made["train"] == len(videos) and videos["traj_3_to_3-000"] == 150
    assert {"traj_0_to_2-001": 50, "traj_0_to_2-002": 100}.items() <= videos.items()
    assert "traj_0_to_2-000" in videos or (len(said) == 1 and "record 0 is damaged" in said[0])


def test_foreign_records_say_what_they_hold(tmp_path, capsys):
    for name, features in (("other", {"video/frames": b"12345"}),
                           ("jpeg", {"0/image_aux1/encoded": b"not 64x64x3 bytes"})):
        (tmp_path / f"{name}.tfrecords").write_bytes(framed(example(features)))
    (tmp_path / "text.tfrecords").write_bytes(framed(b"no protobuf, only words"))
    assert prepare.prepare_bair(tmp_path, tmp_path / "out") == {}
    said = capsys.readouterr().err
    assert "no image_aux1; its first keys are video/frames" in said and said.count("left out") == 3


def test_shards_of_tensorflow_datasets_are_bair_too(tmp_path, capsys):
    for number in (0, 1):
        name = f"bair_robot_pushing_small-train.tfrecord-{number:05}-of-00002"
        (tmp_path / name).write_bytes(shard(40 * number))
    (tmp_path / "bair_robot_pushing_small-test.tfrecord-00000-of-00001").write_bytes(shard(0))
    assert prepare.prepare_bair(tmp_path, tmp_path / "out") == dict(test=1, train=2)
    source = VideoFolder(tmp_path / "out/train", (16, 64, 64))
    clip, _ = source.clip_at(1, 3, 0.0, 0.0)
    assert clip[:, 0, 0, 0].tolist() == [40 + 2 * t for t in range(3, 19)]
    content = bytearray(shard(0))
    place = content.index(b"\x89PNG", content.index(b"image_aux1"))
    content[place:place + 4] = b"JUNK"
    (tmp_path / "a-val.tfrecord-00000-of-00001").write_bytes(content)
    assert "val" not in prepare.prepare_bair(tmp_path, tmp_path / "out")
    assert "record 0 is damaged or no trajectory of BAIR" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------
# nuScenes

LOGS = {"n015-2018-07-24-11-22-45+0800": 1532402927600000,
        "n008-2018-08-01-15-16-36-0400": 1533151603500000}
STEP = 83_000                                           # microseconds between two frames


def camera_name(log, time, camera="CAM_FRONT"):
    return f"{log}__{camera}__{time}"


@pytest.fixture
def drives(tmp_path):
    """Two drives of two scenes: 70 frames, a pause of two seconds, 40 frames. Each sixth frame is
    a sample, the others are sweeps. A frame's grey is its place in its scene."""
    raw = tmp_path / "nuscenes"
    for log, begin in LOGS.items():
        for first, count in ((begin, 70), (begin + 70 * STEP + 2_000_000, 40)):
            for t in range(count):
                part = "samples" if t % 6 == 0 else "sweeps"
                path = raw / part / "CAM_FRONT" / f"{camera_name(log, first + t * STEP)}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                imageio.imwrite(path, np.full((16, 24, 3), 3 * t, np.uint8))
        touch(raw, f"samples/CAM_BACK/{camera_name(log, begin, 'CAM_BACK')}.jpg")
    return raw


def tables(raw):
    """The three tables that tell scenes apart; here the first drive's two scenes are one."""
    folder = raw / "v1.0-mini"
    folder.mkdir()
    logs, scenes, samples = [], [], []
    for number, (log, begin) in enumerate(LOGS.items()):
        logs.append(dict(token=f"log{number}", logfile=log, vehicle=log[:4]))
        scenes.append(dict(token=f"s{number}", name=f"scene-{61 + number:04}",
                           log_token=f"log{number}", nbr_samples=2))
        last = begin + 69 * STEP + (number == 0) * (40 * STEP + 2_000_000)
        samples += [dict(token=f"{number}{time}", scene_token=f"s{number}", timestamp=time + 40_000)
                    for time in (begin, last)]
    for name, rows in dict(log=logs, scene=scenes, sample=samples).items():
        (folder / f"{name}.json").write_text(json.dumps(rows))


def test_nuscenes_is_cut_by_pauses_into_scenes_and_videos_of_32_frames(drives, tmp_path):
    made = prepare.prepare_nuscenes(drives, tmp_path / "out")
    assert made == dict(train=6)                        # 70 frames are two videos, 40 are one
    source = VideoFolder(tmp_path / "out" / "train", (32, 16, 16))
    assert len(source) == 6 and source.class_names == []
    first, second = (source.clip(i)[0][:, 0, 0, 0].astype(int) for i in (0, 1))
    assert np.abs(first - 3 * np.arange(32)).max() <= 2         # samples and sweeps in turn
    assert np.abs(second - 3 * np.arange(32, 64)).max() <= 2
    assert prepare.prepare_nuscenes(drives, tmp_path / "out") == made   # again: nothing to do


def test_where_the_tables_are_they_say_what_a_scene_is(drives, tmp_path):
    tables(drives)
    scenes = prepare.find_scenes(drives, prepare.find_frames(drives))
    assert {name: len(frames) for name, frames in scenes.items()} == {
        "scene-0061": 110, "scene-0062": 70}
    assert prepare.prepare_nuscenes(drives, tmp_path / "out") == dict(train=3 + 2)


def test_every_tenth_scene_is_kept_for_testing(tmp_path, monkeypatch):
    frames = {f"scene-{i:04}": [prepare.Frame("log", t, tmp_path / "x.jpg") for t in range(64)]
              for i in range(20)}
    monkeypatch.setattr(prepare, "find_frames", lambda raw: [])
    monkeypatch.setattr(prepare, "find_scenes", lambda raw, found: frames)
    assert prepare.prepare_nuscenes(tmp_path, tmp_path / "out") == dict(train=36, test=4)
    assert {path.name[:10] for path in (tmp_path / "out" / "test").iterdir()} == {
        "scene-0009", "scene-0019"}


def test_a_cameras_folder_is_refused_as_a_clip_with_advice(drives):
    for part in ("samples", "sweeps"):
        for path in (drives / part / "CAM_FRONT").glob(f"{sorted(LOGS)[0]}*"):
            path.unlink()                                   # one drive alone has many scenes, too
    for folder in (drives / "samples" / "CAM_FRONT", drives):
        with pytest.raises(ValueError, match="mixes the scenes.*python -m data.prepare nuscenes"):
            find_layout(folder)
    with pytest.raises(FileNotFoundError, match="give nuScenes' own folder"):
        prepare.find_frames(drives / "samples")


# ---------------------------------------------------------------------------------------------
# Objectron, and the command

def test_objectrons_index_names_folders_of_video_mov(tmp_path, capsys):
    for name in ("book/batch-1/0", "book/batch-1/12", "cup/batch-3/7"):
        touch(tmp_path, f"videos/{name}/video.MOV")
    index = tmp_path / "index" / "book_annotations_train"
    touch(tmp_path, "index/book_annotations_train", "index/cup_annotations_test")
    index.write_text("book/batch-1/12\nbook/batch-9/1\n")
    (tmp_path / "index/cup_annotations_test").write_text("cup/batch-3/7\n")
    assert prepare.prepare_objectron(tmp_path, tmp_path / "out") == dict(train=1, test=1)
    assert "1 videos of the index that are not in" in capsys.readouterr().err
    for part, name in (("train", "book/batch-1_12.mov"), ("test", "cup/batch-3_7.mov")):
        found = find_layout(tmp_path / "out" / part)
        assert names(found, tmp_path / "out" / part) == [name]
        assert found.class_names == [name.split("/")[0]]
    index.write_text("book/batch-1/12\ncup\n")
    with pytest.raises(ValueError, match="has 'cup'; wanted lines like 'book/batch-1/0'"):
        prepare.prepare_objectron(tmp_path, tmp_path / "out")


def test_the_command_says_what_it_made_and_errors_in_one_line(robots, tmp_path):
    done = python("-m", "data.prepare", "bair", robots, tmp_path / "out")
    assert done.returncode == 0 and f"4 videos in {tmp_path / 'out/train'}" in done.stdout
    done = python("-m", "data.prepare", "nuscenes", robots, tmp_path / "out")
    assert done.returncode == 1 and done.stderr.startswith("data.prepare: no pictures in")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_prepared_archive_trains_twenty_steps_of_both_stages(robots, tmp_path):
    prepare.prepare_bair(robots, tmp_path / "out")
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "toy", "--data", str(tmp_path / "out/train"),
         "--test-data", str(tmp_path / "out/test"), "--out", str(tmp_path / "run"),
         *("--tokenizer-steps 20 --transformer-steps 20 --token-pool 0 --tokenizer-batch 2 "
           "--transformer-batch 2").split()], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/samples.gif").exists()
