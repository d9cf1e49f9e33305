"""Exercise 4: the condition of frame prediction, one frame and its copies (App. B.1)."""
import torch
from course import exercise

from commit import make_condition


def solution(video):
    return make_condition(video, "FP")


def check(frame_prediction):
    video = torch.rand(2, 3, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    before = video.clone()
    condition, valid = frame_prediction(video)
    assert torch.equal(video, before), "the video itself must not change"
    assert valid.shape == (4, 6, 6) and valid.dtype == torch.bool
    assert valid[0].all() and not valid[1:].any(), "the first frame is given, and no other"
    assert torch.equal(condition, video[:, :, :1].expand_as(video)), (
        "frame prediction repeats the given frame: App. B.1 pads with the last given frame")
    other = video.clone()
    other[:, :, 1:] = 0.5
    assert torch.equal(frame_prediction(other)[0], condition), "hidden pixels must not show"


def leaks(video):
    return (video, make_condition(video, "FP")[1])


test_the_answer, test_a_mistake_is_refused = exercise(
    4, "frame_prediction(video)", solution, check,
    {"black instead of copies": lambda video: (
        video * make_condition(video, "FP")[1], make_condition(video, "FP")[1]),
     "the future shows": leaks,
     "two frames": lambda video: make_condition(video, "FP", 2)})
