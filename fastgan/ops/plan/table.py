"""A plan as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from fastgan.ops.plan import Choice, Plan, Trial


def lines(plan: Plan) -> Iterator[str]:
    """A line for each problem and one for each of its candidates, the fastest first; what a whole step takes; the
    verdict."""
    for problem, choice in plan.choices.items():
        yield problem.words()
        trials = choice.trials or {choice.candidate: Trial()}
        order = sorted(trials.items(), key=lambda item: (item[1].seconds is None, item[1].seconds or 0.0))
        yield from (_line(name, trial, choice) for name, trial in order)
    yield verdict(plan)


def _line(name: str, trial: Trial, choice: Choice) -> str:
    mark = "*" if name == choice.candidate else " "
    if trial.failure:
        return f"  {mark} {name:17}not taken: {trial.failure}"
    seconds = "" if trial.seconds is None else f"{1e3 * trial.seconds:10.3f} ms"
    used = "" if trial.used is None else f"   {trial.used:6.2f} of the allowed error"
    return f"  {mark} {name:17}{seconds}{used}"


def verdict(plan: Plan) -> str:
    """One line: who computes what, and what that is worth."""
    took = "" if plan.step is None else (f"; a step takes {1e3 * plan.step.plan:.1f} ms by the plan, "
                                         f"{1e3 * plan.step.eager:.1f} ms eagerly")
    return f"{engines(plan)}{took}"


def engines(plan: Plan | None) -> str:
    """How many passes each candidate computes."""
    if plan is None or not plan.kernels:
        return "reference (eager PyTorch)"
    if not plan.choices:
        return "the device's default, nothing measured"
    counts = Counter(choice.candidate for choice in plan.choices.values())
    return ", ".join(f"{name} {count}" for name, count in counts.most_common()) + f" of {len(plan.choices)} passes"


def choices(plan: Plan | None) -> dict[str, str]:
    """What computes each problem, in words."""
    if plan is None or not plan.kernels:
        return {}
    return {problem.words(): choice.candidate for problem, choice in plan.choices.items()}
