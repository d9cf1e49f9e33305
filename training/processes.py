"""Several processes as one: started, of one mind, and one exchange of numbers a step.

Paper   none; App. B.2's batches are shared out to as many GPUs as there are

Shapes  torchrun's environment -> start_processes -> Processes
        what process 0 read -> from_first -> the same in all processes
        facts of each process -> refuse_different -> nothing, or a ValueError in all of them

Read    Processes, start_processes, from_first, refuse_different; then average_terms, StopSignal.

Data parallel training is written out: each process has a share of the batch, and gradients are
averaged once per step, after all backward passes (steps.average_gradients). That is right only
where all processes hold the same weights, which is why process 0 alone reads checkpoints.
"""
from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from datetime import timedelta
from typing import Any, Callable, Iterator, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from data.source import cores

Read = TypeVar("Read")
FLOAT32_PLACES = torch.backends.cuda.matmul, torch.backends.cudnn   # who may round it to TF32


class Processes(NamedTuple):
    """This process among those that torchrun started; alone by default."""

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")


def start_processes(backend: str | None = None, before: Callable[[], Any] | None = None, **options
                    ) -> Processes:
    """One process, or what torchrun started: NCCL with GPUs, gloo without.

    before() is called under torchrun, once on each machine, while its other processes wait: long
    work whose result lies on the disk. options go to dist.init_process_group. GPUs keep all of
    float32 (float32_as).
    """
    for place in FLOAT32_PLACES:
        place.allow_tf32 = False
    device = device_of_this_process()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "WORLD_SIZE" not in os.environ:
        return Processes(device=device)
    join_processes(backend or ("nccl" if device.type == "cuda" else "gloo"), before, **options)
    return Processes(dist.get_rank(), dist.get_world_size(), device)


def join_processes(backend: str, before: Callable[[], Any] | None = None, **options) -> None:
    """dist.init_process_group among the processes that torchrun started.

    On one node torchrun keeps its store when it restarts killed workers (--max-restarts). Each
    attempt gets a name in it, or the new ones would find the addresses of the dead and wait.
    """
    # Optimizers import torch._dynamo, where functions take the process group of that moment as a
    # default. Imported after it, they keep its threads at exit, which then aborts now and then.
    import torch._dynamo  # noqa: F401
    store, rank, world = next(dist.rendezvous("env://"))
    if os.environ.get("LOCAL_WORLD_SIZE") == str(world):
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    if before:                          # a group's waits end after minutes, this may take hours
        done = f"before, on machine {os.environ.get('GROUP_RANK', 0)}"
        if os.environ.get("LOCAL_RANK", "0") == "0":
            before()
            store.set(done, "yes")
        store.wait([done], timedelta(days=7))
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, **options)


def device_of_this_process() -> torch.device:
    """Its GPU, where there are any, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def threads_of_this_process() -> int:
    """The cores of this machine, shared out to the processes that torchrun started on it."""
    return max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


@contextlib.contextmanager
def float32_as(precision: str) -> Iterator[None]:
    """Inside, what is left in float32 is computed by TF32 on GPUs if precision is "tf32".

    Else not at all: R1's gradient of a gradient, the distances to codes, the judges and whatever
    --precision float32 asks for have all 24 bits. TF32 keeps 11.
    """
    before = [place.allow_tf32 for place in FLOAT32_PLACES]
    for place in FLOAT32_PLACES:
        place.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        for place, was in zip(FLOAT32_PLACES, before):
            place.allow_tf32 = was


# ---------------------------------------------------------------------------------------------
# Agreement

def from_first(read: Callable[[], Read], processes: Processes) -> Read:
    """What read() returns in process 0, in all processes: nested containers of tensors and data.

    The others do not call it, so that they cannot hold anything else: not an older checkpoint, nor
    that of a disk of their own. Tensors go one by one, which takes no memory for a second copy. A
    ValueError or OSError of read() is raised in all.
    """
    if processes.world == 1:
        return read()
    found, error = None, None
    if processes.rank == 0:
        try:
            found = read()
        except (ValueError, OSError) as raised:
            error = raised
    shapes = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), found)
    message = [shapes, error]
    dist.broadcast_object_list(message, src=0, device=processes.device)
    shapes, error = message
    if error is not None:
        raise error
    leaves, tree = tree_flatten(found if processes.rank == 0 else shapes)
    for place, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            sent = (leaf.to(processes.device).contiguous() if processes.rank == 0 else
                    torch.empty(leaf.shape, dtype=leaf.dtype, device=processes.device))
            dist.broadcast(sent, src=0)
            if processes.rank:
                leaves[place] = sent.cpu()
    return tree_unflatten(leaves, tree)


def refuse_different(facts: dict[str, object], processes: Processes) -> None:
    """ValueError, on all processes, where one has other facts than process 0.

    facts: name -> plain data, of what each process must have by itself: its clips, its settings.
    """
    if processes.world == 1:
        return
    everyone: list = [None] * processes.world
    dist.all_gather_object(everyone, (socket.gethostname(), facts))
    first_host, first = everyone[0]
    for rank, (host, theirs) in enumerate(everyone):
        for name, value in theirs.items():
            if value != first.get(name):
                raise ValueError(f"process {rank} on {host} has {name} {value!r}, process 0 on "
                                 f"{first_host} has {first.get(name)!r}: they would train "
                                 "different networks, so nothing was trained")


# ---------------------------------------------------------------------------------------------
# One step's numbers, and the word to stop

def average_terms(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """The numbers of a step, averaged over processes: what one process would have logged."""
    if not dist.is_initialized():
        return terms
    names = [name for name, term in terms.items() if term.ndim == 0]
    numbers = torch.stack([terms[name].float() for name in names])
    dist.all_reduce(numbers)
    return terms | dict(zip(names, numbers / dist.get_world_size()))


class StopSignal:
    """Turns Ctrl-C, SIGTERM and SIGHUP into "finish this step, save, leave".

    A signal that is ignored stays ignored, as SIGHUP is under nohup.
    """

    received = False

    def __enter__(self) -> StopSignal:
        self.before = {}
        if threading.current_thread() is threading.main_thread():    # others may not set handlers
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)                 # Windows has no SIGHUP
                if number and signal.getsignal(number) is not signal.SIG_IGN:
                    self.before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: object) -> None:
        self.received = True

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
