"""What a task makes of the drawn clips, read from its pixels: is it right, is it recited?

Paper   none: the toy can be measured where a real data set can only be looked at

Shapes  a task's videos (B, 3, T, 32, 32) in [0, 1] and the held-out clips that gave its condition
          -> MovingShapes.recognize -> shape and direction -> shares of the B

Read    Judge: its answers, then __call__.

A condition may leave something open. One frame says nothing of the direction, and a strip may
miss the shape altogether. So what counts as right is asked of the data set, which is finite: any
shape and direction with which some clip, of training or held out, would give this condition.

Run:    python -m measure.toy     how much each task's condition leaves open, over held-out clips
"""
from __future__ import annotations

import torch
from torch import Tensor

from commit import TASKS, make_condition
from data.moving_shapes import MovingShapes
from data.source import all_clips
from pictures import to_frames


class Judge:
    """judge(task, made, video, label) -> shares. Knows all clips that the toy can draw.

    frames: T of its clips. class_conditional tasks are told the label, so it is their one answer.
    """

    def __init__(self, frames: int = 16, condition_frames: int = 1):
        self.condition_frames = condition_frames
        self.learned, labels = all_clips(MovingShapes("train", frames))
        held_out, others = all_clips(MovingShapes("test", frames))
        self.labels = torch.cat([labels, others])
        self.frames = [to_frames(clip) for clip in torch.cat([self.learned, held_out])]

    def answers(self, task: str, video: Tensor, label: Tensor) -> Tensor:
        """(B, 16) bool: the classes with which the toy has a clip of the same condition."""
        classes = torch.arange(len(MovingShapes().class_names))
        if TASKS[task].class_conditional:
            return label[:, None] == classes
        valid = make_condition(video, task, self.condition_frames)[1].numpy()
        given, asked = ([frames[valid].tobytes() for frames in clips]
                        for clips in (self.frames, map(to_frames, video)))
        found = torch.zeros(len(video), len(classes), dtype=torch.bool)
        for row, condition in enumerate(asked):
            found[row, self.labels[[clip == condition for clip in given]]] = True
        return found

    def __call__(self, task: str, made: Tensor, video: Tensor, label: Tensor) -> dict[str, float]:
        """Shares of the videos: right_shape and right_direction, of an answer; open_direction,
        where there are several; recited: a training clip within 20 dB, the real one farther."""
        made, video, label = made.float().cpu(), video.cpu(), label.cpu()
        answers = self.answers(task, video, label).view(len(video), -1, 4)     # shape x direction
        shape, direction = MovingShapes.recognize(made)
        shapes, directions = answers.any(2), answers.any(1)
        right_shape = shapes.gather(1, shape.clamp(min=0)[:, None])[:, 0] & (shape >= 0)
        right_way = directions.gather(1, direction.clamp(min=0)[:, None])[:, 0] & (direction >= 0)
        error = torch.cdist(made.flatten(1), self.learned.flatten(1)).square() / made[0].numel()
        real = (made - video).square().flatten(1).mean(1)
        nearest = error.amin(1)
        shares = dict(right_shape=right_shape, right_direction=right_way,
                      open_direction=directions.sum(1) > 1,
                      recited=(nearest < real) & (nearest < 0.01))
        return {name: round(share.float().mean().item(), 3) for name, share in shares.items()}


def main() -> None:
    judge, (video, label) = Judge(), all_clips(MovingShapes("test"))
    print("of 64 held-out clips   direction open   shape open   the real clip is right")
    for task in TASKS:
        answers = judge.answers(task, video, label).view(len(video), 4, 4)
        of_itself = judge(task, video, video, label)
        print(f"{task:22} {of_itself['open_direction']:14.0%} "
              f"{(answers.any(2).sum(1) > 1).float().mean():12.0%} "
              f"{of_itself['right_shape']:12.0%} {of_itself['right_direction']:.0%}")


if __name__ == "__main__":
    main()
