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

from importlib import import_module
from typing import NamedTuple

import torch

from fastgan.ops.tuning import candidates
from fastgan.ops.tuning.candidates import default
from fastgan.ops.tuning.problem import Problem

__all__ = ["Choice", "Plan", "Problem", "Trial", "active", "autotune", "engine_of", "use"]


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
        varied: the largest ratio of their quartiles while they were measured; 0 where they were not.
    """

    def __init__(self, choices: dict[Problem, Choice] | None = None, *, engine: str = "plan",
                 step: dict[str, float] | None = None) -> None:
        self.choices, self.engine, self.step, self.varied = choices or {}, engine, step or {}, 0.0

    def choose(self, problem: Problem) -> str:
        choice = self.choices.get(problem)
        return default(torch.device(problem.device)) if choice is None else choice.candidate


class FirstUse(Plan):
    """Where no other plan was asked for: on a GPU, the candidates of a problem race when it is first asked for.

    A problem that is first asked for while a graph is captured is computed by the device's default engine.
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
    """Make impl "auto" follow a plan, from now on or within a `with` block; None: the device's default engine, for
    which nothing is measured."""

    def __init__(self, plan: Plan | None) -> None:
        global _active
        self.before, _active = _active, plan

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        global _active
        _active = self.before


def autotune(enabled: bool) -> None:
    """Whether impl "auto" on a GPU, where no plan is in use, measures each pass in its first call; it does by default.

    In that call every engine's result is compared with float64, and the right ones take turns for some ten
    milliseconds, once their kernels are compiled. What was measured on this machine before is not measured again.
    Nothing is measured while a CUDA graph is captured. Switched off, the device's default engine computes.
    """
    _FIRST_USE.enabled = enabled


def active() -> Plan | None:
    """The plan in use, None where there is none but that of first uses."""
    return None if _active is _FIRST_USE else _active


def current() -> Plan:
    """What passes ask now. One without choices for the backward pass of a forward pass whose plan is no longer in use.
    """
    return _active or _WITHOUT


def engine_of(device: torch.device) -> str:
    """What impl "auto" now means on a device: "plan", or the name of an engine."""
    if _active is _FIRST_USE:
        return _FIRST_USE.engine_of(device)
    return default(device) if _active is None else _active.engine
