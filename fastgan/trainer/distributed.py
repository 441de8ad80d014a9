"""Several processes that train one model, as `torchrun` starts them.

    with distributed.group():              joins the others; does nothing where there are none
        Trainer(config).fit()

Each process computes its part of every batch, and all have the same parameters, random state and position in the data.
Rank 0 alone makes the run folder, measures a plan and saves, while the others wait for the result: `on_rank_0`.
When a process ends, the collectives of the others fail, and they end too; torchrun reports which process it was.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fastgan import device as devices
from fastgan.errors import FastganError, first_line
from fastgan.trainer.host import logger

Result = TypeVar("Result")
TIMEOUT = timedelta(minutes=30)  # longer than the measuring of a plan, a snapshot or metrics take
_launch_store: Any = None  # torchrun's, which outlives a restart of the processes
_alone = 0


class World(NamedTuple):
    """This process among all; `local` is its number on its machine."""

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        return self.rank == 0


class SharedError(FastganError):
    """Raised by all processes alike; rank 0 alone prints it."""


def world() -> World:
    """The processes of the group that was joined; this one alone where there is none."""
    if not _joined():
        return World()
    return World(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", 0)))


def launched() -> bool:
    """Whether this process is one of several, by the environment that `torchrun` sets."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")) and (
        int(os.environ["WORLD_SIZE"]) > 1)


@contextmanager
def group() -> Iterator[World]:
    """Context manager in which this process is part of the group of processes that `torchrun` launched.

    It uses NCCL between GPUs and gloo between CPUs, and does nothing without `torchrun`.

    Raises:
        FastganError: if the other processes cannot be reached, and if one of them ends within the block.
    """
    global _launch_store
    if not launched() or _joined():
        yield world()
        return
    _join()
    try:
        yield world()
    except SharedError as error:
        if world().first:
            raise
        raise SystemExit(2) from error
    except RuntimeError as error:
        if not _is_loss(error):
            raise
        raise FastganError(f"process {world().rank} of {world().size} has lost another process ({first_line(error)}); "
                           "expected `torchrun --max-restarts`, or `fastgan resume`") from error
    finally:
        _launch_store, logger.disabled = None, False
        with suppress(Exception):  # of a group that has lost a process
            dist.destroy_process_group()


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def _join() -> None:
    global _launch_store
    if not dist.is_available():
        raise FastganError("this PyTorch was built without torch.distributed; expected one with it, or one process")
    # Its functions take the current group as a default argument when it is imported. Imported later, by torch._dynamo,
    # it would keep this group and its threads alive, and one that needs the interpreter at exit aborts the process.
    importlib.import_module("torch.distributed.nn")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        _launch_store, rank, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
        # without a prefix it would have the addresses of processes that have ended
        store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", _launch_store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
        logger.disabled = rank > 0
    except (RuntimeError, ValueError, OSError) as error:
        raise FastganError(f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} cannot join the others at "
                           f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}: {first_line(error)}") from error


def _is_loss(error: RuntimeError) -> bool:
    """Whether an error is that of a collective with a process that has ended."""
    return isinstance(error, dist.DistBackendError | dist.DistNetworkError) or any(
        text in str(error) for text in ("gloo", "Connection closed by peer", "Connection reset by peer"))


def on_rank_0(work: Callable[[], Result]) -> Result:
    """Call `work` on rank 0 and return its result on all ranks, which also all raise a `FastganError` of it."""
    mine = world()
    if mine.size == 1:
        return work()
    outcome: list[Any] = [None, ""]
    if mine.first:
        try:
            with alone():
                outcome[0] = work()
        except FastganError as error:
            outcome[1] = str(error)
    dist.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
    if outcome[1]:
        raise SharedError(outcome[1])
    result: Result = outcome[0]
    return result


def local_first(work: Callable[[], Result]) -> Result:
    """`work` of each process; the first process of a machine, which may download or decode files, before the others."""
    mine = world()
    if mine.size == 1:
        return work()
    result = error = None
    for turn in (True, False):
        if turn == (mine.local == 0):
            try:
                result = work()
            except FastganError as failure:
                error = failure
        failures = all_gather(None if error is None else str(error))
        if any(failures):
            raise SharedError(next(filter(None, failures)))
    return result  # type: ignore[return-value]


def all_gather(mine: Result) -> list[Result]:
    """The object of each process, in the order of their ranks."""
    objects: list[Any] = [mine] * world().size
    if len(objects) > 1:
        dist.all_gather_object(objects, mine)
    return objects


def check_equal(mine: dict[str, Any]) -> None:
    """`FastganError`, raised by all, that names the first process whose values differ from those of rank 0."""
    first, *others = all_gather(mine)
    for rank, theirs in enumerate(others, 1):
        different = [f"{key} {theirs.get(key)} instead of {value}" for key, value in first.items()
                     if theirs.get(key) != value]
        if different:
            raise SharedError(f"process {rank} of {world().size} has other options or data than process 0: "
                              f"{', '.join(different)}; expected the same everywhere")


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Copy the tensors of rank 0 to all processes, in place."""
    if world().size > 1:
        for tensor in tensors:
            whole = tensor.detach().contiguous()
            dist.broadcast(whole, src=0)
            tensor.detach().copy_(whole)


@contextmanager
def alone() -> Iterator[None]:
    """Within the block this process's steps exchange nothing: gradients and statistics are its own."""
    global _alone
    _alone += 1
    try:
        yield
    finally:
        _alone -= 1


def active() -> bool:
    """Whether steps exchange gradients with other processes now."""
    return _joined() and not _alone


class StopSignal:
    """Whether any process was signalled to stop, known to all after the same step; the exchange runs while a step
    computes, so that it takes no time."""

    def __init__(self) -> None:
        self._pending: tuple[Any, Tensor] | None = None

    def number(self, mine: int) -> int:
        """The highest number that a process gave at the last call, 0 at the first; `mine` is known at the next one."""
        if world().size == 1:
            return mine
        known = 0
        if self._pending is not None:
            self._pending[0].wait()
            known = int(self._pending[1])
        number = torch.tensor(mine)
        self._pending = dist.all_reduce(number, dist.ReduceOp.MAX, async_op=True), number
        return known


def set_run_folder(folder: Path) -> None:
    """Let the processes of this launch find their run again after `torchrun` has restarted them."""
    if _launch_store is not None:
        _launch_store.set("run folder", str(folder))


def run_folder() -> Path | None:
    """The run that the processes of this launch began before they were restarted."""
    if _launch_store is None or not _launch_store.check(["run folder"]):
        return None
    return Path(_launch_store.get("run folder").decode())


def pick_device(name: str) -> torch.device:
    """The device of this name; of several processes on a machine each takes the GPU of its number there."""
    mine, device = world(), devices.pick_device(name)
    if mine.size == 1 or device.type == "cpu":
        return device
    if device.type != "cuda" or device.index is not None:
        raise FastganError(f"--device {name} with {mine.size} processes: expected auto, cuda (each takes the GPU of "
                           "its number) or cpu")
    if mine.local >= torch.cuda.device_count():
        raise FastganError(f"process {mine.local} of this machine has no GPU: it has {torch.cuda.device_count()}; "
                           "expected as many processes (--nproc-per-node)")
    torch.cuda.set_device(mine.local)
    return torch.device("cuda", mine.local)
