"""Whether a candidate is right: no further from float64 than rounding takes the reference.

    rms(ours - exact) <= MARGIN c rms(reference - exact) + unit * size,   c = 1 + 3 / sqrt(elements)

tensor by tensor. unit: the rounding of a factor in the precision; for a vector of a channel, which is a sum of many
terms, also that of a float32 sum taken term after term. size: the exact tensor's rms; of a mean, that of what was
averaged.
"""

from __future__ import annotations

import math

from torch import Tensor

from fastgan.ops.plan.problem import Problem

MARGIN = 1.5
# bits of significand; of float32, less 4 for thousands of products added one after another
UNITS = {"bfloat16": 2**-8, "float16": 2**-11, "float32": 2**-20}
TF32 = 2**-11
_NAMES = {"forward": ("y", "statistics", "running mean", "running var"),
          "dgrad": ("gradient of x", "", "", "gradient of the normalisation"),
          "wgrad": ("", "gradient of the weight", "gradient of the bias", ""),
          "apply": ("result",), "apply_backward": ("gradient of x", "gradient of the normalisation"),
          "loss": ("loss", "probability", "gradient")}
_STACKED = ("statistics", "gradient of the normalisation")  # vectors of different sizes


def used(problem: Problem, ours: tuple[Tensor, ...], reference: tuple[Tensor, ...],
         exact: tuple[Tensor, ...]) -> tuple[float, str]:
    """How much of the allowed error the worst tensor has used, right up to 1; and its name."""
    found = [(0.0, "")]
    floor = _rms(exact[0]) if problem.kind == "forward" else 0.0
    for name, one, other, right in zip(_NAMES[problem.kind], ours, reference, exact, strict=False):
        if not name:
            continue
        if one.shape != right.shape:
            return math.inf, f"the shape of {name}"
        parts = zip(one, other, right, strict=True) if name in _STACKED else [(one, other, right)]
        found += [(_used(problem, a, b, c, floor), name) for a, b, c in parts if c.numel()]
    return max(found)


def _used(problem: Problem, ours: Tensor, reference: Tensor, exact: Tensor, floor: float) -> float:
    unit = TF32 if problem.tf32 else UNITS["float32" if problem.kind == "loss" else problem.dtype]
    if exact.dim() < 4 and problem.kind != "loss":
        unit += 2**-24 * math.sqrt(_terms(problem, exact) / 3)
    size = max(_rms(exact), floor if exact.dim() < 4 else 0.0)
    chance = 1 + 3 / math.sqrt(exact.numel())
    error, allowed = _rms(ours - exact), MARGIN * chance * _rms(reference - exact) + unit * size
    if error == 0:
        return 0.0
    return error / allowed if math.isfinite(error) and allowed > 0 else math.inf


def _terms(problem: Problem, vector: Tensor) -> int:
    """At most how many elements were added up for one of a vector."""
    sides = math.prod(problem.x[2:]) * (math.prod(problem.stride) if problem.transposed else 1)
    return problem.x[0] * sides


def _rms(x: Tensor) -> float:
    return math.sqrt(float(x.double().square().mean()))
