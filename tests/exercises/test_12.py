"""Exercise 12: a task of your own (App. B.1, Sec. 3.2)."""
import pytest
import torch

from commit import (MT10, TASKS, Task, edge_padding, make_condition, moving_strip,
                    tokenize_condition, zero_padding)
from decode import generate
from exercises.lesson import Exercise
from exercises.test_05 import pixel_by_pixel
from tokenizer import TOKENIZERS
from transformer import TRANSFORMERS

SHAPES = [(16, 32, 32), (8, 32, 64)]


def left_half(T, H, W):
    return (torch.arange(W) < W // 2).expand(T, H, W)


EXERCISE = Exercise("my_task()", "App. B.1 and its Fig. 2, and `Task` in commit.py; on leaks "
                    "Sec. 3.2, the paragraph before COMMIT",
                    lambda: Task("left outpainting", left_half, edge_padding))


@pytest.fixture
def add(monkeypatch):
    """add(answer): TASKS with the answer's row, for this test, under the name that is returned."""
    def adding(answer):
        task = answer()
        EXERCISE.holds(isinstance(task, Task), f"my_task() returns a commit.Task, got {task!r}")
        EXERCISE.holds(not task.counts_frames and not task.class_conditional,
                       "the region takes T, H and W alone, and the task needs no class")
        monkeypatch.setitem(TASKS, "MINE", task)
        return "MINE"
    return adding


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    return TOKENIZERS["toy"].build().eval()


def videos(shape):
    return torch.rand(2, 1, 3, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_region_gives_some_pixels_and_hides_others_at_any_size(answer, add, shape):
    region = TASKS[add(answer)].region(*shape)
    EXERCISE.holds(isinstance(region, torch.Tensor) and region.dtype == torch.bool
                   and region.shape == shape,
                   f"region{shape} is a bool tensor of that shape, True where a pixel is given; "
                   f"got {getattr(region, 'dtype', type(region).__name__)} of "
                   f"{tuple(getattr(region, 'shape', ()))}")
    EXERCISE.holds(region.any() and not region.all(), "something is given, and not everything")


def test_the_region_is_none_of_the_ten(answer, add):
    name, (video, _) = add(answer), videos(SHAPES[0])
    for other in MT10:
        EXERCISE.holds(not TASKS[name].region(*SHAPES[0]).equal(make_condition(video, other)[1]),
                       f"a region of your own; this one is that of {other}")


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_given_is_kept_and_what_is_hidden_does_not_leak(answer, add, shape):
    name, (one, other) = add(answer), videos(shape)
    condition, valid = make_condition(one, name)
    EXERCISE.same(condition[..., valid], one[..., valid],
                  f"{name}: given pixels are the video's own")
    other = torch.where(valid, one, other)
    EXERCISE.same(make_condition(other, name)[0], condition, f"{name}: two videos that differ only "
                  "where nothing is given have one condition; this padding looks at hidden pixels")


@pytest.mark.parametrize("shape", SHAPES)
def test_ispad_is_true_where_a_supervoxel_holds_no_given_pixel(answer, add, shape, tokenizer):
    name, (video, _) = add(answer), videos(shape)
    grid, valid = tokenizer.latent_shape(*shape), TASKS[name].region(*shape)
    tokens, is_pad = tokenize_condition(tokenizer, video, name)
    EXERCISE.same(is_pad.view(grid), pixel_by_pixel(valid, grid), "pixel by pixel")
    EXERCISE.holds(not is_pad.all(), "at least one token holds a given pixel")
    EXERCISE.holds(tokens.shape == is_pad[None].shape, "one condition token for each supervoxel")


def test_a_model_does_your_task_under_the_prompt_of_another(answer, add, tokenizer):
    name, (video, other) = add(answer), videos(SHAPES[0])
    torch.manual_seed(1)
    model = TRANSFORMERS["toy"].build().eval()
    clips = torch.cat([video, torch.where(TASKS[name].region(*SHAPES[0]), video, other)])
    made = generate(tokenizer, model, clips, name, prompt="OPC", steps=2, noise=torch.zeros)
    EXERCISE.same(made[1], made[0], "what is generated depends on what is given alone",
                  tolerance=1e-3)


def frame_of_the_picture(T, H, W):
    inside = torch.zeros(T, H, W, dtype=torch.bool)
    inside[:, H // 8:-H // 8, W // 8:-W // 8] = True
    return ~inside


def blurred(video, valid):
    """Softer than black; but the average is taken over hidden pixels, too."""
    return torch.where(valid, video, video.mean((2, 3, 4), keepdim=True))


def right_to_left(T, H, W):
    return moving_strip(T, H, W).flip(0)


def of_one_size(T, H, W):
    """Numbers of pixels instead of shares of T, H and W."""
    return left_half(16, 32, 32)


def test_wrong_answers_are_refused(add):
    leak = test_what_is_given_is_kept_and_what_is_hidden_does_not_leak
    size = test_the_region_gives_some_pixels_and_hides_others_at_any_size
    for region, padding in ((frame_of_the_picture, edge_padding), (right_to_left, blurred),
                            (right_to_left, lambda video, valid: 0 * video)):
        EXERCISE.refuses(lambda: Task("mine", region, padding), leak, add, SHAPES[0])
    for region in (of_one_size, lambda *shape: torch.ones(shape, dtype=torch.bool)):
        EXERCISE.refuses(lambda: Task("mine", region, zero_padding), size, add, SHAPES[1])
    EXERCISE.refuses(lambda: TASKS["IPD"], test_the_region_is_none_of_the_ten, add)
    EXERCISE.refuses(lambda: Task("mine", lambda T, H, W: left_half(T, H, W).float(), zero_padding),
                     size, add, SHAPES[0])
