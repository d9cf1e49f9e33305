"""data/source.py, decoding.py, clips.py, moving_shapes.py: frames out of files, clips, batches.

What lies in a folder, lists and archives are in test_files.py.
"""
import errno
import threading
import weakref
from concurrent.futures import wait
from fractions import Fraction

import av
import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from PIL import Image

import data.clips
import data.decoding
from conftest import ROOT
from data.clips import (DataConfig, VideoFolder, check_output, load_clip, open_source,
                        open_stream, read_video, resize_short_side, write_lossless, write_video)
from data.decoding import frame_rate, inspect_file, read_frames
from data.moving_shapes import MovingShapes
from data.source import (NO_LABEL, BatchLoader, all_clips, clip_at, fingerprint, held_out,
                         load_batch, parallel, spare_frames, to_float)
from measure.pictures import to_frames, write_grid

CASES = ROOT.parent / "shared" / "cases"
ODD = ROOT.parent / "shared" / "odd_videos"


def case(name):
    """A file or folder of ../shared/cases; skips the test where it is not on this machine."""
    if not (CASES / name).exists():
        pytest.skip(f"../shared/cases/{name} is not on this machine")
    return CASES / name


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
    """Whether the file can be entered, after many windows were what decoding it all gives."""
    with av.open(str(path)) as file:
        number = sum(1 for _ in file.decode(video=0))
    whole, facts = list(read_frames(path)), inspect_file(path)
    assert facts["frames"] == len(whole) == number and not facts["error"], path.name
    for _ in range(tries):
        start, stride = int(random.integers(len(whole))), int(random.integers(1, 4))
        stop = min(len(whole), start + stride * int(random.integers(1, 17)))
        for keys in (facts["keys"], None):                # as a clip, and as a stream
            window = list(read_frames(path, start, stop, stride, keys))
            assert len(window) == len(range(start, stop, stride)), path.name
            assert all(map(np.array_equal, window, whole[start:stop:stride])), (path.name, start)
    return any(number for number, _ in facts["keys"])


@pytest.mark.parametrize("name", MADE)
def test_windows_are_those_of_the_whole_however_the_video_was_made(name, tmp_path):
    path = encode(tmp_path / name, 130, **MADE[name])
    entered = agrees_with_decoding(path, np.random.default_rng(0), tries=20)
    assert entered == (name not in ("h264.avi", "xvid_b.avi", "b_frames.mp4"))


@needs_shared
@pytest.mark.parametrize("path", SHARED, ids=lambda path: path.name)
def test_counts_and_windows_of_real_files_are_those_of_decoding_them(path):
    if path.name == "corrupted.mp4":
        assert inspect_file(path)["error"].startswith("breaks after 28 frames")
        return
    seldom = path.parent.name == "scenes" or path.suffix in (".webm", ".mkv")
    agrees_with_decoding(path, np.random.default_rng(0), tries=2 if seldom else 6)


def test_a_window_late_in_a_long_video_is_entered_not_decoded_up_to(tmp_path, monkeypatch):
    path = encode(tmp_path / "long.mp4", 400, bf="3", g="50")
    expected, keys = list(read_frames(path))[370:386], inspect_file(path)["keys"]
    frames, decoded = [], data.decoding._decoded
    monkeypatch.setattr(data.decoding, "_decoded", lambda *file: (
        frames.append(frame) or frame for frame in decoded(*file)))
    for known in (keys, None):
        frames.clear()
        assert np.array_equal(list(read_frames(path, 370, 386, keys=known)), expected)
        assert len(frames) < 50 + 16


def test_key_frames_that_are_not_where_they_were_said_to_be_are_noticed_by_their_stamps(tmp_path):
    path = encode(tmp_path / "a.mp4", 100, g="20")
    expected, keys = list(read_frames(path))[50:60], inspect_file(path)["keys"]
    for moved in (-1, 1, 10 ** 9):
        wrong = [[number, stamp + moved] for number, stamp in keys]
        assert np.array_equal(list(read_frames(path, 50, 60, keys=wrong)), expected)


