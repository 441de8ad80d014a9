"""Activations and their derivatives, element by element in float32. Comparisons keep NaN, as in PyTorch."""

from __future__ import annotations

import triton
import triton.language as tl


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
