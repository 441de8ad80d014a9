"""The passes of `fastgan/ops/reference.py` in compiled kernels, for float32, float16 and bfloat16.

Images are (N, C, H, W) in channels_last format; kernels read them as matrices of N*H*W rows and C channels. Statistics,
gamma and beta are float32. `variant` is the variant of a convolution (`convolve.py`), "" for the default. Activations
without batch normalization, and the loss, use PyTorch's operators. A `FastganError` names the invalid argument.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.ops import reference
from fastgan.ops.layout import channels_last, nchw, nhwc
from fastgan.ops.native import convolve, extension
from fastgan.ops.native.convolve import dgrad, wgrad
from fastgan.ops.reference import gan_loss
from fastgan.ops.specs import ACTIVATIONS, Activation, ConvSpec, NormSpec, RunningStats
from fastgan.ops.tickets import tickets

__all__ = ["act_backward", "bn_act_forward", "bn_backward_apply", "bn_backward_sums", "conv_act_forward",
           "conv_forward", "dgrad", "gan_loss", "wgrad"]

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # as csrc/include/fastgan/kernels.h numbers them
_ACTIVATIONS = {name: number for number, name in enumerate(ACTIVATIONS)}


def conv_forward(x: Tensor, weight: Tensor, bias: Tensor | None, conv: ConvSpec, groups: int, *,
                 variant: str = "") -> tuple[Tensor, Tensor]:
    y = convolve.forward(x, weight, bias, conv, variant)
    return y, batch_stats(y, groups) if groups else y.new_empty(0, dtype=torch.float32)


def conv_act_forward(x: Tensor, weight: Tensor, bias: Tensor | None, conv: ConvSpec, activation: Activation, *,
                     variant: str = "") -> tuple[Tensor, Tensor]:
    y = convolve.forward(x, weight, bias, conv, variant)
    masked = y.device.type == "cpu" and activation.keeps_mask()
    mask = _packed(y > 0) if masked else reference.mask_of(y, activation)
    if activation.name == "relu":
        y.relu_()
    elif activation.name == "leaky_relu":
        torch.nn.functional.leaky_relu_(y, activation.negative_slope)
    elif activation.name == "tanh":
        y.tanh_()
    return y, mask


def act_backward(ga: Tensor, saved: Tensor, activation: Activation) -> Tensor:
    if activation.name == "relu":
        g = torch.ops.aten.threshold_backward(ga, saved, 0)
    elif activation.name == "leaky_relu" and saved.dtype != torch.uint8:
        g = torch.ops.aten.leaky_relu_backward(ga, saved, activation.negative_slope, False)
    elif activation.name == "leaky_relu" and ga.device.type == "cpu":
        g = torch.where(_unpacked(saved, ga), ga, ga * activation.negative_slope)
    else:
        g = reference.act_backward(ga, saved, activation)
    return channels_last(g)


def _packed(condition: Tensor) -> Tensor:
    """`torch_ops.pack_bits` on a CPU, where NumPy is several times as fast as PyTorch's operators."""
    return torch.from_numpy(np.packbits(nhwc(condition).numpy(), bitorder="little"))


def _unpacked(bits: Tensor, like: Tensor) -> Tensor:
    """`torch_ops.unpack_bits` on a CPU."""
    n, c, h, w = like.shape
    flat = torch.from_numpy(np.unpackbits(bits.numpy(), count=like.numel(), bitorder="little"))
    return nchw(flat.view(n, h, w, c)).view(torch.bool)


