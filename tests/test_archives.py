"""data/split_lists.py, nuscenes.py, bair.py: archives in miniature, lying as they are published."""
import json
import shutil
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest

from data import layouts, nuscenes
from data.clips import DataConfig, VideoFolder, open_source, write_video
from data.layouts import find_layout
from test_datasets import CLIP, field, framed, level, video_of

ROOT = Path(__file__).parents[1]


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
        other = raw / "samples" / "CAM_BACK" / f"{camera_name(log, begin, 'CAM_BACK')}.jpg"
        other.parent.mkdir(parents=True, exist_ok=True)
        imageio.imwrite(other, np.zeros((16, 24, 3), np.uint8))
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
    made = nuscenes.link_videos(drives, tmp_path / "out")
    assert made == dict(train=6, test=0)                # 70 frames are two videos, 40 are one
    source = VideoFolder(tmp_path / "out" / "train", (32, 16, 16))
    assert len(source) == 6 and source.class_names == []
    first, second = (source.clip(i)[0][:, 0, 0, 0].astype(int) for i in (0, 1))
    assert np.abs(first - 3 * np.arange(32)).max() <= 2         # samples and sweeps in turn
    assert np.abs(second - 3 * np.arange(32, 64)).max() <= 2
    assert nuscenes.link_videos(drives, tmp_path / "out") == made       # again: nothing to do


def test_where_the_tables_are_they_say_what_a_scene_is(drives, tmp_path):
    tables(drives)
    scenes = nuscenes.find_scenes(drives, nuscenes.find_frames(drives))
    assert {name: len(frames) for name, frames in scenes.items()} == {
        "scene-0061": 110, "scene-0062": 70}
    assert nuscenes.link_videos(drives, tmp_path / "out") == dict(train=3 + 2, test=0)


def test_every_tenth_scene_is_kept_for_testing(tmp_path, monkeypatch):
    frames = {f"scene-{i:04}": [nuscenes.Frame("log", t, tmp_path / "x.jpg") for t in range(64)]
              for i in range(20)}
    monkeypatch.setattr(nuscenes, "find_frames", lambda raw: [])
    monkeypatch.setattr(nuscenes, "find_scenes", lambda raw, found: frames)
    assert nuscenes.link_videos(tmp_path, tmp_path / "out") == dict(train=36, test=4)
    assert {path.name[:10] for path in (tmp_path / "out" / "test").iterdir()} == {
        "scene-0009", "scene-0019"}


def test_a_cameras_folder_is_refused_as_a_clip_with_advice(drives):
    for part in ("samples", "sweeps"):
        for path in (drives / part / "CAM_FRONT").glob(f"{sorted(LOGS)[0]}*"):
            path.unlink()                                   # one drive alone has many scenes, too
    for folder in (drives / "samples" / "CAM_FRONT", drives):
        with pytest.raises(ValueError, match="mixes the scenes.*python -m data.nuscenes RAW OUT"):
            find_layout(folder)
    with pytest.raises(FileNotFoundError, match="give nuScenes' own folder"):
        nuscenes.find_frames(drives / "samples")