def test_frames_at_a_changing_rate_are_entered_as_any_others(tmp_path):
    path = encode(tmp_path / "a.mp4", 100, g="20", stamps=lambda t: t + t // 10)
    assert agrees_with_decoding(path, np.random.default_rng(0), tries=10)


def test_files_that_were_cut_short_are_not_trusted(tmp_path):
    """At the end, where packets are missing; and in front, where frames wait for a key frame."""
    path = encode(tmp_path / "a.mp4", 100, g="20", bf="2", movflags="faststart")
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) * 2 // 3])
    assert inspect_file(path)["frames"] < 100
    path.write_bytes(whole)
    late = tmp_path / "late.mkv"
    with av.open(str(path)) as old, av.open(str(late), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in list(old.demux(video=0))[5:-1]:
            packet.stream = stream
            new.mux(packet)
    assert inspect_file(late)["frames"] == len(list(read_frames(late)))


# ---------------------------------------------------------------------------------------------
# What a file shows, and not what its header says

def pixels_of(name, count=8, size=(48, 48)):
    """The clips of the files of a case, (files, T, H, W, 3)."""
    files = sorted(path for path in case(name).iterdir() if not path.name.startswith("."))
    return np.stack([load_clip(path, (count, *size))[0].numpy() for path in files])


def psnr(name, other, **options):
    squares = (pixels_of(name, **options).astype(float) - pixels_of(other, **options)) ** 2
    return -10 * np.log10(squares.mean())


def test_clips_upright_by_a_flag_measure_as_the_same_clips_stored_upright():
    flagged, stored = (psnr(f"rotated_phones/real{kind}", f"rotated_phones/fake{kind}", count=16,
                            size=(64, 48)) for kind in ("", "_upright"))
    assert abs(flagged - stored) < 0.3 and stored < 25
    for path in sorted(case("rotated_phones/real").iterdir()):
        facts = inspect_file(path)
        assert facts["height"] > facts["width"]
        assert next(read_frames(path)).shape == (facts["height"], facts["width"], 3)


def test_pictures_and_frames_are_upright_by_exif(tmp_path):
    upright = np.zeros((24, 16, 3), np.uint8)
    upright[:6] = 200
    turned = Image.Exif()
    turned[0x0112] = 6                                     # stored on its side: turn clockwise
    (tmp_path / "a").mkdir()
    for t in range(4):
        Image.fromarray(np.rot90(upright)).save(tmp_path / "a" / f"{t}.png", exif=turned)
    assert np.array_equal(read_video(tmp_path / "a"), [upright] * 4)
    facts = inspect_file(tmp_path / "a" / "0.png")
    assert (facts["height"], facts["width"], facts["error"]) == (24, 16, "")


def test_sixteen_bits_of_grey_become_eight_and_not_white(tmp_path):
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    picture = next(read_frames(tmp_path / "ramp.png"))
    assert np.abs(picture - (ramp / 257.0)[:, :, None]).max() <= 0.51
    assert 7 < psnr("grey16_png/real", "grey16_png/fake") < 10
    video = read_video(case("misc/grey.mkv"))
    assert 10 < len(np.unique(video)) <= 256


MATRICES = {   # of a film header, row by row, beside what they show
    "as it is": ((1, 0, 0, 1), lambda x: x), "hflip": ((-1, 0, 0, 1), lambda x: x[:, ::-1]),
    "vflip": ((1, 0, 0, -1), lambda x: x[::-1]),
    "half": ((-1, 0, 0, -1), lambda x: x[::-1, ::-1]),
    "clockwise": ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),
    "counter": ((0, -1, 1, 0), lambda x: np.rot90(x)),
    "transpose": ((0, 1, 1, 0), lambda x: x.swapaxes(0, 1)),
    "antitranspose": ((0, -1, -1, 0), lambda x: np.rot90(x.swapaxes(0, 1), 2))}


