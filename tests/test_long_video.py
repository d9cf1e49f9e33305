"""App. Figs. 4-5 and 11-12: any length by windows of tokens, any width by outpainting again."""
import itertools
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

import long_video
from data.clips import open_stream, read_video, write_video
from data.moving_shapes import MovingShapes
from data.source import to_float
from long_video import (decode_long, encode_file, encode_long, extend, outpaint, read_tokens,
                        windows)
from training.checkpoint import load_checkpoint, load_network, weights_hash

TOY = ROOT / "assets/toy"


@pytest.fixture(scope="module")
def tokenizer():
    return load_network(load_checkpoint(TOY / "tokenizer.pt"))


@pytest.fixture(scope="module")
def film():
    source = MovingShapes("test")
    return np.concatenate([source.clip(i)[0] for i in range(3)])             # (48, 32, 32, 3)


# ---------------------------------------------------------------------------------------------
# Windows

@pytest.mark.parametrize("count, overlap, starts", [
    (16, 0, [0]), (17, 0, [0, 16]), (48, 0, [0, 16, 32]), (5, 0, [0]), (28, 4, [0, 12]),
    (29, 4, [0, 12, 24]), (24, 8, [0, 8]), (16, 8, [0])])
def test_windows_share_the_overlap_and_the_last_repeats_its_last_frame(count, overlap, starts):
    frames = np.arange(count, dtype=np.uint8)[:, None, None, None]
    found = [window.flatten().tolist() for window in windows(iter(frames), 16, overlap)]
    assert found == [[min(start + i, count - 1) for i in range(16)] for start in starts]


@pytest.mark.parametrize("overlap", [-1, 9, 16])
def test_an_overlap_of_more_than_half_a_window_is_refused(overlap):
    with pytest.raises(ValueError, match="share 0 to 8"):
        list(windows(iter(np.zeros((32, 8, 8, 3), np.uint8)), 16, overlap))


def test_a_video_without_frames_is_refused(tokenizer):
    with pytest.raises(ValueError, match="no frames"):
        list(encode_long(tokenizer, iter([])))


def test_without_overlap_each_window_is_encoded_and_decoded_alone(tokenizer, film):
    tokens = list(encode_long(tokenizer, film))
    frames = np.stack(list(decode_long(tokenizer, tokens)))
    for i, ids in enumerate(tokens):
        clip = to_float(film[None, 16 * i:16 * i + 16])
        assert torch.equal(ids, tokenizer.encode(clip)[0])
        decoded = tokenizer.decode(ids[None]).clamp(0, 1)
        ours = to_float(frames[None, 16 * i:16 * i + 16])
        assert (ours - decoded).abs().max() <= 0.5 / 255 + 1e-6              # rounded to bytes


@pytest.mark.parametrize("overlap", [0, 4, 8])
def test_frames_come_back_as_many_and_as_large_whatever_divides(tokenizer, film, overlap):
    odd = film[:37, :27, :30]
    tokens = encode_long(tokenizer, odd, overlap=overlap)
    assert np.stack(list(decode_long(tokenizer, tokens, overlap, odd.shape[1:3], 37))
                    ).shape == odd.shape


def test_sizes_that_do_not_divide_are_padded_by_their_edge(tokenizer, film):
    padded = np.pad(film[:16, :27, :30], ((0, 0), (0, 5), (0, 2), (0, 0)), mode="edge")
    assert torch.equal(next(encode_long(tokenizer, film[:16, :27, :30])),
                       next(encode_long(tokenizer, padded)))


class Numbered(torch.nn.Module):
    """Decodes a window whose token is k into frames of brightness k / 255."""

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def decode(self, tokens):
        return (tokens.view(1, 1, 1, 1, 1) / 255).expand(1, 3, 16, 8, 8)


@pytest.mark.parametrize("overlap", [0, 1, 4, 8])
def test_a_cross_fade_of_equal_decodes_is_the_identity(overlap):
    tokens = [torch.full((1, 1, 1), 77)] * 3
    frames = np.stack(list(decode_long(Numbered(), tokens, overlap)))
    assert len(frames) == 48 - 2 * overlap and (frames == 77).all()


def test_a_cross_fade_is_a_straight_line_from_one_window_to_the_next():
    tokens = [torch.full((1, 1, 1), k) for k in (100, 180)]
    found = [int(frame[0, 0, 0]) for frame in decode_long(Numbered(), tokens, 4)]
    assert found == [100] * 12 + [100, 120, 140, 160] + [180] * 12


