"""When a result is near enough, and against what.

    error <= 1.5 c x the error of eager PyTorch in the same precision + one rounding unit

all of them distances from float64, as root mean square over a tensor of n elements; and so for the worst element with
4 in place of 1.5. c = 1 + 3 / sqrt(n): root mean squares of n roundings vary by 1 / sqrt(2 n), and so does their
ratio, three deviations of which are allowed: nothing for a weight, a lot for the bias of one channel.

Kinks: where an activation's input is within one unit of zero, a rounding decides between two slopes, in eager as in
ours, and one such element may weigh more than all roundings together. The exact gradient is taken twice more with the
change of slopes moved by that unit to either side; 1.5 x how far that moves the gradient is allowed beside eager's
error, as independent errors add, by their squares.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

MARGIN, WORST = 1.5, 4.0


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


def used(ours: Tensor, eager: Tensor, exact: Tensor, unit: float, cancelled: float = 0.0,
         kinks: Sequence[Tensor] = ()) -> float:
    """How much of its allowance a result has used: right up to 1.

    `cancelled`: the rounding of the terms of a result that is zero by cancellation. `kinks`: exact results with kinks
    moved.
    """
    exact = exact.double()
    chance = 1 + 3 / math.sqrt(exact.numel())
    parts = []
    for factor, size in ((MARGIN, _rms), (WORST, _worst)):
        allowed = math.hypot(factor * chance * size(eager.double() - exact),
                             *(MARGIN * size(moved - exact) for moved in kinks))
        parts.append(_part(size(ours.double() - exact), allowed + unit * size(exact) + cancelled))
    return max(parts)


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
    """Within the block, kernels take float32 products as PyTorch's convolutions are told to."""
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
