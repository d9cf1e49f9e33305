"""data/ but for its layouts, and pictures.py: clips in, pictures out."""
import errno
import json
import threading
import time
from fractions import Fraction

import av
import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from conftest import ROOT

import data.clips
import data.counts
import data.decoding
from data.clips import (DataConfig, VideoFolder, load_clip, open_source, read_video,
                        resize_short_side, write_video)
from data.counts import count_frames, inspect
from data.decoding import Spacing, decoded, read_window
from data.loader import BatchLoader
from data.moving_shapes import MovingShapes
from data.source import NO_LABEL, ClipSource, all_clips, load_batch, to_float
from pictures import to_frames, write_grid

ODD = ROOT.parent / "shared" / "odd_videos"


def moving_box(frames=20, height=24, width=48):
    """A red box that moves right, two pixels a frame (colour is stored at half resolution)."""
    video = np.full((frames, height, width, 3), 60, np.uint8)
    for t in range(frames):
        video[t, 8:16, 2 * t:2 * t + 8] = (250, 20, 20)
    return video


def number_of(frame):
    """Which frame it is, by where the box begins."""
    return int((frame[..., 0].astype(int) - frame[..., 1] > 90).any(0).argmax()) // 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes, several formats, all with the same content."""
    root = tmp_path_factory.mktemp("videos")
    for name in ("run/a.mp4", "run/b.avi", "walk/c.mkv", "walk/d.mov", "walk/e.npy", "walk/f.gif"):
        write_video(root / name, moving_box(), fps=10)
    return root


# ---------------------------------------------------------------------------------------------
# The toy

