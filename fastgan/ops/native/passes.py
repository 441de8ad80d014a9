"""The passes of `fastgan/ops/passes.py` on the compiled kernels, of float32, float16 and bfloat16.

Tensors come and go as (N, C, H, W) and are [N, H, W, C] in memory. `variant` names a convolution's, "" for the default.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.ops import passes
from fastgan.ops.layers import Activation, Convolution
from fastgan.ops.layout import nchw, nhwc
from fastgan.ops.native import convolve, rows
from fastgan.ops.native.rows import logistic_loss
from fastgan.ops.passes import RunningStats
from fastgan.ops.specs import ConvSpec, NormSpec

__all__ = ["act_backward", "bn_act_forward", "bn_backward_apply", "bn_backward_sums", "conv_act_forward",
           "conv_forward", "dgrad", "logistic_loss", "wgrad"]


def conv_forward(x: Tensor, weight: Tensor, bias: Tensor | None, conv: ConvSpec, groups: int, *,
                 variant: str = "") -> tuple[Tensor, Tensor]:
    y = _convolved(x, weight, bias, conv, variant)
    if not groups:
        return nchw(y), y.new_empty(0, dtype=torch.float32)
    return nchw(y), rows.finish_statistics(rows.measure(y, groups))


def conv_act_forward(x: Tensor, weight: Tensor, bias: Tensor | None, conv: ConvSpec, activation: Activation, *,
                     variant: str = "") -> tuple[Tensor, Tensor]:
    y = _convolved(x, weight, bias, conv, variant)
    mask = passes.mask_of(nchw(y), activation)
    if activation.name == "tanh":
        y.tanh_()  # in vectors, which the kernel's is not
    elif activation.name != "none":
        rows.activate_(y, activation)
    return nchw(y), mask


def bn_act_forward(y: Tensor, statistics: Tensor | None, gamma: Tensor | None, beta: Tensor | None,
                   running: RunningStats, count: int, norm: NormSpec, activation: Activation) -> tuple[Tensor, Tensor]:
    image = nhwc(y)
    if norm.batch_statistics and statistics is None:
        stats = rows.finish_statistics(rows.measure(image, norm.groups), norm.eps, running, norm.momentum)
    else:
        stats = passes.batch_stats(y, statistics, running, count, norm)
    return nchw(rows.bn_act_forward(image, stats, gamma, beta, activation)), stats


def bn_backward_sums(ga: Tensor, y: Tensor, stats: Tensor, gamma: Tensor | None, beta: Tensor | None,
                     activation: Activation) -> Tensor:
    return rows.bn_backward_sums(nhwc(ga), nhwc(y), stats, gamma, beta, activation)


def bn_backward_apply(ga: Tensor, y: Tensor, stats: Tensor, gamma: Tensor | None, beta: Tensor | None,
                      sums: Tensor | None, count: int, activation: Activation) -> Tensor:
    return nchw(rows.bn_backward_apply(nhwc(ga), nhwc(y), stats, gamma, beta, sums, count, activation))


def act_backward(ga: Tensor, kept: Tensor, activation: Activation) -> Tensor:
    if kept.dtype == torch.bool:
        return nchw(nhwc(passes.act_backward(ga, kept, activation)))
    return nchw(rows.act_backward(nhwc(ga), nhwc(kept), activation))


def dgrad(g: Tensor, x: Tensor, weight: Tensor, conv: ConvSpec, *, variant: str = "") -> Tensor:
    return nchw(convolve.dgrad(nhwc(g), nhwc(x), Convolution(weight, None, *conv), variant))


def wgrad(g: Tensor, x: Tensor, weight: Tensor, conv: ConvSpec, *, variant: str = "") -> Tensor:
    return convolve.wgrad(nhwc(g), nhwc(x), Convolution(weight, None, *conv), variant)


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, conv: ConvSpec, variant: str) -> Tensor:
    return convolve.forward(nhwc(x), Convolution(weight, bias, *conv), variant)
