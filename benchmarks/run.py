"""A benchmark run: one workload after another, within a number of minutes. Rows are written as soon as measured.

In each round every implementation has one turn, in a random order, so that slower phases of the machine affect all.
"""

from __future__ import annotations

import math
import random
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm

from benchmarks import results, suites
from benchmarks.implementation import Implementation
from benchmarks.results import Row
from benchmarks.suites import SUITES
from benchmarks.worker import Failed, Worker
from benchmarks.workload import Workload

LEAST_ROUNDS = 3  # also after the deadline


@dataclass(frozen=True)
class Options:
    """suites: empty for all. batches: empty for the device's defaults. match: text that names of implementations must
    contain; empty for the usual ones. minutes: approximate time limit. changes: of fields of the preset."""

    device: torch.device
    suites: tuple[str, ...] = ()
    preset: str = "dcgan-64"
    batches: tuple[int, ...] = ()
    precision: str = "fp32"
    rounds: int = 9
    match: str = ""
    minutes: float = math.inf
    changes: dict[str, Any] = field(default_factory=dict)

    def workloads(self) -> list[Workload]:
        """All workloads to measure. With default batches, the first batch of every suite comes first."""
        own = suites.BATCHES[self.device.type]
        all_of_them = [Workload(name, self.preset, batch, network, self.changes) for name in self.suites or SUITES
                       for batch in self.batches or (own if name == "step" else own[:1])
                       for network in SUITES[name].networks]
        return sorted(all_of_them, key=lambda one: not self.batches and one.batch != own[0])

    def implementations(self, workload: Workload) -> list[Implementation]:
        return suites.implementations(workload, self.device, self.precision, self.match)


@dataclass
class Timings:
    """Measurements of one implementation. seconds: of a call, in each round. error: the reason why there are none."""

    images: int = 0
    seconds: list[float] = field(default_factory=list)
    peak_mb: float | None = None
    error: str = ""


class Callee(Protocol):
    """A `Worker`, or its replacement in a test."""

    def call(self, method: str, *arguments: Any) -> Any: ...


def measure(options: Options, path: Path, rows: list[Row], skipped: list[str]) -> None:
    """Append results to `rows` and to the file, and to `skipped` the workloads for which no time was left."""
    all_of_them, facts = options.workloads(), results.facts(options.device)
    order, end = random.Random(0), time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as scratch, tqdm(total=len(all_of_them), disable=None) as bar:
        expected = _Expectations(options.device, Path(scratch))
        for number, workload in enumerate(all_of_them):
            now, ours = time.monotonic(), options.implementations(workload)
            if now > end:
                skipped.append(str(workload))
            elif ours:
                bar.set_description(str(workload))
                deadline = now + (end - now) / (len(all_of_them) - number)
                timings, flops = _workload(options, workload, ours, expected, deadline, order, bar.set_postfix_str)
                rows += (new := [Row.of(facts, workload, one, timings[one.name], flops) for one in ours])
                results.append(path, new)
            bar.update()


class _Expectations:
    """Files with the expected results; suites with the same steps share one."""

    def __init__(self, device: torch.device, scratch: Path) -> None:
        self.device, self.scratch = device, scratch
        self.known: dict[tuple[Any, ...], tuple[str, float | None]] = {}

    def find(self, workload: Workload, ours: list[Implementation]) -> tuple[str, float | None]:
        """(file, operations of a call); ("", None) for a suite that is not checked. Raises `Failed`."""
        if not SUITES[workload.suite].checked:
            return "", None
        precisions = sorted({one.precision for one in ours})
        key = (workload.network, workload.preset, workload.batch, *precisions)
        if key not in self.known:
            path, worker = str(self.scratch / f"{len(self.known)}.pt"), Worker(Implementation("expected"), self.device)
            try:
                self.known[key] = path, worker.call("expect", workload, precisions, path)
            finally:
                worker.close()
        return self.known[key]


def _workload(options: Options, workload: Workload, ours: list[Implementation], expected: _Expectations,
              deadline: float, order: random.Random,
              progress: Callable[[str], None]) -> tuple[dict[str, Timings], float | None]:
    progress("expected results")
    try:
        path, flops = expected.find(workload, ours)
    except Failed as error:
        return {one.name: Timings(error=f"nothing to compare with: {error}") for one in ours}, None
    with ExitStack() as stack:
        workers = {}
        for one in ours:
            workers[one.name] = Worker(one, options.device)
            stack.callback(workers[one.name].close)
        return run_rounds(workload, workers, path, options.rounds, deadline, order, progress), flops


def run_rounds(workload: Workload, workers: Mapping[str, Callee], expected: str, rounds: int, deadline: float,
               order: random.Random, progress: Callable[[str], None] = lambda text: None) -> dict[str, Timings]:
    """Timings by name. deadline: value of time.monotonic() after which rounds end early. progress: gets messages."""
    timings = {name: Timings() for name in workers}

    def call(name: str, method: str, *arguments: Any) -> Any:
        """The result, or None if the implementation has failed, now or before."""
        if timings[name].error:
            return None
        try:
            return workers[name].call(method, *arguments)
        except Failed as error:
            timings[name] = Timings(error=str(error))
            return None

    for name in workers:
        progress(f"{name}: warming up")
        timings[name].images = call(name, "make", workload, expected) or 0
    for number in range(rounds):
        if number >= LEAST_ROUNDS and time.monotonic() > deadline:
            break
        progress(f"round {number + 1} of {rounds}")
        for name in order.sample(list(workers), len(workers)):
            if (seconds := call(name, "turn")) is not None:
                timings[name].seconds.append(seconds)
    progress("memory")
    for name in workers:
        timings[name].peak_mb = call(name, "peak")
    return timings
