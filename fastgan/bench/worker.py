"""A process for each contender, as training has one: none runs in memory that another has grown, and one that crashes,
or loses its device, takes nobody with it.

    python -m fastgan.bench.worker '{"contender": {...}, "device": "cpu", "threads": 2}'

Reads orders, a line of JSON each, and answers each with one: {} or results, or {"error": why}.

    {"do": "judge", "entry", "precisions", "path"}   write down what is right
    {"do": "make", "entry", "judged"}                make a job, have it judged, warm it up
    {"do": "first", "entry"}                         make a job and do one call
    {"do": "turn"}                                   {"seconds"} of a call
    {"do": "peak"}                                   {"mb"} of memory
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from importlib import import_module
from typing import Any, TextIO

import torch

from fastgan.bench import memory, timing
from fastgan.bench.contender import Contender
from fastgan.bench.entry import Entry
from fastgan.bench.job import Job, Judged
from fastgan.bench.timing import Clock
from fastgan.errors import first_line
from fastgan.ops.numerics import products

WARM_UP = {"cpu": 2, "cuda": 3}  # calls
# the module that does a suite's work, and the class there
WORK = {"operations": ("operations", "Pass"), "stages": ("modules", "Passes"), "networks": ("modules", "Passes"),
        "step": ("steps", "Training"), "ablation": ("steps", "Training"), "memory": ("steps", "Training"),
        "start": ("steps", "Training"), "training": ("training", "Fed")}


class Wrong(Exception):
    """A contender computes something else."""


class Bench:
    """What a process has in hand: a contender, and the job that it does now."""

    def __init__(self, contender: Contender, device: torch.device) -> None:
        self.contender, self.device = contender, device
        self.job: Job | None = None
        self.clock: Clock | None = None
        self.calls = 1

    def judge(self, entry: dict[str, Any], precisions: list[str], path: str) -> dict[str, Any]:
        """Save a `Judged`; the operations and bytes of a call."""
        given = Entry.from_json(entry)
        work = import_module(f"fastgan.bench.{WORK[given.suite][0]}")
        judged: Judged = work.judge(given, precisions, self.device)
        torch.save(judged._asdict(), path)
        return {"flops": judged.flops, "moved": judged.moved}

    def make(self, entry: dict[str, Any], judged: str) -> dict[str, Any]:
        """How many images a call sees. judged: a file of `judge`, "" where nothing is judged. Raises `Wrong`."""
        self.job = self.clock = None
        gc.collect()
        job = self._job(Entry.from_json(entry))
        job.settle()
        self._forget_peak()
        if judged:
            used, worst = job.used(Judged(**torch.load(judged, weights_only=True)))
            if used > 1:
                raise Wrong(f"wrong: {worst} has {used:.3g} x the allowed error")
        if not self.contender.graph:
            self._forget_peak()
        self.job, self.clock = job, Clock(job, self.device)
        for _ in range(WARM_UP[self.device.type]):
            took = self.clock.lap(1)
        self.calls = self.clock.calls(took)
        return {"images": job.images}

    def first(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Make a job and do its first call."""
        job = self._job(Entry.from_json(entry))
        trouble = job.trouble(job(0))  # which waits for the device
        if trouble:
            raise ArithmeticError(trouble)
        return {}

    def turn(self) -> dict[str, Any]:
        assert self.clock is not None
        if self.device.type != "cuda":
            return {"seconds": self.clock.lap(self.calls)}
        self.clock.lap(1)  # after others had the device
        seconds = self.clock.lap(self.calls)
        timing.cuda.empty_cache()  # for others
        return {"seconds": seconds}

    def peak(self) -> dict[str, Any]:
        assert self.job is not None and self.clock is not None
        if self.device.type == "cuda":
            return {"mb": timing.cuda.max_memory_allocated() / 2**20}
        job, number = self.job, self.clock.done
        return {"mb": memory.peak_mb(lambda: job(number))}

    def _job(self, entry: Entry) -> Job:
        module, name = WORK[entry.suite]
        made: Job = getattr(import_module(f"fastgan.bench.{module}"), name)(entry, self.contender, self.device)
        return made

    def _forget_peak(self) -> None:
        if self.device.type == "cuda":
            timing.cuda.reset_peak_memory_stats()


def serve(bench: Bench, orders: TextIO, answers: TextIO) -> None:
    """Answer until there are no more orders; an exception becomes words."""
    for line in orders:
        order = json.loads(line)
        try:
            with products(bench.contender.precision):
                answer = getattr(bench, order.pop("do"))(**order)
        except Wrong as error:
            answer = {"error": str(error)}
        except Exception as error:
            answer = {"error": f"{first_line(error)} ({type(error).__name__})"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    given = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what others print is no answer
    torch.set_num_threads(given["threads"])
    contender = Contender.from_json(given["contender"])
    torch.backends.cudnn.benchmark = contender.tuned
    serve(Bench(contender, torch.device(given["device"])), sys.stdin, answers)


if __name__ == "__main__":
    main()
