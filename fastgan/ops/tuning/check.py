"""The error of a candidate's results by the rule of `fastgan.ops.numerics`, tensor by tensor.

Vectors with one element for each channel are sums of many terms, for which sequential summation in float32 is allowed.
The error of a mean is relative to the size of the averaged values.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastgan.ops import numerics
from fastgan.ops.torch_ops import unpack_bits
from fastgan.ops.tuning.problem import Problem

DOUBT = 2**-5  # x rms(a): the mask of a leaky_relu is not compared if a is closer to 0
_NAMES = {"conv_forward": ("y", "statistics"), "conv_act_forward": ("a", "mask"),
          "bn_act_forward": ("a", "mean and rstd", "running mean", "running var"),
          "bn_backward_sums": ("sums", "sums over groups"), "bn_backward_apply": ("gradient of y",),
          "act_backward": ("gradient of y",), "dgrad": ("gradient of x",), "wgrad": ("gradient of the weight",),
          "gan_loss": ("loss", "score", "gradient")}
_STACKED = ("statistics", "mean and rstd", "sums", "sums over groups")  # vectors of different sizes


def used(problem: Problem, ours: tuple[Tensor, ...], reference: tuple[Tensor, ...],
         exact: tuple[Tensor, ...]) -> tuple[float, str]:
    """The largest error relative to the allowed one, correct up to 1, and the name of the tensor."""
    found = [(0.0, "")]
    # the error of a mean is relative to the size of y, which is about 1 in examples of a batch normalization
    floor = {"conv_forward": numerics.rms(exact[0]), "bn_act_forward": 1.0}.get(problem.kind, 0.0)
    for name, one, other, right in zip(_NAMES[problem.kind], ours, reference, exact, strict=False):
        if one.shape != right.shape:
            return math.inf, f"the shape of {name}"
        if name == "mask" and right.numel():  # z near 0 may have either sign after a rounding
            far = exact[0].abs() >= DOUBT * numerics.rms(exact[0])
            one, other, right = (unpack_bits(part, far)[far].double() for part in (one, other, right))
        parts = zip(one, other, right, strict=True) if name in _STACKED else [(one, other, right)]
        found += [(_used(problem, a, b, c, floor), name) for a, b, c in parts if c.numel()]
    return max(found)


def _used(problem: Problem, ours: Tensor, reference: Tensor, exact: Tensor, floor: float) -> float:
    loss = problem.kind == "gan_loss"
    dtype = torch.float32 if loss else getattr(torch, problem.dtype)
    unit = numerics.precision_of(dtype, problem.tf32).unit
    if loss or exact.dim() == 4 or problem.kind == "conv_act_forward":
        return numerics.used(ours, reference, exact, unit)
    unit += numerics.one_by_one(_terms(problem))
    return numerics.used(ours, reference, exact, unit, cancelled=unit * floor)


def _terms(problem: Problem) -> int:
    """The largest number of elements that were summed for one element of a vector."""
    sides = math.prod(problem.x[2:]) * (math.prod(problem.stride) if problem.transposed else 1)
    return problem.x[0] * sides