def test_no_more_than_a_window_is_read_ahead(tokenizer, film):
    """Memory does not grow with the length of a video: it may be endless."""
    read = itertools.count()
    endless = (film[next(read) % 48] for _ in itertools.repeat(None))
    decoded = decode_long(tokenizer, encode_long(tokenizer, endless, overlap=4), 4)
    for _ in range(12):
        next(decoded)
    assert next(read) == 16                                  # counts itself: 16 frames were read


# ---------------------------------------------------------------------------------------------
# Files

@pytest.mark.parametrize("overlap", [0, 4])
def test_a_file_of_tokens_holds_what_memory_held(tokenizer, film, tmp_path, overlap):
    encode_file(tokenizer, iter(film[:, :27]), tmp_path / "film.npz", rate=25, overlap=overlap)
    facts = read_tokens(tmp_path / "film.npz", tokenizer)
    memory = torch.stack(list(encode_long(tokenizer, film[:, :27], overlap=overlap)))
    assert np.array_equal(facts["tokens"], memory.numpy()) and facts["tokens"].dtype == np.uint16
    assert (facts["frames"], facts["height"], facts["width"], facts["rate"]) == (48, 27, 32, 25)
    assert (facts["overlap"], facts["codes"]) == (overlap, 512)


def test_the_papers_sizes_compress_614_times():
    words = long_video.size_in_words(dict(frames=4096, height=240, width=432, codes=1024,
                                          tokens=np.empty((256, 4, 30, 54))))
    assert "1,658,880 tokens of 10 bits" in words and words.endswith("614.4 times smaller")


def test_a_damaged_or_cut_file_or_one_of_another_tokenizer_is_refused(tokenizer, film, tmp_path):
    path = tmp_path / "film.npz"
    encode_file(tokenizer, film[:16], path)
    whole = path.read_bytes()
    for place in (0, 70, 120, 150):                       # the signature, and the tokens themselves
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            read_tokens(path, tokenizer)
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="damaged"):
            read_tokens(path, tokenizer)
    path.write_bytes(whole)
    other = load_network(load_checkpoint(TOY / "tokenizer.pt"))
    other.quantizer.codebook.data[5, 5] += 1e-3
    assert weights_hash(other) != weights_hash(tokenizer)
    with pytest.raises(ValueError, match="another tokenizer"):
        read_tokens(path, other)
    with pytest.raises(FileNotFoundError, match="no file"):
        read_tokens(tmp_path / "none.npz", tokenizer)


def test_a_stream_entered_in_the_middle_gives_the_frames_that_counting_gives(film, tmp_path):
    path = tmp_path / "film.mp4"
    write_video(path, iter(np.concatenate([film] * 8)), fps=25)              # some key frames
    whole = read_video(path)
    assert len(whole) == 384
    for start in (0, 1, 17, 250, 251, 383):
        entered = np.stack(list(itertools.islice(open_stream(path, start)[1], 3)))
        assert np.array_equal(entered, whole[start:start + 3])


@pytest.mark.parametrize("name", [
    "odd_videos/bbaf2n.mpg", "odd_videos/transparent.webm", "odd_videos/unordered.mov",
    "odd_videos/no_duration.webm", "odd_videos/pigs_in_a_polka.gif",
    "clips/ucf101/HorseRiding/v_HorseRiding_g01_c03.mp4"])
