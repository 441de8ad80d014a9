"""Activations and their derivatives, element by element in float32. Comparisons keep NaN, as in PyTorch."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from fastgan.ops.specs import Activation


def derivative_of(activation: Activation, saved: Tensor | None) -> dict[str, Any]:
    """Arguments for kernels that multiply by act'. saved: a, or the mask z > 0 (uint8); None disables the product."""
    if saved is None:
        return {"saved": None, "slope": 0.0, "DERIVATIVE": ""}
    return {"saved": saved, "slope": float(activation.negative_slope),
            "DERIVATIVE": activation.name if saved.is_floating_point() else "mask"}


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
def multiply_derived(ga, a, slope, DERIVATIVE: tl.constexpr):
    """ga * act' in ga's dtype, from a, or for "mask" from the bits z > 0."""
    if DERIVATIVE == "tanh":
        factor = 1.0 - a.to(tl.float32) * a.to(tl.float32)
    elif DERIVATIVE == "relu":
        return tl.where(a.to(tl.float32) <= 0.0, 0.0, ga)
    else:  # a of leaky_relu has the sign of z
        factor = tl.where(a if DERIVATIVE == "mask" else a.to(tl.float32) > 0.0, 1.0, slope)
    return (ga.to(tl.float32) * factor).to(ga.dtype)


@triton.jit
def load_bits(words, at, count, read,  # first word of each column [BK], their number, and whether to read them [BK]
              BM: tl.constexpr):
    """BM adjacent bits of each column, [BM, BK], as far as there are words. With addresses [BM, BK], each thread would
    load a word once for each bit."""
    WIDTH: tl.constexpr = words.dtype.element_ty.primitive_bitwidth
    bit = tl.arange(0, BM)[:, None]
    word = tl.load(words + at, mask=read, other=0)[None, :]
    for i in tl.static_range(1, BM // WIDTH):
        word = tl.where(bit // WIDTH == i, tl.load(words + at + i, mask=read & (i < count), other=0)[None, :], word)
    byte = (word >> (bit % WIDTH // 8 * 8)).to(tl.int32)  # the same for 8 bits
    return byte & (1 << (bit % 8)) != 0


@triton.jit
def pack_bits(z):
    """The bits z > 0 of 8 adjacent columns in each byte, the first in the lowest bit: [BM, BN] -> [BM, BN / 8]."""
    bits = (z > 0.0).to(tl.int32).reshape(z.shape[0], z.shape[1] // 8, 8)
    return tl.sum(bits << tl.arange(0, 8)[None, None, :], 2).to(tl.uint8)
