"""Steps on this CPU, measured, to stand beside what the model says of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

import fastgan
from fastgan.models import build
from fastgan.nn import use
from fastgan.train.step import GANStep
from fastgan.trainer.plan_setup import like_a_batch
from fastgan.verify import machine
from fastgan.verify.cost.counted import Experiment
from fastgan.verify.cost.textbook import Textbook

CPU = torch.device("cpu")


def steps(what: Experiment, rounds: int = 3) -> dict[str, float]:
    """Seconds of a step, the median of `rounds` after one to warm up: eager, and fastgan by each engine of the CPU.

    The contenders take turns, in one process; `benchmarks/` measures with more care.
    """
    batch = like_a_batch(what.batch, what.shape, what.classes > 0, CPU)
    found = {"eager": _eager(what), "fastgan, reference": _ours(what, "reference")}
    if not machine.why_not("native", CPU):
        found["fastgan, native"] = _ours(what, "native")
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for number in range(rounds + 1):
        for name, step in found.items():
            begin = time.perf_counter()
            step(*batch)
            if number:
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times) for name, times in seconds.items()}


def _eager(what: Experiment) -> Callable[..., object]:
    generator, discriminator = (fastgan.to_eager(network).to(memory_format=torch.channels_last)
                                for network in build(what.config.model, what.shape, what.classes))
    return Textbook(generator, discriminator, what.config, what.precision)


def _ours(what: Experiment, impl: str) -> Callable[..., object]:
    generator, discriminator = (use(network, impl).to(memory_format=torch.channels_last)
                                for network in build(what.config.model, what.shape, what.classes))
    return GANStep(generator, discriminator, what.config.model, what.config.train, precision=what.precision)
