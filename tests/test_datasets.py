"""data/layouts.py, data/bair.py: each layout is written as its publishers ship it and read back."""
import json
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from conftest import ROOT
from fresh import python

from data import bair, layouts
from data.clips import DataConfig, VideoFolder, open_source, read_video, write_video
from data.source import NO_LABEL, load_batch

CLIP = (16, 24, 24)


def video_of(value, frames=20):
    """A grey video that tells which one it is, and which frame: value + 2 t."""
    levels = (value + 2 * np.arange(frames)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (frames, 24, 24, 3)).copy()


def level(clip):
    return int(clip[0, 0, 0, 0])


# ---------------------------------------------------------------------------------------------
# A writer of TFRecords, as short as the format allows; its checksum goes bit by bit

def crc32c(data):
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (register & 1) * 0x82F63B78
    return register ^ 0xFFFFFFFF


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


def masked(value):
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def framed(data):
    """A record; zeros for the checksum of its data, which is not looked at and slow to make."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked(crc32c(length))) + data + bytes(4)


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


@pytest.fixture
def robots(tmp_path):
    """softmotion30_44k/train with two files, of three records and one."""
    root = tmp_path / "softmotion30_44k" / "train"
    root.mkdir(parents=True)
    (root / "traj_0_to_2.tfrecords").write_bytes(b"".join(framed(robot(v)) for v in (0, 50, 100)))
    (root / "traj_3_to_3.tfrecords").write_bytes(framed(robot(150)))
    return root


# ---------------------------------------------------------------------------------------------
# BAIR

def test_crc32c_has_the_check_value_and_agrees_with_the_bitwise_one():
    for data, value in ((b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA),
                        (b"\xff" * 32, 0x62A8AB43)):
        assert bair.masked_crc32c(data) == masked(value)
    random = np.random.default_rng(0)
    for size in (4, 5, 8, 255, 256, 257, 511, 512, 1023, 4099, 20_000):
        data = random.bytes(size)
        assert bair.masked_crc32c(data) == masked(crc32c(data)), size


def test_bair_records_are_read_without_tensorflow(robots):
    source = VideoFolder(robots, (16, 64, 64))
    assert len(source) == 4 and source.class_names == [] and "tensorflow" not in sys.modules
    for index, value in enumerate((0, 50, 100, 150)):
        clip, label = source.clip(index)
        assert clip.shape == (16, 64, 64, 3) and clip.dtype == np.uint8 and label == NO_LABEL
        assert [frame[0, 0].tolist() for frame in clip] == [[value + 2 * t] * 3
                                                            for t in range(7, 23)]
        assert (clip[:, :, 32:] == (10, 20, 30)).all()


def test_bair_clips_start_anywhere_are_mirrored_and_repeat(robots):
    source = VideoFolder(robots, (16, 64, 64), flip=True, cache_bytes=0)
    clips = [source.clip(1, np.random.default_rng(seed))[0] for seed in range(20)]
    assert {level(clip) for clip in clips} >= {10}     # the right half, when mirrored
    assert len({clip.tobytes() for clip in clips}) > 8
    assert np.array_equal(clips[3], source.clip(1, np.random.default_rng(3))[0])
    video, label = load_batch(source, 0, 4, seed=0)
    assert video.shape == (4, 3, 16, 64, 64) and torch.equal(label, torch.full((4,), NO_LABEL))


def test_the_index_spares_the_second_reading_of_the_records(robots, tmp_path, monkeypatch):
    VideoFolder(robots, (16, 64, 64), index=tmp_path / "index.json")
    monkeypatch.setattr(bair, "read_record", None)     # would fail if it were called
    assert len(VideoFolder(robots, (16, 64, 64), index=tmp_path / "index.json")) == 4


@pytest.mark.parametrize("cut, kept", [(1, 2), (5, 2), (400_000, 2), (800_000, 1)])
def test_a_file_that_was_cut_is_named_and_used_up_to_there(robots, capsys, cut, kept):
    path = robots / "traj_0_to_2.tfrecords"
    path.write_bytes(path.read_bytes()[:-cut])
    assert len(VideoFolder(robots, (16, 64, 64))) == kept + 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and f"{kept} records before it are used" in said[0]


def test_a_wrong_length_ends_its_file_there_and_says_so(robots, capsys):
    path = robots / "traj_0_to_2.tfrecords"
    data = bytearray(path.read_bytes())
    data[1] ^= 255
    path.write_bytes(data)
    assert len(VideoFolder(robots, (16, 64, 64))) == 1
    assert "the checksum of its length is wrong; 0 records" in capsys.readouterr().err


def test_a_record_that_breaks_later_is_named_once_and_replaced(robots, capsys):
    source = VideoFolder(robots, (16, 64, 64), cache_bytes=0)
    (robots / "traj_3_to_3.tfrecords").write_bytes(b"gone bad, and short")
    for _ in range(3):
        assert level(source.clip(3)[0]) == 14
    assert capsys.readouterr().err.count("traj_3_to_3") == 1


def test_foreign_records_say_what_they_hold(tmp_path, capsys):
    for name, features in (("other", {"video/frames": b"12345"}),
                           ("jpeg", {"0/image_aux1/encoded": b"not 64x64x3 bytes"})):
        (tmp_path / f"{name}.tfrecords").write_bytes(framed(example(features)))
    (tmp_path / "text.tfrecords").write_bytes(framed(b"no protobuf, only words"))
    with pytest.raises(ValueError, match="none of the 3 videos"):
        VideoFolder(tmp_path, (16, 64, 64))
    said = capsys.readouterr().err
    assert "has no 0/image_aux1/encoded; its first keys are video/frames" in said
    assert "wanted 12288, raw RGB of 64x64" in said and said.count("skipped") == 3


def test_train_and_test_records_are_not_mixed(robots):
    (robots.parent / "test").mkdir()
    (robots.parent / "test" / "a.tfrecords").write_bytes(framed(robot(1)))
    with pytest.raises(ValueError, match="test and .*train; give one of them"):
        layouts.find_layout(robots.parent)


# ---------------------------------------------------------------------------------------------
# UCF-101

UCF101 = {"Basketball": 3, "ApplyLipstick": 2, "YoYo": 1}    # not in alphabetical order


@pytest.fixture(scope="module")
def avi(tmp_path_factory):
    path = tmp_path_factory.mktemp("ucf101") / "video.avi"
    write_video(path, video_of(70), fps=25)
    return path


@pytest.fixture
def ucf101(tmp_path, avi):
    """Three classes of two videos, and the lists in a folder of their own."""
    for name in UCF101:
        (tmp_path / "videos" / name).mkdir(parents=True)
        for group in (1, 8):
            shutil.copy(avi, tmp_path / "videos" / name / f"v_{name}_g0{group}_c01.avi")
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
    data = DataConfig(root, split=lists / "trainlist01.txt", test_split=lists / "testlist01.txt")
    for held_out, group in ((False, 8), (True, 1)):
        source = open_source(data, CLIP, held_out=held_out)
        assert source.class_names == ["YoYo", "ApplyLipstick", "Basketball"]
        assert [path.stem for path, _ in source.videos] == [
            f"v_{name}_g0{group}_c01" for name in UCF101]
        assert source.labels == [2, 1, 0] and abs(level(source.clip(0)[0]) - 74) < 4
    assert len(open_source(DataConfig(root), CLIP)) == 6


def test_without_classind_the_classes_are_sorted_and_agree_between_lists(ucf101):
    root, lists = ucf101
    (lists / "classInd.txt").unlink()
    (lists / "testlist01.txt").write_text("YoYo/v_YoYo_g01_c01.avi\n")
    train, test = (layouts.find_layout(root, split=lists / f"{name}list01.txt")
                   for name in ("train", "test"))
    assert train.class_names == test.class_names == ["ApplyLipstick", "Basketball", "YoYo"]
    assert test.labels == [2]


def test_ucf101_in_another_format_is_found_by_the_same_list(ucf101, tmp_path):
    for t, frame in enumerate(video_of(70)):
        path = tmp_path / "frames" / "YoYo" / "v_YoYo_g01_c01" / f"{t:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        imageio.imwrite(path, frame)
    write_video(tmp_path / "npy" / "YoYo" / "v_YoYo_g01_c01.npy", video_of(70))
    for folder in ("frames", "npy"):
        found = layouts.find_layout(tmp_path / folder, split=ucf101[1] / "testlist01.txt")
        assert len(found.clips) == 1 and found.labels == [0]
        assert level(VideoFolder(tmp_path / folder, CLIP, layout=found).clip(0)[0]) == 74


def test_videos_missing_from_a_list_are_counted_and_all_missing_is_refused(ucf101, capsys):
    root, lists = ucf101
    (root / "YoYo" / "v_YoYo_g08_c01.avi").unlink()
    assert len(layouts.find_layout(root, split=lists / "trainlist01.txt").clips) == 2
    assert "1 of the 3 videos of trainlist01.txt are not in" in capsys.readouterr().err
    with pytest.raises(ValueError, match="none of the 3 videos of trainlist01.txt"):
        layouts.find_layout(root / "YoYo", split=lists / "trainlist01.txt")
    (lists / "empty.txt").write_text("")
    with pytest.raises(ValueError, match="it is empty"):
        layouts.find_layout(root, split=lists / "empty.txt")


@pytest.mark.parametrize("lines, message", [
    ("YoYo/v_YoYo_g08_c01.avi 3", "but classInd.txt says that YoYo is 1"),
    ("Dance/v_Dance_g08_c01.avi 1", "classInd.txt says that Dance is no class"),
    ("v_YoYo_g08_c01.avi", "wanted 'Class/video.avi'"),
    ("YoYo/v_YoYo_g08_c01.avi one", "wanted 'Class/video.avi'")])
def test_a_list_that_contradicts_the_classes_is_refused(ucf101, lines, message):
    root, lists = ucf101
    (lists / "mine.txt").write_text(lines)
    with pytest.raises(ValueError, match=message):
        layouts.find_layout(root, split=lists / "mine.txt")
    with pytest.raises(FileNotFoundError, match="no split list"):
        layouts.find_layout(root, split=lists / "gone.txt")


# ---------------------------------------------------------------------------------------------
# Something-Something-V2

@pytest.fixture
def something(tmp_path):
    """Four .webm files and the lists, with brackets in the templates and numbers as strings."""
    import av
    for number, name in enumerate(("74225", "116154", "198186", "7")):
        path = tmp_path / "20bn-something-something-v2" / f"{name}.webm"
        path.parent.mkdir(exist_ok=True)
        with av.open(str(path), "w") as file:
            stream = file.add_stream("libvpx-vp9", rate=12)
            stream.width = stream.height = 24
            stream.pix_fmt = "yuv420p"
            for frame in video_of(50 * number):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            file.mux(stream.encode())
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
    return tmp_path / "20bn-something-something-v2", lists


def test_something_something_is_labelled_by_its_templates(something, capsys):
    root, lists = something
    source = open_source(DataConfig(root, split=lists / "train.json"), CLIP)
    assert source.class_names == ["Putting something on something", "Holding something",
                                  "Poking something"]
    assert [path.name for path, _ in source.videos] == ["198186.webm", "74225.webm"]
    assert source.labels == [1, 0] and abs(level(source.clip(0)[0]) - 104) < 4
    assert "1 of the 3 videos of train.json are not in" in capsys.readouterr().err


def test_something_somethings_other_files_are_refused_in_one_line(something):
    root, lists = something
    (lists / "test.json").write_text('[{"id": "7"}]')
    with pytest.raises(ValueError, match="the test list has no classes"):
        layouts.find_layout(root, split=lists / "test.json")
    (lists / "cut.json").write_text('[{"id": "7", ')
    with pytest.raises(ValueError, match="cut.json is no JSON file"):
        layouts.find_layout(root, split=lists / "cut.json")
    (lists / "labels.json").write_text('{"Holding something": "0"}')
    with pytest.raises(ValueError, match="has the class 'Poking something', labels.json has not"):
        layouts.find_layout(root, split=lists / "train.json")
    (lists / "labels.json").write_text('["Holding something"]')
    with pytest.raises(ValueError, match="labels.json should be like"):
        layouts.find_layout(root, split=lists / "train.json")
    (lists / "labels.json").unlink()
    with pytest.raises(FileNotFoundError, match="no labels.json beside"):
        layouts.find_layout(root, split=lists / "train.json")


# ---------------------------------------------------------------------------------------------
# Folders of frames, and pictures

def write_frames(folder, video, suffix=".png", name="{}"):
    folder.mkdir(parents=True)
    for t, frame in enumerate(video):
        imageio.imwrite(folder / (name.format(t) + suffix), frame)


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


def test_flat_folders_of_frames_have_no_class_and_short_ones_are_named(tmp_path, capsys):
    write_frames(tmp_path / "a", video_of(0))
    write_frames(tmp_path / "b", video_of(0, frames=5))
    source = VideoFolder(tmp_path, CLIP)
    assert len(source) == 1 and source.clip(0)[1] == NO_LABEL
    assert "skipped b: 5 frames, and a clip takes 16" in capsys.readouterr().err


def test_a_broken_frame_is_named_and_its_clip_replaced(tmp_path, capsys):
    for name in "abc":
        write_frames(tmp_path / name, video_of(ord(name)))
    (tmp_path / "a" / "9.png").write_bytes((tmp_path / "a" / "8.png").read_bytes()[:40])
    imageio.imwrite(tmp_path / "b" / "9.png", np.zeros((9, 8, 3), np.uint8))
    source = VideoFolder(tmp_path, CLIP)
    for _ in range(2):
        assert level(source.clip(0)[0]) == ord("c") + 4
    said = capsys.readouterr().err
    assert said.count("9.png cannot be decoded") == 1
    assert said.count("9.png is 8x9 pixels, but the first frame is 24x24") == 1


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
    data = DataConfig(tmp_path, layout="images")
    source, whole = (open_source(data, (1, 64, 64), crop=crop) for crop in (0.8, 1.0))
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


def test_videos_win_over_thumbnails_beside_them_and_dead_links_do_not_count(tmp_path):
    write_video(tmp_path / "run" / "a.npy", video_of(0))
    imageio.imwrite(tmp_path / "run" / "a.jpg", video_of(0)[0])
    (tmp_path / "run" / "b.npy").symlink_to("gone.npy")
    found = layouts.find_layout(tmp_path)
    assert found.name == "videos" and len(found.clips) == 1


def test_layouts_that_are_unknown_absent_or_take_no_list_are_refused(tmp_path, robots):
    with pytest.raises(ValueError, match="choose from auto videos frames images bair"):
        layouts.find_layout(tmp_path, "kinetics")
    with pytest.raises(FileNotFoundError, match="looked for .jpeg .jpg .png"):
        layouts.find_layout(tmp_path, "images")
    with pytest.raises(ValueError, match="read as 'bair', which takes no list"):
        layouts.find_layout(robots, split=tmp_path / "trainlist01.txt")


@pytest.mark.parametrize("root, clip", [("videos", "videos/a/one.mp4"), (".", "a/one.mp4"),
                                        ("/", "/a/one.mp4"), ("/videos/", "/videos/one.mp4"),
                                        ("videos", "videos")])
def test_a_clips_name_is_its_path_below_the_folder(root, clip):
    name = layouts.name_below(Path(root), Path(clip))
    assert name == str(Path(clip).relative_to(Path(root)))


def test_the_rooms_print_what_they_found(robots):
    for command, expected in (
            (["data.layouts", str(robots)], "bair, 4 clips, 0 classes"),
            (["data.bair", str(robots / "traj_0_to_2.tfrecords")], "3 records")):
        done = python("-m", *command)
        assert done.returncode == 0 and expected in done.stdout, done.stderr


# ---------------------------------------------------------------------------------------------
# Every layout trains

@pytest.mark.slow
@pytest.mark.parametrize("layout", ["robots", "ucf101", "something"])
def test_each_layout_trains_twenty_steps_of_both_stages(layout, request, tmp_path):
    made = request.getfixturevalue(layout)
    data = [made] if layout == "robots" else [made[0], "--split", {
        "ucf101": made[1] / "trainlist01.txt", "something": made[1] / "train.json"}[layout]]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "toy", "--data", *map(str, data), "--out",
         str(tmp_path / "run"), *("--tokenizer-steps 20 --transformer-steps 20 --token-pool 0 "
                                  "--tokenizer-batch 2 --transformer-batch 2").split()],
        capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    classes = {"robots": 0, "ucf101": 3, "something": 3}[layout]
    assert ("CFP" in metrics["tasks"]) == (classes > 0)
    assert (tmp_path / "run/samples.gif").exists()


def test_held_out_clips_have_the_numbers_that_the_run_gives_their_classes(tmp_path):
    """By name: a test folder may lack classes, have others, or none at all."""
    names = {"train": ["a", "b", "c"], "test": ["b", "d"], "flat": ["."]}
    for split, classes in names.items():
        for name in classes:
            write_video(tmp_path / split / name / f"{split}.npy", np.zeros((8, 8, 8, 3), np.uint8))
    data = DataConfig(tmp_path / "train")
    train = open_source(data, (8, 8, 8))
    for split, labels in (("test", [1, NO_LABEL]), ("flat", [NO_LABEL])):
        source = open_source(replace(data, class_names=tuple(train.class_names),
                                     test_root=tmp_path / split), (8, 8, 8), held_out=True)
        assert (source.labels, source.class_names) == (labels, ["a", "b", "c"])


@pytest.mark.parametrize("place", [12, 15, 16, 20, 40])
def test_a_record_with_a_flipped_byte_in_its_structure_is_named_and_skipped(robots, capsys, place):
    path = robots / "traj_0_to_2.tfrecords"
    data = bytearray(path.read_bytes())
    data[place] ^= 255                                 # in the first record, after its header
    path.write_bytes(data)
    source = VideoFolder(robots, (16, 64, 64))
    assert [level(source.clip(i)[0]) for i in range(len(source))][-3:] == [64, 114, 164]
    said = capsys.readouterr().err.splitlines()
    assert len(source) == 4 or (len(said) == 1 and "traj_0_to_2.tfrecords/0" in said[0])
