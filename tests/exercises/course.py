"""What the twelve exercises share: whose answer is tested, and that the test can fail.

Each exercise asks for one function. Its test checks the project's own (the solution), yours in
answers/exercise_NN.py where you have written one, and that a few likely mistakes are refused.
"""
import importlib.util
from typing import Callable

import pytest
from conftest import ROOT

ANSWERS = ROOT / "answers"


def exercise(number: int, signature: str, solution: Callable, check: Callable[[Callable], None],
             mistakes: dict[str, Callable]) -> tuple[Callable, Callable]:
    """The two tests of an exercise. check(function) asserts that the function is right."""

    @pytest.mark.parametrize("whose", ["of the project", "of yours"])
    def test_the_answer(whose):
        check(solution if whose == "of the project" else yours(number, signature))

    @pytest.mark.parametrize("mistake", mistakes)
    def test_a_mistake_is_refused(mistake):
        with pytest.raises(AssertionError):
            check(mistakes[mistake])

    return test_the_answer, test_a_mistake_is_refused


def yours(number: int, signature: str) -> Callable:
    """The function in answers/exercise_NN.py; without the file the test is skipped."""
    path, name = ANSWERS / f"exercise_{number:02}.py", signature.split("(")[0]
    if not path.exists():
        pytest.skip(f"write answers/{path.name} with def {signature}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, name):
        pytest.fail(f"answers/{path.name} has no def {signature}")
    return getattr(module, name)
