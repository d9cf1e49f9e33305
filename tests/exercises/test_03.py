"""Exercise 3: central inflation of a 2D kernel (Sec. 3.1)."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exercises.lesson import Exercise
from tokenizer import inflate


def solution(kernel, length):
    layer = nn.Conv3d(kernel.shape[1], len(kernel), (length, *kernel.shape[2:]), bias=False)
    return inflate({"weight": kernel[:, :, None]}, layer).weight.detach()


EXERCISE = Exercise("inflate_kernel(kernel, length)", "Sec. 3.1, Inflation and padding: the 2D "
                    "kernel fills the temporally central slice of a 3D kernel of zeros", solution)


@pytest.fixture
def kernel():
    return torch.randn(4, 2, 3, 5, generator=torch.Generator().manual_seed(0))


def test_the_central_slice_is_the_kernel_and_the_others_are_zero(answer, kernel):
    for length in (1, 3, 5):
        inflated = answer(kernel, length)
        EXERCISE.holds(getattr(inflated, "shape", None) == (4, 2, length, 3, 5),
                       f"a kernel (out, in, h, w) becomes (out, in, {length}, h, w): time comes "
                       f"before height, as in nn.Conv3d")
        centre = length // 2
        EXERCISE.same(inflated[:, :, centre], kernel,
                      f"slice {centre} of {length}, counted from 0, is the 2D kernel")
        EXERCISE.holds(inflated.count_nonzero() == kernel.count_nonzero(),
                       "all slices but the central one are zero")


def test_at_first_the_3d_network_sees_each_frame_alone(answer, kernel):
    video = torch.randn(1, 2, 6, 7, 8, generator=torch.Generator().manual_seed(1))
    alone = torch.stack([F.conv2d(frame, kernel, padding=(1, 2)) for frame in video.unbind(2)], 2)
    EXERCISE.same(F.conv3d(video, answer(kernel, 3), padding=(1, 1, 2)), alone,
                  "a video convolved with the 3D kernel is its frames convolved with the 2D one")


def averaged(kernel, length):
    """Right on a video that stands still, blurred on one that moves."""
    return kernel[:, :, None].repeat(1, 1, length, 1, 1) / length


def last(kernel, length):
    """MAGVIT-v2's, for convolutions that see no later frame: here it moves the video."""
    return F.pad(kernel[:, :, None], (0, 0, 0, 0, length - 1, 0))


def repeated(kernel, length):
    return kernel[:, :, None].repeat(1, 1, length, 1, 1)


@pytest.mark.parametrize("wrong", [averaged, last, repeated])
def test_wrong_answers_are_refused(wrong, kernel):
    EXERCISE.refuses(wrong, test_the_central_slice_is_the_kernel_and_the_others_are_zero, kernel)
    EXERCISE.refuses(wrong, test_at_first_the_3d_network_sees_each_frame_alone, kernel)
