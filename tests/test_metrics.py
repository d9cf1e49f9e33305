"""The mathematics of evaluation against closed forms and plain oracles."""
import math

import numpy as np
import pytest
import torch

from measure.judges import measure_videos, score
from measure.metrics import (best_of_trials, frechet_distance, fvd, gaussian, inception_score,
                             motion, over_folds, psnr, ssim)
from measure.networks import I3D, randomize


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def pictures(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_the_frechet_distance_of_a_set_to_itself_is_zero():
    assert abs(fvd(normal(200, 16), normal(200, 16))) < 1e-9


def test_the_frechet_distance_of_diagonal_gaussians_is_the_closed_form():
    means, deviations_ = normal(2, 12, seed=1), normal(2, 12, seed=2).abs()
    wanted = ((means[0] - means[1]) ** 2 + (deviations_[0] - deviations_[1]) ** 2).sum()
    ours = frechet_distance(means[0], deviations_[0].square().diag(),
                            means[1], deviations_[1].square().diag())
    assert math.isclose(ours, wanted, rel_tol=1e-12)


def test_turning_both_sets_changes_nothing_and_doubling_them_quadruples():
    a, b = normal(80, 10), 1 + 2 * normal(90, 10, seed=1)
    rotation = torch.linalg.qr(normal(10, 10, seed=2)).Q
    assert math.isclose(fvd(a @ rotation, b @ rotation), fvd(a, b), rel_tol=1e-10)
    assert math.isclose(fvd(2 * a, 2 * b), 4 * fvd(a, b), rel_tol=1e-10)


@pytest.mark.parametrize("n, m", [(20, 24), (10, 64), (200, 300)])
def test_the_frechet_distance_is_the_nuclear_norm_form_also_when_rank_deficient(n, m):
    """tr sqrt(C1 C2) is the sum of the singular values of the centred features' product."""
    a, b = normal(n, 32), 0.5 + 1.5 * normal(m, 32, seed=1)
    (mean_a, cov_a), (mean_b, cov_b) = gaussian(a), gaussian(b)
    product = ((a - mean_a) / math.sqrt(n - 1)) @ ((b - mean_b) / math.sqrt(m - 1)).T
    wanted = ((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace()
              - 2 * torch.linalg.svdvals(product).sum())
    assert abs(fvd(a, b) - wanted) < 1e-9 * max(1, wanted)


def test_the_inception_score_of_balanced_certainty_is_the_number_of_classes():
    certain = 50 * torch.eye(7).repeat(3, 1)
    assert math.isclose(inception_score(certain), 7, rel_tol=1e-9)
    assert math.isclose(inception_score(certain[:1].expand(9, -1)), 1, rel_tol=1e-9)


def test_psnr_and_ssim_of_equal_of_black_and_white_and_of_a_constant_step():
    x, black = pictures(2, 3, 24, 20), torch.zeros(3, 16, 16)
    assert torch.allclose(ssim(x, x), torch.ones(2, dtype=torch.float64))
    assert psnr(x, x).isinf().all()
    assert math.isclose(ssim(black, black + 1), 0.0001 / 1.0001, rel_tol=1e-9)
    assert math.isclose(psnr(black, black + 0.1), 20, abs_tol=1e-5)


def test_the_best_of_n_is_the_oracles_and_not_the_best_of_each_frame():
    """Per video the mean over frames, then the best trial of the clip, then the mean over clips."""
    per_frame, clips = normal(12, 16), torch.tensor([5, 3, 5, 9, 9, 3, 3, 5, 9, 3, 5, 9])
    best = best_of_trials(per_frame.mean(1), clips)
    oracle = [max(per_frame[i].mean().item() for i in range(12) if clips[i] == clip)
              for clip in (3, 5, 9)]
    assert np.allclose(best, oracle)
    too_good = [per_frame[clips == clip].amax(0).mean().item() for clip in (3, 5, 9)]
    assert best.mean() < np.mean(too_good)


def test_motion_is_that_of_frame_differences_and_flicker_is_none():
    def shares(real, decoded):
        energy, ours, missed = motion(real, decoded).tolist()
        return ours / energy, 1 - missed / energy

    real = torch.rand(2, 3, 4, 8, 8)
    assert shares(real, real) == (1.0, 1.0)
    still = real[:, :, :1].expand_as(real)
    assert shares(real, still) == (0.0, 0.0)
    half = real.mean(2, keepdim=True) / 2 + real / 2              # everything moves half as much
    assert shares(real, half) == pytest.approx((0.25, 0.75))
    energy, kept = shares(real, still / 2 + torch.rand(real.shape) / 2)
    assert energy > 0.1 and kept < 0.2
    torch.testing.assert_close(motion(real[:1], half[:1]) + motion(real[1:], half[1:]),
                               motion(real, half))                # sums, over batches as well


def test_psnr_and_ssim_take_the_best_trial_each_on_its_own_and_lpips_the_mean():
    fake = dict(psnr=torch.tensor([1.0, 2, 3, 4]), ssim=torch.tensor([4.0, 3, 2, 1]),
                lpips=torch.tensor([4.0, 3, 2, 1]))
    numbers = score(["psnr", "ssim", "lpips"], 1, None, fake, torch.tensor([0, 1, 0, 1]))
    assert {name: mean for name, (mean, _) in numbers.items()} == dict(psnr=3.5, ssim=3.5,
                                                                       lpips=2.5)


def test_psnr_is_of_the_frames_that_differ_and_the_others_are_counted():
    real = pictures(2, 3, 2, 16, 16)
    fake = real.clone()
    fake[0, :, 1] = (real[0, :, 1] + 0.1).clamp(0, 1)
    rows = measure_videos({}, ["psnr"], fake, real)
    assert rows["identical"].tolist() == [1, 2] and rows["psnr"][1].isnan()
    assert math.isclose(rows["psnr"][0], psnr(fake[0, :, 1], real[0, :, 1]), rel_tol=1e-6)
    numbers = score(["psnr"], 1, None, rows)
    assert math.isclose(numbers["psnr"][0], rows["psnr"][0], rel_tol=1e-6)


def test_folds_are_cut_in_order_and_their_deviation_is_of_the_population():
    mean, deviation = over_folds(lambda x: x.mean().item(), 2, torch.tensor([1.0, 1, 3, 3]))
    assert (mean, deviation) == (2, 1)


# ---------------------------------------------------------------------------------------------
# Refusals

def test_bad_pixels_are_refused_in_one_line():
    good, bad = pictures(1, 3, 9, 16, 16), pictures(1, 3, 9, 16, 16)
    bad[0, 0, 0, 0, 0] = math.nan
    for video in (bad, good * 255, good - 0.5):
        with pytest.raises(ValueError, match="wanted .*0, 1"):
            psnr(video.transpose(1, 2), good.transpose(1, 2))
        with pytest.raises(ValueError, match="wanted .*0, 1"):
            measure_videos({"fvd": randomize(I3D(), 0)}, ["fvd"], video)
    with pytest.raises(ValueError, match="two equal shapes"):
        psnr(good, good[..., :8])
    with pytest.raises(ValueError, match="11x11"):
        ssim(pictures(3, 10, 12), pictures(3, 10, 12))
    with pytest.raises(ValueError, match="T >= 9"):
        measure_videos({"fvd": randomize(I3D(), 0)}, ["fvd"], good[:, :, :8])


def test_features_that_cannot_be_scored_are_refused():
    with pytest.raises(ValueError, match="at least 2 clips"):
        gaussian(normal(1, 4))
    broken = normal(5, 4)
    broken[2, 1] = math.nan
    for number in (gaussian, inception_score):
        with pytest.raises(ValueError, match="1 of 5 clips"):
            number(broken)
    with pytest.raises(ValueError, match="3 clips do not make 4 equal folds"):
        over_folds(inception_score, 4, normal(3, 4))
