"""A stage and its gradients in kernels: which of them run, and what each is given.

    forward    one implicit GEMM with the owed normalisation in its prologue and the statistics in its epilogue
    backward   dgrad, the twin of the forward GEMM, with act' and the sums for gamma and beta in its epilogue; wgrad,
               with both prologues. The weight is read, and its gradient written, in channels_last order.

Tensors come and go as (N, C, H, W) and are [N, H, W, C] in memory; `Owed` is what x still owes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastgan.ops import reference
from fastgan.ops.casts import cast
from fastgan.ops.layers import Convolution, Measurement, Owed
from fastgan.ops.triton.apply import apply, differentiate
from fastgan.ops.triton.convolve import Geometry, convolve
from fastgan.ops.triton.operand import Operand
from fastgan.ops.triton.reduce import finish_statistics, norm_gradient
from fastgan.ops.triton.wgrad import wgrad


def stage(x: Tensor, owed: Owed, convolution: Convolution, groups: int, measurement: Measurement | None,
          fuse: bool) -> tuple[Tensor, Tensor]:
    """y (N, Co, Ho, Wo) and its statistics [2, G, Co], empty without a measurement."""
    operand = _activated(x, owed)
    statistic_groups, groups = groups, math.lcm(groups, operand.groups())
    if not fuse:
        operand = Operand(apply(operand))
    y, partials = convolve(operand, _weight(convolution, x.dtype), convolution.bias, convolution.size(x),
                           _geometry(convolution), groups=groups, statistics=measurement is not None,
                           precision=_precision(x))
    if measurement is None or partials is None:
        return _nchw(y), x.new_empty((0,), dtype=torch.float32)
    partials = partials.view(3, statistic_groups, -1, y.shape[3])
    statistics = finish_statistics(partials, measurement.eps, measurement.running_mean, measurement.running_var,
                                   measurement.num_batches_tracked, measurement.momentum)
    return _nchw(y), statistics


def stage_backward(gy: Tensor, gstatistics: Tensor | None, y: Tensor, statistics: Tensor, x: Tensor, owed: Owed,
                   convolution: Convolution, spread: str, fuse: bool, needs: tuple[bool, bool, bool, bool],
                   ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias and of `owed` [4, G, Ci]: mean, rstd, gamma, beta; empty where not needed."""
    activated, gradient = _activated(x, owed), Operand(_nhwc(gy))
    if gstatistics is not None:
        gradient = Operand(_nhwc(gy), spread, _nhwc(y), (*gstatistics.unbind(), *statistics.unbind()),
                           inverse_count=statistics.shape[1] * y.shape[1] / y.numel())
    groups = math.lcm(gradient.groups(), activated.groups())  # fused or not, for the same order of summation
    if not fuse:
        gradient = Operand(apply(gradient)) if gstatistics is not None else gradient
    geometry, (needs_x, needs_weight, needs_bias, needs_norm) = _geometry(convolution), needs
    gx, gweight, gbias, gnorm = (x.new_empty((0,)) for _ in range(4))  # an operator's outputs share no memory
    if needs_x or needs_norm:
        rows, partials = convolve(gradient, _weight(convolution, x.dtype), None, (x.shape[2], x.shape[3]),
                                  geometry.twin(), groups=groups, derivative_of=activated, precision=_precision(x))
        gx = _nchw(rows)
        if partials is not None and owed.statistics is not None and owed.gamma is not None:
            partials = partials.view(2, owed.groups(), -1, x.shape[1])
            gnorm = norm_gradient(partials, owed.statistics[1], owed.gamma)
    if needs_weight:
        if not fuse:
            activated = Operand(apply(activated))
        coarse, fine = (activated, gradient) if convolution.transposed else (gradient, activated)
        weight = convolution.weight
        gweight = _nchw(wgrad(coarse, fine, (weight.shape[2], weight.shape[3]), *geometry[:2], weight.dtype,
                              groups=groups, precision=_precision(x)))
    if needs_bias and convolution.bias is not None:
        gbias = reference.bias_gradient(gy, gstatistics).to(convolution.bias.dtype)
    return gx, gweight, gbias, gnorm


def normalise_activate(x: Tensor, owed: Owed) -> Tensor:
    return _nchw(apply(_activated(x, owed)))


def normalise_activate_backward(gout: Tensor, x: Tensor, owed: Owed) -> tuple[Tensor, Tensor]:
    """Gradients of x and of `owed` [4, G, C], which is empty without a normalisation."""
    rows, partials = differentiate(_nhwc(gout), _activated(x, owed))
    if partials is None or owed.statistics is None or owed.gamma is None:
        return _nchw(rows), x.new_empty((0,))
    return _nchw(rows), norm_gradient(partials, owed.statistics[1], owed.gamma)


def _activated(x: Tensor, owed: Owed) -> Operand:
    name, slope, statistics = owed.activation.name, float(owed.activation.negative_slope), owed.statistics
    if statistics is not None:
        return Operand(_nhwc(x), "normalised", None, (*statistics.unbind(), owed.gamma, owed.beta), name, slope)
    return Operand(_nhwc(x), "raw" if name == "none" else "activated", activation=name, negative_slope=slope)


def _geometry(convolution: Convolution) -> Geometry:
    return Geometry(convolution.stride, convolution.padding, convolution.transposed)


def _weight(convolution: Convolution, dtype: torch.dtype) -> Tensor:
    return _nhwc(cast(convolution.weight, dtype))


def _nhwc(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()


def _nchw(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def _precision(x: Tensor) -> str:
    """Of products of x; of float32, what PyTorch's convolutions have been told. Others have one, and so one build."""
    allowed = torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
    return "tf32" if allowed and x.dtype == torch.float32 else "ieee"
