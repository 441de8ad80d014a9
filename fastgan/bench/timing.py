"""How long a call takes.

On a CPU, and on a GPU for whole steps: wall time of a block of calls, from idle device to idle device, with all that
the host does. On a GPU for what is timed alone: events around each call, behind a write that leaves nothing of it in
the L2 cache, with the host ahead of the device.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from fastgan.bench.job import Job

cuda: Any = torch.cuda  # all that is asked of CUDA here goes through this name
FLUSH = 256 * 2**20  # bytes, more than the L2 cache of any GPU
SLEEP = 5_000_000  # cycles, some 3 ms
TURN = {"cpu": 0.02, "cuda": 0.2}  # seconds that a turn should last at least
MOST = 50  # calls of a turn


class Clock:
    """Times the calls of a job, and looks after each block whether they count."""

    def __init__(self, job: Job, device: torch.device) -> None:
        self.job, self.device = job, device
        self.done = 0  # calls
        self.by_events = job.alone and device.type == "cuda"
        self._flush = torch.empty(FLUSH, dtype=torch.int8, device=device) if self.by_events else None

    def calls(self, took: float) -> int:
        """How many make a turn where one has taken so long."""
        return max(1, min(MOST, math.ceil(TURN[self.device.type] / max(took, 1e-9))))

    def lap(self, calls: int) -> float:
        """Seconds of a call, in a block of as many. Raises ArithmeticError where they do not count."""
        seconds, outcome = self._events(calls) if self.by_events else self._wall(calls)
        trouble = self.job.trouble(outcome)
        if trouble:
            raise ArithmeticError(trouble)
        return seconds

    def _wall(self, calls: int) -> tuple[float, Any]:
        self._wait()
        begin = time.perf_counter()
        for _ in range(calls):
            outcome = self._next()
        self._wait()
        return (time.perf_counter() - begin) / calls, outcome

    def _events(self, calls: int) -> tuple[float, Any]:
        assert self._flush is not None
        pairs = [(cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)) for _ in range(calls)]
        self._wait()
        cuda._sleep(SLEEP)
        for start, end in pairs:
            self._flush.zero_()
            start.record()
            outcome = self._next()
            end.record()
        self._wait()
        return sum(start.elapsed_time(end) for start, end in pairs) / 1000 / calls, outcome

    def _next(self) -> Any:
        self.done += 1
        return self.job(self.done)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            cuda.synchronize()
