"""docs/exercises.md asks for what the tests test, and its solutions are where it says."""
import importlib
import re
import sys
from types import SimpleNamespace

import pytest

from commit import TASKS
from conftest import ROOT

PAGE = (ROOT / "docs" / "exercises.md").read_text()
SECTIONS = re.split(r"^## (\d+)\. ", PAGE, flags=re.M)[1:]


def test_there_are_twelve():
    assert SECTIONS[::2] == [str(n) for n in range(1, 13)]
    assert "answers/" in (ROOT / ".gitignore").read_text().split()


@pytest.mark.parametrize("number", range(1, 13))
def test_each_section_names_its_function_its_test_and_its_solution(number):
    section = SECTIONS[2 * number - 1]
    exercise = importlib.import_module(f"exercises.test_{number:02}").EXERCISE
    assert f"Write `{exercise.signature}`" in " ".join(section.split())
    assert f"`python -m pytest tests/exercises/test_{number:02}.py`" in section
    for heading in ("Read", "Hint"):
        assert f"- **{heading}** " in section
    name, path = re.search(r"- \*\*Solution\*\* \[`([\w.]+)`\]\(\.\./([\w/.]+)\)", section).groups()
    owner = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    for symbol in name.removeprefix(owner.__name__ + ".").split("."):
        owner = getattr(owner, symbol)


def test_the_toy_does_a_task_of_your_own(tmp_path, monkeypatch):
    """The program at the end of the page, with the test's own task in place of an answer."""
    solution = importlib.import_module("exercises.test_12").EXERCISE.solution
    monkeypatch.setitem(sys.modules, "exercise_12", SimpleNamespace(my_task=solution))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(TASKS, "MINE", solution())              # so that it is gone afterwards
    monkeypatch.chdir(tmp_path)
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    exec(re.search(r"```python\n(.*?)```", PAGE, re.S)[1], {})
    assert (tmp_path / "out.gif").stat().st_size > 1000
