"""Activations and their derivatives, element by element in float32. Comparisons keep NaN, as in PyTorch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.ops.specs import Activation


class Derivative(NamedTuple):
    """act', by which a kernel multiplies the gradient of a as it loads it. kind: a constant of the kernel, "mask" where
    `saved` is the mask z > 0 (uint8), else the name of the activation, and `saved` is a. Both are like the gradient.
    """

    saved: Tensor
    negative_slope: float
    kind: tl.constexpr


def derivative_of(activation: Activation, saved: Tensor) -> Derivative:
    """saved: a, or the mask z > 0 (bool)."""
    masked = saved.dtype == torch.bool
    return Derivative(saved.view(torch.uint8) if masked else saved, float(activation.negative_slope),
                      tl.constexpr("mask" if masked else activation.name))


@triton.jit
def tanh(z):
    """Within 1e-7 of tanh; a series near zero, where the quotient would cancel."""
    square = z * z
    series = z * (1.0 - square * (0.33333333 - square * (0.13333333 - square * 0.05396825)))
    shrunk = tl.exp(-2.0 * tl.abs(z))
    quotient = (1.0 - shrunk) / (1.0 + shrunk)
    return tl.where(tl.abs(z) < 0.2, series, tl.where(z < 0.0, -quotient, quotient))


@triton.jit
def activate(z, slope, ACTIVATION: tl.constexpr):
    """act(z)."""
    if ACTIVATION == "relu":
        z = tl.where(z <= 0.0, 0.0, z)
    elif ACTIVATION == "leaky_relu":
        z = tl.where(z > 0.0, z, z * slope)
    elif ACTIVATION == "tanh":
        z = tanh(z)
    return z


@triton.jit
def activate_backward(ga, z, slope, ACTIVATION: tl.constexpr):
    """ga * act'(z)."""
    if ACTIVATION == "relu":
        ga = tl.where(z <= 0.0, 0.0, ga)
    elif ACTIVATION == "leaky_relu":
        ga = tl.where(z > 0.0, ga, ga * slope)
    elif ACTIVATION == "tanh":
        a = tanh(z)
        ga = ga * (1.0 - a * a)
    return ga


@triton.jit
def load_derived(x, at, read, derivative):
    """x at offsets `at` where `read`, else 0, in x's dtype; times act' where there is a `Derivative`."""
    value = tl.load(x + at, mask=read, other=0.0)
    if derivative is not None:
        of_z = tl.load(derivative.saved + at, mask=read, other=0).to(tl.float32)
        wide = value.to(tl.float32)
        if derivative.kind == "tanh":
            wide = wide * (1.0 - of_z * of_z)
        elif derivative.kind == "relu":
            wide = tl.where(of_z <= 0.0, 0.0, wide)
        else:  # of leaky_relu, a has the sign of z
            wide = tl.where(of_z > 0.0, wide, wide * derivative.negative_slope)
        value = wide.to(value.dtype)
    return value
