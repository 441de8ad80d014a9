"""Precisions, and the rule for the error of a result. Tests, tuning, benchmarks and the certificate use both.

    error <= 1.5 c x the error of eager PyTorch in the same precision + one rounding unit

Errors are distances from float64, as root mean square over a tensor of n elements. The same holds for the worst element
with 4 instead of 1.5. c = 1 + 3 / sqrt(n) allows for three standard deviations of the ratio of two root mean squares of
n roundings: it is close to 1 for a weight, and 4 for the bias of one channel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

MARGIN, WORST = 1.5, 4.0

# unit of float32 sums, such as statistics, in all precisions: 24 bits, less 2 because eager sums in float64 on a CPU
FLOAT32 = 2**-22


class Precision(NamedTuple):
    """The precision of activations and products; `unit` is the relative rounding error of a factor."""

    dtype: torch.dtype
    unit: float
    tf32: bool = False

    @property
    def half(self) -> bool:
        """Whether convolutions are computed in 16 bits, under autocast."""
        return self.dtype.itemsize == 2


PRECISIONS = {
    # 24 bits, less 4: a kernel adds thousands of products one after another, eager in blocks; sqrt(2048 / 3) is 2^4.7
    "fp32": Precision(torch.float32, 2**-20),
    "tf32": Precision(torch.float32, 2**-11, tf32=True),  # 11 bits
    "bf16": Precision(torch.bfloat16, 2**-8),  # 8 bits of significand
    "fp16": Precision(torch.float16, 2**-11),  # 11 bits
}
HALF = {name: precision.dtype for name, precision in PRECISIONS.items() if precision.half}


def precision_of(dtype: torch.dtype, tf32: bool = False) -> Precision:
    """The precision of products of a dtype other than float64."""
    return next(one for one in PRECISIONS.values() if one.dtype == dtype and one.tf32 == (tf32 and not one.half))


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Within the block, float32 products are computed in TF32 if `precision` is "tf32", else in float32.

    PyTorch has an older flag of cuDNN and newer settings for each kind of operation, and raises an error if the flag is
    read (as torch.compile does) while they differ. So all of them are set: with the flag alone, the others would follow
    `torch.backends.fp32_precision`, which a user may have set.
    """
    cudnn, tf32 = torch.backends.cudnn, precision == "tf32"
    kinds: tuple[Any, ...] = cudnn.conv, cudnn.rnn  # type: ignore[attr-defined]
    before, matmul = [kind.fp32_precision for kind in kinds], torch.get_float32_matmul_precision()
    try:
        cudnn.allow_tf32 = tf32
        for kind in kinds:
            kind.fp32_precision = "tf32" if tf32 else "ieee"
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        cudnn.allow_tf32 = before[0] == "tf32"
        for kind, value in zip(kinds, before, strict=True):
            kind.fp32_precision = value


def one_by_one(terms: int) -> float:
    """The relative rounding error of a float32 sum of that many terms in sequence, as in Triton's interpreter.

    A GPU adds in a tree; the units in `PRECISIONS` allow for its depth.
    """
    return 2**-24 * math.sqrt(terms / 3)


class Nearness(NamedTuple):
    """Distances from float64 by one measure, "rms" or "worst element", relative to the size of the exact result.

    by_kinks: whether the error by either measure exceeds what is allowed without kinks.
    """

    measure: str
    ours: float
    eager: float
    allowed: float
    by_kinks: bool = False

    @property
    def used(self) -> float:
        """The error relative to the allowed one; correct up to 1."""
        if self.ours == 0:
            return 0.0
        return self.ours / self.allowed if math.isfinite(self.ours) and self.allowed > 0 else math.inf


def judge(ours: Tensor, eager: Tensor, exact: Tensor, unit: float, cancelled: float = 0.0,
          kinks: Sequence[Tensor] = ()) -> Nearness:
    """The rule, by the measure with the larger error relative to the allowed one.

    cancelled: the rounding of the terms of a result that is zero by cancellation. kinks: exact results with inputs of
    rectifiers moved across zero.
    """
    exact = exact.double()
    chance = 1 + 3 / math.sqrt(exact.numel())
    found = []
    for measure, factor, size in (("rms", MARGIN, rms), ("worst element", WORST, worst)):
        theirs, rounding = size(eager.double() - exact), unit * size(exact) + cancelled
        smooth = factor * chance * theirs
        allowed = math.hypot(smooth, *(MARGIN * size(moved - exact) for moved in kinks))
        # roundings are relative to the result and to the terms that cancel in it
        scale = size(exact) + (cancelled / unit if unit else 0.0) or 1.0
        error = size(ours.double() - exact)
        found.append(Nearness(measure, error / scale, theirs / scale, (allowed + rounding) / scale,
                              bool(kinks) and error > smooth + rounding))
    return max(found, key=lambda one: one.used)._replace(by_kinks=any(one.by_kinks for one in found))


def used(ours: Tensor, eager: Tensor, exact: Tensor, unit: float, cancelled: float = 0.0,
         kinks: Sequence[Tensor] = ()) -> float:
    """The error of a result relative to the allowed one; correct up to 1. Arguments as in `judge`."""
    return judge(ours, eager, exact, unit, cancelled, kinks).used


def judge_runs(ours: Tensor, runs: Sequence[Tensor], exact: Tensor, unit: float) -> Nearness:
    """The rule by root mean square only, for results in which rounding determines single elements, such as updates of a
    training step. runs: eager PyTorch's, then others that differ from it only by rounding; the largest of their errors
    is used as that of eager PyTorch."""
    exact = exact.double()
    size = rms(exact) or 1.0
    error, *errors = (rms(run.double() - exact) / size for run in (ours, *runs))
    chance = 1 + 3 / math.sqrt(exact.numel())
    return Nearness("rms", error, errors[0], MARGIN * chance * max(errors) + unit)


def rms(x: Tensor) -> float:
    """The root mean square of all elements."""
    return math.sqrt(float(x.square().mean()))


def worst(x: Tensor) -> float:
    """The largest absolute value."""
    return float(x.abs().max())
