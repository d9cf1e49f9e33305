"""Exercise 6: the condition of central outpainting (App. B.1)."""
import pytest
import torch

from commit import make_condition
from exercises.lesson import Exercise

EXERCISE = Exercise("central_outpainting(video)", "App. B.1, Central Outpainting: a rectangle at "
                    "the center, h = 0.5 H, w = 0.5 W; pad the nearest pixel for each location",
                    lambda video: make_condition(video, "OPC"))
PARTS = "condition, valid"


@pytest.fixture
def video():
    return torch.rand(2, 3, 4, 8, 16, generator=torch.Generator().manual_seed(0))


def test_the_middle_half_of_height_and_width_is_given_in_every_frame(answer, video):
    _, valid = EXERCISE.parts(answer(video), PARTS)
    wanted = torch.zeros(4, 8, 16, dtype=torch.bool)
    wanted[:, 2:6, 4:12] = True
    EXERCISE.same(valid, wanted, "of 4x8x16 pixels, rows 2 to 5 and columns 4 to 11 are given; "
                                 "valid is (T, H, W), without batch and colour")


def test_the_rest_is_the_nearest_given_pixel(answer, video):
    """(0, 0) is nearest to (2, 4), the corner of the rectangle; (3, 15) to (3, 11), its edge."""
    before = video.clone()
    condition, _ = EXERCISE.parts(answer(video), PARTS)
    wanted = torch.zeros_like(before)
    for y in range(8):
        for x in range(16):
            wanted[..., y, x] = before[..., min(max(y, 2), 5), min(max(x, 4), 11)]
    EXERCISE.same(condition, wanted, "each pixel is the nearest given one: its row is moved into "
                                     "2 to 5 and its column into 4 to 11")
    EXERCISE.same(video, before, "the real video is not painted over")


def test_what_is_hidden_has_no_influence(answer, video):
    other = torch.rand(video.shape, generator=torch.Generator().manual_seed(1))
    other[..., 2:6, 4:12] = video[..., 2:6, 4:12]
    one, another = (EXERCISE.parts(answer(clip), PARTS)[0] for clip in (video, other))
    EXERCISE.same(another, one, "two videos that are equal inside the rectangle have one condition")


def black(video):
    """Zero padding: that of inpainting."""
    _, valid = EXERCISE.solution(video)
    return video * valid, valid


def mean_colour(video):
    """A fair fill, were it not taken over the hidden pixels, too: it leaks."""
    _, valid = EXERCISE.solution(video)
    return torch.where(valid, video, video.mean((2, 3, 4), keepdim=True)), valid


def half_of_the_area(video):
    """Half of the width and all of the height: that is vertical outpainting."""
    return make_condition(video, "OPV")


def in_place(video):
    condition, valid = EXERCISE.solution(video)
    return video.copy_(condition), valid


def test_wrong_answers_are_refused(video):
    EXERCISE.refuses(black, test_the_rest_is_the_nearest_given_pixel, video)
    EXERCISE.refuses(mean_colour, test_what_is_hidden_has_no_influence, video)
    EXERCISE.refuses(half_of_the_area,
                     test_the_middle_half_of_height_and_width_is_given_in_every_frame, video)
    EXERCISE.refuses(in_place, test_the_rest_is_the_nearest_given_pixel, video)
