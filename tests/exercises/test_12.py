"""Exercise 12: a task of your own, prediction of the past: the last frame is given (App. B.1)."""
import torch
from course import exercise

from commit import TASKS, Task, edge_padding, first_frames, is_padding, make_condition, zero_padding


def last_frame(T, H, W):
    return first_frames(T, H, W, 1).flip(0)


def solution():
    return Task("prediction of the past", last_frame, edge_padding)


def check(task):
    row = task()
    assert isinstance(row, Task), "return a commit.Task: title, region, padding"
    TASKS["past"] = row
    try:
        video, other = torch.rand(2, 1, 3, 8, 16, 16, generator=torch.Generator().manual_seed(0))
        condition, valid = make_condition(video, "past")
        assert valid[-1].all() and not valid[:-1].any(), "the last frame is given, and no other"
        other = torch.where(valid, video, other)
        assert torch.equal(make_condition(other, "past")[0], condition), (
            "hidden pixels show in the condition: the model would be told the answer")
        assert torch.equal(condition[:, :, -1], video[:, :, -1]), "what is given stays as it is"
        assert torch.equal(condition[:, :, 0], video[:, :, -1]), (
            "pad with the nearest given frame, as frame prediction does")
        pad = is_padding(valid, (2, 2, 2))
        assert pad[0].all() and not pad[1].any(), "the tokens of the last frames hold a given pixel"
    finally:
        del TASKS["past"]


test_the_answer, test_a_mistake_is_refused = exercise(
    12, "task()", solution, check,
    {"the first frame": lambda: Task("past", lambda T, H, W: first_frames(T, H, W, 1),
                                     edge_padding),
     "black": lambda: Task("past", last_frame, zero_padding),
     "it leaks": lambda: Task("past", last_frame, lambda video, valid: video)})