def test_the_plain_rule_reads_every_real_clip_right():
    video, label = load_batch(MovingShapes("test"), 0, 64, seed=0)
    shape, direction = MovingShapes.recognize(video)
    assert torch.equal(shape, label // 4) and torch.equal(direction, label % 4)


def test_the_plain_rule_calls_noise_blobs_and_stills_none(generator):
    video, label = load_batch(MovingShapes("test"), 0, 8, seed=0)
    noise = torch.rand(8, 3, 16, 32, 32, generator=generator)
    still = video[:, :, :1].expand(-1, -1, 16, -1, -1)
    assert (MovingShapes.recognize(noise)[0] == -1).all()
    shape, direction = MovingShapes.recognize(still)
    assert torch.equal(shape, label // 4) and (direction == -1).all()
    assert (MovingShapes.recognize(torch.zeros(2, 3, 16, 32, 32))[1] == -1).all()


def test_held_out_clips_are_not_among_the_others():
    train, again, test = MovingShapes("train"), MovingShapes("train"), MovingShapes("test")
    assert np.array_equal(train.clip(5)[0], again.clip(5)[0])
    clips = {train.clip(i)[0].tobytes() for i in range(len(train))}
    held_out = {test.clip(i)[0].tobytes() for i in range(len(test))}
    assert len(clips) == 320 and len(held_out) == 64 and not clips & held_out


def test_no_held_out_clip_begins_as_a_training_clip_so_none_can_be_continued_by_heart():
    learned, _ = all_clips(MovingShapes("train"))
    held_out, label = all_clips(MovingShapes("test"))
    starts = {bytes((clip[:, 0] * 255).round().byte().numpy()) for clip in learned}
    assert not any(bytes((clip[:, 0] * 255).round().byte().numpy()) in starts for clip in held_out)
    assert (label.bincount() == 4).all(), "all sixteen classes, four times each"


def test_all_sixteen_classes_occur():
    labels = {MovingShapes().clip(i)[1] for i in range(160)}
    assert labels == set(range(16)) and len(MovingShapes().class_names) == 16


# ---------------------------------------------------------------------------------------------
# Files

@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov", "a.avi", "a.gif", "a.npy"])
def test_what_was_written_is_read_back(tmp_path, name):
    video = moving_box()
    write_video(tmp_path / name, video, fps=10)
    read = read_video(tmp_path / name)
    assert read.shape == video.shape and read.dtype == np.uint8
    assert abs(read.astype(int) - video).mean() < 6
    assert [number_of(frame) for frame in read] == list(range(20))


def test_windows_and_strides_take_the_right_frames(folder):
    for name in ("run/a.mp4", "walk/e.npy", "walk/f.gif"):
        read = read_video(folder / name, start=3, count=5, stride=2)
        assert [number_of(frame) for frame in read] == [3, 5, 7, 9, 11]


def test_missing_broken_and_empty_files_are_named(tmp_path):
    (tmp_path / "noise.mp4").write_bytes(b"no video at all" * 50)
    np.save(tmp_path / "float.npy", np.zeros((4, 8, 8, 3)))
    with pytest.raises(FileNotFoundError, match="no video .*gone.mp4"):
        read_video(tmp_path / "gone.mp4")
    with pytest.raises(ValueError, match="noise.mp4 cannot be decoded"):
        read_video(tmp_path / "noise.mp4")
    with pytest.raises(ValueError, match="float.npy holds float64"):
        read_video(tmp_path / "float.npy")
    write_video(tmp_path / "short.gif", moving_box(frames=4))
    with pytest.raises(ValueError, match="has only 4 frames from 0 at stride 1; wanted 16"):
        read_video(tmp_path / "short.gif", count=16)


@pytest.mark.skipif(not ODD.exists(), reason="../shared/odd_videos is not on this machine")
def test_odd_videos_are_read_or_named_in_one_line(capsys):
    source = VideoFolder(ODD, (16, 32, 32))
    lines = capsys.readouterr().err.splitlines()
    assert len(source) + len(lines) == len([p for p in ODD.iterdir() if p.is_file()])
    assert all(line.startswith("skipped ") for line in lines)
    for index in range(len(source)):
        assert source.clip(index)[0].shape == (16, 32, 32, 3)


@pytest.mark.skipif(not ODD.exists(), reason="../shared/odd_videos is not on this machine")
def test_a_rotation_flag_is_honoured():
    assert read_video(ODD / "video_90.mov").shape == (3, 568, 320, 3)       # stored 320 x 568


# ---------------------------------------------------------------------------------------------
# Inside a file: windows anywhere, and counts

SHARED = sorted(path for folder in (ODD, ODD.parent / "clips") for path in folder.rglob("*.*")
                if path.suffix not in (".md", ".json"))
needs_shared = pytest.mark.skipif(not SHARED, reason="../shared is not on this machine")


def textured(frames, size=64):
    """A pattern that moves over noise: no two frames are alike, and none is cheap."""
    noise = np.random.default_rng(0).integers(0, 90, (size, size), dtype=np.uint8)
    for t in range(frames):
        picture = np.roll(noise, (t, 2 * t), (0, 1))
        picture[(np.arange(16) + t) % size] += np.uint8(60 + t % 100)
        yield np.stack([picture, noise, picture[::-1]], -1)


def encode(path, frames, codec="libx264", pixels="yuv420p", stamps=None, **options):
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=25, options=options)
        stream.width = stream.height = 64
        stream.pix_fmt = pixels
        for t, frame in enumerate(textured(frames)):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if stamps:
                picture.pts, picture.time_base = stamps(t), Fraction(1, 25)
            file.mux(stream.encode(picture))
        file.mux(stream.encode())
    return path


MADE = {   # what encoders do that makes it hard to begin in the middle
    "b_frames.mp4": dict(bf="3", g="250", **{"x264-params": "b-pyramid=normal:scenecut=0"}),
    "short.mp4": dict(bf="3", g="12"), "b_frames.mkv": dict(bf="4", g="40"),
    "open.mp4": dict(bf="3", g="20", **{"x264-params": "open-gop=1:scenecut=0"}),
    "refresh.mp4": dict(g="30", **{"x264-params": "intra-refresh=1:scenecut=0"}),
    "h264.avi": dict(bf="2", g="20"), "xvid.avi": dict(codec="mpeg4", g="20"),
    "xvid_b.avi": dict(codec="mpeg4", g="20", bf="2"), "mpeg4.mp4": dict(codec="mpeg4", bf="2"),
    "vp9.webm": dict(codec="libvpx-vp9", g="30", deadline="realtime", **{"cpu-used": "8"}),
    "vp8.webm": dict(codec="libvpx", g="30", **{"auto-alt-ref": "1", "lag-in-frames": "16"})}


def agrees_with_decoding(path, random, tries):
    """Whether the file could be entered, after many windows were what decoding it all gives."""
    whole = list(data.decoding.pictures(decoded(path)))
    facts = inspect(path)
    assert facts["frames"] == len(whole) and not facts["error"], path.name
    spacing = Spacing(facts["first"], facts["distance"]) if facts["distance"] else None
    for _ in range(tries):
        start, stride = int(random.integers(len(whole))), int(random.integers(1, 4))
        stop = min(len(whole), start + stride * int(random.integers(1, 17)))
        window = read_window(path, start, stop, stride, spacing)
        assert len(window) == len(range(start, stop, stride)), path.name
        assert all(map(np.array_equal, window, whole[start:stop:stride])), (path.name, start, stop)
    return spacing is not None


@pytest.mark.parametrize("name", MADE)
def test_windows_are_those_of_the_whole_however_the_video_was_made(name, tmp_path):
    path = encode(tmp_path / name, 130, **MADE[name])
    entered = agrees_with_decoding(path, np.random.default_rng(0), tries=40)
    assert entered == (name not in ("h264.avi", "xvid_b.avi"))


@needs_shared
@pytest.mark.parametrize("path", SHARED, ids=lambda path: path.name)
def test_counts_and_windows_of_real_files_are_those_of_decoding_them(path):
    if path.name == "corrupted.mp4":
        assert inspect(path)["error"].startswith("breaks after 28 frames")
        return
    seldom = path.parent.name == "scenes" or path.suffix in (".webm", ".mkv")
    agrees_with_decoding(path, np.random.default_rng(0), tries=4 if seldom else 12)


def test_a_window_late_in_a_long_video_is_entered_not_decoded_up_to(tmp_path, monkeypatch):
    path = encode(tmp_path / "long.mp4", 400, bf="3", g="50")
    facts = inspect(path)
    expected = read_window(path, 370, 386)
    monkeypatch.setattr(data.decoding, "decoded", None)      # would fail if it were called
    spacing = Spacing(facts["first"], facts["distance"])
    assert np.array_equal(read_window(path, 370, 386, 1, spacing), expected)


def test_a_wrong_spacing_is_noticed_by_the_stamps_of_the_frames(tmp_path):
    path = encode(tmp_path / "a.mp4", 100, g="20")
    expected = read_window(path, 50, 60)
    for wrong in (Spacing(0, 700.0), Spacing(0, 256.0), Spacing(300, 512.0)):
        assert np.array_equal(read_window(path, 50, 60, 1, wrong), expected)


def test_frames_at_a_changing_rate_are_counted_but_not_entered(tmp_path):
    path = encode(tmp_path / "a.mp4", 100, g="20", stamps=lambda t: t + t // 10)
    assert not agrees_with_decoding(path, np.random.default_rng(0), tries=10)
    assert Spacing.of([0, 33, 67, 100]) and Spacing.of([5, 10]) == (5, 5)
    for stamps in ([0, 33, 100, 133], [0, None, 67], [7], [], [0, 0, 0]):
        assert Spacing.of(stamps) is None


@pytest.mark.parametrize("name, trusted", [
    ("a.mp4", True), ("a.mkv", True), ("a.mov", True), ("vp9.webm", True), ("vp8.webm", False),
    ("mpeg4.mp4", False), ("a.avi", False)])
def test_frames_are_counted_without_decoding_where_the_container_is_trusted(
        tmp_path, monkeypatch, name, trusted):
    path = encode(tmp_path / name, 40, **MADE.get(name, {}))
    asked = []
    count = data.decoding._stamps_of_packets
    monkeypatch.setattr(data.decoding, "_stamps_of_packets",
                        lambda *file: asked.append(count(*file)) or asked[-1])
    facts = inspect(path)
    assert (facts["frames"], facts["height"], facts["width"]) == (40, 64, 64)
    assert any(asked) == trusted


def test_files_that_were_cut_short_are_not_trusted(tmp_path):
    """At the end, where packets are missing; and in front, where frames wait for a key frame."""
    path = encode(tmp_path / "a.mp4", 100, g="20", bf="2", movflags="faststart")
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) * 2 // 3])
    assert inspect(path)["frames"] < 100
    path.write_bytes(whole)
    late = tmp_path / "late.mkv"
    with av.open(str(path)) as old, av.open(str(late), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in list(old.demux(video=0))[5:-1]:
            packet.stream = stream
            new.mux(packet)
    assert inspect(late)["frames"] == len(list(decoded(late)))


# ---------------------------------------------------------------------------------------------
# The list of counts

def boxes(folder, names):
    for name in names:
        write_video(folder / f"{name}.npy", moving_box(8, 16, 24))
    return sorted(folder.iterdir())


def test_what_the_disk_fails_to_give_is_tried_again_and_never_taken_for_damage(
        tmp_path, monkeypatch, capsys):
    paths, index = boxes(tmp_path / "videos", "abcd"), tmp_path / "index.json"
    tried = []
    open_array = data.counts.open_array

    def unsteady(path):
        tried.append(path.stem)
        if path.stem == "a" or (path.stem == "b" and tried.count("b") == 1):
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return open_array(path)

    monkeypatch.setattr(data.counts, "open_array", unsteady)
    counts = count_frames(paths, tmp_path / "videos", index)
    assert sorted(counts) == ["b.npy", "c.npy", "d.npy"] == sorted(json.loads(index.read_text()))
    assert sorted(tried[-2:]) == ["a", "b"] and not any(f["error"] for f in counts.values())
    assert capsys.readouterr().err == "left out of this run a.npy: Stale file handle\n"
    assert len(VideoFolder(tmp_path / "videos", (8, 16, 16), index=index)) == 3
    monkeypatch.setattr(data.counts, "open_array", open_array)
    assert len(count_frames(paths, tmp_path / "videos", index)) == 4


def test_damage_is_told_from_a_disk_that_fails(tmp_path, monkeypatch):
    def failing(number):
        def inspect_video(path, facts):
            raise av.error.OSError(number, "of FFmpeg", str(path))
        return inspect_video

    for number, damage in ((errno.EIO, False), (errno.ETIMEDOUT, False), (errno.EPERM, True)):
        monkeypatch.setattr(data.counts, "inspect_video", failing(number))
        if damage:
            assert "breaks after 0 frames" in inspect(tmp_path / "a.mp4")["error"]
        else:
            with pytest.raises(OSError):
                inspect(tmp_path / "a.mp4")
    (tmp_path / "empty.npy").write_bytes(b"")
    assert inspect(tmp_path / "empty.npy")["error"]


def test_the_list_is_saved_as_counting_goes_on_and_when_it_is_interrupted(tmp_path, monkeypatch):
    paths, index = boxes(tmp_path / "videos", "abcdefgh"), tmp_path / "index.json"
    saved = []
    save, real = data.counts._save, inspect

    def interrupted(path):
        if path.stem == "f":
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(data.counts, "_save", lambda *known: saved.append(1) or save(*known))
    monkeypatch.setattr(data.counts, "SAVED_EVERY", 0.0)
    monkeypatch.setattr(data.counts, "inspect", interrupted)
    with pytest.raises(KeyboardInterrupt):
        count_frames(paths, tmp_path / "videos", index)
    assert len(saved) > 1 and set("abcde") == {name[0] for name in json.loads(index.read_text())}
    counted = []
    monkeypatch.setattr(data.counts, "inspect", lambda path: counted.append(path.stem) or
                        real(path))
    assert len(count_frames(paths, tmp_path / "videos", index)) == 8
    assert sorted(counted) == ["f", "g", "h"]
    assert not list(tmp_path.glob("index.json.*"))


def test_many_files_have_a_bar_and_few_have_none(tmp_path, capsys, monkeypatch):
    paths = boxes(tmp_path, "abc")
    count_frames(paths, tmp_path, None)
    assert not capsys.readouterr().err
    monkeypatch.setattr(data.counts, "SHOWN_FROM", 2)
    count_frames(paths, tmp_path, None)
    assert "counting frames: 100%" in capsys.readouterr().err


def test_a_list_that_is_there_costs_one_look_at_each_file(tmp_path, monkeypatch):
    paths, index = boxes(tmp_path / "videos", "abc"), tmp_path / "index.json"
    first = VideoFolder(tmp_path / "videos", (8, 16, 16), index=index)
    monkeypatch.setattr(data.counts, "inspect", None)         # would fail if it were called
    looks = []
    stamp_of = data.counts.stamp_of
    monkeypatch.setattr(data.counts, "stamp_of", lambda path: looks.append(path) or stamp_of(path))
    source = VideoFolder(tmp_path / "videos", (8, 16, 16), index=index)
    assert source.fingerprint() == first.fingerprint() and sorted(looks) == paths


def test_a_folder_that_moves_is_the_same_data(tmp_path):
    boxes(tmp_path / "here", "ab")
    before = VideoFolder(tmp_path / "here", (8, 16, 16)).fingerprint()
    (tmp_path / "here").rename(tmp_path / "there")
    assert VideoFolder(tmp_path / "there", (8, 16, 16)).fingerprint() == before
    (tmp_path / "there/a.npy").rename(tmp_path / "there/c.npy")
    assert VideoFolder(tmp_path / "there", (8, 16, 16)).fingerprint() != before


# ---------------------------------------------------------------------------------------------
# Folders

def test_labels_are_the_folders(folder):
    source = VideoFolder(folder, (16, 16, 16))
    assert source.class_names == ["run", "walk"] and len(source) == 6
    assert source.labels == [0, 0, 1, 1, 1, 1]


def test_a_flat_folder_has_no_labels(tmp_path):
    write_video(tmp_path / "a.npy", moving_box())
    source = VideoFolder(tmp_path, (16, 16, 16))
    assert source.class_names == [] and source.clip(0)[1] == NO_LABEL


def test_without_randomness_the_centre_is_taken(folder):
    clip, _ = VideoFolder(folder, (16, 24, 24)).clip(4)
    assert [number_of(frame) for frame in clip] == [max(0, t + 2 - 6) for t in range(16)]


def test_windows_and_crops_are_random_and_repeatable(folder):
    source = VideoFolder(folder, (8, 16, 16), flip=True)
    clips = [source.clip(4, np.random.default_rng(seed))[0] for seed in (0, 0, 1, 2, 3)]
    assert np.array_equal(clips[0], clips[1])
    assert len({clip.tobytes() for clip in clips}) >= 3


def test_all_of_the_picture_is_used_whatever_its_size():
    for height, width in ((24, 40), (40, 24), (7, 7), (16, 16), (300, 20)):
        resized = resize_short_side(moving_box(4, height, width), 16, 16)
        assert min(resized.shape[1:3]) == 16


def test_short_videos_are_skipped_or_padded_and_that_is_said(tmp_path, capsys):
    write_video(tmp_path / "long.npy", moving_box(20))
    write_video(tmp_path / "short.npy", moving_box(5))
    assert len(VideoFolder(tmp_path, (16, 16, 16))) == 1
    assert "skipped short.npy: 5 frames, and a clip takes 16" in capsys.readouterr().err
    source = VideoFolder(tmp_path, (16, 24, 48), pad_short=True)
    assert "last one repeated" in capsys.readouterr().err
    clip, _ = source.clip(1)
    assert [number_of(frame) for frame in clip] == [0, 1, 2, 3] + [4] * 12


def test_the_index_saves_the_second_count_and_notices_a_changed_file(tmp_path, monkeypatch):
    counted = []
    inspect = data.counts.inspect
    monkeypatch.setattr(data.counts, "inspect",
                        lambda path: counted.append(path.name) or inspect(path))
    for name in ("a.npy", "b.npy"):
        write_video(tmp_path / "videos" / name, moving_box())
    for _ in range(2):
        VideoFolder(tmp_path / "videos", (16, 16, 16), index=tmp_path / "index.json")
    assert sorted(counted) == ["a.npy", "b.npy"]
    write_video(tmp_path / "videos" / "b.npy", moving_box(30))
    VideoFolder(tmp_path / "videos", (16, 16, 16), index=tmp_path / "index.json")
    assert counted[2:] == ["b.npy"]
    assert json.loads((tmp_path / "index.json").read_text())["b.npy"]["frames"] == 30


@pytest.fixture
def breaking(tmp_path, monkeypatch):
    """Three videos that tell their number by their brightness; `failing` of them can be told to
    fail, by name: how often still. `opened` is what was tried."""
    for number, name in enumerate("abc"):
        write_video(tmp_path / f"{name}.npy", moving_box() + np.uint8(number))
    source = VideoFolder(tmp_path, (8, 16, 16), flip=True, cache_bytes=0)
    source.failing, source.tried = {}, []
    read = data.clips.read_frames

    def fails(path, *window):
        source.tried.append(path.name)
        if source.failing.get(path.name, 0) > 0:
            source.failing[path.name] -= 1
            raise OSError(errno.EIO, "the disk does not answer", str(path))
        return read(path, *window)

    monkeypatch.setattr(data.clips, "read_frames", fails)
    return source


def drawn(source, index, seed=3):
    return source.clip(index, np.random.default_rng(seed))[0]


def test_a_file_that_always_fails_is_named_once_and_the_next_stands_in_with_the_same_draws(
        breaking, capsys):
    expected = drawn(breaking, 1)
    breaking.failing["a.npy"] = 1000
    for _ in range(3):
        assert np.array_equal(drawn(breaking, 0), expected)
    assert capsys.readouterr().err.count("a.npy") == 1
    breaking.failing["b.npy"] = 1000
    assert np.array_equal(drawn(breaking, 0), drawn(breaking, 2))
    breaking.failing["c.npy"] = 1000
    with pytest.raises(ValueError, match="no video in .* can be decoded any more"):
        drawn(breaking, 0)


def test_a_file_that_fails_once_is_read_again_and_nothing_is_said(breaking, capsys):
    expected = drawn(breaking, 0)
    breaking.tried.clear()
    breaking.failing["a.npy"] = 1
    assert np.array_equal(drawn(breaking, 0), expected)
    assert breaking.tried == ["a.npy", "a.npy"] and not capsys.readouterr().err


def test_a_file_that_recovers_comes_back_so_that_a_resumed_run_sees_the_same(breaking):
    expected = [drawn(breaking, index, seed) for seed in range(3) for index in range(3)]
    breaking.failing["a.npy"] = 2
    assert np.array_equal(drawn(breaking, 0), drawn(breaking, 1))
    seen = [drawn(breaking, index, seed) for seed in range(3) for index in range(3)]
    assert np.array_equal(seen, expected)


def test_a_video_that_breaks_on_disk_is_named_once_and_replaced(tmp_path, capsys):
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, moving_box())
    source = VideoFolder(tmp_path, (16, 16, 16), cache_bytes=0)
    (tmp_path / "a.mp4").write_bytes(b"gone bad")
    expected = source.clip(1)[0]
    for _ in range(3):
        assert np.array_equal(source.clip(0)[0], expected)
    assert capsys.readouterr().err.count("a.mp4") == 1
    with pytest.raises(ValueError, match="a.mp4 cannot be decoded"):
        source.clip_at(0, 0, 0.5, 0.5)


def test_the_cache_changes_no_clip(folder):
    cached, not_cached = (VideoFolder(folder, (8, 16, 16), stride=2, cache_bytes=size)
                          for size in (1 << 30, 0))
    for index in range(6):
        for random in (None, 7):
            clips = [source.clip(index, random and np.random.default_rng(random))[0]
                     for source in (cached, not_cached)]
            assert np.array_equal(*clips)


def test_a_folder_that_is_missing_or_holds_no_video_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no data folder"):
        VideoFolder(tmp_path / "gone", (16, 16, 16))
    with pytest.raises(FileNotFoundError, match="no video in"):
        VideoFolder(tmp_path, (16, 16, 16))
    write_video(tmp_path / "a.npy", moving_box(3))
    with pytest.raises(ValueError, match="none of the 1 videos"):
        VideoFolder(tmp_path, (16, 16, 16))
    with pytest.raises(ValueError, match="trained on 'imagenet', which is not on disk; give that"):
        open_source(DataConfig(dataset="imagenet"), (16, 16, 16))


# ---------------------------------------------------------------------------------------------
# Data sets of one's own

class Greys(ClipSource):
    """The least that a data set is: a clip of one grey for each level."""

    def __init__(self, *levels):
        self.levels = levels

    def __len__(self):
        return len(self.levels)

    def clip(self, index, random=None):
        return np.full((4, 8, 8, 3), self.levels[index], np.uint8), NO_LABEL


def test_three_methods_make_a_data_set_and_the_others_have_defaults():
    source = Greys(0, 50, 100)
    assert source.class_names == [] and source.held_out is None
    assert [source.spare_frames(i) for i in range(3)] == [0, 0, 0]
    frames, label = source.clip_at(1, 0, 0.5, 0.5)
    assert label == NO_LABEL and np.array_equal(frames, source.clip(1, None)[0])
    video, label = load_batch(source, 0, 3, seed=0)
    assert video.shape == (3, 3, 4, 8, 8) and label.tolist() == [NO_LABEL] * 3
    assert (video.amax((1, 2, 3, 4)).sort().values * 255).round().tolist() == [0, 50, 100]


def test_a_fingerprint_changes_when_the_clips_do(folder, tmp_path):
    levels = (0, 50, 100)
    assert Greys(*levels).fingerprint() == Greys(*levels).fingerprint()
    others = [Greys(0, 50, 101), Greys(50, 0, 100), Greys(0, 50), Greys(0, 50, 100, 100),
              MovingShapes("train"), MovingShapes("test"), VideoFolder(folder, (4, 8, 8))]
    assert len({source.fingerprint() for source in (Greys(*levels), *others)}) == 8
    prints = set()
    for frames in (20, 30, 30):
        write_video(tmp_path / "a.npy", moving_box(frames))
        prints.add(VideoFolder(tmp_path, (4, 8, 8)).fingerprint())
    assert len(prints) == 2


def test_an_object_is_opened_as_it_is_and_so_are_its_held_out_clips():
    source = Greys(0, 50)
    assert open_source(source, (16, 32, 32)) is source
    assert open_source(source, (16, 32, 32), held_out=True) is source        # there are no others
    source.held_out = Greys(7)
    assert open_source(source, (16, 32, 32)) is source
    assert open_source(source, (16, 32, 32), held_out=True) is source.held_out


def test_an_object_with_no_more_than_three_things_is_given_the_others():
    class Three:
        class_names = ["grey"]
        clip = Greys.clip
        levels = (0, 50)

        def __len__(self):
            return 2

    source = open_source(Three(), (16, 32, 32))
    assert isinstance(source, ClipSource) and len(source) == 2 and source.class_names == ["grey"]
    assert source.fingerprint() == Greys(0, 50).fingerprint() and source.spare_frames(1) == 0
    assert np.array_equal(source.clip_at(1, 0, 0.0, 0.0)[0], Greys(0, 50).clip(1)[0])


def test_drawn_clips_and_folders_have_the_held_out_clips_that_are_named(folder, tmp_path):
    drawn = DataConfig(dataset="shapes")
    assert [len(open_source(drawn, (16, 32, 32), held_out=held)) for held in (False, True)] == [
        320, 64]
    write_video(tmp_path / "a.npy", moving_box())
    shape, data = (8, 16, 16), DataConfig(str(folder), test_root=str(tmp_path))
    assert [len(open_source(data, shape, held_out=held)) for held in (False, True)] == [6, 1]
    assert len(open_source(DataConfig(str(folder)), shape, held_out=True)) == 6      # no others
    assert [config.has_held_out for config in (drawn, data, DataConfig(str(folder)))] == [
        True, True, False]


# ---------------------------------------------------------------------------------------------
# Batches and pictures

class Numbered(MovingShapes):
    """A clip's label is its number."""

    def clip(self, index, random=None):
        return super().clip(index, random)[0], index


def test_an_epoch_visits_every_clip_once_and_the_next_in_another_order():
    source = Numbered("test")
    orders = [[i for step in range(8 * e, 8 * e + 8)
               for i in load_batch(source, step, 8, seed=1)[1].tolist()] for e in range(2)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(64)) and orders[0] != orders[1]


def test_two_processes_together_see_what_one_would(folder):
    source = VideoFolder(folder, (8, 16, 16), flip=True)
    video, label = load_batch(source, 3, 4, seed=5)
    halves = [load_batch(source, 3, 4, seed=5, rank=rank, world=2) for rank in range(2)]
    assert torch.equal(video, torch.cat([half[0] for half in halves]))
    assert torch.equal(label, torch.cat([half[1] for half in halves]))


# ---------------------------------------------------------------------------------------------
# Batches ahead

@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_the_loader_has_the_clips_of_load_batch_in_any_order_of_steps(folder, cache_bytes):
    source = VideoFolder(folder, (8, 16, 16), flip=True, cache_bytes=cache_bytes)
    for rank, world in ((0, 1), (1, 2)):
        with BatchLoader(source, 4, 5, rank, world, threads=3, ahead=2, total=9) as loader:
            for step in (0, 1, 2, 7, 8, 3, 3, 0):
                clips, labels = loader(step)
                video, expected = load_batch(source, step, 4, 5, rank, world)
                assert clips.dtype == torch.uint8 and clips.shape[1:] == (8, 16, 16, 3)
                assert torch.equal(to_float(clips), video) and torch.equal(labels, expected)


class Watched(Numbered):
    """Says by how many threads it is called at a time, and for which steps; 7 may fail."""

    def __init__(self, parallel, wait=0.01):
        super().__init__("test")
        self.parallel, self.wait, self.lock = parallel, wait, threading.Lock()
        self.inside, self.most, self.clips, self.fails = 0, 0, [], False

    def clip(self, index, random=None):
        with self.lock:
            self.inside, self.clips = self.inside + 1, self.clips + [index]
            self.most = max(self.most, self.inside)
        time.sleep(self.wait)
        with self.lock:
            self.inside -= 1
        if self.fails:
            raise ValueError("this clip cannot be drawn")
        return super().clip(index, random)


@pytest.mark.parametrize("parallel, most", [(True, 3), (False, 1)])
def test_a_source_is_called_by_several_threads_only_if_it_says_so(parallel, most):
    source = Watched(parallel)
    with BatchLoader(source, 8, 0, threads=3) as loader:
        loader(0)
    assert source.most == most
    assert VideoFolder.parallel and not ClipSource.parallel


def test_the_next_batches_are_begun_and_none_beyond_the_last():
    source = Watched(True, wait=0)
    with BatchLoader(source, 4, 0, threads=2, ahead=2, total=4) as loader:
        loader(0)
        deadline = time.monotonic() + 10
        while len(source.clips) < 12 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(source.clips) == 12                        # step 0 and two ahead
        for step in range(1, 4):
            loader(step)
        time.sleep(0.05)
        assert len(source.clips) == 16
        with pytest.raises(ValueError, match="step 4 is beyond the last of 4"):
            loader(4)


def test_a_clip_that_fails_raises_where_its_step_is_asked_for_and_may_be_asked_for_again():
    source = Watched(True, wait=0)
    with BatchLoader(source, 4, 0, threads=2, ahead=1) as loader:
        source.fails = True
        with pytest.raises(ValueError, match="this clip cannot be drawn"):
            loader(0)
        source.fails = False
        assert torch.equal(loader(0)[1], load_batch(source, 0, 4, 0)[1])


def test_each_thread_of_a_loader_computes_on_one_core_and_the_others_as_before():
    class Counting(Watched):
        def clip(self, index, random=None):
            self.cores = torch.get_num_threads()
            return super().clip(index, random)

    source, before = Counting(True), torch.get_num_threads()
    with BatchLoader(source, 4, 0, threads=2) as loader:
        loader(0)
    assert source.cores == 1 and torch.get_num_threads() == before


def test_a_loader_that_is_closed_leaves_no_thread_and_does_not_wait_for_what_is_ahead():
    before = threading.active_count()
    source = Watched(False, wait=0.05)
    with BatchLoader(source, 4, 0, ahead=50) as loader:
        loader(0)
        begin = time.monotonic()
    assert time.monotonic() - begin < 2 and threading.active_count() == before
    assert len(source.clips) < 20


def test_bytes_become_the_same_floats_from_an_array_and_from_a_tensor():
    clips = np.arange(256, dtype=np.uint8).reshape(1, 4, 8, 8, 1).repeat(3, -1)
    expected = torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float() / 255
    for given in (clips, torch.from_numpy(clips)):
        assert torch.equal(to_float(given), expected)
    if torch.cuda.is_available():
        assert torch.equal(to_float(torch.from_numpy(clips).cuda()).cpu(), expected)


def test_pixels_survive_the_way_to_floats_and_back():
    clip = moving_box()
    assert np.array_equal(to_frames(to_float(clip[None])[0]), clip)


def test_a_grid_has_a_row_per_name_and_moves(tmp_path, generator):
    videos = list(torch.rand(2, 3, 6, 8, 8, generator=generator))
    write_grid(tmp_path / "grid.gif", [("one", videos), ("two", videos)], ["a", "b"], scale=4)
    gif = imageio.imread(tmp_path / "grid.gif", index=None)
    assert gif.shape[0] == 6 and not np.array_equal(gif[0], gif[1])
    write_grid(tmp_path / "grid.png", [("one", videos)], ["a", "b"], scale=4)
    assert imageio.imread(tmp_path / "grid.png").ndim == 3


def test_one_clip_is_loaded_at_the_models_size(folder):
    clip = load_clip(folder / "walk/e.npy", (8, 24, 24), start=2, stride=2)
    assert clip.shape == (1, 3, 8, 24, 24)


def test_a_fingerprint_sees_the_order_of_frames_and_the_labels():
    class Other(MovingShapes):
        reverse, shift = False, 0

        def clip(self, index, random=None):
            frames, label = super().clip(index, random)
            return frames[::-1] if self.reverse else frames, label + self.shift

    sources = [Other("test") for _ in range(3)]
    sources[1].reverse, sources[2].shift = True, 1
    assert len({source.fingerprint() for source in sources}) == 3


def test_paths_may_be_paths_and_are_kept_as_plain_text(tmp_path):
    assert DataConfig(tmp_path, split=tmp_path) == DataConfig(str(tmp_path), split=str(tmp_path))
    assert type(DataConfig(tmp_path).root) is str


def test_any_object_may_have_held_out_clips():
    class Three:
        class_names, levels, clip = [], (0, 50), Greys.clip
        held_out = Greys(7)

        def __len__(self):
            return 2

    assert open_source(Three(), (16, 32, 32), held_out=True) is Three.held_out
