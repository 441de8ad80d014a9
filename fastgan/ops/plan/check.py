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
DOUBT = 2**-5  # of rms(a): where a leaky_relu's a is nearer to 0, its mask is not compared
_NAMES = {"conv_forward": ("y", "statistics"), "conv_act_forward": ("a", "mask"),
          "bn_act_forward": ("a", "mean and rstd", "running mean", "running var"), "bn_backward_sums": ("sums",),
          "bn_backward_apply": ("gradient of y",), "act_backward": ("gradient of y",), "dgrad": ("gradient of x",),
          "wgrad": ("gradient of the weight",), "logistic_loss": ("loss", "probability", "gradient")}
_STACKED = ("statistics", "mean and rstd", "sums")  # vectors of different sizes


def used(problem: Problem, ours: tuple[Tensor, ...], reference: tuple[Tensor, ...],
         exact: tuple[Tensor, ...]) -> tuple[float, str]:
    """How much of the allowed error the worst tensor has used, right up to 1; and its name."""
    found = [(0.0, "")]
    # a mean is of the size of y, which an example of a batch normalization has of about 1
    floor = {"conv_forward": _rms(exact[0]), "bn_act_forward": 1.0}.get(problem.kind, 0.0)
    for name, one, other, right in zip(_NAMES[problem.kind], ours, reference, exact, strict=False):
        if one.shape != right.shape:
            return math.inf, f"the shape of {name}"
        if name == "mask" and right.numel():  # z near 0 may have either sign after a rounding
            far = exact[0].abs() >= DOUBT * _rms(exact[0])
            one, other, right = (part[far].double() for part in (one, other, right))
        parts = zip(one, other, right, strict=True) if name in _STACKED else [(one, other, right)]
        found += [(_used(problem, a, b, c, floor), name) for a, b, c in parts if c.numel()]
    return max(found)


def _used(problem: Problem, ours: Tensor, reference: Tensor, exact: Tensor, floor: float) -> float:
    vector, loss = exact.dim() < 4 and problem.kind != "conv_act_forward", problem.kind == "logistic_loss"
    unit = TF32 if problem.tf32 else UNITS["float32" if loss else problem.dtype]
    if vector and not loss:
        unit += 2**-24 * math.sqrt(_terms(problem) / 3)
    size = max(_rms(exact), floor if vector else 0.0)
    chance = 1 + 3 / math.sqrt(exact.numel())
    error, allowed = _rms(ours - exact), MARGIN * chance * _rms(reference - exact) + unit * size
    if error == 0:
        return 0.0
    return error / allowed if math.isfinite(error) and allowed > 0 else math.inf


def _terms(problem: Problem) -> int:
    """At most how many elements were added up for one of a vector."""
    sides = math.prod(problem.x[2:]) * (math.prod(problem.stride) if problem.transposed else 1)
    return problem.x[0] * sides


def _rms(x: Tensor) -> float:
    return math.sqrt(float(x.double().square().mean()))