def test_odd_files_are_entered_at_the_right_frame(name):
    """A format without an index, stamps in milliseconds, a rate that the header has wrong."""
    path = ROOT.parent / "shared" / name
    if not path.exists():
        pytest.skip(f"{path.name} is not on this machine")
    whole = list(itertools.islice(open_stream(path)[1], 80))
    for start in (1, len(whole) // 2, len(whole) - 2):
        entered = list(itertools.islice(open_stream(path, start)[1], 2))
        assert np.array_equal(entered, whole[start:start + 2])


def test_videos_are_written_frame_by_frame(film, tmp_path):
    for suffix in (".mp4", ".npy", ".gif"):
        write_video(tmp_path / f"film{suffix}", iter(film))
        assert read_video(tmp_path / f"film{suffix}").shape == film.shape
    assert np.array_equal(read_video(tmp_path / "film.npy"), film)


# ---------------------------------------------------------------------------------------------
# Beyond the frame, and beyond the end

def columns(first, count, height=32):
    """A clip (1, 3, 4, height, count) whose pixels say in which column they are."""
    return torch.arange(first, first + count).float().expand(1, 3, 4, height, count)


@pytest.mark.parametrize("task", ["OPV", "OPH"])
def test_a_perfect_model_paints_the_world_as_it_is(task):
    """The strip given is the clip's centre half; what is new is what it makes beyond it."""
    seen = []

    def perfect(clip, asked):
        assert asked == task and clip.shape == (1, 3, 4, 32, 32)
        line = clip[0, 0, 0, 16] if task == "OPV" else clip[0, 0, 0, :, 16]
        assert torch.equal(line[8:24], torch.arange(line[8], line[8] + 16))   # never mirrored
        seen.append(int(line[8]))
        world = columns(int(line[8]) - 8, 32)
        return world if task == "OPV" else world.transpose(-1, -2)

    given = columns(100, 16) if task == "OPV" else columns(100, 16).transpose(-1, -2)
    wide = outpaint(perfect, given, 32, right=5, left=5, task=task)
    wide = wide if task == "OPV" else wide.transpose(-1, -2)
    assert torch.equal(wide, columns(60, 96))
    assert seen == [100, 108, 116, 124, 132, 100, 92, 84, 76, 68]


def test_given_pixels_stay_but_for_the_columns_that_fade():
    given = columns(100, 40)
    wide = outpaint(lambda clip, task: torch.zeros_like(clip), given, 32, right=2, left=1)
    assert wide.shape[-1] == 40 + 3 * 8
    assert torch.equal(wide[..., 10:46], given[..., 2:38])
    assert not wide[..., :8].any() and not wide[..., 48:].any()
    left = torch.tensor([1 / 3, 2 / 3])
    assert torch.allclose(wide[..., 8:10], given[..., :2] * left)
    assert torch.allclose(wide[..., 46:48], given[..., 38:] * left.flip(0))
    with pytest.raises(ValueError, match="at least 16"):
        outpaint(None, columns(0, 15), 32, right=1)


@pytest.mark.parametrize("given", [1, 3, 8])
def test_a_perfect_model_goes_on_as_the_world_does(given):
    def perfect(clip, task, condition_frames):
        assert task == "FP" and clip.shape[2] == 16 and condition_frames == given
        first = clip[0, 0, :given, 0, 0]
        assert torch.equal(first, torch.arange(first[0], first[0] + given))
        assert not clip[:, :, given:].any()
        return (first[0] + torch.arange(16.0)).view(16, 1, 1).expand(1, 3, 16, 8, 8)

    start = torch.arange(16.0).view(16, 1, 1).expand(1, 3, 16, 8, 8)
    long = extend(perfect, start, 70, condition_frames=given)
    assert torch.equal(long[0, 0, :, 0, 0], torch.arange(70.0))


# ---------------------------------------------------------------------------------------------
# Commands

def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["long_video.py", *map(str, words)])
    long_video.main()


def test_the_four_commands_do_what_the_map_says(film, tmp_path, monkeypatch, capsys):
    video, tokens = tmp_path / "in.npy", tmp_path / "out.npz"
    write_video(video, film)
    run(monkeypatch, "encode", TOY, video, tokens, "--start", 10, "--overlap", 4)
    run(monkeypatch, "decode", TOY, tokens, tmp_path / "back.npy")
    assert "38 frames of 32x32, 192 tokens of 9 bits" in capsys.readouterr().out
    assert read_video(tmp_path / "back.npy").shape == (38, 32, 32, 3)
    run(monkeypatch, "outpaint", TOY, video, tmp_path / "wide.npy", "--right", 1, "--left", 1)
    run(monkeypatch, "outpaint", TOY, video, tmp_path / "high.npy", "--right", 1, "--task", "OPH")
    run(monkeypatch, "extend", TOY, video, tmp_path / "long.npy", "--frames", 20)
    shapes = [read_video(tmp_path / f"{name}.npy").shape for name in ("wide", "high", "long")]
    assert shapes == [(16, 32, 48, 3), (16, 40, 32, 3), (20, 32, 32, 3)]
    assert np.array_equal(read_video(tmp_path / "long.npy")[:16], film[:16])


def test_what_cannot_be_done_is_said_in_a_line(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="no video"):
        run(monkeypatch, "encode", TOY, tmp_path / "none.mp4", tmp_path / "out.npz")
    (tmp_path / "bad.mp4").write_bytes(b"no video at all")
    with pytest.raises(SystemExit, match="bad.mp4"):
        run(monkeypatch, "encode", TOY, tmp_path / "bad.mp4", tmp_path / "out.npz")
    with pytest.raises(SystemExit, match="no file of tokens"):
        run(monkeypatch, "decode", TOY, tmp_path / "bad.mp4", tmp_path / "out.mp4")
    with pytest.raises(SystemExit, match="choose from .npz"):
        run(monkeypatch, "encode", TOY, tmp_path / "bad.mp4", tmp_path / "out.mp4")
    with pytest.raises(SystemExit):
        run(monkeypatch, "encode", TOY, tmp_path / "bad.mp4", tmp_path / "out.npz", "--start", "-5")
    assert "--start: wanted at least 0" in capsys.readouterr().err
    assert not (tmp_path / "out.npz").exists()
