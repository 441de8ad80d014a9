"""The compiled kernels on tensors: checks, memory for results, addresses.

x is [N, H, W, C] or [rows, C], contiguous, float32, bfloat16 or float16, on a device that there are kernels for; its
rows are G equal parts. Everything else is float32 on the same device. Raises `FastganError`, naming the argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.ops.layers import ACTIVATIONS, Activation
from fastgan.ops.native import extension
from fastgan.ops.passes import RunningStats

_NUMBERS = {name: number for number, name in enumerate(ACTIVATIONS)}
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
NOT_TRACKED = RunningStats()


class Window(NamedTuple):
    """Where patches lie in images: one for each pixel of a coarse image of `size`; as csrc/cpu/kernels.h has it."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    size: tuple[int, int]

    def elements(self, channels: int) -> int:
        """Of the patches of an image."""
        return self.kernel[0] * self.kernel[1] * self.size[0] * self.size[1] * channels


def measure(x: Tensor, groups: int) -> Tensor:
    """[3, G, parts, C]: count, mean and M2 = sum (x - mean)^2 of each part of each group of rows."""
    _check("x", x)
    rows, channels = _size(x, groups)
    parts = extension.of(x.device).parts(rows // groups, channels)
    partials = x.new_empty((3, groups, parts, channels), dtype=torch.float32)
    extension.call(x.device, "measure", x.data_ptr(), DTYPES[x.dtype], rows, channels, groups, parts,
                   partials.data_ptr())
    return partials


def finish_statistics(partials: Tensor, eps: float | None = None, running: RunningStats = NOT_TRACKED,
                      momentum: float | None = None) -> Tensor:
    """[2, G, C]: mean, and biased variance or with `eps` rstd, from what `measure` left.

    running: updated in place, by the plain average of all batches where momentum is None.
    """
    _, groups, parts, channels = partials.shape
    mean, var, batches = running
    if mean is not None and var is not None:
        mean, var = mean.float(), var.float()  # those of 16 bits as copies
        _check_as("running_mean", mean, partials, (channels,))
        _check_as("running_var", var, partials, (channels,))
        if momentum is None and batches is None:
            raise FastganError("momentum None without num_batches_tracked: a plain average counts its batches")
    if batches is not None:
        _check_as("num_batches_tracked", batches, partials, (), torch.int64)
    out = partials.new_empty((2, groups, channels))
    extension.call(
        partials.device, "finish_statistics", partials.data_ptr(), channels, groups, parts,
        -1.0 if eps is None else eps, _address(mean), _address(var), _address(batches),
        -1.0 if momentum is None else momentum, out.data_ptr())
    if mean is not running.mean and running.mean is not None and mean is not None:
        running.mean.copy_(mean)
    if var is not running.var and running.var is not None and var is not None:
        running.var.copy_(var)
    return out


def bn_act_forward(y: Tensor, stats: Tensor, gamma: Tensor | None, beta: Tensor | None,
                   activation: Activation) -> Tensor:
    """act(gamma * (y - mean) * rstd + beta), in y's dtype. stats [2, G, C]: mean and rstd; gamma, beta (C,)."""
    _check("y", y)
    norm, a = Normalization(y, stats, gamma, beta, activation), torch.empty_like(y)
    extension.call(y.device, "bn_act_forward", y.data_ptr(), *norm.matrix, norm.arguments, a.data_ptr())
    return a


def activate_(y: Tensor, activation: Activation) -> Tensor:
    """act(y), in y."""
    _check("y", y)
    extension.call(y.device, "bn_act_forward", y.data_ptr(), DTYPES[y.dtype], *_size(y, 1), 1,
                   (0, 0, 0, *_activation(activation)), y.data_ptr())
    return y


def act_backward(ga: Tensor, a: Tensor, activation: Activation) -> Tensor:
    """ga * act'(z) from a = act(z)."""
    _check("a", a)
    _check_as("ga", ga, a, a.shape, a.dtype)
    g = torch.empty_like(ga)
    extension.call(a.device, "act_backward", ga.data_ptr(), a.data_ptr(), DTYPES[a.dtype], *_size(a, 1),
                   *_activation(activation), g.data_ptr())
    return g


def bn_backward_sums(ga: Tensor, y: Tensor, stats: Tensor, gamma: Tensor | None, beta: Tensor | None,
                     activation: Activation) -> Tensor:
    """[2, G, C]: sum gz and sum gz * xhat of each group."""
    _check("y", y)
    _check_as("ga", ga, y, y.shape, y.dtype)
    norm = Normalization(y, stats, gamma, beta, activation)
    _, rows, channels, groups = norm.matrix
    parts = 1 if y.device.type == "cpu" else extension.of(y.device).parts(rows // groups, channels)
    partials = None if parts == 1 else y.new_empty((2, groups, parts, channels), dtype=torch.float32)
    sums = y.new_empty((2, groups, channels), dtype=torch.float32)
    extension.call(y.device, "bn_backward_sums", ga.data_ptr(), y.data_ptr(), *norm.matrix, norm.arguments, parts,
                   _address(partials), sums.data_ptr())
    return sums


def bn_backward_apply(ga: Tensor, y: Tensor, stats: Tensor, gamma: Tensor | None, beta: Tensor | None,
                      sums: Tensor | None, count: int, activation: Activation) -> Tensor:
    """g, from sums [2, G, C] over `count` elements each; None where stats are running ones."""
    _check("y", y)
    _check_as("ga", ga, y, y.shape, y.dtype)
    norm, g = Normalization(y, stats, gamma, beta, activation), torch.empty_like(ga)
    if sums is not None:
        _check_as("sums", sums, y, norm.stats.shape)
    extension.call(y.device, "bn_backward_apply", ga.data_ptr(), y.data_ptr(), *norm.matrix, norm.arguments,
                   _address(sums), count, g.data_ptr())
    return g


def logistic_loss(logits: Tensor, targets: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and probability [G] of equal parts of logits [G * M], and the gradient [G * M] of each part's loss."""
    logits = logits.contiguous()
    _check("logits", logits)
    loss, probability, gradient = (
        logits.new_empty(shape, dtype=torch.float32) for shape in ((len(targets),), (len(targets),), logits.shape))
    on_host = torch.tensor(targets, dtype=torch.float32)
    extension.call(
        logits.device, "logistic", logits.data_ptr(), DTYPES[logits.dtype], len(logits), len(targets),
        on_host.data_ptr(), loss.data_ptr(), probability.data_ptr(), gradient.data_ptr())
    return loss, probability, gradient


def gather(x: Tensor, window: Window, first: int, count: int) -> Tensor:
    """[count * Hc * Wc, kh * kw * C]: patches of `count` images of x [N, H, W, C]."""
    _check("x", x)
    height, width = window.size
    out = x.new_empty((count * height * width, window.kernel[0] * window.kernel[1] * x.shape[3]))
    extension.call(
        x.device, "gather", x.data_ptr(), DTYPES[x.dtype], *x.shape, *window, first, count, out.data_ptr())
    return out


def scatter(patches: Tensor, bias: Tensor | None, window: Window, out: Tensor) -> None:
    """Into out [N, H, W, C]: bias, and the sum of what patches [N * Hc * Wc, kh * kw * C] have for each pixel."""
    (count, *_, channels), (height, width) = out.shape, window.size
    _check("patches", patches)
    _check("out", out)
    _check_as("patches", patches, out, (count * height * width, window.kernel[0] * window.kernel[1] * channels),
              out.dtype)
    bias = None if bias is None else bias.float()
    if bias is not None:
        _check_as("bias", bias, out, (channels,))
    extension.call(
        out.device, "scatter", patches.data_ptr(), DTYPES[out.dtype], *out.shape, _address(bias), *window,
        out.data_ptr())


class Normalization:
    """A normalization of y and its activation as kernels read them: float32 and contiguous; keeps the tensors alive.

    matrix: dtype, rows, channels and G. arguments: addresses of stats, gamma and beta; activation and its slope.
    """

    def __init__(self, y: Tensor, stats: Tensor, gamma: Tensor | None, beta: Tensor | None,
                 activation: Activation) -> None:
        channels = y.shape[-1]
        self.stats = stats.contiguous()
        self.gamma = torch.ones_like(stats[0, 0]) if gamma is None else gamma.float().contiguous()
        self.beta = torch.zeros_like(self.gamma) if beta is None else beta.float().contiguous()
        groups = stats.shape[1]
        _check_as("stats", self.stats, y, (2, groups, channels))
        _check_as("gamma", self.gamma, y, (channels,))
        _check_as("beta", self.beta, y, (channels,))
        self.matrix = DTYPES[y.dtype], *_size(y, groups), groups
        self.arguments = (self.stats.data_ptr(), self.gamma.data_ptr(), self.beta.data_ptr(),
                          *_activation(activation))


def _activation(activation: Activation) -> tuple[int, float]:
    return _NUMBERS[activation.name], activation.negative_slope


def _size(x: Tensor, groups: int) -> tuple[int, int]:
    """(rows, channels), the first divisible by `groups`."""
    channels = x.shape[-1]
    rows = x.numel() // channels
    if x.shape[0] % groups:
        raise FastganError(f"x of shape {tuple(x.shape)}: expected {groups} equal parts")
    return rows, channels


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _check(name: str, x: Tensor) -> None:
    if x.dtype not in DTYPES:
        raise FastganError(f"{name} of dtype {x.dtype}: expected one of {', '.join(map(str, DTYPES))}")
    if not x.is_contiguous():
        raise FastganError(f"{name} with strides {x.stride()}: expected a contiguous tensor")


def _check_as(name: str, tensor: Tensor, x: Tensor, shape: tuple[int, ...],
              dtype: torch.dtype = torch.float32) -> None:
    """Of that shape and dtype, contiguous, on x's device."""
    if tensor.shape != shape or tensor.dtype != dtype:
        raise FastganError(f"{name} of shape {tuple(tensor.shape)} and dtype {tensor.dtype}: expected "
                           f"{tuple(shape)} and {dtype}")
    if tensor.device != x.device:
        raise FastganError(f"{name} on {tensor.device}: expected {x.device}")
    if not tensor.is_contiguous():
        raise FastganError(f"{name} with strides {tensor.stride()}: expected a contiguous tensor")
