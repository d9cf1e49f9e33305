"""MAGVIT-v2's compression (App. A.3): bits by hand, MS-SSIM by an oracle, codecs there and back."""
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fresh import python
from torch import nn

from data.moving_shapes import MovingShapes
from data.source import all_clips
from magvit2.compression import (CODECS, SCALE_WEIGHTS, codec_point, coded_bits, decode, encode,
                                 ms_ssim, payload, scales_for)
from measure.metrics import ssim
from transformer import MaskedTransformer


# ---------------------------------------------------------------------------------------------
# MS-SSIM

def oracle_terms(x, y):
    """Means of SSIM and of its contrast-structure part, window by window, of grey arrays."""
    tap = np.exp(-np.arange(-5, 6) ** 2 / 4.5)
    window = np.outer(tap, tap) / tap.sum() ** 2
    whole, contrasts = [], []
    for top in range(len(x) - 10):
        for left in range(len(x[0]) - 10):
            a, b = (z[top:top + 11, left:left + 11] for z in (x, y))
            p, q = (window * a).sum(), (window * b).sum()
            va, vb = (window * (a - p) ** 2).sum(), (window * (b - q) ** 2).sum()
            cov = (window * (a - p) * (b - q)).sum()
            contrasts.append((2 * cov + 0.0009) / (va + vb + 0.0009))
            whole.append(contrasts[-1] * (2 * p * q + 0.0001) / (p * p + q * q + 0.0001))
    return np.mean(whole), np.mean(contrasts)


def halved(x):
    x = np.pad(x, ((0, len(x) % 2), (0, len(x[0]) % 2)), mode="edge")
    return x.reshape(len(x) // 2, 2, len(x[0]) // 2, 2).mean((1, 3))


def pictures(side, noise=0.1):
    generator = torch.Generator().manual_seed(side)
    a = nn.functional.avg_pool2d(torch.rand(3, side, side, generator=generator), 5, 1, 2)
    return a, (a + noise * torch.randn(a.shape, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize("scales, side", [(1, 16), (2, 25), (3, 44)])
def test_ms_ssim_is_what_a_slow_explicit_oracle_computes(scales, side):
    a, b = pictures(side)
    x, y = (np.einsum("chw,c->hw", z.double().numpy(), [0.2125, 0.7154, 0.0721]) for z in (a, b))
    weights, wanted = np.array(SCALE_WEIGHTS[:scales]) / sum(SCALE_WEIGHTS[:scales]), 1.0
    for scale in range(scales):
        whole, contrast = oracle_terms(x, y)
        wanted *= (whole if scale == scales - 1 else contrast) ** weights[scale]
        x, y = halved(x), halved(y)
    assert math.isclose(ms_ssim(a, b, scales).item(), wanted, rel_tol=1e-9)


def test_ms_ssim_of_one_scale_is_ssim_of_equal_pictures_one_and_needs_161_pixels_for_five():
    a, b = pictures(161)
    assert math.isclose(ms_ssim(a, b, 1), ssim(a, b), rel_tol=1e-9)
    assert math.isclose(ms_ssim(a, a).item(), 1.0, rel_tol=1e-9) and ms_ssim(a, b) < 1
    assert ms_ssim(a.expand(2, 4, -1, -1, -1), b.expand(2, 4, -1, -1, -1)).shape == (2, 4)
    for scale in range(1, 6):
        assert scales_for(torch.empty(1, 3, 1, 10 * 2 ** (scale - 1) + 1, 200)) == scale
    with pytest.raises(ValueError, match="at least 161x161"):
        ms_ssim(a[:, :160], b[:, :160])


# ---------------------------------------------------------------------------------------------
# Bits

class Fixed(nn.Module):
    """Predicts given logits (N, K) wherever it is asked, and remembers what it was shown."""

    mask_id, no_class, config = 16, 3, SimpleNamespace(tasks=())
    cross_entropy = MaskedTransformer.cross_entropy

    def __init__(self, logits):
        super().__init__()
        self.logits, self.shown = logits, []

    def forward(self, tokens, task, label):
        self.shown.append((tokens.clone(), label))
        return self.logits.expand(len(tokens), -1, -1)


def test_a_model_that_knows_nothing_needs_the_tokens_own_bits_and_one_that_knows_all_none():
    tokens = torch.randint(16, (2, 10), generator=torch.Generator().manual_seed(0))
    assert math.isclose(coded_bits(Fixed(torch.zeros(10, 16)), tokens), 20 * 4, rel_tol=1e-6)
    sure = Fixed(nn.functional.one_hot(tokens[0], 16) * 100.0)
    assert coded_bits(sure, tokens[:1]) < 1e-6
    label = torch.zeros(1, dtype=torch.long)
    assert math.isclose(coded_bits(sure, tokens[:1], label), math.log2(3), rel_tol=1e-6)


def test_each_token_is_counted_once_before_it_is_shown():
    tokens, model = torch.randint(16, (1, 10)), Fixed(torch.zeros(10, 16))
    coded_bits(model, tokens, groups=4)
    assert [(shown == 16).sum().item() for shown, _ in model.shown] == [10, 7, 4, 1]
    last = model.shown[-1][0]
    assert ((last == 16) | (last == tokens)).all() and model.shown[0][1].tolist() == [3]  # no class


# ---------------------------------------------------------------------------------------------
# Codecs, and the command

@pytest.fixture(scope="module")
def video():
    return all_clips(MovingShapes("test"))[0][:2]


@pytest.mark.parametrize("codec", CODECS)
def test_codecs_go_there_and_back_and_more_bits_are_better(codec, video, monkeypatch):
    monkeypatch.setenv("SVT_LOG", "1")
    fine, coarse = (codec_point(codec, crf, video, None) for crf in (20, 50))
    assert fine.rate > coarse.rate > 0
    assert fine.psnr > coarse.psnr and fine.ms_ssim > coarse.ms_ssim and fine.psnr > 28
    assert decode(codec, encode(codec, 20, video[0].movedim(0, -1))).shape == (16, 32, 32, 3)


def test_the_text_that_x264_writes_about_itself_is_not_counted(video):
    packets = [bytes(packet) for packet in encode("x264", 30, video[0].movedim(0, -1))]
    texts = [len(packet) - payload("x264", packet) for packet in packets]
    assert texts[0] > 500 and not any(texts[1:])
    assert sum(payload("x264", packet) for packet in packets) > 100


def test_a_run_is_put_beside_the_codecs_with_what_its_transformer_saves(tmp_path):
    done = python("-m", "magvit2.compression", "assets/toy", "--clips", "2", "--out",
                  tmp_path / "curve.png")
    done.check_returncode()
    rows = {cells[1].strip(): cells for line in done.stdout.splitlines()
            if len(cells := line.split("|")) > 4}
    assert rows["toy"][2].strip() == "0.0352"                    # 64 tokens of 9 bits: 16x32x32
    assert float(rows["toy"][3]) < 0.0352 and "AV1 50" in rows
    assert (tmp_path / "curve.png").stat().st_size > 5000
