"""A plan: which engine computes each pass of each stage, where `impl` is "auto".

    problem.py      what is asked of an engine: one pass of one stage, shapes and all
    candidates.py   who can compute it, and how one of them is called
    engine.py       the engine "plan": asks the plan in use, calls the candidate that it names
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

__all__ = ["Choice", "Plan", "Problem", "Step", "Trial", "active", "decides", "use"]


class Trial(NamedTuple):
    """Of one candidate. seconds: median of its calls, where it was timed. used: how much of the allowed error, right up
    to 1. failure: why it cannot be taken, in words; "" when it can."""

    seconds: float | None = None
    used: float | None = None
    failure: str = ""


class Choice(NamedTuple):
    candidate: str
    trials: dict[str, Trial]


class Step(NamedTuple):
    """Seconds of a whole training step, by PyTorch's operators and by the plan."""

    eager: float
    plan: float


class Plan:
    """What computes each problem; what it does not know, the device's default computes.

    Attributes:
        choices. step: what a whole step took, where that was measured.
        kernels: whether the plan is followed at all; otherwise everything is eager PyTorch.
    """

    def __init__(self, choices: dict[Problem, Choice] | None = None, *, kernels: bool = True,
                 step: Step | None = None) -> None:
        self.choices = choices or {}
        self.kernels, self.step = kernels, step

    def choose(self, problem: Problem) -> str:
        choice = self.choices.get(problem)
        return default(torch.device(problem.device)) if choice is None else choice.candidate


_active: Plan | None = None


class use:
    """Let a plan say what impl "auto" means, from now on, or in a `with` block until its end; None: eager PyTorch."""

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


def decides() -> bool:
    """Whether impl "auto" means kernels now."""
    return _active is not None and _active.kernels
