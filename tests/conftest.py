"""Where the official arrays are, and one place that makes modules importable from the root."""
import gc
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests"))

SMALL = ROOT / "tests" / "golden"
LARGE = ROOT.parent / "shared" / "golden"


def golden_path(name: str) -> Path:
    """The path of a file of official arrays; skips the test where it is not on this machine."""
    for folder in (SMALL, LARGE):
        if (folder / f"{name}.npz").exists():
            return folder / f"{name}.npz"
    pytest.skip(f"{name}.npz is too large to ship; it was checked where ../shared/golden is")


@pytest.fixture
def golden():
    """golden(name) -> the arrays of tests/golden/name.npz, or of ../shared/golden."""
    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(golden_path(name)) as arrays:
            return {key: arrays[key] for key in arrays.files}
    return load


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def computing_on(threads: int):
    """The body of a fixture: so many threads while a test runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread():
    """This process computes as each of several does that share a machine."""
    yield from computing_on(1)


def pytest_configure():
    """Of several workers (pytest -n) each computes on its share of the cores, as do the commands
    that it starts: threads that wait for one another would take longer than all the tests."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        share = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
        os.environ["OMP_NUM_THREADS"] = str(share)
        torch.set_num_threads(share)


def pytest_collection_finish():
    """What is there now stays: garbage is looked for among what the tests make alone."""
    gc.freeze()


# What the parity tests measured, printed at the end of the run: name -> largest deviation.
DEVIATIONS: dict[str, float] = {}


@pytest.fixture
def deviation(record_property):
    """deviation(ours, theirs, tolerance): the largest difference is within tolerance.

    It is counted in units of `scale`: by default of their largest value, if that exceeds 1.
    """
    def check(ours, theirs, tolerance: float, what: str = "",
              scale: float | None = None) -> None:
        ours = torch.as_tensor(ours, dtype=torch.float64).detach()
        theirs = torch.as_tensor(np.asarray(theirs), dtype=torch.float64)
        assert ours.shape == theirs.shape, f"{what}: {tuple(ours.shape)} {tuple(theirs.shape)}"
        scale = scale or max(1.0, theirs.abs().max().item())
        largest = (ours - theirs).abs().max().item() / scale
        record_property("deviation", float(largest))
        assert largest <= tolerance, f"{what} deviates by {largest:.2e}"
    return check


def pytest_runtest_logreport(report):
    largest = [value for name, value in report.user_properties if name == "deviation"]
    if report.when == "call" and largest:
        DEVIATIONS[report.nodeid.rpartition("::")[2]] = max(largest)


def pytest_terminal_summary(terminalreporter):
    if DEVIATIONS:
        terminalreporter.section("largest deviation from the official arrays")
        for name, value in DEVIATIONS.items():
            terminalreporter.write_line(f"{value:9.1e}  {name}")
