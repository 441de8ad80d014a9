"""Activations and their derivatives, element by element in float32. Comparisons keep NaN, as in PyTorch."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.ops.specs import Activation


def derivative_of(activation: Activation, saved: Tensor | None) -> dict[str, Any]:
    """Arguments for kernels that multiply by act'. saved: a, or the mask z > 0 (bool); None disables the product."""
    if saved is None:
        return {"saved": None, "slope": 0.0, "DERIVATIVE": ""}
    masked = saved.dtype == torch.bool
    return {"saved": saved.view(torch.uint8) if masked else saved, "slope": float(activation.negative_slope),
            "DERIVATIVE": "mask" if masked else activation.name}


@triton.jit
def tanh(z):
    """tanh(z) with an error below 1e-7, by a series near zero, where the quotient suffers from cancellation."""
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
def load_derived(x, at, read, saved, slope, DERIVATIVE: tl.constexpr):
    """x * act' at offsets `at`, in x's dtype; 0 where `read` is false. saved [like x]: a, or for "mask" z > 0."""
    value = tl.load(x + at, mask=read, other=0.0)
    of_z = tl.load(saved + at, mask=read, other=0).to(tl.float32)
    wide = value.to(tl.float32)
    if DERIVATIVE == "tanh":
        wide = wide * (1.0 - of_z * of_z)
    elif DERIVATIVE == "relu":
        wide = tl.where(of_z <= 0.0, 0.0, wide)
    else:  # a of leaky_relu has the sign of z
        wide = tl.where(of_z > 0.0, wide, wide * slope)
    return wide.to(value.dtype)
