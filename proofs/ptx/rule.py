"""The rule for errors, `fastgan.ops.numerics`, and eager layers on the CPU with the precision of tensor cores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastgan.ops.numerics import FLOAT32, PRECISIONS, Precision, products, used
from fastgan.verify.kinks import doubted, kinked

__all__ = ["FLOAT32", "PRECISIONS", "Precision", "cut", "doubted", "eagerly", "kinked", "products", "used"]


def eagerly(precision: Precision) -> Any:
    """The mode in which eager layers on the CPU have the precision of tensor cores."""
    return _TF32() if precision.tf32 else _Nothing()


class _Nothing(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class _TF32(TorchFunctionMode):
    """Convolutions, forward and backward, with operands truncated to tf32, which the CPU does not support."""

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
    """float32 with the 13 lowest bits cleared, as tensor cores read it."""
    return (x.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)
