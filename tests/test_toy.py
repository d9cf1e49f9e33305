"""The judge of the toy: what a condition leaves open counts as right, reciting is counted."""
import pytest
import torch

from data.moving_shapes import MovingShapes
from data.source import all_clips
from measure.report import Judge


@pytest.fixture(scope="module")
def judge():
    return Judge()


@pytest.fixture(scope="module")
def held_out():
    return all_clips(MovingShapes("test"))


def test_one_frame_leaves_the_direction_open_and_tells_the_shape(judge, held_out):
    answers = judge.answers("FP", *held_out).view(-1, 4, 4)               # shape x direction
    assert (answers.any(1).sum(1) > 1).all() and (answers.any(2).sum(1) == 1).all()
    assert answers.flatten(1).gather(1, held_out[1][:, None]).all(), "the real class is an answer"


def test_both_ends_and_a_class_leave_nothing_open(judge, held_out):
    for task in ("FI", "CG", "CFP"):
        assert (judge.answers(task, *held_out).sum(1) == 1).all()
    assert judge(  # another class than the one that was asked for is wrong, however well drawn
        "CG", held_out[0], held_out[0], (held_out[1] + 4) % 16)["right_shape"] == 0


def test_a_real_clip_is_right_and_not_recited(judge, held_out):
    video, label = held_out
    found = judge("OPD", video, video, label)
    assert found["right_shape"] == found["right_direction"] == 1.0 and found["recited"] == 0.0


def test_a_training_clip_in_its_place_is_recited(judge, held_out):
    video, label = held_out
    assert judge("FP", judge.learned[:64], video, label)["recited"] == 1.0
    grey = torch.full_like(video, 0.5)
    found = judge("FP", grey, video, label)
    assert found["right_shape"] == found["right_direction"] == found["recited"] == 0.0
