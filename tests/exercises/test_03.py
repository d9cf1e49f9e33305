"""Exercise 3: ispad, whether a token's supervoxel holds nothing but padding (Sec. 3.2)."""
import torch
from course import exercise

from commit import is_padding


def check(is_padding):
    valid = torch.zeros(4, 8, 8, dtype=torch.bool)
    assert is_padding(valid, (2, 2, 2)).all(), "nothing is given: all is padding"
    valid[3, 7, 0] = True                              # the last frame, bottom left
    pad = is_padding(valid, (2, 2, 2))
    assert pad.shape == (2, 2, 2) and pad.dtype == torch.bool
    assert not pad[1, 1, 0], "one given pixel is enough: this supervoxel is no padding"
    assert pad.sum() == 7, "and it says nothing of the other seven"
    assert not is_padding(~valid, (2, 2, 2)).any()


test_the_answer, test_a_mistake_is_refused = exercise(
    3, "is_padding(valid, latent_shape)", is_padding, check,
    {"turned round": lambda valid, shape: ~is_padding(valid, shape),
     "all instead of any": lambda valid, shape: is_padding(~valid, shape).logical_not(),
     "drawn on the latent grid": lambda valid, shape: ~valid[
         ::valid.shape[0] // shape[0], ::valid.shape[1] // shape[1], ::valid.shape[2] // shape[2]]})