def batch_stats(y: Tensor, groups: int, eps: float | None = None, running: RunningStats | None = None,
                momentum: float | None = None) -> Tensor:
    """[2, G, C]: mean, and biased variance or with `eps` rstd, of each of G equal parts of the batch y.

    running: updated in place, with the average over all batches if momentum is None.
    """
    y = channels_last(y)
    channels, buffers = y.shape[1], (None, None, None) if running is None else _buffers(y, running, momentum)
    if y.shape[0] % groups:
        raise FastganError(f"y of shape {tuple(y.shape)}: expected {groups} equal parts of the batch")
    stats = y.new_empty((2, groups, channels), dtype=torch.float32)
    extension.call(y.device, "batch_stats", y, (y.numel() // channels, channels, groups, _dtype(y)),
                   -1.0 if eps is None else eps, (*buffers, -1.0 if momentum is None else momentum),
                   _workspace(y, 3, groups), stats)
    if running is not None:
        for buffer, updated in zip(running[:2], buffers[:2], strict=True):
            if buffer is not None and updated is not None and updated is not buffer:
                buffer.copy_(updated)
    return stats


def bn_act_forward(y: Tensor, statistics: Tensor | None, gamma: Tensor | None, beta: Tensor | None,
                   running: RunningStats, count: int, norm: NormSpec, activation: Activation) -> tuple[Tensor, Tensor]:
    y = channels_last(y)
    if norm.batch_statistics and statistics is None:
        stats = batch_stats(y, norm.groups, norm.eps, running, norm.momentum)
    else:
        stats = reference.batch_stats(y, statistics, running, count, norm)
    a = torch.empty_like(y)
    extension.call(y.device, "bn_act_forward", y, *_normalization(y, stats, gamma, beta, activation), a)
    return a, stats


def bn_backward_sums(ga: Tensor, y: Tensor, stats: Tensor, gamma: Tensor | None, beta: Tensor | None,
                     activation: Activation) -> tuple[Tensor, Tensor]:
    ga, y, groups = channels_last(ga), channels_last(y), stats.shape[1]
    _check("ga", ga, y, y.shape, y.dtype)
    sums = y.new_empty((2, groups, y.shape[1]), dtype=torch.float32)
    totals = sums.new_empty(sums[:, 0].shape if groups > 1 else 0)
    extension.call(y.device, "bn_backward_sums", ga, y, *_normalization(y, stats, gamma, beta, activation),
                   _workspace(y, 2, groups), sums, totals if groups > 1 else None)
    return sums, totals


def bn_backward_apply(ga: Tensor, y: Tensor, stats: Tensor, gamma: Tensor | None, beta: Tensor | None,
                      sums: Tensor | None, count: int, activation: Activation) -> Tensor:
    ga, y = channels_last(ga), channels_last(y)
    _check("ga", ga, y, y.shape, y.dtype)
    if sums is not None:
        sums = _float32("sums", sums, y, stats.shape)
    g = torch.empty_like(ga)
    extension.call(y.device, "bn_backward_apply", ga, y, *_normalization(y, stats, gamma, beta, activation), sums,
                   count, g)
    return g


def _normalization(y: Tensor, stats: Tensor, gamma: Tensor | None, beta: Tensor | None,
                   activation: Activation) -> tuple[tuple[int, ...], tuple[Any, ...]]:
    """Arguments of kernels: (rows, channels, G, dtype), and (stats, gamma, beta, activation, slope)."""
    channels, groups = y.shape[1], stats.shape[1]
    stats = _float32("stats", stats, y, (2, groups, channels))
    gamma = torch.ones_like(stats[0, 0]) if gamma is None else _float32("gamma", gamma, y, (channels,))
    beta = torch.zeros_like(gamma) if beta is None else _float32("beta", beta, y, (channels,))
    return ((y.numel() // channels, channels, groups, _dtype(y)),
            (stats, gamma, beta, _ACTIVATIONS[activation.name], activation.negative_slope))


def _buffers(y: Tensor, running: RunningStats, momentum: float | None) -> tuple[Tensor | None, ...]:
    """The buffers that kernels update: those of `running`, or float32 copies of 16-bit statistics."""
    mean, var, batches = running
    if mean is not None and var is not None:
        mean, var = (_float32(f"running_{name}", buffer, y, y.shape[1:2])
                     for name, buffer in (("mean", mean), ("var", var)))
        if momentum is None and batches is None:
            raise FastganError("momentum None: a cumulative average needs num_batches_tracked")
    if batches is not None:
        _check("num_batches_tracked", batches, y, (), torch.int64)
    return mean, var, batches


def _workspace(y: Tensor, planes: int, groups: int) -> tuple[int, Tensor | None, Tensor | None]:
    """The number of parts of a group, memory for their results [planes, G, parts, C], and tickets; CPUs need none."""
    if y.is_cpu:
        return 0, None, None
    parts = extension.of(y.device).parts(y.numel() // y.shape[1] // groups, y.shape[1])
    partials = y.new_empty((planes, groups, parts, y.shape[1]), dtype=torch.float32)
    return parts, partials, tickets(y.device, y.shape[1] + 1)


def _dtype(y: Tensor) -> int:
    if y.dtype not in DTYPES:
        raise FastganError(f"y of dtype {y.dtype}: expected one of {', '.join(map(str, DTYPES))}")
    return DTYPES[y.dtype]


def _float32(name: str, tensor: Tensor, y: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The tensor, of that shape and on y's device, as contiguous float32."""
    _check(name, tensor, y, shape, tensor.dtype)
    return tensor.to(torch.float32).contiguous()


def _check(name: str, tensor: Tensor, y: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tensor.shape != shape or tensor.dtype != dtype:
        raise FastganError(f"{name} of shape {tuple(tensor.shape)} and dtype {tensor.dtype}: expected "
                           f"{tuple(shape)} and {dtype}")
    if tensor.device != y.device:
        raise FastganError(f"{name} on {tensor.device}: expected {y.device}")
