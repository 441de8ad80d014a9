"""The suite under pytest-benchmark, for regressions of one machine: pytest benchmarks/ --benchmark-only

    pytest benchmarks/ --benchmark-only --benchmark-autosave
    pytest benchmarks/ --benchmark-only --benchmark-compare --benchmark-compare-fail=median:10%

Parametrised from the suite's registry, in one process, without torch.compile and the plan. Who is wrong fails.
`fastgan bench` is what compares contenders with each other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fastgan.bench import run, suites
from fastgan.bench.contender import Contender
from fastgan.bench.entry import Entry
from fastgan.bench.timing import Clock
from fastgan.bench.worker import Bench
from fastgan.device import pick_device
from fastgan.ops.numerics import products
from fastgan.train.precision import choose

DEVICE = pick_device("auto")
PRECISION = choose("auto", DEVICE)
ORDER = run.Order(DEVICE, ("step", "networks", "operations"), precision=PRECISION)
CASES = [(entry, one) for group in run.groups(ORDER) for entry in group.entries for one in ORDER.contenders(entry)
         if entry.batch == suites.BATCHES[DEVICE.type][0] and not one.compiled and one.engine != "auto"]


@pytest.mark.parametrize(("entry", "contender"), CASES,
                         ids=[f"{entry.workload}-{entry.batch}-{one.name}" for entry, one in CASES])
def test_speed(benchmark: Any, entry: Entry, contender: Contender, tmp_path: Path) -> None:
    judged, before = str(tmp_path / "judged.pt"), torch.backends.cudnn.benchmark
    bench = Bench(contender, DEVICE)
    torch.backends.cudnn.benchmark = contender.tuned
    try:
        bench.judge(entry.as_json(), [contender.precision], judged)
        with products(contender.precision):
            bench.make(entry.as_json(), judged)
            assert isinstance(bench.clock, Clock)
            benchmark.pedantic(bench.clock.lap, args=(1,), rounds=7, warmup_rounds=1)
    finally:
        torch.backends.cudnn.benchmark = before