@pytest.mark.parametrize("name", MATRICES)
def test_turned_and_mirrored_films_are_shown_upright(tmp_path, name):
    """The matrix is written into the film's track header, as a phone does."""
    (right, up, across, down), shown = MATRICES[name]
    video = np.random.default_rng(0).integers(0, 255, (4, 3, 2, 3), np.uint8).repeat(16, 1).repeat(
        16, 2)
    write_video(tmp_path / "a.mp4", video)
    plain = read_video(tmp_path / "a.mp4")
    film = bytearray((tmp_path / "a.mp4").read_bytes())
    place = film.index(b"tkhd") + 4 + 40                   # after times, number, layer, volume
    fixed = [right << 16, up << 16, 0, across << 16, down << 16, 0, 0, 0, 1 << 30]
    film[place:place + 36] = np.array(fixed, ">i4").tobytes()
    (tmp_path / "b.mp4").write_bytes(film)
    expected = np.stack([shown(frame) for frame in plain])
    assert np.array_equal(read_video(tmp_path / "b.mp4"), expected)
    facts = inspect_file(tmp_path / "b.mp4")
    assert (facts["height"], facts["width"]) == expected.shape[1:3]


def test_transparent_parts_are_on_black(tmp_path):
    colours = np.full((8, 16, 4), 200, np.uint8)
    colours[:, :8, 3], colours[:, 8:, 3] = 0, 128
    Image.fromarray(colours).save(tmp_path / "a.png")
    Image.fromarray(colours).save(tmp_path / "a.webp", lossless=True, exact=True)
    for name in ("a.png", "a.webp"):
        picture = next(read_frames(tmp_path / name))
        assert (picture[:, :8] == 0).all() and (picture[:, 8:] == 100).all()
    with av.open(str(tmp_path / "a.mov"), "w") as file:
        stream = file.add_stream("qtrle", rate=8)
        stream.width, stream.height, stream.pix_fmt = 16, 8, "argb"
        for packet in (*stream.encode(av.VideoFrame.from_ndarray(colours, "rgba")),
                       *stream.encode()):
            file.mux(packet)
    picture = read_video(tmp_path / "a.mov")[0]
    assert (picture[:, :8] == 0).all() and (picture[:, 8:] == 100).all()


