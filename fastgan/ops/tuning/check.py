"""Whether a candidate is right: no further from float64 than rounding takes the reference, tensor by tensor, by the
rule of `fastgan.ops.numerics`.

A vector of a channel is a sum of many terms, which a candidate may take in float32 term after term. A mean is judged by
the size of what was averaged.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastgan.ops import numerics
from fastgan.ops.tuning.problem import Problem

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
    floor = {"conv_forward": numerics.rms(exact[0]), "bn_act_forward": 1.0}.get(problem.kind, 0.0)
    for name, one, other, right in zip(_NAMES[problem.kind], ours, reference, exact, strict=False):
        if one.shape != right.shape:
            return math.inf, f"the shape of {name}"
        if name == "mask" and right.numel():  # z near 0 may have either sign after a rounding
            far = exact[0].abs() >= DOUBT * numerics.rms(exact[0])
            one, other, right = (part[far].double() for part in (one, other, right))
        parts = zip(one, other, right, strict=True) if name in _STACKED else [(one, other, right)]
        found += [(_used(problem, a, b, c, floor), name) for a, b, c in parts if c.numel()]
    return max(found)


def _used(problem: Problem, ours: Tensor, reference: Tensor, exact: Tensor, floor: float) -> float:
    loss = problem.kind == "logistic_loss"
    dtype = torch.float32 if loss else getattr(torch, problem.dtype)
    unit = numerics.precision_of(dtype, problem.tf32).unit
    if loss or exact.dim() == 4 or problem.kind == "conv_act_forward":
        return numerics.used(ours, reference, exact, unit)
    unit += numerics.one_by_one(_terms(problem))
    return numerics.used(ours, reference, exact, unit, cancelled=unit * floor)


def _terms(problem: Problem) -> int:
    """At most how many elements were added up for one of a vector."""
    sides = math.prod(problem.x[2:]) * (math.prod(problem.stride) if problem.transposed else 1)
    return problem.x[0] * sides
