"""The mathematics of evaluation: two pictures, two sets of videos, and their honest averages.

Paper   Sec. 4 (evaluation metrics), App. B.3

Shapes  pictures (..., 3, H, W) in [0, 1], two of them -> psnr, ssim (...), one value per frame
        features (n, D), two sets of them -> fvd: one number
        logits (n, classes) -> inception_score: one number
        one value per sample (n,), its clip (n,) -> best_of_trials (clips,)

Read    psnr, ssim; frechet_distance, gaussian, fvd; inception_score; over_folds.

All in float64: float32 is wrong in the second decimal of an FVD.

Not here: the networks that make features and logits (networks.py), how many samples of what
        (protocols.py), running it all (evaluate.py).
"""
from __future__ import annotations

import math
from typing import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


# ---------------------------------------------------------------------------------------------
# Pictures against pictures

def frames_of(video: Tensor) -> Tensor:
    """Videos (B, 3, T, H, W) -> pictures (B, T, 3, H, W)."""
    return rearrange(video, "b c t h w -> b t c h w")


def refuse_range(pixels: Tensor, what: str) -> None:
    """ValueError unless all pixels are in [0, 1], give or take a thousandth."""
    low, high = pixels.aminmax()
    if not (low >= -0.001 and high <= 1.001):              # so written, NaN is refused as well
        raise ValueError(f"{what} range from {low:.3f} to {high:.3f}; wanted [0, 1]: divide "
                         "bytes by 255, clip a decoder's output")


def check_pictures(a: Tensor, b: Tensor, smallest: int = 1) -> None:
    """ValueError unless both are one shape (..., 3, H, W), H and W >= smallest, in [0, 1]."""
    if a.shape != b.shape or a.ndim < 3 or a.shape[-3] != 3 or min(a.shape[-2:]) < smallest:
        raise ValueError(f"pictures of {tuple(a.shape)} and {tuple(b.shape)}; wanted two equal "
                         f"shapes (..., 3, H, W) of at least {smallest}x{smallest} pixels")
    for picture in (a, b):
        refuse_range(picture, "pixels")


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of (..., 3, H, W) in [0, 1] -> (...); equal ones: inf."""
    check_pictures(a, b)
    return -10 * torch.log10((a.double() - b.double()).square().mean(dim=(-3, -2, -1)))


def mean_of_finite(values: Tensor) -> Tensor:
    """Mean over the last axis of those values that are finite, NaN where none is: one picture
    that is equal to the real one would make a mean of PSNRs infinite."""
    return torch.where(values.isfinite(), values, torch.nan).nanmean(-1)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of (..., 3, H, W) in [0, 1] -> (...), as the official code has it.

    On one grey channel (0.2125, 0.7154, 0.0721), 11-tap Gaussian of deviation 1.5, only where the
    window fits, K1 = 0.01, K2 = 0.03. Colour by colour or with borders gives other numbers.
    """
    check_pictures(a, b, smallest=11)
    luminance, contrast = ssim_terms(*(grey(picture) for picture in (a, b)))
    return (luminance * contrast).mean(dim=(-2, -1))


def motion(real: Tensor, decoded: Tensor) -> Tensor:
    """Energies (3,) of the differences between neighbouring frames of (B, 3, T, H, W): in real
    videos, in decoded ones, and of what the decoded differences miss or add.

    They are sums, to be added over batches. Decoded over real is 0 for a still picture, and
    flicker adds to it; 1 - missed over real is the share of the motion that is explained, and
    flicker takes from it.
    """
    check_pictures(frames_of(real), frames_of(decoded))
    d, ours = real.double().diff(dim=2), decoded.double().diff(dim=2)
    return torch.stack([x.square().sum() for x in (d, ours, ours - d)])


def grey(picture: Tensor) -> Tensor:
    """(..., 3, H, W) -> (..., H, W) in float64, as bright as it looks."""
    weights = torch.tensor([0.2125, 0.7154, 0.0721], dtype=torch.float64, device=picture.device)
    return torch.einsum("...chw,c->...hw", picture.double(), weights)


