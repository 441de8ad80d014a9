"""Makes a plan: records the problems of a workload, checks and times the candidates for each."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from statistics import median, quantiles

import torch
from torch import Tensor
from tqdm import tqdm

from fastgan.errors import first_line, from_signal_handler
from fastgan.ops.dispatch import raise_if_lost
from fastgan.ops.numerics import products
from fastgan.ops.tuning import Choice, Plan, Trial, candidates, check, stored, use
from fastgan.ops.tuning.example import Example, caller, draw
from fastgan.ops.tuning.problem import Problem
from fastgan.ops.tuning.stored import Known

ROUNDS = 5
STEP_ROUNDS = 9  # for whole steps: engines often differ by only a few percent
HOPELESS = 2.0  # calls that take longer than this x the fastest in the first round are not timed again
SAMPLE, REPEATS = 2e-3, 20  # duration of a sample of fast calls in seconds, and the maximum number of its calls
LONG = 0.02  # seconds; shorter calls are timed twice in the first round
FEW, ENOUGH = 3, 0.25  # after FEW rounds that took ENOUGH seconds in total, no further round begins


def make(workload: Callable[[], object], known: Known | None = None, *, rounds: int = ROUNDS,
         tiles: bool = False, progress: bool = False) -> Plan:
    """A plan for the problems of `workload()`, such as a training step, which is called a few times.

    Args:
        known: earlier measurements, which are reused. rounds: of interleaved timing. tiles: measure Triton's tiles.

    The plan's `engine` is the fastest for the whole workload: "plan" for its choices, or one engine for all problems.
    """
    if torch.cuda.is_available():
        assert not torch.cuda.is_current_stream_capturing(), "make a plan before a graph is captured"
    choices, steps = known or ({}, {})
    problems = record(workload)
    bar = tqdm(problems, desc="plan", unit="pass", disable=not progress, dynamic_ncols=True, leave=False)
    plan = Plan({problem: choices.get(problem) or examine(problem, rounds, tiles) for problem in bar})
    if problems:
        plan.step = steps.get(stored.workload(problems)) or {}
        if not plan.step:
            samples = _whole(workload, plan)
            plan.step, plan.varied = medians(samples), max(map(_varied, samples.values()))
        plan.engine = min(plan.step, key=lambda name: plan.step[name])
    return plan


def record(workload: Callable[[], object]) -> list[Problem]:
    """The distinct problems of a workload, in order; the reference computes them."""
    recorder = _Recorder()
    with use(recorder):
        workload()
    return list(recorder.seen)


class _Recorder(Plan):
    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[Problem, None] = {}

    def choose(self, problem: Problem) -> str:
        self.seen[problem] = None
        return "reference"


def examine(problem: Problem, rounds: int = ROUNDS, tiles: bool = False) -> Choice:
    """Check and time all candidates for a problem, and choose the fastest correct one."""
    names = candidates.of(problem, tiles)
    if len(names) == 1:
        return Choice(names[0], {})
    device = torch.device(problem.device)
    with products("tf32" if problem.tf32 else "fp32"), torch.no_grad(), torch.autocast(device.type, enabled=False):
        try:
            example = draw(problem, device)
            reference = caller(names[0], example)()
            exact = caller(names[0], example.double())()
        except torch.OutOfMemoryError as error:
            return Choice(names[0], {names[0]: Trial(failure=f"nothing to compare with: {first_line(error)}")})
        trials = {names[0]: Trial(used=check.used(problem, reference, reference, exact)[0]),
                  **{name: _judged(name, example, reference, exact) for name in names[1:]}}
        del reference, exact
        right = {name: caller(name, example) for name, trial in trials.items() if not trial.failure}
        seconds = medians(race(right, device, rounds))
    trials.update({name: trials[name]._replace(seconds=took) for name, took in seconds.items()})
    return Choice(min(seconds, key=lambda name: seconds[name]), trials)


def at_first_use(problem: Problem) -> Choice:
    """The stored choice, or one from a short measurement; a warning names each excluded candidate once."""
    choice = _known(problem.device).get(problem) or examine(problem, FEW)
    for name, trial in choice.trials.items():
        if trial.failure:
            _warn(f"{name} is excluded for {problem.kind}", trial.failure)
    return choice


@cache
def _known(device: str) -> dict[Problem, Choice]:
    return stored.recall(stored.machine(torch.device(device)))[0].choices


_warned: set[str] = set()


def _warn(what: str, why: str) -> None:
    if what not in _warned:
        _warned.add(what)
        warnings.warn(f"fastgan: {what}: {why}", stacklevel=2)


def _judged(name: str, example: Example, reference: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> Trial:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="fastgan")
            used, worst = check.used(example.problem, caller(name, example)(), reference, exact)
    except Exception as error:  # of a compiler, a driver or a shape: any error excludes the candidate
        if from_signal_handler(error):
            raise
        raise_if_lost()
        return Trial(failure=f"{type(error).__name__}: {first_line(error)}")
    return Trial(used=used, failure="" if used <= 1 else f"wrong: {worst} has {used:.3g} x the allowed error")


def race(calls: Mapping[str, Callable[[], object]], device: torch.device, rounds: int,
         sleep: int = 5_000_000, enough: float = ENOUGH) -> dict[str, list[float]]:
    """Seconds of each call in interleaved rounds. The first round warms up and excludes calls that are far slower.

    enough: seconds after which no round beyond `FEW` begins. sleep: cycles (about 3 ms) for which a GPU waits before
    each sample, so that the host can queue its launches.
    """
    def lap(name: str, repeats: int) -> float:
        return (_lap_on_cuda(calls[name], repeats, sleep) if device.type == "cuda" else _lap(calls[name], repeats))

    first = {name: lap(name, 1) for name in calls}
    # an interruption changes the time of a long call little, but that of a short one several times
    first = {name: min(took, lap(name, 1)) if took < LONG else took for name, took in first.items()}
    left = [name for name in calls if first[name] <= HOPELESS * min(first.values())]
    repeats = {name: max(1, min(REPEATS, math.ceil(SAMPLE / max(first[name], 1e-9)))) for name in left}
    samples: dict[str, list[float]] = {name: [] for name in left}
    start = time.perf_counter()
    for done in range(rounds):
        if done >= FEW and time.perf_counter() - start > enough:
            break
        for name in left:
            samples[name].append(lap(name, repeats[name]))
    return {name: samples.get(name) or [first[name]] for name in calls}


def medians(samples: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each call's samples."""
    return {name: median(taken) for name, taken in samples.items()}


def _varied(taken: list[float]) -> float:
    """The ratio of the quartiles of samples; 1 if there are too few."""
    if len(taken) < 4:
        return 1.0
    low, _, high = quantiles(taken, n=4)
    return high / low


def _lap(call: Callable[[], object], repeats: int) -> float:
    """Wall-clock seconds of a call."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _lap_on_cuda(call: Callable[[], object], repeats: int, sleep: int) -> float:
    """Seconds of a call on the device. Host time is excluded, because a CUDA graph needs none."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(sleep)
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / repeats


def _whole(workload: Callable[[], object], plan: Plan) -> dict[str, list[float]]:
    """Samples of seconds of the workload, with each engine's defaults and with the plan's choices."""
    def under(plan: Plan) -> Callable[[], None]:
        def call() -> None:
            with use(plan):
                workload()
        return call

    device = torch.device(next(iter(plan.choices)).device)
    calls = {engine: under(Plan(engine=engine)) for engine in candidates.engines(device)} | {"plan": under(plan)}
    for call in calls.values():
        call()  # the first call allocates and compiles
    return race(calls, device, STEP_ROUNDS, sleep=200_000_000, enough=math.inf)
