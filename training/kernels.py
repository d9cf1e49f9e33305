"""Every trick for a machine, in one place: the paper's files know no processor.

Paper   none

Shapes  a network -> use -> the same network, some of its layers computed in another way

Read    use; then the layers, each with its reason. resolve_precision, which knows processors.

`use` is called where a network is made or loaded. It changes only layers of exactly the types in
LAYERS, so a fork's own attention or convolution stays as it is. Parameters and names stay, too.
"""
from __future__ import annotations

import ctypes
import math
import platform

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer import Upsample
from transformer import Attention

LARGEST = 2**29        # elements; CUDA pads and resizes fewer than 2^31 at once (8 places are made)


def use(network: nn.Module) -> nn.Module:
    """Exchange the layers that have a better or safer way on this machine, in place."""
    for layer in network.modules():
        layer.__class__ = LAYERS.get(type(layer), type(layer))
    keep_memory()
    return network


def resolve_precision(precision: str, device: torch.device) -> str:
    """"auto" -> "bf16" where bfloat16 is fast, else "float32"; other names as they are.

    It is fast on GPUs, and on CPUs with AMX or with AVX-512 for bfloat16, but for Intel's without
    AMX, where a step takes 1.3 to 1.6 times as long as in float32.
    """
    if precision != "auto":
        return precision
    if device.type != "cpu":
        return "bf16"
    cpu = torch.cpu.get_capabilities()
    fast = cpu.get("amx_bf16") or cpu.get("avx512_bf16") and "Intel" not in cpu["cpu_name"]
    return "bf16" if fast else "float32"


def keep_memory() -> None:
    """On Linux, freed memory stays with this process.

    Else the C library gives large blocks back to the system, which fills each page of the next one
    with zeros when it is first touched: three tenths of decoding (docs/speed.md).
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(-4, 0)           # M_MMAP_MAX: no block is asked of the system for itself
        library.mallopt(-1, -1)          # M_TRIM_THRESHOLD: the heap does not shrink


def give_back_memory() -> None:
    """The contrary, for blocks of a MiB and more: over a film, kept blocks leave gaps that grow."""
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(-4, 65536)       # M_MMAP_MAX, its default
        library.mallopt(-3, 2**20)       # M_MMAP_THRESHOLD: such a block is mapped by itself


# ---------------------------------------------------------------------------------------------
# Layers

class SafeConv3d(nn.Conv3d):
    """nn.Conv3d, but for three cases: wrong results on CPUs and GPUs, and a slow one on GPUs."""

    def forward(self, x: Tensor) -> Tensor:
        clips = max(1, LARGEST // x[0].numel())
        if x.is_cuda and clips < len(x):                  # more than CUDA can pad: clips take turns
            return torch.cat([self(part) for part in x.split(clips)])
        zeros = self.padding_mode == "zeros"
        if zeros and not x.is_cuda:
            # In bfloat16, where a convolution pads two frames with zeros, oneDNN returns a kernel's
            # gradient of whatever was in memory (torch 2.13). So it is computed in float32.
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float() if self.weight.dtype == torch.float32 else x)
        plain = {*self.stride, *self.dilation, self.groups} == {1} and (
            not isinstance(self.padding, str))
        if zeros and x.is_cuda and plain and x.dtype == self.weight.dtype and (
                not torch.is_autocast_enabled("cuda")):
            return TwiceDifferentiable.apply(x, self.weight, self.bias, self.padding)
        return super().forward(x)


class TwiceDifferentiable(torch.autograd.Function):
    """A convolution for R1, whose gradient is a gradient of a gradient: same numbers, small kernels.

    R1's gradient asks how the gradient of the pixels depends on a kernel. PyTorch answers with a
    convolution whose own kernel is as large as the video (16x128x128), for which CUDA has no fast
    way. But the way back through a convolution is a convolution, too, and what is asked for is the
    gradient of its kernel, for which there are fast ways.
    """

    @staticmethod
    def forward(context, x, weight, bias, padding):
        context.save_for_backward(x, weight)
        context.padding = padding
        return F.conv3d(x, weight, bias, padding=padding)

    @staticmethod
    def backward(context, gradient):
        x, weight = context.saved_tensors
        wants_x, *wants_parameters, _ = context.needs_input_grad
        of_x = InputGradient.apply(gradient, x, weight, context.padding) if wants_x else None
        of_parameters = _gradients(gradient, x, weight, context.padding, (False, *wants_parameters))
        return of_x, *of_parameters[1:], None


class InputGradient(torch.autograd.Function):
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


def _gradients(gradient: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, int, int],
               wanted: tuple[bool, bool, bool]) -> tuple[Tensor, Tensor, Tensor]:
    """Of a convolution's input, kernel and bias; None where not wanted."""
    return torch.ops.aten.convolution_backward(
        gradient, x, weight, [len(weight)], [1] * 3, padding, [1] * 3, False, [0] * 3, 1, wanted)


class SafeUpsample(Upsample):
    """Upsample, where CUDA cannot resize all clips at once: they take turns."""

    def forward(self, x: Tensor) -> Tensor:
        clips = max(1, LARGEST // (x[0].numel() * math.prod(self.stride)))
        if not x.is_cuda or clips >= len(x):
            return super().forward(x)
        return torch.cat([super(SafeUpsample, self).forward(part) for part in x.split(clips)])


class FastAttention(Attention):
    """Attention for CPUs in bfloat16, where PyTorch's own is as slow as in float32.

    Long sequences are written out. In training they are not, since all n x n weights would be
    kept: that goes by PyTorch's, in float32. Autocast would undo both.
    """

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if query.is_cuda or query.dtype != torch.bfloat16:
            return super().attend(query, key, value)
        with torch.autocast("cpu", enabled=False):
            if query.shape[2] <= 256 or self.training:
                return super().attend(query.float(), key.float(), value.float())
            return torch.stack([(q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1) @ v for q, k, v
                                in zip(query, key.contiguous(), value.contiguous())])


# The layers that are exchanged, by their exact type.
LAYERS = {nn.Conv3d: SafeConv3d, Upsample: SafeUpsample, Attention: FastAttention}
