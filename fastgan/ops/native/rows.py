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
from fastgan.ops.layers import ACTIVATIONS, Measurement, Owed
from fastgan.ops.native import extension

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


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


def finish_statistics(partials: Tensor, measurement: Measurement) -> Tensor:
    """[2, G, C]: mean, and biased var or rstd, from what `measure` left; running statistics are updated in place."""
    _, groups, parts, channels = partials.shape
    eps, *given, tracked, momentum = measurement
    running = [None if part is None else part.float() for part in given]  # those of 16 bits as copies
    for name, part in zip(("running_mean", "running_var"), running, strict=True):
        if part is not None:
            _check_as(name, part, partials, (channels,))
    if tracked is not None:
        _check_as("num_batches_tracked", tracked, partials, (), torch.int64)
    if momentum is None and running[0] is not None and tracked is None:
        raise FastganError("momentum None without num_batches_tracked: a plain average counts its batches")
    out = partials.new_empty((2, groups, channels))
    extension.call(
        partials.device, "finish_statistics", partials.data_ptr(), channels, groups, parts,
        -1.0 if eps is None else eps, *map(_address, running), _address(tracked),
        -1.0 if momentum is None else momentum, out.data_ptr())
    for part, wide in zip(given, running, strict=True):
        if part is not None and wide is not None and wide is not part:
            part.copy_(wide)
    return out


def normalise_activate(x: Tensor, owed: Owed, *, in_place: bool = False) -> Tensor:
    """act(gamma * (x - mean) * rstd + beta), in x's dtype; in_place: in x."""
    _check("x", x)
    groups, out, vectors = owed.groups(), x if in_place else torch.empty_like(x), Vectors(x, owed)
    extension.call(
        x.device, "normalise_activate", x.data_ptr(), DTYPES[x.dtype], *_size(x, groups), groups,
        *vectors.with_activation(), out.data_ptr())
    return out


