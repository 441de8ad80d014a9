"""What happens to an element between memory and a dot product: the prologues, and the derivative of an activation.

    raw         x
    activated   act(x)
    normalised  act(gamma * (x - mean) * rstd + beta)                       vectors: mean, rstd, gamma, beta
    var         gy + (gmean + 2 * gvar * (y - mean)) / M                    vectors: gmean, gvar, mean, var
    rstd        gy + (gmean - rstd^3 * grstd * (y - mean)) / M              vectors: gmean, grstd, mean, rstd

The last two are the gradient of a stage's raw output y, of M elements per channel and group: what came back through y
itself (gy), and through its statistics (mean and biased var, or mean and rstd = 1 / sqrt(var + eps)). Every one of
them is zero outside the image, after the activation: relu(beta) is not zero. Arithmetic is float32, rounded once.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor


class Operand(NamedTuple):
    """A tensor [N, H, W, C], contiguous, and what is done to its elements as a kernel loads them.

    `partner`: the raw output y, [N, H, W, C], of kinds "var" and "rstd". `vectors`: each (C,) or (G, C), float32.
    """

    tensor: Tensor
    kind: str = "raw"
    partner: Tensor | None = None
    vectors: tuple[Tensor | None, ...] = (None, None, None, None)
    activation: str = "none"
    negative_slope: float = 0.0
    inverse_count: float = 0.0

    def groups(self) -> int:
        """G: into how many parts of the batch the vectors divide it."""
        return max([len(vector) for vector in self.vectors if vector is not None and vector.dim() == 2], default=1)

    def spread(self, groups: int) -> tuple[list[Tensor | None], int, int]:
        """The vectors for `groups` (a multiple of G) groups, and the strides over groups of the first and last two."""
        spread = [vector if vector is None or vector.dim() == 1 or len(vector) in (1, groups)
                  else vector.repeat_interleave(groups // len(vector), 0) for vector in self.vectors]
        strides = [0 if vector is None or vector.numel() == vector.shape[-1] else vector.shape[-1]
                   for vector in spread]
        for one in (0, 2):  # a pair shares its stride
            if strides[one] != strides[one + 1]:
                width = max(strides[one : one + 2])
                for i in (one, one + 1):
                    spread[i] = spread[i].expand(groups, width).contiguous()  # type: ignore[union-attr]
                strides[one] = width
        return spread, strides[0], strides[2]


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
    """Comparisons are written so that NaN stays NaN, as in PyTorch."""
    if ACTIVATION == "relu":
        z = tl.where(z <= 0.0, 0.0, z)
    elif ACTIVATION == "leaky_relu":
        z = tl.where(z > 0.0, z, z * slope)
    elif ACTIVATION == "tanh":
        z = tanh(z)
    return z


@triton.jit
def differentiate(g, z, slope, ACTIVATION: tl.constexpr):
    """g * act'(z)."""
    if ACTIVATION == "relu":
        g = tl.where(z <= 0.0, 0.0, g)
    elif ACTIVATION == "leaky_relu":
        g = tl.where(z > 0.0, g, g * slope)
    elif ACTIVATION == "tanh":
        t = tanh(z)
        g = g * (1.0 - t * t)
    return g


@triton.jit
def load(x, partner, v0, v1, v2, v3,  # [N, H, W, C] twice; (C,) or (G, C)
         offsets, inside,  # [R, K] each: where in x, and whether that is inside the image
         first, last, known,  # [K] each: where in the first and last two vectors, and whether there is such a channel
         slope, inverse_count, KIND: tl.constexpr, ACTIVATION: tl.constexpr):
    """A tile [R, K] of an operand, in the dtype of x."""
    tile = tl.load(x + offsets, mask=inside, other=0.0)
    if KIND != "raw":
        value = tile.to(tl.float32)
        if KIND != "activated":
            one = tl.load(v0 + first, mask=known, other=0.0)
            two = tl.load(v1 + first, mask=known, other=0.0)
            three = tl.load(v2 + last, mask=known, other=0.0)
            four = tl.load(v3 + last, mask=known, other=0.0)
        if KIND == "normalised":
            value = (value - one[None, :]) * (two * three)[None, :] + four[None, :]
        if KIND == "var" or KIND == "rstd":
            if KIND == "var":
                steep = 2.0 * two * inverse_count
            else:
                steep = -four * four * four * two * inverse_count
            y = tl.load(partner + offsets, mask=inside, other=0.0).to(tl.float32)
            value += (one * inverse_count)[None, :] + steep[None, :] * (y - three[None, :])
        else:
            value = activate(value, slope, ACTIVATION)
        tile = tl.where(inside, value, 0.0).to(tile.dtype)
    return tile


@triton.jit
def derivative(g, x, valid,  # [M, K] each: gradient of the activation, raw input (float32), whether it is there
               mean, rstd, gamma, beta,  # (C,) or (G, C)
               first, last, known,  # [K] each, as in `load`
               slope, NORM: tl.constexpr, ACTIVATION: tl.constexpr):
    """gx [M, K], and the sums [K] of gz and of gz * (x - mean) * rstd.

    A product is selected before it is summed, here and in all kernels: contracted with the first addition of a sum
    over lanes, it would be exact in one lane and rounded in the other, and the lanes would end with different sums.
    """
    if NORM:
        scale = tl.load(rstd + first, mask=known, other=0.0)
        centred = (x - tl.load(mean + first, mask=known, other=0.0)[None, :]) * scale[None, :]
        steep = tl.load(gamma + last, mask=known, other=0.0)
        z = centred * steep[None, :] + tl.load(beta + last, mask=known, other=0.0)[None, :]
        g = tl.where(valid, differentiate(g, z, slope, ACTIVATION), 0.0)
        return g * (steep * scale)[None, :], tl.sum(g, 0), tl.sum(tl.where(valid, g * centred, 0.0), 0)
    else:
        g = tl.where(valid, differentiate(g, x, slope, ACTIVATION), 0.0)
        return g, tl.sum(g, 0), tl.sum(g, 0)


@triton.jit
def measure(value, valid):
    """Count (a scalar), mean and centred M2 [K] of the valid elements of value [M, K] (float32; valid [M, 1])."""
    value = tl.where(valid, value, 0.0)
    count = tl.sum(valid.to(tl.float32))
    mean = tl.sum(value, 0) / tl.maximum(count, 1.0)
    distance = value - mean[None, :]
    return count, mean, tl.sum(tl.where(valid, distance * distance, 0.0), 0)
