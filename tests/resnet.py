"""The perceptual loss that the official code has and the paper does not: a ResNet's.

The paper takes VQGAN's perceptual loss, LPIPS, and so does train.py. The official code compares
what a ResNet50 makes of the frames (its weights were not released). This reading of it is here so
that the claim "we know what it computes" is a test; nothing in the project uses it.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from official import below, count
from torch import Tensor

from measure.networks import same_pad


def perceptual_loss(arrays: dict, real: Tensor, fake: Tensor, on_logits: bool) -> Tensor:
    """Mean squared error between the logits, or the last maps, of frames (B, 3, H, W) in [0, 1]."""
    features = [resnet(arrays, frames)[0 if on_logits else 1] for frames in (real, fake)]
    return F.mse_loss(*features)


def resnet(arrays: dict, frames: Tensor) -> tuple[Tensor, Tensor]:
    """frames (B, 3, H, W) in [0, 1], not normalized further -> logits, last map.

    v1.5: the stride sits on the 3x3 convolution of a block. Sizes are read from the arrays:
    perc_params/stage1/block1/conv1/kernel and so on, perc_batch_stats likewise.
    """
    params = {name: torch.from_numpy(array) for name, array in below(arrays, "perc_params").items()}
    statistics = {name: torch.from_numpy(array)
                  for name, array in below(arrays, "perc_batch_stats").items()}

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = params[f"{name}/kernel"]
        return F.conv2d(same_pad(x, kernel.shape[:2], (stride, stride)),
                        rearrange(kernel, "h w i o -> o i h w"), stride=stride)

    def norm(x: Tensor, name: str) -> Tensor:
        return F.batch_norm(x, statistics[f"{name}/mean"], statistics[f"{name}/var"],
                            params[f"{name}/scale"], params[f"{name}/bias"], eps=1e-5)

    x = F.interpolate(frames, (224, 224), mode="bilinear", antialias=True)
    x = norm(conv(x, "init_conv", stride=2), "init_bn")          # no relu here (official)
    x = F.max_pool2d(same_pad(x, (3, 3), (2, 2), value=-torch.inf), 3, 2)
    for stage in range(1, 1 + count(params, r"stage\d+/")):
        for block in range(1, 1 + count(params, rf"stage{stage}/block\d+/")):
            name, stride = f"stage{stage}/block{block}", 2 if block == 1 and stage > 1 else 1
            skip = x
            if f"{name}/proj_conv/kernel" in params:
                skip = norm(conv(x, f"{name}/proj_conv", stride), f"{name}/proj_bn")
            x = norm(conv(x, f"{name}/conv1"), f"{name}/bn1").relu()
            x = norm(conv(x, f"{name}/conv2", stride), f"{name}/bn2").relu()
            x = (norm(conv(x, f"{name}/conv3"), f"{name}/bn3") + skip).relu()
    return x.mean((2, 3)) @ params["head/kernel"] + params["head/bias"], x
