"""The fixture `answer`: the project's own code, and the file that a student wrote beside it."""
import importlib.util
from pathlib import Path

import pytest

ANSWERS = Path(__file__).resolve().parents[2] / "answers"                # ignored by git


@pytest.fixture(params=["the project", "yours"])
def answer(request):
    """The function that the exercise of the test's module asks for, twice: as the project has it,
    and as answers/exercise_NN.py has it. Skips the second where that file is not written yet."""
    exercise, number = request.module.EXERCISE, request.module.__name__[-2:]
    if request.param == "the project":
        return exercise.solution
    path = ANSWERS / f"exercise_{number}.py"
    file, task = f"answers/{path.name}", f"def {exercise.signature}: ..."
    if not path.exists():
        pytest.skip(f"to do: write {file} with `{task}`; docs/exercises.md explains it")
    spec = importlib.util.spec_from_file_location(f"answers_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, exercise.name):
        pytest.fail(f"{file} has no {exercise.name}; it needs `{task}`", pytrace=False)
    function = getattr(module, exercise.name)

    def yours(*inputs):
        result = function(*inputs)
        if result is None:
            pytest.fail(f"{exercise.name} of {file} returns nothing", pytrace=False)
        return result
    return yours


def pytest_terminal_summary(terminalreporter):
    """What is still to do, once per exercise; a whole course that nobody has begun is one line."""
    reasons = sorted({report.longrepr[2] for report in terminalreporter.stats.get("skipped", [])
                      if "to do: write answers/" in report.longrepr[2]})
    if len(reasons) > 3:
        reasons = [f"{len(reasons)} exercises wait for your answers: docs/exercises.md"]
    for reason in reasons:
        terminalreporter.write_line(reason.removeprefix("Skipped: "))
