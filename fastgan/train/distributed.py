"""Several processes that train one model, as `torchrun` starts them: who they are, how they agree, and how they end.

    with distributed.group():              joins the others; nothing where there are none
        Trainer(config).fit()

Each computes its part of every batch, and all have the same parameters, random state and position in the data. What
only one may do (make the run folder, measure a plan, save) rank 0 does while the others wait for word of it: `agree`.
A process that fails says so to the others before it ends, so that nobody waits for one that is no longer there.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fastgan.errors import FastganError, first_line
from fastgan.train import host

Result = TypeVar("Result")
PATIENCE = timedelta(minutes=30)  # for another process: longer than a plan's measuring, a snapshot or metrics take
_LAST_WORDS = 3.0  # seconds in which a process that fails is heard
_store: Any = None  # where last words are kept
_alone = 0


class World(NamedTuple):
    """This process among all; `local` is its number on its machine."""

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        return self.rank == 0


class LostError(FastganError):
    """Another process has ended."""


def world() -> World:
    """The processes of the group that was joined; this one alone where there is none."""
    if not _joined():
        return World()
    return World(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", 0)))


def launched() -> bool:
    """Whether `torchrun`, or somebody who sets the same environment, has started this process beside others."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")) and (
        int(os.environ["WORLD_SIZE"]) > 1)


@contextmanager
def group() -> Iterator[World]:
    """Join the processes that were launched together, and part from them at the end of the block.

    NCCL between GPUs, gloo between CPUs. Errors within the block are told to the others. Raises `FastganError` where
    the others do not come.
    """
    if not launched() or _joined():
        yield world()
        return
    _join()
    try:
        yield world()
    except BaseException as error:
        told = _tell(error)
        if told is not error:
            raise told from error
        raise
    finally:
        host.quiet = False
        with suppress(Exception):  # of a group that has lost somebody
            dist.destroy_process_group()


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def _join() -> None:
    global _store
    if not dist.is_available():
        raise FastganError("this PyTorch was built without torch.distributed; expected one with it, or one process")
    # Its functions take the group there is when it is imported as a default argument. Imported later, by torch._dynamo,
    # it would keep this group and its threads for good, and one that still wants the interpreter aborts the process.
    importlib.import_module("torch.distributed.nn")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=PATIENCE))
        # torchrun's store outlives a restart, and with it addresses at which nobody listens any more
        store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
        _store, host.quiet = dist.PrefixStore("words", store), rank > 0
    except (RuntimeError, ValueError, OSError) as error:
        raise FastganError(f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} cannot join the others at "
                           f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}: {first_line(error)}") from error


def _tell(error: BaseException) -> BaseException:
    """Leave word of why this process ends, and find out whether it ends because of another; the error to raise."""
    mine = world()
    lost = _is_loss(error)
    with suppress(Exception):  # the store may be gone with its process
        if not lost:
            _store.set(f"ended{mine.rank}", str(error) or type(error).__name__)
            if mine.first:
                _wait_for(lambda: _store.check([f"heard{rank}" for rank in range(1, mine.size)]))
                return error
        words = _last_words()
        _store.set(f"heard{mine.rank}", "")
        if isinstance(error, FastganError) and not lost:
            # everybody fails alike: rank 0 says so for all, if not yet, then soon
            if str(error) in words.values():
                _wait_for(lambda: _store.check(["ended0"]))
                words = _last_words()
            return SystemExit(2) if words.get(0) == str(error) else error
        if lost and words:
            rank, why = min(words.items())
            return LostError(f"process {rank} of {mine.size} has ended: {why}")
    if isinstance(error, Exception) and lost:
        return LostError(f"process {mine.rank} of {mine.size} has lost another one, which ended without a word "
                         f"({first_line(error)}); expected `torchrun --max-restarts`, or `fastgan resume`")
    return error


def _last_words() -> dict[int, str]:
    """What processes that ended have said, as soon as one has."""
    ranks = range(world().size)
    _wait_for(lambda: any(_store.check([f"ended{rank}"]) for rank in ranks if rank != world().rank))
    return {rank: _store.get(f"ended{rank}").decode() for rank in ranks
            if rank != world().rank and _store.check([f"ended{rank}"])}


