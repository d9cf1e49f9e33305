"""The mathematics of evaluation: two pictures, two sets of videos, and their honest averages.

Paper   Sec. 4 (evaluation metrics), App. B.3

Shapes  pictures (..., 3, H, W) in [0, 1], two of them -> psnr, ssim (...), one value per frame
        features (n, D), two sets of them -> fvd, kvd: one number
        logits (n, classes) -> inception_score: one number
        one value per sample (n,), its clip (n,) -> best_of_trials (clips,)

Read    psnr, ssim; frechet_distance, gaussian, fvd; fvd_infinity; inception_score; over_folds.

All in float64: float32 is wrong in the second decimal of an FVD.

Not here: the networks that make features and logits (pretrained.py), how many samples of what
        (protocols.py), running it all (evaluate.py).

Run:    python -m measure.metrics       how each number reacts; how FVD depends on the sample count
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


def motion(real: Tensor, decoded: Tensor) -> tuple[float, float]:
    """How much of the motion of real videos is left in decoded ones, both (B, 3, T, H, W).

    First the energy of the differences between neighbouring frames, decoded over real: a still
    picture has 0, and flicker adds to it. Then the share of the real differences that the decoded
    ones explain, 1 - |d' - d|^2 / |d|^2: flicker takes from it. NaN where nothing real moves.
    """
    check_pictures(frames_of(real), frames_of(decoded))
    d, ours = real.double().diff(dim=2), decoded.double().diff(dim=2)
    energy = d.square().sum()
    return (ours.square().sum() / energy).item(), (1 - (ours - d).square().sum() / energy).item()


# Wang et al. 2003: what the eye makes of each scale, from the finest on.
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def ms_ssim(a: Tensor, b: Tensor, scales: int = 5) -> Tensor:
    """Multi-scale structural similarity of (..., 3, H, W) in [0, 1] -> (...) (Wang et al. 2003).

    The product of the mean contrasts of all scales, each half as fine as the one before, and of
    the coarsest one's SSIM, each to the power of its weight. On grey and with ssim's window. Five
    scales need 161 pixels a side; an odd side repeats its last pixel (TensorFlow). Fewer, with
    weights that make one again, are another measure: say so. Where structure is opposite (below
    0) it counts as none.
    """
    if not 1 <= scales <= 5:
        raise ValueError(f"{scales} scales; wanted 1 to 5")
    check_pictures(a, b, smallest=10 * 2 ** (scales - 1) + 1)
    x, y = (rearrange(grey(picture), "... h w -> (...) 1 h w") for picture in (a, b))
    similarity = torch.ones(len(x), dtype=torch.float64, device=x.device)
    for scale in range(scales):
        luminance, contrast = ssim_terms(x, y)
        last = contrast * luminance if scale == scales - 1 else contrast
        power = SCALE_WEIGHTS[scale] / sum(SCALE_WEIGHTS[:scales])
        similarity = similarity * last.mean(dim=(-3, -2, -1)).clamp(min=0) ** power
        x, y = (F.avg_pool2d(F.pad(picture, (0, picture.shape[-1] % 2, 0, picture.shape[-2] % 2),
                                   mode="replicate"), 2) for picture in (x, y))
    return similarity.view(a.shape[:-3])


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


def kvd(real: Tensor, fake: Tensor) -> float:
    """Squared maximum mean discrepancy of two sets of features (n, D) and (m, D), unbiased; of
    I3D's logits it is KVD (Unterthiner et al. 2018): the kernel is (x.y / D + 1)^3.

    Its mean over small sets is that of large ones, which FVD's is not; it may be below 0.
    """
    real, fake = (finite(features).double() for features in (real, fake))

    def kernel_sum(a: Tensor, b: Tensor) -> float:
        return sum(((part @ b.T / b.shape[1] + 1) ** 3).sum().item() for part in a.split(1024))

    def among_themselves(x: Tensor) -> float:              # without pairs of a clip with itself
        alone = ((x.square().sum(1) / x.shape[1] + 1) ** 3).sum().item()
        return (kernel_sum(x, x) - alone) / (len(x) * (len(x) - 1))

    return (among_themselves(real) + among_themselves(fake)
            - 2 * kernel_sum(real, fake) / (len(real) * len(fake)))


def fvd_infinity(real: Tensor, fake: Tensor, smallest: int = 5000, points: int = 15,
                 seed: int = 0) -> float:
    """What fvd(real, fake) would be with endlessly many fakes (Chong & Forsyth 2020).

    FVD falls with the number N of fakes about as FVD_inf + c/N. It is measured at `points` values
    of N from `smallest` to all, each on a random subset; the straight line in 1/N is read at 0.
    The bias of a small real set remains.
    """
    if len(fake) < max(2, smallest):
        raise ValueError(f"{len(fake)} fake clips; the line in 1/N starts at {smallest} clips")
    generator = torch.Generator().manual_seed(seed)
    target = gaussian(real)
    counts = torch.linspace(smallest, len(fake), points).round().long()
    values = torch.tensor([
        frechet_distance(*target, *gaussian(fake[torch.randperm(len(fake), generator=generator)
                                                 [:count]])) for count in counts.tolist()])
    return intercept(1 / counts.double(), values.double())


def intercept(x: Tensor, y: Tensor) -> float:
    """Where the least-squares line through the points (x, y) meets x = 0."""
    line = torch.stack([torch.ones_like(x), x], dim=1)
    return torch.linalg.lstsq(line, y[:, None]).solution[0].item()


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


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    x = F.interpolate(torch.rand(1, 3, 8, 8, generator=generator), (64, 64), mode="bilinear")
    noise = torch.randn(x.shape, generator=generator)
    print("two pictures of 64x64           PSNR (dB)     SSIM")
    for name, other in (("equal", x), ("noise of 0.02", x + 0.02 * noise),
                        ("noise of 0.10", x + 0.10 * noise), ("one pixel aside", x.roll(1, -1))):
        other = other.clamp(0, 1)
        print(f"  {name:24} {psnr(x, other).item():14.2f} {ssim(x, other).item():8.4f}")
    real, fake = (torch.randn(4096, 32, generator=generator, dtype=torch.float64) for _ in "ab")
    print("\nFrechet distance of two samples of one Gaussian in 32 dimensions: it should be 0")
    for count in (64, 256, 1024, 4096):
        print(f"  {count:5} fakes {fvd(real, fake[:count]):9.3f}")
    print(f"  infinity    {fvd_infinity(real, fake, smallest=256):9.3f}")


if __name__ == "__main__":
    main()
