"""When a result is near enough to what it should be, in words and as code.

    error <= 1.5 c x the error of eager PyTorch in the same precision + one rounding unit

all of them distances from float64, as root mean square over a tensor of n elements; and so for the worst element with
4 in place of 1.5. c = 1 + 3 / sqrt(n): root mean squares of n roundings vary by 1 / sqrt(2 n), and so does their
ratio, three deviations of which are allowed: nothing for a weight, a lot for the bias of one channel.

Kinks: where an activation's input is nearly zero, a rounding decides between two slopes, in eager as in ours, and one
such element may weigh more than all roundings together. In 16 bits these inputs are off by one unit (as root mean
square), so elements within two are in doubt. The exact gradient is taken twice more with the change of slopes moved by
two units to either side; 1.5 x how far that moves the gradient is allowed beside eager's error, as independent errors
add, by their squares.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastgan.ops.plan.check import MARGIN

WORST = 4.0
DOUBT = 2.0  # units from a kink

# of sums in float32, such as statistics, in all precisions: 24 bits, less 2 as eager sums on the CPU in float64
FLOAT32 = 2**-22


class Precision(NamedTuple):
    """Of activations and products; `unit` is the rounding of a factor, relative to its size."""

    dtype: torch.dtype
    unit: float
    tf32: bool = False


PRECISIONS = {
    "bf16": Precision(torch.bfloat16, 2**-8),  # 8 bits of significand
    "fp16": Precision(torch.float16, 2**-11),  # 11 bits
    "tf32": Precision(torch.float32, 2**-11, tf32=True),  # 11 bits
    # 24 bits, less 4: a kernel adds thousands of products one after another, eager in blocks; sqrt(2048 / 3) is 2^4.7
    "ieee": Precision(torch.float32, 2**-20),
}


def one_by_one(terms: int) -> float:
    """The rounding of a float32 sum that is taken term after term, as Triton's interpreter does, relative to its size.

    A GPU adds up a tree, whose depth `PRECISIONS` allow for.
    """
    return 2**-24 * math.sqrt(terms / 3)


class Nearness(NamedTuple):
    """Distances from float64 by one measure, "rms" or "worst element", relative to the exact result's size by it."""

    measure: str
    ours: float
    eager: float
    allowed: float

    @property
    def used(self) -> float:
        """How much of what is allowed has been used: right up to 1."""
        if self.ours == 0:
            return 0.0
        return self.ours / self.allowed if math.isfinite(self.ours) and self.allowed > 0 else math.inf


def judge(ours: Tensor, eager: Tensor, exact: Tensor, unit: float, cancelled: float = 0.0,
          kinks: Sequence[Tensor] = ()) -> Nearness:
    """The rule by the measure that uses more of its allowance.

    `cancelled`: the rounding of the terms of a result that is zero by cancellation. `kinks`: exact results with kinks
    moved.
    """
    exact = exact.double()
    chance = 1 + 3 / math.sqrt(exact.numel())
    found = []
    for measure, factor, size in (("rms", MARGIN, _rms), ("worst element", WORST, _worst)):
        theirs = size(eager.double() - exact)
        allowed = math.hypot(factor * chance * theirs, *(MARGIN * size(moved - exact) for moved in kinks))
        # what a rounding is relative to: the result, and what has cancelled in it
        scale = size(exact) + (cancelled / unit if unit else 0.0) or 1.0
        distances = size(ours.double() - exact), theirs, allowed + unit * size(exact) + cancelled
        found.append(Nearness(measure, *(distance / scale for distance in distances)))
    return max(found, key=lambda one: one.used)


def used(ours: Tensor, eager: Tensor, exact: Tensor, unit: float, cancelled: float = 0.0,
         kinks: Sequence[Tensor] = ()) -> float:
    """How much of its allowance a result has used: right up to 1. Arguments as in `judge`."""
    return judge(ours, eager, exact, unit, cancelled, kinks).used


def _rms(x: Tensor) -> float:
    return math.sqrt(float(x.square().mean()))


def _worst(x: Tensor) -> float:
    return float(x.abs().max())


def products(precision: Precision) -> AbstractContextManager[None]:
    """Within the block, kernels take float32 products as PyTorch's convolutions are told to."""
    from fastgan.train import precision as of_a_step  # which brings the trainer with it

    return of_a_step.products("tf32" if precision.tf32 else "fp32")


def doubted(network: nn.Sequential, precision: Precision) -> list[nn.Sequential]:
    """The same layers, twice, with kinks moved to either side of where inputs are in doubt."""
    return [kinked(network, sign * DOUBT * precision.unit) for sign in (-1, 1)]


def kinked(network: nn.Sequential, shift: float) -> nn.Sequential:
    """The same layers with the slopes of relu and leaky relu changing at `shift` times the inputs' rms, not at 0."""
    network = copy.deepcopy(network)
    for key, layer in network.named_children():
        if isinstance(layer, (nn.ReLU, nn.LeakyReLU)):
            setattr(network, key, _Kinked(getattr(layer, "negative_slope", 0.0), shift))
    return network


class _Kinked(nn.Module):
    def __init__(self, slope: float, shift: float) -> None:
        super().__init__()
        self.slope, self.shift = slope, shift

    def forward(self, z: Tensor) -> Tensor:
        fixed = z.detach()
        one, slope = torch.ones_like(fixed), torch.full_like(fixed, self.slope)
        steep = torch.where(fixed > self.shift * _rms(fixed), one, slope)
        return fixed * torch.where(fixed > 0, one, slope) + steep * (z - fixed)
