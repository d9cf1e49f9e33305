"""The frozen networks that judge: I3D for FVD, C3D for the Inception Score, VGG16 for LPIPS.

Paper   Sec. 4 (evaluation metrics), App. B.3; LPIPS also serves as a training loss (App. B.2)

Shapes  FVD    (B, 3, T, 224, 224) in [-1, 1] -> I3D -> (B, 400) logits of Kinetics-400
        IS     BGR (B, 3, 16, 112, 112) in [0, 255] -> C3D -> (B, 101) logits of UCF-101
        LPIPS  two videos (..., 3, H, W) in [0, 1] -> LPIPS -> (...), one distance per frame

Read    I3D, C3D, VGG16Features, LPIPS.

Not here: how videos become what these take, and where their numbers are from (pretrained.py).
"""
from __future__ import annotations

from collections import OrderedDict
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from einops.layers.torch import Rearrange
from torch import Tensor, nn


class Frozen(nn.Module):
    """A network that is never trained; gradients still pass through it to its inputs."""

    weights: str = "unknown"        # where the numbers come from; set by load_* and randomize

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)         # also when a model that contains it is told to train


# ---------------------------------------------------------------------------------------------
# Two classifiers of videos: I3D for FVD, C3D for the Inception Score

def same_pad(x: Tensor, kernel: tuple, stride: tuple, value: float = 0.0) -> Tensor:
    """Pad (B, C, T, H, W) as TensorFlow's SAME does: the size decides, the end gets the odd one."""
    pads = []
    for n, k, s in zip(x.shape[2:], kernel, stride):
        total = max((-(-n // s) - 1) * s + k - n, 0)            # -(-n // s) is ceil(n / s)
        pads = [total // 2, total - total // 2, *pads]          # F.pad wants the last axis first
    return F.pad(x, pads, value=value)


class Unit3d(nn.Module):
    """Convolution, batch normalization, ReLU."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int = 1, stride: int = 1):
        super().__init__()
        same = kernel // 2 if stride == 1 else 0           # else the size decides, see same_pad
        self.conv3d = nn.Conv3d(channels_in, channels_out, kernel, stride, same, bias=False)
        self.bn = nn.BatchNorm3d(channels_out, eps=1e-3)        # not PyTorch's 1e-5

    def forward(self, x: Tensor) -> Tensor:
        if self.conv3d.stride != (1, 1, 1):
            x = same_pad(x, self.conv3d.kernel_size, self.conv3d.stride)
        return F.relu(self.bn(self.conv3d(x)), inplace=True)


class MaxPoolSame(nn.MaxPool3d):
    """Max pooling that never picks its padding."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(same_pad(x, self.kernel_size, self.stride, float("-inf")))


class Mixed(nn.Module):
    """Inception module: four branches side by side, with b0 + b1[1] + b2[1] + b3 channels."""

    def __init__(self, channels_in: int, b0: int, b1: tuple, b2: tuple, b3: int):
        super().__init__()
        self.b0 = Unit3d(channels_in, b0)
        self.b1a, self.b1b = Unit3d(channels_in, b1[0]), Unit3d(*b1, kernel=3)
        self.b2a, self.b2b = Unit3d(channels_in, b2[0]), Unit3d(*b2, kernel=3)
        self.b3a, self.b3b = nn.MaxPool3d(3, stride=1, padding=1), Unit3d(channels_in, b3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)),
                          self.b3b(self.b3a(x))], dim=1)


class I3D(Frozen, nn.Sequential):
    """Inception-v1 with 3D kernels (Carreira & Zisserman 2017), as TF-Hub's i3d-kinetics-400.

    Named as in pytorch-i3d, so that `i3d_pretrained_400.pt` fits. The features of FVD are these
    logits, averaged over the remaining time steps: no softmax, not the 1024 pooled features. A
    clip of 16 frames costs 56 GFLOP; (C, T, H, W) at the right are for 16 frames.
    """

    def __init__(self, num_classes: int = 400):
        super().__init__(OrderedDict(
            Conv3d_1a_7x7=Unit3d(3, 64, kernel=7, stride=2),              # (64, 8, 112, 112)
            MaxPool3d_2a_3x3=MaxPoolSame((1, 3, 3), (1, 2, 2)),           # (64, 8, 56, 56)
            Conv3d_2b_1x1=Unit3d(64, 64),
            Conv3d_2c_3x3=Unit3d(64, 192, kernel=3),                      # (192, 8, 56, 56)
            MaxPool3d_3a_3x3=MaxPoolSame((1, 3, 3), (1, 2, 2)),           # (192, 8, 28, 28)
            Mixed_3b=Mixed(192, 64, (96, 128), (16, 32), 32),             # (256, 8, 28, 28)
            Mixed_3c=Mixed(256, 128, (128, 192), (32, 96), 64),           # (480, 8, 28, 28)
            MaxPool3d_4a_3x3=MaxPoolSame((3, 3, 3), (2, 2, 2)),           # (480, 4, 14, 14)
            Mixed_4b=Mixed(480, 192, (96, 208), (16, 48), 64),            # (512, 4, 14, 14)
            Mixed_4c=Mixed(512, 160, (112, 224), (24, 64), 64),
            Mixed_4d=Mixed(512, 128, (128, 256), (24, 64), 64),
            Mixed_4e=Mixed(512, 112, (144, 288), (32, 64), 64),           # (528, 4, 14, 14)
            Mixed_4f=Mixed(528, 256, (160, 320), (32, 128), 128),         # (832, 4, 14, 14)
            MaxPool3d_5a_2x2=MaxPoolSame((2, 2, 2), (2, 2, 2)),           # (832, 2, 7, 7)
            Mixed_5b=Mixed(832, 256, (160, 320), (32, 128), 128),
            Mixed_5c=Mixed(832, 384, (192, 384), (48, 128), 128),         # (1024, 2, 7, 7)
            average=nn.AvgPool3d((2, 7, 7), stride=1),                    # (1024, 1, 1, 1), no pad
            logits=nn.Sequential(OrderedDict(conv3d=nn.Conv3d(1024, num_classes, 1)))))
        self.eval().requires_grad_(False)

    def forward(self, video: Tensor) -> Tensor:
        """video (B, 3, T, 224, 224) in [-1, 1], T >= 9 -> logits (B, num_classes)."""
        if video.shape[1:2] + video.shape[3:] != (3, 224, 224) or video.shape[2] < 9:
            raise ValueError(f"I3D got {tuple(video.shape)}; wanted (B, 3, T, 224, 224), see "
                             "i3d_input, with T >= 9: its last pool spans two time steps")
        if video.device.type == "cpu":                                       # 1.5 times as fast
            video = video.contiguous(memory_format=torch.channels_last_3d)
        return reduce(super().forward(video), "b k t 1 1 -> b k", "mean")


class C3D(Frozen, nn.Sequential):
    """Tran et al. 2015; trained on Sports-1M, then UCF-101, and only for UCF-101's classes."""

    def __init__(self, num_classes: int = 101):
        conv = partial(nn.Conv3d, kernel_size=3, padding=1)
        super().__init__(OrderedDict(
            conv1a=conv(3, 64), relu1a=nn.ReLU(), pool1=nn.MaxPool3d((1, 2, 2)),  # (16, 56, 56)
            conv2a=conv(64, 128), relu2a=nn.ReLU(), pool2=nn.MaxPool3d(2),        # (8, 28, 28)
            conv3a=conv(128, 256), relu3a=nn.ReLU(),
            conv3b=conv(256, 256), relu3b=nn.ReLU(), pool3=nn.MaxPool3d(2),       # (4, 14, 14)
            conv4a=conv(256, 512), relu4a=nn.ReLU(),
            conv4b=conv(512, 512), relu4b=nn.ReLU(), pool4=nn.MaxPool3d(2),       # (2, 7, 7)
            conv5a=conv(512, 512), relu5a=nn.ReLU(),
            conv5b=conv(512, 512), relu5b=nn.ReLU(),
            pool5=nn.MaxPool3d(2, ceil_mode=True),      # (1, 4, 4): the odd row and column count
            flatten=Rearrange("b c t h w -> b (c t h w)"),
            fc6=nn.Linear(512 * 4 * 4, 4096), relu6=nn.ReLU(),
            fc7=nn.Linear(4096, 4096), relu7=nn.ReLU(), fc8=nn.Linear(4096, num_classes)))
        # A mean for each pixel of the clip, BGR in 0..255: mid grey until the real one is loaded.
        self.register_buffer("mean", torch.full((3, 16, 112, 112), 128.0))
        self.eval().requires_grad_(False)

    def forward(self, video: Tensor) -> Tensor:
        """video from c3d_input, BGR (B, 3, 16, 112, 112) in [0, 255] -> logits (B, num_classes)."""
        if video.shape[1:] != self.mean.shape:
            raise ValueError(f"C3D got {[*video.shape]}; wanted (B, 3, 16, 112, 112) of c3d_input")
        return super().forward(video - self.mean)


# ---------------------------------------------------------------------------------------------
# LPIPS v0.1 (Zhang et al. 2018) on VGG16 (Simonyan & Zisserman 2015)

class VGG16Features(Frozen):
    """The 13 convolutions of VGG16, numbered and named as torchvision's `features`."""

    def __init__(self):
        super().__init__()
        layers, channels = [], 3
        for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512):
            layers += ([nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()] if width else
                       [nn.MaxPool2d(2)])                       # 0 is a pool
            channels = width or channels
        self.features = nn.Sequential(*layers)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Normalized images (B, 3, H, W) -> what enters each pool: relu1_2, 2_2, 3_3, 4_3, 5_3."""
        stages = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                stages.append(x)
            x = layer(x)
        return [*stages, x]


class LPIPS(Frozen):
    """Distance of two images in the eyes of VGG16, weighted by channel to agree with people.

    At five depths: features divided by their length at each pixel, squared difference, weighted
    sum over channels, mean over pixels. Then the sum over the depths.
    """

    def __init__(self):
        super().__init__()
        self.vgg = VGG16Features()
        # One weight per channel; all ones is the authors' uncalibrated baseline.
        self.heads = nn.ParameterList(torch.ones(c) for c in (64, 128, 256, 512, 512))
        # ImageNet's mean and deviation, restated for [-1, 1] and rounded by the authors.
        for name, rgb in (("shift", (-0.030, -0.088, -0.188)), ("scale", (0.458, 0.448, 0.450))):
            self.register_buffer(name, torch.tensor(rgb).view(3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Two (..., 3, H, W) in [0, 1], or nearly so in training; H, W >= 16 -> distances (...)."""
        if a.shape != b.shape or a.ndim < 3 or a.shape[-3] != 3 or min(a.shape[-2:]) < 16:
            raise ValueError(f"LPIPS got {tuple(a.shape)} and {tuple(b.shape)}; wanted two equal "
                             "shapes (..., 3, H, W) with H and W of at least 16")
        distance = 0
        for x, y, head in zip(self._features(a), self._features(b), self.heads):
            difference = (x - y).square() * head[:, None, None]                  # (frames, C, h, w)
            distance = distance + difference.sum(1).mean((1, 2))
        return distance.view(a.shape[:-3])

    def _features(self, video: Tensor) -> list[Tensor]:
        frames = 2 * rearrange(video, "... c h w -> (...) c h w") - 1
        # A pixel without any feature stays zero, in value and in gradient.
        return [F.normalize(x, dim=1, eps=1e-10)
                for x in self.vgg((frames - self.shift) / self.scale)]


def randomize(network: Frozen, seed: int) -> Frozen:
    """Random numbers to try a pipeline without files (He et al. 2015); scores mean nothing."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=generator)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    network.weights = f"random (seed {seed})"
    return network
