"""data/clips.py, data/source.py, data/moving_shapes.py and pictures.py: clips in, pictures out."""
import json

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from conftest import ROOT

import data.counts
from data.clips import (DataConfig, VideoFolder, load_clip, open_source, read_video,
                        resize_short_side, write_video)
from data.moving_shapes import MovingShapes
from data.source import NO_LABEL, ClipSource, load_batch, to_float
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


def test_a_video_that_breaks_later_is_named_once_and_replaced(tmp_path, capsys):
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, moving_box())
    source = VideoFolder(tmp_path, (16, 16, 16), cache_bytes=0)
    (tmp_path / "a.mp4").write_bytes(b"gone bad")
    expected = source.clip(1)[0]
    for _ in range(3):
        assert np.array_equal(source.clip(0)[0], expected)
    assert capsys.readouterr().err.count("a.mp4") == 1


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
