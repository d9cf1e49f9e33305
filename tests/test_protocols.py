"""App. B.3 as a table, which clips are real, and what may be called FVD."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import evaluate
from commit import MT8
from data.clips import DataConfig, VideoFolder, write_video
from measure.judges import entry
from measure.protocols import (CENTRE, NO_BENCHMARK, PROTOCOLS, Clip, deviations, real_clips,
                               to_measure, uniform_clips)
from training.presets import PRESETS, TrainConfig

APPENDIX_B3 = {   # samples, folds, made at, measured at, split, windows, crops, schedule, temp.
    "ucf101": (10_000, 4, 128, 128, "train", 0, 0, "cosine", 4.5),
    "bair": (25_600, 4, 64, 64, "test", 1, 1, "exp", 400),
    "bair-debiased": (25_600, 4, 64, 64, "test", 15, 1, "cosine", 4.5),
    "k600": (50_000, 4, 128, 64, "test", 2, 3, "uniform", 7.5),
    "k600-v2": (50_000, 4, 128, 64, "test", 2, 3, "cosine", 32),        # MAGVIT-v2, App. A.1
    "ssv2": (50_000, 4, 128, 128, "train", 0, 0, "cosine", 4.5),
    "ssv2-mt": (50_000, 4, 128, 128, "test", 2, 1, "cosine", 4.5),
    "nuscenes": (50_000, 4, 128, 128, "test", 16, 3, "cosine", 4.5),
    "objectron": (50_000, 4, 128, 128, "test", 5, 1, "cosine", 4.5),
    "web": (50_000, 4, 128, 128, "test", 0, 0, "cosine", 4.5),
}


def test_the_protocols_are_appendix_b3():
    assert set(PROTOCOLS) - {*NO_BENCHMARK} == set(APPENDIX_B3)
    for name, wanted in APPENDIX_B3.items():
        row = PROTOCOLS[name]
        assert (row.samples, row.folds, row.resolution, row.measured_at, row.split, row.windows,
                row.crops, row.schedule, row.temperature) == wanted, name
        assert (row.steps, row.frames) == (12, 17 if name == "k600-v2" else 16), name
        assert row.condition_frames == (5 if name.startswith("k600") else 1), name
    assert PROTOCOLS["bair"].best_of == 100 == PROTOCOLS["bair"].samples // 256
    assert PROTOCOLS["bair-debiased"].tasks == MT8 and PROTOCOLS["ssv2"].tasks == ("CG",)


@pytest.mark.parametrize("name", ["bair", "k600", "ucf101", "objectron", "nuscenes", "web"])
def test_presets_and_protocols_agree_on_decoding_and_conditions(name):
    row, preset = PROTOCOLS[name], PRESETS[f"{name}-B"]
    assert row.decoding == dict(steps=preset.decode_steps, schedule=preset.decode_schedule,
                                temperature=preset.decode_temperature)
    assert (row.resolution, row.condition_frames) == (preset.resolution, preset.condition_frames)
    assert row.tasks == preset.tasks


def test_windows_and_crops_are_evenly_spread():
    assert [clip.start for clip in uniform_clips(0, 14, 15, 1)] == list(range(15))    # BAIR
    assert uniform_clips(3, 14, 1, 1) == [Clip(3, 0, CENTRE, CENTRE)]
    kinetics = uniform_clips(0, 284, 2, 3)
    assert [(clip.start, round(clip.x, 3)) for clip in kinetics] == [
        (0, 0), (0, 0.5), (0, 1), (284, 0), (284, 0.5), (284, 1)]
    assert len(uniform_clips(0, 16, 16, 3)) == 48                                # nuScenes
    assert len(uniform_clips(0, 0, 15, 1)) == 1                # no longer than a clip: one place


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three videos of 20 frames, 32 high and 40, 36 and 32 wide: pixel = 10 t + x + shade."""
    root = tmp_path_factory.mktemp("videos")
    for number, width in enumerate((40, 36, 32)):
        t, x = np.arange(20)[:, None, None, None], np.arange(width)[None, None, :, None]
        frames = np.broadcast_to(10 * t + x + number, (20, 32, width, 3)).astype(np.uint8)
        write_video(root / f"{number}.npy", frames)
    return root


def test_a_clip_is_cut_where_its_row_says(folder):
    source = VideoFolder(folder, (16, 32, 32))
    frames, _ = source.clip_at(*Clip(0, 3, 0.0, 1.0))
    assert frames.shape == (16, 32, 32, 3)
    assert frames[0, 0, 0, 0] == 10 * 3 + 8 and frames[2, 0, 5, 0] == 10 * 5 + 8 + 5
    centre, _ = source.clip_at(*Clip(1, 2, CENTRE, CENTRE))
    assert np.array_equal(centre, source.clip(1, None)[0])          # as a batch has the centre


