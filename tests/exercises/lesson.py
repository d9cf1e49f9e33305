"""What the twelve tests share: an answer is compared in sentences that teach, and a wrong one is
refused. The tests stand in test_01.py to test_12.py, what they ask in docs/exercises.md."""
from dataclasses import dataclass
from typing import Any, Callable

import pytest
import torch
from torch import Tensor


@dataclass(frozen=True)
class Exercise:
    """What is to be written, where to read, and the project's own code for it."""

    signature: str                      # of the function in answers/exercise_NN.py
    read: str                           # where the paper, or who else, says it
    solution: Callable[..., Any]

    @property
    def name(self) -> str:
        return self.signature.partition("(")[0]

    def fails(self, why: str) -> None:
        """An AssertionError that says what was expected and where to read about it."""
        __tracebackhide__ = True
        raise AssertionError(f"{why}\nRead {self.read}.")

    def holds(self, condition: Any, why: str) -> None:
        __tracebackhide__ = True
        if not condition:
            self.fails(why)

    def same(self, got: Any, wanted: Tensor, why: str, tolerance: float = 1e-5) -> None:
        """got is a tensor of wanted's shape and kind (bool, int64, float) and of its values;
        only floats may deviate."""
        __tracebackhide__ = True
        self.holds(isinstance(got, Tensor), f"{why}\n  wanted a tensor, got {got!r}")
        self.holds(got.shape == wanted.shape, f"{why}\n  wanted the shape {tuple(wanted.shape)}, "
                                              f"got {tuple(got.shape)}")
        kind = "a float" if wanted.is_floating_point() else str(wanted.dtype)
        self.holds(got.dtype == wanted.dtype or got.is_floating_point() and kind == "a float",
                   f"{why}\n  wanted {kind} tensor, got {got.dtype}")
        got, exact = got.detach(), wanted.detach()
        if kind == "a float":
            wrong = ~torch.isclose(got.double(), exact.double(), rtol=0, atol=tolerance)
        else:
            wrong = got != exact
        if not wrong.any():
            return
        if exact.numel() <= 12:
            self.fails(f"{why}\n  wanted {rounded(exact)}\n  got    {rounded(got)}")
        first = tuple(wrong.nonzero()[0].tolist())
        self.fails(f"{why}\n  {int(wrong.sum())} of {wrong.numel()} are wrong; the first, at "
                   f"{list(first)}: wanted {rounded(exact[first])}, got {rounded(got[first])}")

    def parts(self, got: Any, names: str) -> tuple:
        """got as a tuple of as many parts as there are names."""
        __tracebackhide__ = True
        self.holds(isinstance(got, tuple) and len(got) == len(names.split(", ")),
                   f"{self.name} returns ({names}), a tuple; got {type(got).__name__}")
        return tuple(got)

    def refuses(self, wrong: Callable[..., Any], by: Callable[..., None], *more: Any) -> None:
        """The test `by` fails for a wrong answer, and says where to read."""
        with pytest.raises(AssertionError, match="(?s)\nRead "):
            by(wrong, *more)


def rounded(values: Tensor) -> Any:
    """Numbers as short as they can be read."""
    return (values.double() * 1e5).round().div(1e5).tolist() if values.is_floating_point() else (
        values.tolist())
