"""Exercise 5: ispad, which supervoxels hold only padding (Sec. 3.2)."""
import pytest
import torch

from commit import is_padding
from exercises.lesson import Exercise

EXERCISE = Exercise("is_padding(valid, latent_shape)", "Sec. 3.2, the sentence below Eq. (2): "
                    "whether the supervoxel only contains padding", is_padding)


def pixel_by_pixel(valid, latent_shape):
    """Each given pixel says of its supervoxel that it is no padding."""
    a, b, c = (pixels // cells for pixels, cells in zip(valid.shape, latent_shape))
    pads = torch.ones(latent_shape, dtype=torch.bool)
    for t, y, x in valid.nonzero().tolist():
        pads[t // a, y // b, x // c] = False
    return pads


def test_one_given_pixel_is_enough(answer):
    """8x16x16 pixels are 2x2x2 supervoxels of 4x8x8; the very last pixel belongs to the last."""
    valid = torch.zeros(8, 16, 16, dtype=torch.bool)
    valid[7, 15, 15] = True
    wanted = torch.ones(2, 2, 2, dtype=torch.bool)
    wanted[1, 1, 1] = False
    EXERCISE.same(answer(valid, (2, 2, 2)), wanted, "a single given pixel is enough")


def test_a_supervoxel_is_a_block_of_time_height_and_width(answer):
    """Blocks of 2x4x5 pixels, so that no axis can be taken for another."""
    valid = torch.rand(6, 8, 20, generator=torch.Generator().manual_seed(0)) < 0.03
    EXERCISE.same(answer(valid, (3, 2, 4)), pixel_by_pixel(valid, (3, 2, 4)),
                  "6x8x20 pixels on a grid of 3x2x4 are blocks of 2x4x5 pixels, in this order")


def test_a_strip_that_passes_by_in_a_single_frame_is_seen(answer):
    """As in dynamic outpainting: the strip is over each column in some of the frames only."""
    valid = torch.zeros(8, 8, 32, dtype=torch.bool)
    for t in range(8):
        valid[t, :, 3 * t:3 * t + 8] = True
    EXERCISE.same(answer(valid, (2, 1, 4)), pixel_by_pixel(valid, (2, 1, 4)),
                  "given in one of a supervoxel's frames is given")


def blocks(valid, latent_shape):
    """(t, h, w, pixels of the supervoxel)."""
    for axis, cells in enumerate(latent_shape):
        valid = valid.unflatten(2 * axis, (cells, -1))
    return valid.permute(0, 2, 4, 1, 3, 5).flatten(3)


def any_padding_is_padding(valid, latent_shape):
    return ~blocks(valid, latent_shape).all(-1)


def the_first_pixel_decides(valid, latent_shape):
    """One pixel stands for its block: what passes by elsewhere is not seen."""
    return ~blocks(valid, latent_shape)[..., 0]


def true_means_given(valid, latent_shape):
    return ~is_padding(valid, latent_shape)


def zeros_and_ones(valid, latent_shape):
    return is_padding(valid, latent_shape).int()


def height_for_width(valid, latent_shape):
    t, h, w = latent_shape
    return is_padding(valid.transpose(1, 2), (t, w, h)).reshape(t, h, w)


@pytest.mark.parametrize("wrong, by", [
    (any_padding_is_padding, test_one_given_pixel_is_enough),
    (the_first_pixel_decides, test_one_given_pixel_is_enough),
    (the_first_pixel_decides, test_a_strip_that_passes_by_in_a_single_frame_is_seen),
    (true_means_given, test_one_given_pixel_is_enough),
    (zeros_and_ones, test_one_given_pixel_is_enough),
    (height_for_width, test_a_supervoxel_is_a_block_of_time_height_and_width)])
def test_wrong_answers_are_refused(wrong, by):
    EXERCISE.refuses(wrong, by)
