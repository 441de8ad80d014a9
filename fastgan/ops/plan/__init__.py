"""A plan: which engine computes each pass of each operation, where `impl` is "auto".

    problem.py      what is asked of an engine: one pass, shapes and all
    candidates.py   who can compute it, and how one of them is called
    passes.py       the engine "plan": asks the plan in use, calls the candidate that it names
    measure.py      makes a plan: every candidate checked against float64 (`check.py`) on inputs of a problem's shapes
                    (`example.py`), the right ones timed, the fastest taken
    stored.py       plans and measurements as files
    table.py        plans as text

The plan in use is the process's, not a thread's: autograd calls backward passes from threads of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastgan.ops.plan.candidates import default
from fastgan.ops.plan.problem import Problem

__all__ = ["Choice", "Plan", "Problem", "Trial", "active", "engine_of", "use"]


class Trial(NamedTuple):
    """Of one candidate. seconds: median of its calls, where it was timed. used: how much of the allowed error, right up
    to 1. failure: why it cannot be taken, in words; "" when it can."""

    seconds: float | None = None
    used: float | None = None
    failure: str = ""


class Choice(NamedTuple):
    candidate: str
    trials: dict[str, Trial]


class Plan:
    """The engine of each problem. A problem without a choice runs on the device's default engine.

    Attributes:
        choices: by problem.
        engine: "plan" to follow the choices, or the engine that runs every problem, with its own defaults, because
            the step as a whole is fastest on it.
        step: seconds of the whole step under "plan" and under each engine, where that was measured.
    """

    def __init__(self, choices: dict[Problem, Choice] | None = None, *, engine: str = "plan",
                 step: dict[str, float] | None = None) -> None:
        self.choices, self.engine, self.step = choices or {}, engine, step or {}

    def choose(self, problem: Problem) -> str:
        choice = self.choices.get(problem)
        return default(torch.device(problem.device)) if choice is None else choice.candidate


_active: Plan | None = None
_WITHOUT = Plan()


class use:
    """Make impl "auto" follow a plan, from now on or within a `with` block; None: the device's default engine."""

    def __init__(self, plan: Plan | None) -> None:
        global _active
        self.before, _active = _active, plan

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        global _active
        _active = self.before


def active() -> Plan | None:
    """The plan in use."""
    return _active


def current() -> Plan:
    """The plan in use; one without choices for the backward pass of a forward pass whose plan is no longer in use."""
    return _active or _WITHOUT


def engine_of(device: torch.device) -> str:
    """What impl "auto" now means on a device: "plan", or the name of an engine."""
    return default(device) if _active is None else _active.engine
