"""Shared by the proofs of kernels outside of networks: every schedule, the rule for errors, a line for each run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

from proofs.ptx import rule
from proofs.ptx.operations import Fault
from proofs.ptx.simulator import executing, schedules

Results = dict[str, Tensor]
Run = TypeVar("Run")


def every_schedule(ptxsim: Any, arch: int, compute: Callable[[], Results], expected: list[str]) -> Results:
    """The results of `compute`, which launches the kernels `expected`. Raises `Fault`, also if the bits of results
    depend on the schedule."""
    first: Results = {}
    for schedule in schedules(arch):
        try:
            with executing(ptxsim, arch, schedule) as names:
                found = compute()
        except Exception as error:  # the simulator's message has the location
            raise Fault(f"{schedule.name}: {type(error).__name__}: {error}") from error
        if names != expected:
            raise Fault(f"launched {names}, expected {expected}")
        first = first or found
        different = [key for key in first if not torch.equal(first[key], found[key])]
        if different:
            raise Fault(f"{schedule.name}: different bits in {', '.join(different)}")
    return first


def judge(ours: Results, eager: Results, exact: Results, unit: Callable[[str], float]) -> tuple[float, list[str]]:
    """The largest error relative to the allowed one, and messages for those above it. unit: the rounding unit of each
    result."""
    parts = {key: rule.used(ours[key], eager[key], value, unit(key)) for key, value in exact.items()}
    return max(parts.values()), [f"{key}: {part:.2f} of the allowed error" for key, part in parts.items()
                                 if not part <= 1]


def prove(runs: Iterable[Run], execute: Callable[[Run], tuple[float, list[str]]], match: str) -> list[str]:
    """Execute the runs that match, print a line for each, and return the failures."""
    failures = []
    for run in runs:
        if match not in str(run):
            continue
        begin = time.perf_counter()
        try:
            used, wrong = execute(run)
        except Fault as fault:
            used, wrong = float("inf"), [str(fault)]
        print(f"{run}: {used:.2f} of the allowed error, {time.perf_counter() - begin:.1f} s", *wrong, sep="\n    ",
              flush=True)
        failures += [f"{run}: {words}" for words in wrong]
    return failures