def test_pixels_that_are_not_square_are_made_so(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        stream = file.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        for frame in moving_box(4, 48, 64):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        file.mux(stream.encode())
    assert read_video(tmp_path / "a.mp4").shape == (4, 48, 85, 3)
    assert inspect_file(tmp_path / "a.mp4")["width"] == 85


def test_a_still_picture_before_the_film_is_not_the_film_and_sound_alone_is_named():
    facts = inspect_file(case("misc/thumb_first.mkv"))
    assert facts["frames"] > 1 and not facts["error"]
    assert len(read_video(case("misc/thumb_first.mkv"))) == facts["frames"]
    assert inspect_file(case("misc/one.mp4"))["frames"] == 1
    assert "has no video in it" in inspect_file(case("misc/audio.mp4"))["error"]


@pytest.mark.parametrize("name", ["phone.mp4", "vfr.mp4"])
def test_a_stream_and_a_clip_begin_at_the_frame_that_was_asked_for(name):
    path = case(f"changing_rate/{name}")
    whole = read_video(path)
    keys = inspect_file(path)["keys"]
    for start in (1, 30, 60, len(whole) - 5):
        _, stream = open_stream(path, start)
        assert np.array_equal(next(stream), whole[start]) and np.array_equal(
            next(stream), whole[start + 1])
        assert np.array_equal(list(read_frames(path, start, start + 4, keys=keys)),
                              whole[start:start + 4])


def test_gifs_that_merge_equal_frames_have_them_back_by_their_delays():
    for path in sorted(case("gif_of_mp4/real").iterdir()):
        merged = case("gif_of_mp4/fake") / f"{path.stem}.gif"
        assert inspect_file(merged)["frames"] == inspect_file(path)["frames"]
    assert psnr("gif_of_mp4/real", "gif_of_mp4/fake", count=15) > 35


@pytest.mark.parametrize("rate, kept", [(8, 8), (25, 25), (30, 30), (60, 50)])
def test_our_gifs_have_as_many_frames_as_they_are_given_and_their_speed(tmp_path, rate, kept):
    still = np.repeat(moving_box(1), 20, 0)
    for name, video in (("still", still), ("half", np.concatenate([still, moving_box()]))):
        write_video(tmp_path / f"{name}.gif", video, rate)
        assert len(read_video(tmp_path / f"{name}.gif")) == len(video)
        assert inspect_file(tmp_path / f"{name}.gif")["frames"] == len(video)
        assert abs(frame_rate(tmp_path / f"{name}.gif") - kept) < 0.06 * kept
        with Image.open(tmp_path / f"{name}.gif") as gif:
            assert gif.n_frames == len(video)
    frames = read_video(case("equal_frames/still.mp4"))
    write_video(tmp_path / "c.gif", frames, rate)
    assert len(read_video(tmp_path / "c.gif")) == len(frames) == 20


# ---------------------------------------------------------------------------------------------
# Whatever a decoder raises names the file; a film's length takes no memory

@pytest.mark.parametrize("name, good", [("unknown_codec", 3), ("npz_named_npy", 1)])
def test_a_file_that_nobody_can_decode_is_named_once_and_left_out(name, good, capsys):
    source = VideoFolder(case(name), (4, 16, 16))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped")]
    assert len(said) == 1 and len(source) == good
    assert all(source.clip(index)[0].shape == (4, 16, 16, 3) for index in range(len(source)))


def test_a_stream_that_changes_its_size_is_named():
    path = case("changes_size/c.mpg")
    assert "pixels, the first is" in inspect_file(path)["error"]
    with pytest.raises(ValueError, match="c.mpg.*pixels, the first is"):
        read_video(path)


def test_odd_sizes_are_written_with_every_pixel(tmp_path):
    video = read_video(case("odd_size/odd.avi"))
    write_video(tmp_path / "back.mp4", video)
    back = read_video(tmp_path / "back.mp4")
    assert back.shape == video.shape and np.abs(back.astype(int) - video).mean() < 8


def test_lossless_films_give_back_every_pixel(tmp_path):
    video = np.random.default_rng(0).integers(0, 255, (5, 33, 47, 3), np.uint8)
    write_lossless(tmp_path / "a.mp4", video)
    assert np.array_equal(read_video(tmp_path / "a.mp4"), video)


def test_where_a_video_cannot_go_is_said_before_and_what_is_there_stays(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").write_text("")
    for name, message in (("a.xyz", "has the suffix '.xyz'; choose from .mp4"),
                          ("folder.mp4", "is a folder"), ("file/a.mp4", "cannot be written")):
        with pytest.raises(ValueError, match=message):
            check_output(tmp_path / name)
    write_video(tmp_path / "a.mp4", moving_box())
    before = (tmp_path / "a.mp4").read_bytes()

    def failing():
        yield moving_box(1)[0]
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        write_video(tmp_path / "a.mp4", failing())
    with pytest.raises(ValueError, match="no frames to write"):
        write_video(tmp_path / "a.mp4", [])
    assert (tmp_path / "a.mp4").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "file", "folder.mp4"]


def test_frames_are_resized_as_they_come():
    """A frame that was read is let go before the next is: so a film's size takes no memory."""
    alive = []

    def frames():
        for t in range(20):
            frame = np.zeros((400, 400, 3), np.uint8)
            alive.append(weakref.ref(frame))
            yield frame
            del frame
            assert sum(each() is not None for each in alive) <= 2

    assert resize_short_side(frames(), 16, 16).shape == (20, 16, 16, 3)


# ---------------------------------------------------------------------------------------------
# Folders

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


class Uncached(VideoFolder):
    """Videos are decoded each time, small as they are."""

    cache_bytes = 0


@pytest.fixture
def breaking(tmp_path, monkeypatch):
    """Three videos that tell their number by their brightness; `failing` says, by name,
    how often each still fails."""
    for number, name in enumerate("abc"):
        write_video(tmp_path / f"{name}.npy", moving_box() + np.uint8(number))
    source = Uncached(tmp_path, (8, 16, 16), flip=True)
    source.failing = {}
    read = data.clips.read_frames

    def fails(path, *window):
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
    with pytest.raises(OSError, match="the disk does not answer"):
        breaking.clip_at(0, 0, 0.5, 0.5)                     # an evaluation takes no stand-in
    breaking.failing["b.npy"] = 1000
    assert np.array_equal(drawn(breaking, 0), drawn(breaking, 2))
    breaking.failing["c.npy"] = 1000
    with pytest.raises(ValueError, match="no video in .* can be decoded any more"):
        drawn(breaking, 0)


@pytest.mark.parametrize("times, stand_in", [(1, 0), (2, 1)])
def test_a_file_that_recovers_comes_back_so_that_a_resumed_run_sees_the_same(
        breaking, capsys, times, stand_in):
    expected = [drawn(breaking, index, seed) for seed in range(3) for index in range(3)]
    breaking.failing["a.npy"] = times
    assert np.array_equal(drawn(breaking, 0), drawn(breaking, stand_in))
    assert bool(capsys.readouterr().err) == (times > 1)      # one failure is tried again
    seen = [drawn(breaking, index, seed) for seed in range(3) for index in range(3)]
    assert np.array_equal(seen, expected)


def test_the_cache_changes_no_clip(folder):
    cached, not_cached = (kind(folder, (8, 16, 16), stride=2) for kind in (VideoFolder, Uncached))
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

class Greys:
    """The least that a data set is: a clip of one grey for each level."""

    class_names = ()

    def __init__(self, *levels):
        self.levels = levels

    def __len__(self):
        return len(self.levels)

    def clip(self, index, random=None):
        return np.full((4, 8, 8, 3), self.levels[index], np.uint8), NO_LABEL


def test_three_things_make_a_data_set_and_the_others_have_defaults():
    source = Greys(0, 50, 100)
    assert held_out(source) is None and not parallel(source)
    assert [spare_frames(source, i) for i in range(3)] == [0, 0, 0]
    frames, label = clip_at(source, 1, 0, 0.5, 0.5)
    assert label == NO_LABEL and np.array_equal(frames, source.clip(1, None)[0])
    video, label = load_batch(source, 0, 3, seed=0)
    assert video.shape == (3, 3, 4, 8, 8) and label.tolist() == [NO_LABEL] * 3
    assert (video.amax((1, 2, 3, 4)).sort().values * 255).round().tolist() == [0, 50, 100]


def test_a_fingerprint_changes_when_the_clips_do(folder, tmp_path):
    levels = (0, 50, 100)
    assert fingerprint(Greys(*levels)) == fingerprint(Greys(*levels))
    others = [Greys(0, 50, 101), Greys(50, 0, 100), Greys(0, 50), Greys(0, 50, 100, 100),
              MovingShapes("train"), MovingShapes("test"), VideoFolder(folder, (4, 8, 8))]
    assert len({fingerprint(source) for source in (Greys(*levels), *others)}) == 8
    prints = set()
    for frames in (20, 30, 30):
        write_video(tmp_path / "a.npy", moving_box(frames))
        prints.add(fingerprint(VideoFolder(tmp_path, (4, 8, 8))))
    assert len(prints) == 2


def test_an_object_is_opened_as_it_is_and_so_are_its_held_out_clips():
    source = Greys(0, 50)
    assert open_source(source, (16, 32, 32), held_out=True) is source        # there are no others
    source.held_out = Greys(7)
    assert open_source(source, (16, 32, 32)) is source
    assert open_source(source, (16, 32, 32), held_out=True) is source.held_out


def test_a_label_that_is_no_class_is_refused():
    class Labelled(Greys):
        class_names, label = ("one", "two"), 2

        def clip(self, index, random=None):
            return super().clip(index, random)[0], self.label

    source = Labelled(0)
    for source.label in (2, -2):
        with pytest.raises(ValueError, match=f"has the label {source.label}; wanted -1 .* 2 class"):
            load_batch(source, 0, 1, seed=0)
    for source.label in (0, 1, NO_LABEL):
        assert load_batch(source, 0, 1, seed=0)[1].tolist() == [source.label]


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

    def __init__(self, split):
        super().__init__(split)
        self.class_names = range(len(self))

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

@pytest.mark.parametrize("kind", [VideoFolder, Uncached])
def test_the_loader_has_the_clips_of_load_batch_in_any_order_of_steps(folder, kind):
    source = kind(folder, (8, 16, 16), flip=True)
    for rank, world in ((0, 1), (1, 2)):
        with BatchLoader(source, 4, 5, rank, world, threads=3, total=9) as loader:
            for step in (0, 1, 2, 7, 8, 3, 3, 0):
                clips, labels = loader(step)
                video, expected = load_batch(source, step, 4, 5, rank, world)
                assert clips.dtype == torch.uint8 and clips.shape[1:] == (8, 16, 16, 3)
                assert torch.equal(to_float(clips), video) and torch.equal(labels, expected)


class Watched(Numbered):
    """Notes which threads ask for which clips, and with how many cores; may be told to fail."""

    def __init__(self, together=1):
        super().__init__("test")
        self.parallel, self.meet = together > 1, threading.Barrier(together)
        self.threads, self.cores, self.clips, self.fails = set(), set(), [], False

    def clip(self, index, random=None):
        self.meet.wait(10)                          # breaks unless so many threads are inside
        self.threads.add(threading.get_ident())
        self.cores.add(torch.get_num_threads())
        self.clips.append(index)
        if self.fails:
            raise ValueError("this clip cannot be drawn")
        return super().clip(index, random)


@pytest.mark.parametrize("together", [1, 3])
def test_a_source_is_called_by_several_threads_of_one_core_only_if_it_says_so(together):
    source, before = Watched(together), (torch.get_num_threads(), threading.active_count())
    with BatchLoader(source, 6, 0, threads=3, total=1) as loader:
        loader(0)
    assert len(source.threads) == together and source.cores == {1}
    assert (torch.get_num_threads(), threading.active_count()) == before


def test_the_next_batches_are_begun_and_none_beyond_the_last():
    source = Watched()
    with BatchLoader(source, 4, 0, total=4) as loader:
        for step, begun in ((0, 12), (1, 16), (3, 16)):
            loader(step)
            wait([clip for clips in loader._begun.values() for clip in clips])
            assert len(source.clips) == begun                # of this step and two ahead
        with pytest.raises(ValueError, match="step 4 is beyond the last of 4"):
            loader(4)


def test_a_clip_that_fails_raises_where_its_step_is_asked_for_and_may_be_asked_for_again():
    source = Watched()
    with BatchLoader(source, 4, 0, threads=2) as loader:
        source.fails = True
        with pytest.raises(ValueError, match="this clip cannot be drawn"):
            loader(0)
        source.fails = False
        assert torch.equal(loader(0)[1], load_batch(source, 0, 4, 0)[1])


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


def test_paths_may_be_paths_and_are_kept_as_plain_text(tmp_path):
    assert DataConfig(tmp_path, split=tmp_path) == DataConfig(str(tmp_path), split=str(tmp_path))
    assert type(DataConfig(tmp_path).root) is str
