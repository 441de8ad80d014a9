"""A plan as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch

from fastgan.ops.tuning import Choice, Plan, Trial, candidates

BUSY = 1.25  # ratio of the quartiles of a step's times; on an idle machine they differ by a few percent


def lines(plan: Plan) -> Iterator[str]:
    """A line for each problem and each of its candidates, the fastest first, and the verdict."""
    for problem, choice in plan.choices.items():
        yield problem.words()
        trials = choice.trials or {choice.candidate: Trial()}
        order = sorted(trials.items(), key=lambda item: (item[1].seconds is None, item[1].seconds or 0.0))
        yield from (_line(name, trial, choice) for name, trial in order)
    yield verdict(plan)


def _line(name: str, trial: Trial, choice: Choice) -> str:
    mark = "*" if name == choice.candidate else " "
    if trial.failure:
        return f"  {mark} {name:17}excluded: {trial.failure}"
    seconds = "" if trial.seconds is None else f"{1e3 * trial.seconds:10.3f} ms"
    used = "" if trial.used is None else f"   {trial.used:6.2f} of the allowed error"
    return f"  {mark} {name:17}{seconds}{used}"


def verdict(plan: Plan) -> str:
    """One line: the engine, or the engine of each pass, and milliseconds of a whole step under each."""
    order = sorted(plan.step.items(), key=lambda item: item[1])
    took = ", ".join(f"{name} {1e3 * seconds:.1f}" for name, seconds in order)
    busy = (f"; the machine was busy, steps varied by {plan.varied:.1f} x: `fastgan tune` with this preset and batch "
            "measures again" if plan.varied > BUSY else "")
    return counts(plan) + (f"; ms of a step: {took}" if took else "") + busy


def engine(plan: Plan | None, device: torch.device) -> str:
    """The engine of impl "auto" on a device, in words."""
    return f"{candidates.default(device)}, nothing measured" if plan is None else counts(plan)


def counts(plan: Plan) -> str:
    """The engine of all passes, or the number of passes of each candidate."""
    if plan.engine != "plan":
        return plan.engine
    number = Counter(choice.candidate for choice in plan.choices.values())
    return ", ".join(f"{name} {count}" for name, count in number.most_common()) + f" of {len(plan.choices)} passes"


def choices(plan: Plan | None) -> dict[str, str]:
    """The candidate of each problem, in words."""
    if plan is None or plan.engine != "plan":
        return {}
    return {problem.words(): choice.candidate for problem, choice in plan.choices.items()}
