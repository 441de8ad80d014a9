"""When a result is near enough, and against what.

    error <= 1.5 x the error of eager PyTorch in the same precision + one rounding unit

both errors from float64, as root mean square over a tensor, which averages chance away; and so for the worst element
with 4 in place of 1.5: an element near an activation's kink is off by a slope once a rounding carries it across, in
either implementation, and which elements those are is chance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

MARGIN, WORST = 1.5, 4.0


class Precision(NamedTuple):
    """Of activations and products; `unit` is the half distance between neighbours at 1, relative to the tensor."""

    dtype: torch.dtype
    unit: float
    tf32: bool = False


PRECISIONS = {
    "bf16": Precision(torch.bfloat16, 2**-8),  # 8 bits of significand, stored tensors are rounded once
    "fp16": Precision(torch.float16, 2**-11),  # 11 bits
    "tf32": Precision(torch.float32, 2**-11, tf32=True),  # 11 bits of every factor, sums in float32
    "ieee": Precision(torch.float32, 2**-22),  # 24 bits, and 2 for sums in float32: eager's on the CPU are in float64
}


def used(ours: Tensor, eager: Tensor, exact: Tensor, unit: float, scale: Tensor | None = None) -> float:
    """How much of its allowance a result has used: right up to 1.

    `scale` stands for `exact` in the rounding unit, where that is zero by cancellation.
    """
    exact = exact.double()
    scale = exact if scale is None else scale.double()
    return max(_part(size(ours.double() - exact), factor * size(eager.double() - exact) + unit * size(scale))
               for factor, size in ((MARGIN, _rms), (WORST, _worst)))


def _rms(x: Tensor) -> float:
    return math.sqrt(float(x.square().mean()))


def _worst(x: Tensor) -> float:
    return float(x.abs().max())


def _part(error: float, allowed: float) -> float:
    if error == 0:
        return 0.0
    return error / allowed if math.isfinite(error) and allowed > 0 else math.inf


@contextmanager
def products(precision: Precision) -> Iterator[None]:
    """Within the block, float32 convolutions have this precision: kernels by PyTorch's switch, eager ones by `_TF32`."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = precision.tf32
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def eagerly(precision: Precision) -> Any:
    """The mode in which eager layers on the CPU compute as tensor cores would."""
    return _TF32() if precision.tf32 else _Nothing()


class _Nothing(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class _TF32(TorchFunctionMode):
    """Convolutions with factors cut to tf32, forward and backward, which the CPU would compute in full float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.conv2d, torch.nn.functional.conv2d):
            x, weight, bias, stride, padding, dilation, groups = args
            return _Convolution.apply(x, weight, bias, stride, padding, dilation, False, (0, 0), groups)
        if func in (torch.conv_transpose2d, torch.nn.functional.conv_transpose2d):
            x, weight, bias, stride, padding, extra, groups, dilation = args
            return _Convolution.apply(x, weight, bias, stride, padding, dilation, True, extra, groups)
        return func(*args, **(kwargs or {}))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
        x, weight = cut(x), cut(weight)
        ctx.save_for_backward(x, weight, bias)
        ctx.geometry = geometry
        return torch.ops.aten.convolution(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        mask = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False]
        gx, gweight, _ = torch.ops.aten.convolution_backward(cut(gy), x, weight, None, *ctx.geometry, mask)
        return gx, gweight, None if bias is None else gy.sum((0, 2, 3)), *(None,) * 6


def cut(x: Tensor) -> Tensor:
    """Float32 with the 13 lowest bits cleared, as a tensor core reads it."""
    return (x.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)
