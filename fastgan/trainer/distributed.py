"""Data-parallel training in several processes, launched by `torchrun`.

    with distributed.group():              joins the process group; does nothing for a single process
        Trainer(config).fit()

Each process computes its part of every batch. All processes have the same parameters, random state and position in the
data. Only rank 0 creates the run folder, measures the plan and saves; the other processes wait for it (`on_rank_0`).
If a process ends, the collectives of the other processes fail and they end as well; torchrun reports which process
ended first.
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
TIMEOUT = timedelta(minutes=30)  # must exceed the time of tuning, a snapshot and metrics on rank 0
_launch_store: Any = None  # the store of torchrun, which persists when the processes are restarted
_alone = 0


class World(NamedTuple):
    """The rank of this process, the number of processes, and the local rank on its machine."""

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        return self.rank == 0


class SharedError(FastganError):
    """An error that all processes raise and only rank 0 prints."""


def world() -> World:
    """The joined process group, or a world of one process."""
    if not _joined():
        return World()
    return World(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", 0)))


def launched() -> bool:
    """Whether `torchrun` launched several processes, according to the environment."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")) and (
        int(os.environ["WORLD_SIZE"]) > 1)


@contextmanager
def group() -> Iterator[World]:
    """A context manager that joins the process group launched by `torchrun`, and leaves it at its end.

    It uses NCCL for GPUs and gloo for CPUs, and does nothing without `torchrun`.

    Raises:
        FastganError: if the other processes cannot be reached, or if one of them ends within the block.
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
        with suppress(Exception):  # fails if a process of the group has ended
            dist.destroy_process_group()


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def _join() -> None:
    global _launch_store
    if not dist.is_available():
        raise FastganError("this PyTorch was built without torch.distributed; expected one with it, or a single "
                           "process")
    # This module stores the current group as a default argument of its functions when it is imported. If torch._dynamo
    # imported it later, it would keep this group and its threads alive, and they can abort the process at exit.
    importlib.import_module("torch.distributed.nn")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        _launch_store, rank, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
        # without a prefix, the store would contain addresses of processes from before a restart
        store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", _launch_store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
        logger.disabled = rank > 0
    except (RuntimeError, ValueError, OSError) as error:
        raise FastganError(f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} cannot join the others at "
                           f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}: {first_line(error)}") from error


def _is_loss(error: RuntimeError) -> bool:
    """Whether a collective failed because another process has ended."""
    return isinstance(error, dist.DistBackendError | dist.DistNetworkError) or any(
        text in str(error) for text in ("gloo", "Connection closed by peer", "Connection reset by peer"))


def on_rank_0(work: Callable[[], Result]) -> Result:
    """Call `work` on rank 0 and return its result on all ranks. A `FastganError` of `work` is raised on all ranks."""
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
    """Call `work` on every process, first on local rank 0 of each machine, which may download files, then on the
    others."""
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
    """The objects of all processes, in rank order."""
    objects: list[Any] = [mine] * world().size
    if len(objects) > 1:
        dist.all_gather_object(objects, mine)
    return objects


def check_equal(mine: dict[str, Any]) -> None:
    """Raise `FastganError` on all processes if the values of one differ from those of rank 0."""
    first, *others = all_gather(mine)
    for rank, theirs in enumerate(others, 1):
        different = [f"{key} {theirs.get(key)} instead of {value}" for key, value in first.items()
                     if theirs.get(key) != value]
        if different:
            raise SharedError(f"process {rank} of {world().size} has other options or data than process 0: "
                              f"{', '.join(different)}; expected the same in all processes")


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Copy the tensors of rank 0 to all processes in place."""
    if world().size > 1:
        for tensor in tensors:
            whole = tensor.detach().contiguous()
            dist.broadcast(whole, src=0)
            tensor.detach().copy_(whole)


@contextmanager
def alone() -> Iterator[None]:
    """A context manager in which the steps of this process do not communicate: gradients and statistics are local."""
    global _alone
    _alone += 1
    try:
        yield
    finally:
        _alone -= 1


def active() -> bool:
    """Whether steps currently exchange gradients with other processes."""
    return _joined() and not _alone


class StopSignal:
    """The exchange of stop signals: all processes learn after the same step whether one of them received a signal. The
    all-reduce overlaps with the computation of a step."""

    def __init__(self) -> None:
        self._pending: tuple[Any, Tensor] | None = None

    def number(self, mine: int) -> int:
        """Start the exchange of `mine`, and return the maximum over all processes from the previous call (0 in the
        first call)."""
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
    """Store the run folder for the case that `torchrun` restarts the processes."""
    if _launch_store is not None:
        _launch_store.set("run folder", str(folder))


def run_folder() -> Path | None:
    """The run folder of these processes before `torchrun` restarted them, or None."""
    if _launch_store is None or not _launch_store.check(["run folder"]):
        return None
    return Path(_launch_store.get("run folder").decode())


def pick_device(name: str) -> torch.device:
    """The device with this name. With several processes, "cuda" is the GPU of the local rank."""
    mine, device = world(), devices.pick_device(name)
    if mine.size == 1 or device.type == "cpu":
        return device
    if device.type != "cuda" or device.index is not None:
        raise FastganError(f"--device {name} with {mine.size} processes: expected auto, cuda (each process uses "
                           "the GPU of its local rank) or cpu")
    if mine.local >= torch.cuda.device_count():
        raise FastganError(f"no GPU for process {mine.local} of this machine, which has {torch.cuda.device_count()}; "
                           "expected at most as many processes (--nproc-per-node)")
    torch.cuda.set_device(mine.local)
    return torch.device("cuda", mine.local)