@pytest.mark.parametrize("name", ["ucf101", "bair-debiased"])
def test_real_clips_visit_all_before_any_again_and_do_not_depend_on_the_count(folder, name):
    source, row = VideoFolder(folder, (16, 32, 32)), PROTOCOLS[name]
    clips = real_clips(source, row, 60, seed=1)
    size = 3 if name == "ucf101" else 15                # 3 videos; 5 starts in each of them
    passes = [clips[i:i + size] for i in range(0, 60, size)]
    assert all(sorted(clip.video for clip in part) == sorted(clip.video for clip in passes[0])
               for part in passes)
    if name == "bair-debiased":
        assert all(set(part) == set(passes[0]) and len(set(part)) == size for part in passes)
        assert passes[0] != passes[1]
    assert real_clips(source, row, 7, seed=1) == clips[:7]
    assert real_clips(source, row, 60, seed=2) != clips


def tf1_oracle(picture, size):
    """Output pixel (y, x) lies at (y, x) * in / out; what it reads, one pixel at a time."""
    height, width = len(picture), len(picture[0])
    result = np.zeros((size, size))
    for y in range(size):
        for x in range(size):
            v, u = y * height / size, x * width / size
            top, left = int(v), int(u)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            a, b = v - top, u - left
            result[y, x] = ((1 - a) * ((1 - b) * picture[top, left] + b * picture[top, right])
                            + a * ((1 - b) * picture[bottom, left] + b * picture[bottom, right]))
    return result


def test_kinetics_is_made_at_128_and_measured_at_64_by_every_second_pixel():
    video = torch.rand(1, 3, 2, 128, 128)
    small = to_measure(video, 64)
    assert torch.equal(small, video[..., ::2, ::2])
    assert not torch.allclose(small, F.avg_pool3d(video, (1, 2, 2)), atol=0.1)
    assert torch.equal(to_measure(small, 64), small)


def test_other_sizes_are_cropped_to_the_centre_and_resized_as_tf1_does():
    video = torch.rand(1, 3, 1, 12, 20)
    square = video[0, 0, 0, :, 4:16].double().numpy()
    assert np.allclose(to_measure(video, 9)[0, 0, 0], tf1_oracle(square, 9), atol=1e-6)
    assert torch.equal(to_measure(video, 12), video[..., 4:16])


# ---------------------------------------------------------------------------------------------
# What may be called FVD

VERIFIED = "i3d_pretrained_400.pt, git blob a867b87ac3a9, verified"


def as_in_the_paper(name, **changes):
    row = PROTOCOLS[name]
    train = dict(resolution=row.resolution, frames=row.frames, stride=1,
                 condition_frames=row.condition_frames)
    config = TrainConfig(**train | changes.pop("train", {}))
    trained_on = evaluate.trained_on(SimpleNamespace(data=DataConfig("/train")),
                                     DataConfig(**changes.pop("data", dict(root="/test"))))
    facts = dict(task=row.tasks[0], samples=row.samples * row.folds, folds=row.folds,
                 videos=row.videos, decoding=row.decoding)
    return deviations(name, config=config, trained_on=trained_on, **(facts | changes))


def names(metric, weights, reasons=()):
    judges = {metric: SimpleNamespace(weights=weights)}
    return entry(metric, (1.0, 0.0), 100_000, 4, judges, list(reasons))[0]


@pytest.mark.parametrize("name", APPENDIX_B3)
def test_as_the_paper_does_it_there_is_no_star(name):
    assert as_in_the_paper(name) == []
    assert names("fvd", VERIFIED) == "FVD"


@pytest.mark.parametrize("change", [
    dict(samples=2048), dict(videos=20), dict(train=dict(resolution=32)),
    dict(train=dict(stride=2)), dict(train=dict(frames=24)), dict(train=dict(condition_frames=2)),
    dict(task="CG"), dict(decoding=dict(steps=24, schedule="exp", temperature=400.0)),
    dict(decoding=dict(steps=12, schedule="exp", temperature=400.0, guidance_scale=2.0)),
    dict(data=dict(root="/train")), dict(task="reconstruction"), dict(folds=1)])
def test_any_departure_from_the_protocol_makes_a_star(change):
    reasons = as_in_the_paper("bair", **change)
    assert len(reasons) == 1, reasons
    assert names("fvd", VERIFIED, reasons) == "FVD*"


def test_the_toy_and_random_and_unverified_weights_make_a_star():
    assert as_in_the_paper("toy")
    assert names("fvd", "random (seed 0)") == "FVD*"
    assert names("is", "conv3d_deepnetA_ucf.npz, sha256 012345678901, unverified") == "IS*"
    assert names("is", "a.npz, sha256 01, verified; mean2.npz, sha256 02, unverified") == "IS*"
    assert names("fvd", "unknown") == "FVD*"
    assert names("psnr", "unknown") == "PSNR"                       # which needs no weights
