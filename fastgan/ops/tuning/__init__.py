"""A plan: the engine of each pass of each operation, for `impl="auto"`.

    problem.py      a pass with its shapes, dtypes and options
    candidates.py   the engines and variants that can compute a problem
    passes.py       the engine "plan": calls the candidate that the plan in use selects for a problem
    measure.py      makes a plan: checks every candidate against float64 (`check.py`) on random inputs (`example.py`),
                    times the correct ones, and chooses the fastest
    stored.py       plans and measurements as files
    table.py        plans as text

The plan in use applies to the process, not to a thread, because autograd calls backward passes from its own threads.
"""

from __future__ import annotations

from importlib import import_module
from typing import NamedTuple

import torch

from fastgan.ops.tuning import candidates
from fastgan.ops.tuning.candidates import default
from fastgan.ops.tuning.problem import Problem

__all__ = ["Choice", "Plan", "Problem", "Trial", "active", "autotune", "engine_of", "use"]


class Trial(NamedTuple):
    """The result for one candidate. seconds: median time of a call, None if not timed. used: its error relative to the
    allowed one, correct up to 1. failure: the reason why it is excluded, or ""."""

    seconds: float | None = None
    used: float | None = None
    failure: str = ""


class Choice(NamedTuple):
    """The chosen candidate of a problem, and the result of each candidate."""

    candidate: str
    trials: dict[str, Trial]


class Plan:
    """The engine of each problem: a pass with its shapes, dtypes and options.

    The default engine of the device computes problems without a choice. `fastgan tune` makes plans.

    Attributes:
        choices: the choice for each problem.
        engine: "plan" to use the choices, or the name of the engine that computes every problem with its own defaults,
            if the whole step is fastest with it.
        step: seconds of the whole step with "plan" and with each engine, if measured.
        varied: the largest ratio of the quartiles of these times; 0 if not measured.
    """

    def __init__(self, choices: dict[Problem, Choice] | None = None, *, engine: str = "plan",
                 step: dict[str, float] | None = None) -> None:
        self.choices, self.engine, self.step, self.varied = choices or {}, engine, step or {}, 0.0

    def choose(self, problem: Problem) -> str:
        choice = self.choices.get(problem)
        return default(torch.device(problem.device)) if choice is None else choice.candidate


class FirstUse(Plan):
    """The plan that is in use by default: on a GPU, the candidates of a problem are measured in its first call.

    The device's default engine computes a problem whose first call is during the capture of a graph.
    """

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True

    def engine_of(self, device: torch.device) -> str:
        races = self.enabled and device.type == "cuda" and len(candidates.engines(device)) > 1
        return "plan" if races else default(device)

    def choose(self, problem: Problem) -> str:
        if (problem not in self.choices and self.enabled and problem.device == "cuda"
                and not torch.cuda.is_current_stream_capturing()):
            measure = import_module("fastgan.ops.tuning.measure")  # which imports this module
            self.choices[problem] = measure.at_first_use(problem)
        return super().choose(problem)


_FIRST_USE, _WITHOUT = FirstUse(), Plan()
_active: Plan | None = _FIRST_USE


class use:
    """Set the plan that impl "auto" follows in this process, from now on or within a `with` block.

    Args:
        plan: the plan; None for the default engine of each device, without measurements.
    """

    def __init__(self, plan: Plan | None) -> None:
        global _active
        self.before, _active = _active, plan

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        global _active
        _active = self.before


def autotune(enabled: bool) -> None:
    """Enable or disable measuring in the first call of each pass, for impl "auto" on a GPU without a plan in use.

    It is enabled by default. The first call compiles the kernels of every engine, compares the results with float64,
    and times the correct kernels for about ten milliseconds. If this machine has stored measurements of the pass, they
    are used instead. Nothing is measured while a CUDA graph is captured. If measuring is disabled, the default engine
    of the device is used.

    Args:
        enabled: whether passes are measured.
    """
    _FIRST_USE.enabled = enabled


def active() -> Plan | None:
    """The plan set by `use`, or None."""
    return None if _active is _FIRST_USE else _active


def current() -> Plan:
    """The plan in use, or an empty one: in a backward pass, the plan of its forward pass may have been removed."""
    return _active or _WITHOUT


def engine_of(device: torch.device) -> str:
    """The engine of impl "auto" on a device now: "plan", or the name of an engine."""
    if _active is _FIRST_USE:
        return _FIRST_USE.engine_of(device)
    return default(device) if _active is None else _active.engine
