"""The passes of two layers, both networks and the training step of dcgan-64 under pytest-benchmark: a table for each.

    pytest benchmarks/ --benchmark-only

A table compares PyTorch with fastgan's engines on this device. A call is timed from idle device to idle device. Results
are not compared with float64, and implementations do not take turns: `python -m benchmarks` does both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import suites
from benchmarks.implementation import Implementation
from benchmarks.networks import NETWORKS
from benchmarks.worker import Session
from benchmarks.workload import Workload
from fastgan.device import pick_device
from fastgan.ops.numerics import PRECISIONS, products
from fastgan.ops.tuning import candidates, example
from fastgan.ops.tuning.problem import Problem
from fastgan.train.precision import choose

Benchmark = Callable[..., Any]  # the fixture of pytest-benchmark
DEVICE = pick_device("auto")
PRECISION = choose("auto", DEVICE)
BATCH = 128 if DEVICE.type == "cuda" else 16
ENGINES = {name: "PyTorch" if name == "reference" else f"fastgan, {name}" for name in candidates.engines(DEVICE)}
LAYERS = ((64, 32), (256, 8))  # channels and size of the images of D's second and last 4x4/2 convolutions
_ACTIVATION = {"activation": "leaky_relu", "negative_slope": 0.2}
PASSES: dict[str, dict[str, Any]] = {
    "conv_forward": {"groups": 1}, "dgrad": {}, "wgrad": {},
    "bn_act_forward": {**_ACTIVATION, "groups": 1, "statistics": "batch"},
    "bn_backward_sums": {**_ACTIVATION, "groups": 1},
    "bn_backward_apply": {**_ACTIVATION, "groups": 1, "statistics": "given"},
    "act_backward": _ACTIVATION}


def problems() -> list[Problem]:
    """Each pass, in both layers."""
    found = []
    precision, threads = PRECISIONS[PRECISION], 0 if DEVICE.type == "cuda" else torch.get_num_threads()
    dtype = str(precision.dtype).removeprefix("torch.")
    for kind, fields in PASSES.items():
        for channels, size in LAYERS:
            made = Problem(kind, DEVICE.type, threads, dtype, precision.tf32, (BATCH, channels, size, size), **fields)
            if kind in candidates.CONVOLUTIONS:
                made = made._replace(weight=(2 * channels, channels, 4, 4), weight_dtype=dtype, stride=(2, 2),
                                     padding=(1, 1), output_padding=(0, 0))
            found.append(made)
    return found


def row(group: str, name: str, *values: object) -> Any:
    """Arguments of a benchmark, for a row of the table `group`."""
    return pytest.param(*values, id=name, marks=pytest.mark.benchmark(group=group))


def rows(workload: Workload) -> list[Any]:
    """Without torch.compile and tuning, which take long before the first call."""
    return [row(str(workload), "-".join(filter(None, (workload.network, one.name))), workload, one)
            for one in suites.implementations(workload, DEVICE, PRECISION)
            if not one.compiled and one.engine != "auto"]


@pytest.mark.parametrize(("problem", "engine"), [
    row(" ".join(problem.words().split()), f"{problem.kind}-{problem.x[1]}-{name}", problem, engine)
    for problem in problems() for engine, name in ENGINES.items()])
def test_pass(problem: Problem, engine: str, benchmark: Benchmark) -> None:
    call = example.caller(engine, example.draw(problem, DEVICE))

    def timed() -> None:
        call()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    with products(PRECISION), torch.no_grad():
        timed()  # compiles kernels
        benchmark(timed)


@pytest.mark.parametrize(("workload", "one"), [
    one for network in NETWORKS for one in rows(Workload("networks", "dcgan-64", BATCH, network))])
def test_network(workload: Workload, one: Implementation, benchmark: Benchmark) -> None:
    _measure(workload, one, benchmark)


@pytest.mark.parametrize(("workload", "one"), rows(Workload("step", "dcgan-64", BATCH)))
def test_step(workload: Workload, one: Implementation, benchmark: Benchmark) -> None:
    _measure(workload, one, benchmark)


def _measure(workload: Workload, one: Implementation, benchmark: Benchmark) -> None:
    session = Session(one, DEVICE)
    torch.backends.cudnn.benchmark = one.cudnn_benchmark
    with products(PRECISION):
        session.make(workload, "")
        benchmark(session.time, 1)
