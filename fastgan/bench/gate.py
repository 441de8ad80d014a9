"""Right or wrong, before anybody is timed.

    |ours - exact| / |exact|  <=  WIDE x the floor + one rounding unit of the precision

name by name, lengths of whole tensors. The floor is the larger distance of two eager runs in the same precision, one of
them with another order of summation (the batch reversed, or another layout). `fastgan verify` has the stricter rule and
tells where a result is near; this one only keeps out what computes something else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor

from fastgan.bench.job import Judged
from fastgan.ops import numerics

WIDE = 4.0


def used(ours: dict[str, Tensor], judged: Judged, precision: str) -> tuple[float, str]:
    """How much of what is allowed the worst result has used, right up to 1; and its name."""
    floor, unit = judged.floor[precision], numerics.PRECISIONS[precision].unit
    found = []
    for name, exact in judged.exact.items():
        if name not in ours or ours[name].shape != exact.shape:
            return math.inf, f"the shape of {name}"
        share = distance(ours[name], exact) / (WIDE * floor[name] + unit)
        found.append((share if math.isfinite(share) else math.inf, name))
    return max(found)


def floors(exact: dict[str, Tensor], runs: Iterable[dict[str, Tensor]]) -> dict[str, float]:
    """By name, the largest distance of these runs from `exact`."""
    runs = list(runs)
    return {name: max(distance(run[name], value) for run in runs) for name, value in exact.items()}


def distance(found: Tensor, exact: Tensor) -> float:
    """Relative to the size of `exact`; absolute where that is 0."""
    return float((found.double() - exact).norm()) / (float(exact.norm()) or 1.0)
