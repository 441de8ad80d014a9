"""A process for each implementation: memory is not shared, and a crash or a lost device does not affect the others."""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import signal
import tempfile
import time
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.implementation import Implementation
from benchmarks.memory import peak_mb
from benchmarks.workload import Expected, Job, Workload
from fastgan.errors import first_line
from fastgan.ops.numerics import products

cuda: Any = torch.cuda  # this module calls CUDA only through this name
TIMEOUT = 600.0  # seconds for an answer
WARM_UP = {"cpu": 2, "cuda": 3}  # calls
TURN, MOST_CALLS = {"cpu": 0.02, "cuda": 0.2}, 50  # minimum seconds of a turn; maximum number of its calls
# the module and the class of the job of each suite
WORK = {"networks": ("networks", "ForwardBackward"), "step": ("steps", "Steps"), "ablation": ("steps", "Steps"),
        "training": ("training", "StepsWithData")}


class Failed(Exception):
    """The reason why an implementation cannot be measured."""


class Session:
    """The jobs of one implementation, one after another, in the process of a `Worker`."""

    def __init__(self, implementation: Implementation, device: torch.device) -> None:
        self.implementation, self.device = implementation, device
        self.job: Job | None = None
        self.done, self.calls = 0, 1  # calls that were made, and those of a turn

    def expect(self, workload: Workload, precisions: list[str], path: str) -> float | None:
        """Save an `Expected`, and return the operations of a call."""
        module = import_module(f"benchmarks.{WORK[workload.suite][0]}")
        expected: Expected = module.expect(workload, precisions, self.device)
        torch.save(expected._asdict(), path)
        return expected.flops

    def make(self, workload: Workload, path: str) -> int:
        """Create a job, compare it with the `Expected` in a file unless `path` is "", warm it up, and return the images
        of a call."""
        self.job = None
        gc.collect()
        module, name = WORK[workload.suite]
        job: Job = getattr(import_module(f"benchmarks.{module}"), name)(workload, self.implementation, self.device)
        job.prepare()
        self._reset_peak()
        if path:
            used, worst = job.check(Expected(**torch.load(path, weights_only=True)))
            if not used <= 1:
                raise Failed(f"wrong: {worst} has {used:.3g} x the allowed error")
        if not self.implementation.graph:
            self._reset_peak()
        self.job, self.done = job, 0
        for _ in range(WARM_UP[self.device.type]):
            seconds = self.time(1)
        self.calls = max(1, min(MOST_CALLS, math.ceil(TURN[self.device.type] / max(seconds, 1e-9))))
        return job.images

    def turn(self) -> float:
        """Seconds per call in one turn."""
        if self.device.type != "cuda":
            return self.time(self.calls)
        self.time(1)  # warm up after other implementations
        seconds = self.time(self.calls)
        cuda.empty_cache()  # for other implementations
        return seconds

    def time(self, calls: int) -> float:
        """Seconds per call, from idle device to idle device. Raises `Failed` if the result is invalid."""
        assert self.job is not None
        self._wait()
        begin = time.perf_counter()
        for _ in range(calls):
            self.done += 1
            outcome = self.job(self.done)
        self._wait()
        seconds = (time.perf_counter() - begin) / calls
        if failure := self.job.failure(outcome):
            raise Failed(failure)
        return seconds

    def peak(self) -> float:
        """Peak memory in MB: of PyTorch's allocator on a GPU, of live tensors on a CPU."""
        assert self.job is not None
        if self.device.type == "cuda":
            return float(cuda.max_memory_allocated() / 2**20)
        job, number = self.job, self.done
        return peak_mb(lambda: job(number))

    def _wait(self) -> None:
        if self.device.type == "cuda":
            cuda.synchronize()

    def _reset_peak(self) -> None:
        if self.device.type == "cuda":
            cuda.reset_peak_memory_stats()


def answer(session: Session, method: str, *arguments: Any) -> tuple[Any, str]:
    """(result, error message)"""
    try:
        with products(session.implementation.precision):
            return getattr(session, method)(*arguments), ""
    except Failed as error:
        return None, str(error)
    except Exception as error:
        return None, f"{first_line(error)} ({type(error).__name__})"


def serve(connection: Connection, implementation: Implementation, device: str, threads: int, log: str) -> None:
    """The process of a `Worker`: answer calls until the connection is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = implementation.cudnn_benchmark
    session = Session(implementation, torch.device(device))
    with suppress(EOFError):
        while True:
            connection.send(answer(session, *connection.recv()))


class Worker:
    """An implementation in a separate process."""

    def __init__(self, implementation: Implementation, device: torch.device) -> None:
        self._log = tempfile.NamedTemporaryFile()  # noqa: SIM115
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=serve, args=(
            other, implementation, str(device), torch.get_num_threads(), self._log.name))
        self._process.start()
        other.close()

    def call(self, method: str, *arguments: Any) -> Any:
        """The result of a method of `Session`. Raises `Failed`."""
        try:
            self._connection.send((method, *arguments))
            if not self._connection.poll(TIMEOUT):
                self._process.kill()
                raise Failed(f"no answer within {TIMEOUT:.0f} s")
            result, error = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            lines = Path(self._log.name).read_text(errors="replace").strip().splitlines()
            last = f": {lines[-1][:200]}" if lines else ""
            raise Failed(f"its process ended ({self._process.exitcode}){last}") from None
        if error:
            raise Failed(error)
        return result

    def close(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.join()
        self._connection.close()
        self._log.close()
