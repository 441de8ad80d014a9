"""Contenders on a GPU take turns: in each round a block of steps each, timed from idle device to idle device.

A block holds what the host does, as a training loop does. Each contender sees the same batches, one after the other.
One that raises, whose loss is not finite, or which gives up its graph has a reason and no numbers.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.contenders import SHAPE, Contender, Step
from benchmarks.rows import Row
from fastgan.errors import first_line
from fastgan.train.graph import GraphedStep

cuda: Any = torch.cuda  # all that is asked of CUDA here goes through this name
BATCHES = 8  # different ones, in turn
WARM_UP = 3
LEAST = 3  # rounds, however late it is


class DeviceLost(Exception):
    """After this error nothing in this process can use the device."""

    def __init__(self, engine: str, reason: str) -> None:
        super().__init__(reason)
        self.engine, self.reason = engine, reason


@dataclass
class Entry:
    contender: Contender
    step: Step | None = None
    seconds: list[float] = field(default_factory=list)  # a step, in each round
    peak_mb: float = 0.0
    reason: str = ""

    def start(self, batches: Sequence[Tensor]) -> None:
        """Make the step and warm it up; its peak is what it takes beyond what is held already."""
        gc.collect()
        before = cuda.memory_allocated()
        torch.manual_seed(0)
        torch.backends.cudnn.benchmark = self.contender.tuned
        self.step = self.contender.make()
        # cuDNN tries its algorithms for the first who asks, and what that takes is nobody's need
        (self.step.step if isinstance(self.step, GraphedStep) else self.step)(batches[0])
        cuda.synchronize()
        cuda.reset_peak_memory_stats()
        self.block(batches[:WARM_UP])
        self.peak_mb = (cuda.max_memory_allocated() - before) / 2**20

    def turn(self, batches: Sequence[Tensor]) -> None:
        self.seconds.append(self.block(batches))

    def block(self, batches: Sequence[Tensor]) -> float:
        """Seconds of a step on each; raises when what comes out cannot be right."""
        assert self.step is not None
        torch.backends.cudnn.benchmark = self.contender.tuned
        outcome: object = ()
        cuda.synchronize()
        begin = time.perf_counter()
        for real in batches:
            outcome = self.step(real)
        cuda.synchronize()
        seconds = (time.perf_counter() - begin) / len(batches)
        if isinstance(self.step, GraphedStep) and self.step.failure:
            raise RuntimeError(f"no graph: {self.step.failure}")
        if not is_finite(outcome):
            raise ArithmeticError("a loss or a gradient is not finite")
        return seconds

    def attempt(self, action: Callable[[Sequence[Tensor]], None], batches: Sequence[Tensor]) -> None:
        """Do it unless something went wrong before; `DeviceLost` when nobody can go on after it."""
        if self.reason:
            return
        try:
            action(batches)
        except Exception as error:
            self.reason, self.step = f"{first_line(error)} ({type(error).__name__})", None
            self.seconds.clear()
            if _is_lost():
                raise DeviceLost(self.contender.engine, f"{self.contender.name}: {self.reason}") from error


def is_finite(outcome: Any) -> bool:
    """Of our step its own verdict on losses and gradients, which one bad step makes final; else the losses."""
    if isinstance(outcome, dict):
        return bool(outcome["finite"].item() == 1)
    return all(math.isfinite(float(loss)) for loss in outcome)


def _is_lost() -> bool:
    try:
        cuda.synchronize()
    except Exception:
        return True
    return False


def measure(contenders: list[Contender], batch: int, device: torch.device, *, rounds: int, steps: int,
            deadline: float, without: dict[str, str] | None = None) -> list[Row]:
    """A row each. Rounds end early at `deadline`, of time.monotonic(); `without`: engines left out, and why.

    Raises `DeviceLost`.
    """
    gc.collect()
    cuda.empty_cache()  # of the batch size before
    torch.manual_seed(1)
    images = [torch.rand(batch, *SHAPE, device=device) * 2 - 1 for _ in range(BATCHES)]
    laid = {layout: [x.to(memory_format=layout) for x in images] for layout in {c.layout for c in contenders}}
    entries = [Entry(contender, reason=(without or {}).get(contender.engine, "")) for contender in contenders]
    tuned = torch.backends.cudnn.benchmark
    try:
        for entry in tqdm(entries, desc=f"batch {batch}, warming up", disable=None):
            entry.attempt(entry.start, laid[entry.contender.layout])
        for turn in tqdm(range(rounds), desc=f"batch {batch}, rounds", disable=None):
            if turn >= LEAST and time.monotonic() > deadline:
                break
            for entry in entries:
                own = laid[entry.contender.layout]
                entry.attempt(entry.turn, [own[(turn * steps + i) % BATCHES] for i in range(steps)])
    finally:
        torch.backends.cudnn.benchmark = tuned
    by_name = {entry.contender.name: entry for entry in entries}
    return [_row(entry, by_name[entry.contender.against].seconds, batch, steps) for entry in entries]


def _row(entry: Entry, base: list[float], batch: int, steps: int) -> Row:
    contender, seconds = entry.contender, entry.seconds
    row = Row(batch, contender.name, contender.precision, contender.against, reason=entry.reason)
    if entry.reason:
        return row
    median = statistics.median(seconds)
    ratio = statistics.median(theirs / mine for theirs, mine in zip(base, seconds, strict=True)) if base else 0.0
    return row._replace(ms=median * 1e3, ms_p90=sorted(seconds)[math.ceil(0.9 * len(seconds)) - 1] * 1e3,
                        images_per_s=batch / median, ratio=ratio, peak_mb=entry.peak_mb, rounds=len(seconds),
                        steps=steps)