def ssim_terms(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance, contrast-structure of (..., H, W) where the window fits. The product is SSIM."""
    tap = torch.arange(-5, 6, dtype=torch.float64, device=x.device)
    window = torch.exp(-tap.square() / (2 * 1.5 ** 2))
    window = window / window.sum()

    def blur(picture: Tensor) -> Tensor:
        flat = rearrange(picture, "... h w -> (...) 1 h w")
        flat = F.conv2d(F.conv2d(flat, window[None, None, :, None]), window[None, None, None])
        return flat.view(*picture.shape[:-2], *flat.shape[-2:])

    mean_x, mean_y = blur(x), blur(y)
    var_x = (blur(x * x) - mean_x.square()).clamp(min=0)
    var_y = (blur(y * y) - mean_y.square()).clamp(min=0)
    cov = blur(x * y) - mean_x * mean_y
    limit = (var_x * var_y).sqrt()                        # rounding must not make them disagree
    cov = cov.clamp(-limit, limit)
    c1, c2 = 0.01 ** 2, 0.03 ** 2
    return ((2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1),
            (2 * cov + c2) / (var_x + var_y + c2))


def best_of_trials(values: Tensor, clips: Tensor) -> Tensor:
    """The best of each clip's trials. values (n,), one per generated video, already averaged over
    its frames; clips (n,) int says which real clip it tried to predict -> (clips,).

    Each metric takes its own best trial (App. B.3, "best value from 100 trials"). The best per
    frame, averaged afterwards, would be a higher number that nobody reports.
    """
    _, number = clips.unique(return_inverse=True)
    values = values.double()
    return values.new_full((int(number.max()) + 1,), -torch.inf).scatter_reduce(
        0, number, values, "amax")


# ---------------------------------------------------------------------------------------------
# Sets of videos against sets of videos

def frechet_distance(mean1: Tensor, covariance1: Tensor, mean2: Tensor, covariance2: Tensor
                     ) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two Gaussians, in float64.

    The root is taken symmetrically, tr (A C2 A)^(1/2) with A = C1^(1/2), as TF-GAN does it: no
    epsilon on the diagonal, singular values below 1e-10 are not rooted.
    """
    mean1, covariance1, mean2, covariance2 = (
        torch.as_tensor(x).double() for x in (mean1, covariance1, mean2, covariance2))
    root = symmetric_root(covariance1)
    trace = symmetric_root(root @ covariance2 @ root).trace()
    distance = ((mean1 - mean2).square().sum() + covariance1.trace() + covariance2.trace()
                - 2 * trace)
    return distance.item()


def symmetric_root(matrix: Tensor) -> Tensor:
    u, values, vh = torch.linalg.svd(matrix)
    return u @ torch.diag(torch.where(values < 1e-10, values, values.sqrt())) @ vh


def gaussian(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D), divided by n - 1, of features (n, D), in float64."""
    features = finite(features).double()
    return features.mean(0), features.T.cov()


def finite(features: Tensor) -> Tensor:
    """Features (n, D) as they are. ValueError unless there are two or more, all of them finite."""
    features = torch.as_tensor(features)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features of shape {tuple(features.shape)}; wanted (clips, D) of at "
                         "least 2 clips")
    if not features.isfinite().all():
        raise ValueError(f"{(~features.isfinite().all(1)).sum()} of {len(features)} clips have "
                         "features that are not finite: look for NaN in their pixels")
    return features


def fvd(real: Tensor, fake: Tensor) -> float:
    """Frechet distance of two sets of features (n, D) and (m, D); of I3D's logits it is FVD."""
    return frechet_distance(*gaussian(real), *gaussian(fake))


def inception_score(logits: Tensor) -> float:
    """exp of the mean KL divergence of each clip's classes from their mean. logits (n, classes)."""
    log_p = F.log_softmax(finite(logits).double(), dim=1)
    p = log_p.exp()
    log_mean = torch.logsumexp(log_p, 0) - math.log(len(log_p))
    return (p * (log_p - log_mean)).sum(1).mean().exp().item()


def over_folds(score: Callable[..., float], folds: int, *sets: Tensor) -> tuple[float, float]:
    """Mean and population deviation of a score over the folds of its sets, cut in order."""
    for features in sets:
        if len(features) % folds or not len(features):
            raise ValueError(f"{len(features)} clips do not make {folds} equal folds; give a "
                             f"multiple of {folds}")
    scores = torch.tensor([score(*parts) for parts in zip(*(
        features.chunk(folds) for features in sets))], dtype=torch.float64)
    return scores.mean().item(), scores.std(correction=0).item()
