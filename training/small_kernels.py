"""A faster second derivative for the discriminator's convolutions: same numbers, small kernels.

Paper   App. B.2 (R1, whose gradient is a gradient of a gradient)

Shapes  a network of nn.Conv3d layers -> the same network, its layers of the class Conv3d below

Read    small_kernels, Conv3d.

R1's gradient asks how the gradient of the pixels depends on a kernel. PyTorch answers with a
convolution whose own kernel is as large as the video (16x128x128), for which GPUs have no fast way.
But the way back through a convolution is a convolution, too, and what is asked for is the gradient
of its kernel, for which there are fast ways.

Run:    python -m training.small_kernels     a discriminator's step with R1, both ways
"""
from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from discriminator import DISCRIMINATORS, Discriminator3d, r1_penalty


def small_kernels(network: nn.Module) -> nn.Module:
    """Make every nn.Conv3d of a network a Conv3d, in place. Its weights and results stay."""
    for layer in network.modules():
        if type(layer) is nn.Conv3d and layer.padding_mode == "zeros" and not isinstance(
                layer.padding, str) and {*layer.stride, *layer.dilation, layer.groups} == {1}:
            layer.__class__ = Conv3d
    return network


class Conv3d(nn.Conv3d):
    """nn.Conv3d of stride 1 and padded with zeros; twice differentiable by small kernels."""

    def forward(self, x: Tensor) -> Tensor:
        return _Forward.apply(x, self.weight, self.bias, self.padding)


def _gradients(gradient: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, int, int],
               wanted: tuple[bool, bool, bool]) -> tuple[Tensor, Tensor, Tensor]:
    """Of a convolution's input, kernel and bias; None where not wanted."""
    return torch.ops.aten.convolution_backward(
        gradient, x, weight, [len(weight)], [1] * 3, padding, [1] * 3, False, [0] * 3, 1, wanted)


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(context, x, weight, bias, padding):
        context.save_for_backward(x, weight)
        context.padding = padding
        return F.conv3d(x, weight, bias, padding=padding)

    @staticmethod
    def backward(context, gradient):
        x, weight = context.saved_tensors
        wants_x, *wants_parameters, _ = context.needs_input_grad
        of_x = _Backward.apply(gradient, x, weight, context.padding) if wants_x else None
        of_parameters = _gradients(gradient, x, weight, context.padding, (False, *wants_parameters))
        return of_x, *of_parameters[1:], None


class _Backward(torch.autograd.Function):
    """gradient of the output -> gradient of the input: a convolution, too, linear in both."""

    @staticmethod
    def forward(context, gradient, x, weight, padding):
        context.save_for_backward(gradient, weight)
        context.padding = padding
        return _gradients(gradient, x, weight, padding, (True, False, False))[0]

    @staticmethod
    def backward(context, of_x):
        gradient, weight = context.saved_tensors
        of_weight = _gradients(gradient, of_x, weight, context.padding, (False, True, False))[1]
        return F.conv3d(of_x, weight, padding=context.padding), None, of_weight, None


def main() -> None:
    torch.manual_seed(0)
    config = DISCRIMINATORS["toy"]
    clips = torch.rand(4, 3, *config.resolution, requires_grad=True)
    network = Discriminator3d(config)
    for name in ("nn.Conv3d", "small kernels"):
        times = []
        for _ in range(4):
            begin = time.perf_counter()
            r1 = r1_penalty(network(clips), clips)
            r1.backward(inputs=list(network.parameters()))
            times.append(time.perf_counter() - begin)
        print(f"{name:14} R1 {r1.item():.6e}, with its gradient {1e3 * min(times):6.1f} ms")
        small_kernels(network)


if __name__ == "__main__":
    main()