def normalise_activate_backward(gout: Tensor, x: Tensor, owed: Owed, *,
                                in_place: bool = False) -> tuple[Tensor, Tensor]:
    """Gradients of x and of `owed` [4, G, C], which is empty without a normalisation; in_place: that of x in gout."""
    _check("x", x)
    _check_as("gout", gout, x, tuple(x.shape), x.dtype)
    groups, gx, vectors = owed.groups(), gout if in_place else torch.empty_like(x), Vectors(x, owed)
    rows, channels = _size(x, groups)
    parts = extension.of(x.device).parts(rows // groups, channels)
    partials = None if owed.statistics is None else x.new_empty((2, groups, parts, channels), dtype=torch.float32)
    extension.call(
        x.device, "normalise_activate_backward", gout.data_ptr(), x.data_ptr(), DTYPES[x.dtype], rows, channels, groups,
        *vectors.with_activation(), parts, gx.data_ptr(), _address(partials))
    if partials is None:
        return gx, x.new_empty((0,))
    gnorm = partials.new_empty((4, groups, channels))
    statistics, statistic_groups, gamma, _, gamma_groups = vectors.arguments()
    extension.call(x.device, "finish_norm_gradient", partials.data_ptr(), channels, groups, parts, statistics,
                   statistic_groups, gamma, gamma_groups, gnorm.data_ptr())
    return gx, gnorm


def bn_backward_sums(ga: Tensor, y: Tensor, owed: Owed) -> Tensor:
    """[2, G, C]: sum gz and sum gz * (y - mean) * rstd of each group of y's statistics, which `owed` holds."""
    _check("y", y)
    _check_as("ga", ga, y, tuple(y.shape), y.dtype)
    vectors, groups = Vectors(y, owed), owed.groups()
    sums = y.new_empty((2, groups, y.shape[-1]), dtype=torch.float32)
    extension.call(y.device, "bn_backward_sums", ga.data_ptr(), y.data_ptr(), DTYPES[y.dtype], *_size(y, groups),
                   groups, vectors.with_activation(), sums.data_ptr())
    return sums


def bn_backward_apply(ga: Tensor, y: Tensor, owed: Owed, sums: Tensor | None, count: int) -> Tensor:
    """g, from sums [2, G, C] over `count` elements each; None where y's statistics are running ones."""
    _check("y", y)
    _check_as("ga", ga, y, tuple(y.shape), y.dtype)
    vectors, groups, g = Vectors(y, owed), owed.groups(), torch.empty_like(ga)
    if sums is not None:
        _check_as("sums", sums, y, (2, groups, y.shape[-1]))
    extension.call(y.device, "bn_backward_apply", ga.data_ptr(), y.data_ptr(), DTYPES[y.dtype], *_size(y, groups),
                   groups, vectors.with_activation(), _address(sums), count, g.data_ptr())
    return g


def through_statistics(gy: Tensor, y: Tensor, gstatistics: Tensor, statistics: Tensor, spread: str) -> Tensor:
    """gy with what flows into y through its statistics [2, G, C], of mean and `spread`, "var" or "rstd"."""
    _check("y", y)
    _check_as("gy", gy, y, tuple(y.shape), y.dtype)
    groups, out = statistics.shape[1], torch.empty_like(gy)
    gstatistics = gstatistics.contiguous()
    for name, part in (("statistics", statistics), ("gstatistics", gstatistics)):
        _check_as(name, part, y, (2, groups, y.shape[-1]))
    extension.call(
        y.device, "through_statistics", gy.data_ptr(), y.data_ptr(), DTYPES[y.dtype], *_size(y, groups), groups,
        gstatistics.data_ptr(), statistics.data_ptr(), spread == "rstd", out.data_ptr())
    return out


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


class Vectors:
    """What is owed, as kernels read it: contiguous, with as many groups for beta as for gamma; keeps it alive."""

    def __init__(self, x: Tensor, owed: Owed) -> None:
        self.statistics, self.gamma, self.beta = owed[:3]
        self.activation = ACTIVATIONS.index(owed.activation.name), owed.activation.negative_slope
        if self.statistics is None:
            return
        if self.gamma is None or self.beta is None:
            raise FastganError("gamma and beta are None: expected both beside statistics")
        channels = x.shape[-1]
        self.statistics = self.statistics.contiguous()
        if self.gamma.dim() == self.beta.dim() == 1:  # as layers have them, without detours
            self.gamma, self.beta = self.gamma.contiguous(), self.beta.contiguous()
            _check_as("statistics", self.statistics, x, (2, self.statistics.shape[1], channels))
            _check_as("gamma", self.gamma, x, (channels,))
            _check_as("beta", self.beta, x, (channels,))
            return
        groups = owed.groups()
        gamma, beta = (part.view(-1, channels) for part in (self.gamma, self.beta))
        self.gamma, self.beta = (part.contiguous() for part in torch.broadcast_tensors(gamma, beta))
        for name, part in (("statistics", self.statistics[0]), ("gamma", self.gamma), ("beta", self.beta)):
            _check_as(name, part, x, (1 if len(part) == 1 else groups, channels))

    def arguments(self) -> tuple[int, int, int, int, int]:
        """Addresses, and of how many groups."""
        if self.statistics is None or self.gamma is None or self.beta is None:
            return 0, 1, 0, 0, 1
        return (self.statistics.data_ptr(), self.statistics.shape[1], self.gamma.data_ptr(), self.beta.data_ptr(),
                1 if self.gamma.dim() == 1 else len(self.gamma))

    def with_activation(self) -> tuple[int, int, int, int, int, int, float]:
        return *self.arguments(), *self.activation


def _size(x: Tensor, groups: int) -> tuple[int, int]:
    """(rows, channels), the first divisible by `groups`."""
    channels = x.shape[-1]
    rows = x.numel() // channels
    if len(x) % groups:
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
        raise FastganError(f"{name} of shape {tuple(tensor.shape)} and dtype {tensor.dtype}: expected {shape} and "
                           f"{dtype}")
    if tensor.device != x.device:
        raise FastganError(f"{name} on {tensor.device}: expected {x.device}")
    if not tensor.is_contiguous():
        raise FastganError(f"{name} with strides {tensor.stride()}: expected a contiguous tensor")
