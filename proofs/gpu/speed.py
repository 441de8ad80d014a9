"""Times of whole steps, measured by events in interleaved rounds, and the results of impl "auto"."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.implementation import Implementation
from benchmarks.workload import Expected
from fastgan.ops.numerics import products
from fastgan.ops.triton.launch import dependent_launch
from proofs.gpu import jobs, library
from proofs.gpu.child import Worker

ROUNDS = 5
TURN = 0.06  # seconds
MOST = 50  # maximum calls of a turn
CHECKED = 64  # the batch size at which the first two steps are compared with float64
TRAINED = 800  # steps of the run by Trainer
TUNED = 128  # its batch size


def steps(worker: Worker) -> None:
    """Medians of rounds in which all implementations take turns, for each batch size."""
    modes = jobs.MODES if "compiled" in worker.options else ()
    for batch in map(int, worker.options["batches"].split()):
        race = partial(_race, worker, library.implementations(modes), batch)
        worker.each([(f"batch {batch}", race)], batch=str(batch))


def _race(worker: Worker, implementations: list[Implementation], batch: int) -> None:
    expected: list[Expected] = []
    if batch == CHECKED:
        worker.attempt("expected updates", lambda: expected.append(library.expect(batch)), batch=str(batch))
    made = {one: job for one in implementations if not worker.is_bad(one.name)
            and (job := _made(worker, one, batch, expected)) is not None}
    calls: dict[Implementation, int] = {}
    taken: dict[Implementation, list[float]] = {one: [] for one in made}
    for _ in range(ROUNDS + 1):
        for one, job in made.items():
            if worker.is_bad(one.name):
                continue

            def turn(one: Implementation = one, job: Any = job) -> None:
                seconds = lap(one, partial(job, 0), calls.get(one, 1))
                if one in calls:
                    taken[one].append(seconds)
                else:  # the first warms up
                    calls[one] = max(1, min(MOST, int(TURN / seconds)))
                    _tell(worker, one, batch, [seconds], "in a first turn")
            worker.attempt(one.name, turn, engine=one.engine, precision=one.precision, batch=str(batch))
    for one, seconds in taken.items():
        if seconds:
            _tell(worker, one, batch, seconds, f"median of {len(seconds)} rounds")
    made.clear()
    gc.collect()
    library.cuda.empty_cache()


def _made(worker: Worker, one: Implementation, batch: int, expected: list[Expected]) -> Any:
    """The job of an implementation, after warm-up; None if that fails."""
    found: list[Any] = []

    def make() -> None:
        with settings(one):
            job = library.training(one, batch)
            job.prepare()
            for one_expected in expected:
                used, worst = job.check(one_expected)
                worker.row(one.name, "of the allowed error after two steps", used, engine=one.engine,
                           precision=one.precision, batch=str(batch), result="ok" if used <= 1 else "wrong", note=worst)
            for _ in range(3):
                outcome = job(0)
            if failure := job.failure(outcome):
                raise RuntimeError(failure)
        found.append(job)

    worker.attempt(one.name, make, engine=one.engine, precision=one.precision, batch=str(batch))
    return found[0] if found else None


@contextmanager
def settings(one: Implementation) -> Iterator[None]:
    torch.backends.cudnn.benchmark = one.cudnn_benchmark
    with products(one.precision), dependent_launch(one.dependent_launch):
        yield


def lap(one: Implementation, call: Callable[[], object], calls: int) -> float:
    """Device seconds per call, over `calls` calls."""
    with settings(one):
        start, end = (library.cuda.Event(enable_timing=True) for _ in range(2))
        call()
        library.cuda.synchronize()
        start.record()
        for _ in range(calls):
            call()
        end.record()
        library.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1000 / calls


def _tell(worker: Worker, one: Implementation, batch: int, seconds: list[float], note: str) -> None:
    middle = median(seconds)
    key = {"engine": one.engine, "precision": one.precision, "batch": str(batch), "note": note}
    worker.row(one.name, "step", 1e3 * middle, "ms", **key)
    worker.row(one.name, "images", batch / middle, "1/s", **key)
    if len(seconds) > 1:
        worker.row(one.name, "rounds", f"{1e3 * min(seconds):.4g} to {1e3 * max(seconds):.4g}", "ms", **key)


def auto(worker: Worker) -> None:
    """impl "auto" as users run it: tuning, export of the plan, the step as a graph, a run by Trainer."""
    key = {"engine": "auto", "precision": "bf16", "batch": str(TUNED)}
    worker.each([("tuning", partial(_tune, worker)), ("Trainer", partial(_train, worker))], **key)


def _tune(worker: Worker) -> None:
    key = {"engine": "auto", "precision": "bf16", "batch": str(TUNED)}
    torch.backends.cudnn.benchmark = True
    begin = time.perf_counter()
    step, plan = library.tune(TUNED, worker.out / "tuning.json")
    worker.row("tuning", "took", time.perf_counter() - begin, "s", result="fact", **key)
    for problem, choice in plan.choices.items():
        name = " ".join(problem.words().split())
        trials = [f"{who} {trial.failure or f'{1e6 * (trial.seconds or 0):.1f} us'}"
                  for who, trial in choice.trials.items()]
        worker.row(name, "chosen", choice.candidate, result="fact", note=", ".join(trials), **key)
    for name, seconds in plan.step.items():
        worker.row("the whole step", name, 1e3 * seconds, "ms", **key)
    implementation = Implementation("fastgan, auto", "auto", "bf16", cudnn_benchmark=True)
    real = library.images(TUNED, 2)
    for name, call in ((implementation.name, step), (f"{implementation.name}, CUDA graph", library.graphed(step))):
        call(real)
        if reason := getattr(call, "failure", ""):
            raise RuntimeError(f"no graph: {reason}")
        seconds = lap(implementation, partial(call, real), 1)
        calls = max(1, min(MOST, int(TURN / seconds)))
        _tell(worker, implementation.but(name), TUNED, [lap(implementation, partial(call, real), calls)
                                                     for _ in range(ROUNDS)], f"median of {ROUNDS} rounds")


def _train(worker: Worker) -> None:
    """Train on images of noise from a file; the plan of `_tune` is read from the cache."""
    folder = worker.work / "run"
    folder.mkdir(exist_ok=True)
    data: Path = folder / "noise.npz"
    shape = library.images(1, 0).shape[1:]
    np.savez(data, images=np.random.default_rng(0).integers(0, 256, (32 * TUNED, *shape[1:], shape[0]), np.uint8))
    begin = time.perf_counter()
    how, rates = library.train(folder, data, TUNED, TRAINED)
    key = {"engine": "auto", "precision": "bf16", "batch": str(TUNED)}
    worker.row("Trainer", f"{TRAINED} steps", time.perf_counter() - begin, "s", **key,
               note="with tuning, capture and checkpoint")
    worker.row("Trainer", "images", float(median(rates[len(rates) // 2:])), "1/s", **key,
               note="median of the second half of its log")
    worker.row("Trainer", "steps are", how, result="fact", **key)
