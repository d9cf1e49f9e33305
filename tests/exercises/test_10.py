"""Exercise 10: central inflation, so that a 3D network starts as its 2D twin (Sec. 3.1)."""
import torch
import torch.nn.functional as F
from course import exercise
from torch import nn

from tokenizer import inflate


def solution(kernel, length):
    wider = nn.Conv3d(*kernel.shape[1::-1], (length, *kernel.shape[3:]), bias=False)
    return inflate({"weight": kernel}, wider, "central").weight.detach()


def check(inflate_kernel):
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(4, 2, 1, 3, 3, generator=generator)
    video = torch.randn(1, 2, 6, 5, 5, generator=generator)
    for length in (3, 5):
        wide = inflate_kernel(kernel, length)
        assert wide.shape == (4, 2, length, 3, 3)
        each_frame_alone = F.conv3d(video, kernel, padding=(0, 1, 1))
        together = F.conv3d(video, wide, padding=(length // 2, 1, 1))
        assert torch.allclose(each_frame_alone, together, atol=1e-5), (
            "at first the 3D layer computes for each frame what the 2D one did, at the borders in "
            "time as well")


def averaged(kernel, length):
    return kernel.expand(-1, -1, length, -1, -1) / length


def in_the_last_slice(kernel, length):
    return F.pad(kernel, (0, 0, 0, 0, length - 1, 0))


test_the_answer, test_a_mistake_is_refused = exercise(
    10, "inflate_kernel(kernel, length)", solution, check,
    {"averaged": averaged, "last slice": in_the_last_slice,
     "copied": lambda kernel, length: kernel.expand(-1, -1, length, -1, -1)})
