"""Commands in processes of their own, which need not import torch anew: two seconds apiece.

A server imports what is not the project's, once. A command is a fork of it, with its own folder,
environment, sys.argv and output; what is the project's, it imports itself, from its own folder.
"""
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import wait
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch", "torch.distributed", "torch._dynamo", "torch.nn.parallel",
                               "numpy", "einops", "av", "imageio", "matplotlib.pyplot", "tqdm",
                               "pytest"])


def python(*arguments, cwd=ROOT, timeout=120, **environment) -> subprocess.CompletedProcess:
    """`python FILE ...`, `python -m MODULE ...` or `python -c CODE ...`, and what it printed."""
    return together([environment], *arguments, cwd=cwd, timeout=timeout)


def torchrun(processes, *arguments, cwd=ROOT, timeout=120, **environment):
    """So many processes of one command at a time, in the environment that torchrun gives them.

    Each has one thread. If one fails, the others are ended.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = dict(OMP_NUM_THREADS=1) | environment | dict(
        WORLD_SIZE=processes, LOCAL_WORLD_SIZE=processes, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    return together([common | dict(RANK=rank, LOCAL_RANK=rank) for rank in range(processes)],
                    *arguments, cwd=cwd, timeout=timeout)


def together(environments, *arguments, cwd, timeout) -> subprocess.CompletedProcess:
    """The command once in each environment; the first return code that is not 0, all the output."""
    deadline = time.monotonic() + timeout
    with tempfile.TemporaryDirectory() as folder:
        running = [start(*arguments, cwd=cwd, out=Path(folder, f"out-{number}"),
                         err=Path(folder, f"err-{number}"), **environment)
                   for number, environment in enumerate(environments)]
        while any(each.is_alive() for each in running) and time.monotonic() < deadline:
            wait([each.sentinel for each in running if each.is_alive()], timeout=1)
            if any(each.exitcode for each in running):
                break
        late = time.monotonic() >= deadline
        first = next((each.exitcode for each in running if each.exitcode), 0)
        for each in running:
            each.join(0 if late else 5)
            each.kill()
            each.join()
        printed = ["".join(path.read_text() for path in sorted(Path(folder).glob(f"{name}-*")))
                   for name in ("out", "err")]
    if late:
        raise subprocess.TimeoutExpired(arguments, timeout, *printed)
    return subprocess.CompletedProcess(arguments, first, *printed)


def start(*arguments, cwd=ROOT, out=os.devnull, err=os.devnull, **environment):
    """The command, begun, as a multiprocessing.Process."""
    variables = os.environ | {name: str(value) for name, value in environment.items()}
    process = SERVER.Process(target=begin, args=(list(map(str, arguments)), str(cwd),
                                                 dict(variables), str(out), str(err)))
    process.start()
    return process


def begin(arguments, cwd, environment, out, err) -> None:
    """In the fork: become the command."""
    for number, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    import torch
    if "OMP_NUM_THREADS" in environment:
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    (kind, *rest), ours = arguments, {str(ROOT), str(ROOT / "tests"), ""}
    named = kind in ("-m", "-c")
    sys.argv = [kind if kind == "-c" else rest[0], *rest[1:]] if named else arguments
    first = cwd if named else str(Path(cwd, kind).resolve().parent)
    sys.path[:] = [first, *(path for path in sys.path if path not in ours)]
    if kind == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        exec(compile(rest[0], "<string>", "exec"), dict(__name__="__main__"))
    else:
        runpy.run_path(kind, run_name="__main__")