def test_a_folder_that_mixes_the_frames_of_two_cameras_is_refused(tmp_path):
    for name in ("left_000", "left_001", "right_000"):
        imageio.imwrite(tmp_path / f"{name}.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="'left_' and 'right_'; give each clip its own folder"):
        find_layout(tmp_path)
    assert len(find_layout(tmp_path, "images").clips) == 3


# ---------------------------------------------------------------------------------------------
# Kinetics, Objectron, UCF-101 in one folder

KINETICS = {"abseiling": ("aaaaaaaaaaa", 7), "yoga": ("-b_b-bbbbbb", 120)}


def kinetics_csv(path, split):
    rows = [f'"{label}",{name},{start},{start + 10},{split}'
            for label, (name, start) in KINETICS.items()]
    rows.append(f"zumba,gone_______,0,10,{split}")               # videos vanish from YouTube
    path.write_text("\n".join(["label,youtube_id,time_start,time_end,split", *rows]) + "\n")
    return path


@pytest.mark.parametrize("flat", [True, False])
def test_kinetics_csv_names_clips_by_video_and_seconds_wherever_they_lie(tmp_path, capsys, flat):
    for number, (label, (name, start)) in enumerate(KINETICS.items()):
        folder = tmp_path / "train" if flat else tmp_path / "train" / label
        write_video(folder / f"{name}_{start:06}_{start + 10:06}.mp4", video_of(40 + 60 * number))
    split = kinetics_csv(tmp_path / "train.csv", "train")
    source = open_source(DataConfig(tmp_path / "train", split=split), CLIP)
    assert source.class_names == ["abseiling", "yoga", "zumba"] and source.labels == [0, 1]
    assert "1 of the 3 videos of train.csv are not" in capsys.readouterr().err
    assert abs(level(source.clip(1)[0]) - 104) < 4
    (tmp_path / "test.csv").write_text("youtube_id,time_start,time_end,split\na,1,2,test\n")
    with pytest.raises(ValueError, match="the test list has no labels"):
        find_layout(tmp_path / "train", split=tmp_path / "test.csv")


@pytest.mark.parametrize("train, val", [("train", "val"), ("train_256", "val_256"),
                                        ("videos_train", "videos_val")])
def test_a_folder_of_train_and_val_is_refused_instead_of_being_two_classes(tmp_path, train, val):
    for part in (train, val):
        write_video(tmp_path / "k600" / part / "yoga" / "a.npy", video_of(9))
    with pytest.raises(ValueError, match=f"{train} and {val}, parts of a data set and no classes; "
                       f"give one of them to --data: .*k600/{train}"):
        find_layout(tmp_path / "k600")
    assert find_layout(tmp_path / "k600" / train).class_names == ["yoga"]
    write_video(tmp_path / "k600" / "walking" / "a.npy", video_of(9))
    assert find_layout(tmp_path / "k600").class_names == [train, val, "walking"]


def test_objectrons_index_names_folders_of_video_mov(tmp_path):
    for number, name in enumerate(("book/batch-1/0", "book/batch-1/12", "cup/batch-3/7")):
        (tmp_path / "videos" / name).mkdir(parents=True)
        write_video(tmp_path / "made.mov", video_of(30 * number))
        shutil.copy(tmp_path / "made.mov", tmp_path / "videos" / name / "video.MOV")
    index = tmp_path / "annotations_train"
    index.write_text("book/batch-1/12\ncup/batch-3/7\n")
    source = open_source(DataConfig(tmp_path / "videos", split=index), CLIP)
    assert source.class_names == ["book", "cup"] and source.labels == [0, 1]
    assert abs(level(source.clip(0)[0]) - 34) < 4
    index.write_text("book/batch-1/12\ncup\n")
    with pytest.raises(ValueError, match="has 'cup'; wanted lines like 'book/batch-1/0'"):
        find_layout(tmp_path / "videos", split=index)


def test_a_flat_copy_of_ucf101_has_its_classes_in_the_names_of_files(tmp_path):
    for name in ("YoYo", "ApplyLipstick"):
        write_video(tmp_path / "videos" / f"v_{name}_g01_c01.avi", video_of(9))
    found = find_layout(tmp_path / "videos")
    assert found.class_names == ["ApplyLipstick", "YoYo"] and found.labels == [0, 1]
    (tmp_path / "classInd.txt").write_text("1 ApplyEyeMakeup\n2 ApplyLipstick\n3 YoYo\n")
    (tmp_path / "trainlist01.txt").write_text("YoYo/v_YoYo_g01_c01.avi 3\n")
    listed = find_layout(tmp_path / "videos", split=tmp_path / "trainlist01.txt")
    assert [path.name for path in listed.clips] == ["v_YoYo_g01_c01.avi"] and listed.labels == [2]
    write_video(tmp_path / "videos" / "holiday.avi", video_of(9))
    assert find_layout(tmp_path / "videos").class_names == []           # no longer UCF-101 alone


# ---------------------------------------------------------------------------------------------
# BAIR as TensorFlow Datasets writes it

def shard(value, frames=20):
    """A record of bair_robot_pushing_small: each camera a list of PNGs."""
    def listed(key, items):
        feature = field(1, b"".join(field(1, item) for item in items))
        return field(1, field(1, key.encode()) + field(2, feature))

    pictures = [imageio.imwrite("<bytes>", np.full((64, 64, 3), value + 2 * t, np.uint8),
                                extension=".png") for t in range(frames)]
    return framed(field(1, listed("image_main", [pictures[0]] * frames)
                        + listed("image_aux1", pictures)))


def test_shards_of_tensorflow_datasets_are_bair_too(tmp_path):
    for number in (0, 1):
        name = f"bair_robot_pushing_small-train.tfrecord-{number:05}-of-00002"
        (tmp_path / name).write_bytes(shard(40 * number))
    source = open_source(DataConfig(tmp_path), (16, 64, 64))
    assert len(source) == 2 and layouts.find_layout(tmp_path).name == "bair"
    clip, _ = source.clip_at(1, 3, 0.0, 0.0)
    assert clip[:, 0, 0, 0].tolist() == [40 + 2 * t for t in range(3, 19)]
    (tmp_path / "bair_robot_pushing_small-test.tfrecord-00000-of-00001").write_bytes(shard(0))
    with pytest.raises(ValueError, match="small-test and of .*small-train .*a folder of its own"):
        open_source(DataConfig(tmp_path), (16, 64, 64))


def test_a_shard_whose_picture_is_broken_is_named(tmp_path, capsys):
    data = bytearray(shard(0))
    place = data.index(b"\x89PNG", data.index(b"image_aux1"))
    data[place:place + 4] = b"JUNK"
    (tmp_path / "a-train.tfrecord-00000-of-00001").write_bytes(data)
    with pytest.raises(ValueError, match="can be used"):
        open_source(DataConfig(tmp_path), (16, 64, 64))
    assert "a frame cannot be decoded" in capsys.readouterr().err