def _wait_for(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + _LAST_WORDS
    while not ready() and time.monotonic() < end:
        time.sleep(0.02)


def _is_loss(error: BaseException) -> bool:
    """Whether an error is that of a collective whose other side has gone."""
    return isinstance(error, LostError | dist.DistBackendError | dist.DistNetworkError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "Connection closed by peer",
                                                                               "Connection reset by peer")))


def agree(work: Callable[[], Result]) -> Result:
    """What `work` returns on rank 0, where alone it is called, to all; so is a `FastganError`, raised by all."""
    mine = world()
    if mine.size == 1:
        return work()
    said: list[Any] = [None, ""]
    if mine.first:
        try:
            with alone():
                said[0] = work()
        except FastganError as error:
            said[1] = str(error)
    dist.broadcast_object_list(said, src=0, device=torch.device("cpu"))
    if said[1]:
        raise FastganError(said[1])
    result: Result = said[0]
    return result


def local_first(work: Callable[[], Result]) -> Result:
    """`work` of each process; where it fetches or decodes files, one a machine has done so before the others look."""
    mine = world()
    if mine.size == 1:
        return work()
    result = error = None
    for turn in (True, False):
        if turn == (mine.local == 0):
            try:
                result = work()
            except FastganError as trouble:
                error = trouble
        failures = everyones(None if error is None else str(error))
        if any(failures):
            raise FastganError(next(filter(None, failures)))
    return result  # type: ignore[return-value]


def everyones(mine: Result) -> list[Result]:
    """What each process gives, in the order of their ranks."""
    found: list[Any] = [mine] * world().size
    for rank in range(len(found)) if len(found) > 1 else ():
        dist.broadcast_object_list(box := [mine], src=rank, device=torch.device("cpu"))
        found[rank] = box[0]
    return found


def compare(mine: dict[str, Any]) -> None:
    """`FastganError`, raised by all, that names the first process to which something else was given than to rank 0."""
    first, *others = everyones(mine)
    for rank, theirs in enumerate(others, 1):
        other = [f"{key} {theirs.get(key)} instead of {value}" for key, value in first.items()
                 if theirs.get(key) != value]
        if other:
            raise FastganError(f"process {rank} of {world().size} has other options or data than process 0: "
                               f"{', '.join(other)}; expected the same everywhere")


def same(tensors: Iterable[Tensor]) -> None:
    """Make these tensors what they are on rank 0, in place."""
    if world().size > 1:
        for tensor in tensors:
            whole = tensor.detach().contiguous()
            dist.broadcast(whole, src=0)
            tensor.detach().copy_(whole)


@contextmanager
def alone() -> Iterator[None]:
    """Within the block this process's steps wait for nobody: averages and statistics are its own."""
    global _alone
    _alone += 1
    try:
        yield
    finally:
        _alone -= 1


def active() -> bool:
    """Whether steps are made together with other processes now."""
    return _joined() and not _alone


class Stop:
    """Whether any process was told to stop, known to all after the same step; the exchange takes its time while a step
    computes, so that nobody waits for it."""

    def __init__(self) -> None:
        self._coming: tuple[Any, Tensor] | None = None

    def number(self, mine: int) -> int:
        """The highest number that a process gave at the last call, 0 at the first; `mine` is known at the next one."""
        if world().size == 1:
            return mine
        known = 0
        if self._coming is not None:
            self._coming[0].wait()
            known = int(self._coming[1])
        given = torch.tensor(mine)
        self._coming = dist.all_reduce(given, dist.ReduceOp.MAX, async_op=True), given
        return known


def launch_names() -> list[str]:
    """By what this launch can be known again after a restart; empty without `torchrun`.

    The folder for the errors of its agent is new in each launch and stays through restarts; the name that --rdzv-id
    gave is for where a restart has moved rank 0 to another machine, and may be that of an earlier launch, too.
    """
    folder, name = os.environ.get("TORCHELASTIC_ERROR_FILE", ""), os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return ([str(Path(folder).parents[2])] if folder else []) + ([name] if name != "none" else [])


def restarted() -> bool:
    """Whether `torchrun` has started all processes again after one was lost."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def pick_device(name: str) -> torch.device:
    """The device of this name; of several processes on a machine each takes the GPU of its number there."""
    mine, device = world(), host.pick_device(name)
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
