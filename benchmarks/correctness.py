"""Comparison of results with float64 before timing, by the rule of `fastgan.ops.numerics`."""

from __future__ import annotations

import math

from torch import Tensor

from benchmarks.workload import Expected
from fastgan.ops import numerics


def worst(ours: dict[str, Tensor], expected: Expected, precision: str) -> tuple[float, str]:
    """The largest error relative to the allowed one, at most 1 if correct, and the name of the result."""
    shares = []
    for name, exact in expected.exact.items():
        if name not in ours or ours[name].shape != exact.shape:
            return math.inf, f"the shape of {name}"
        runs = [run[name] for run in expected.runs[precision]]
        shares.append((numerics.judge_runs(ours[name], runs, exact, numerics.PRECISIONS[precision].unit).used, name))
    return max(shares)
