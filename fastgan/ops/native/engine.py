"""The older contract, for CUDA: a stage normalizes and activates x, then convolves it and measures the result.

`variant` names the convolution's, "" for the default. Tensors come and go as (N, C, H, W) and are [N, H, W, C] in
memory; `Owed` is what x still owes; `fuse` changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.ops import reference
from fastgan.ops.layers import Convolution, Measurement, Owed
from fastgan.ops.native import convolve, rows
from fastgan.ops.native.convolve import nchw, nhwc


def stage(x: Tensor, owed: Owed, convolution: Convolution, groups: int, measurement: Measurement | None,
          fuse: bool, *, variant: str = "") -> tuple[Tensor, Tensor]:
    """y (N, Co, Ho, Wo) and its statistics [2, G, Co], empty without a measurement."""
    y = convolve.forward(_activated(nhwc(x), owed), convolution, variant)
    if measurement is None:
        return nchw(y), x.new_empty((0,), dtype=torch.float32)
    return nchw(y), rows.finish_statistics(rows.measure(y, groups), measurement)


def stage_backward(gy: Tensor, gstatistics: Tensor | None, y: Tensor, statistics: Tensor, x: Tensor, owed: Owed,
                   convolution: Convolution, spread: str, fuse: bool, needs: tuple[bool, bool, bool, bool], *,
                   variants: tuple[str, str] = ("", "")) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias and of `owed` [4, G, Ci]: mean, rstd, gamma, beta; empty where not needed.

    variants: of dgrad and wgrad.
    """
    needs_x, needs_weight, needs_bias, needs_norm = needs
    gx, gweight, gbias, gnorm = (x.new_empty((0,)) for _ in range(4))  # an operator's outputs share no memory
    if needs_x or needs_norm or needs_weight:
        image, g = nhwc(x), nhwc(gy)
        if gstatistics is not None:
            g = rows.through_statistics(g, nhwc(y), gstatistics, statistics, spread)
        if needs_x or needs_norm:
            ga = convolve.dgrad(g, image, convolution, variants[0])
            gx, gnorm = _through(ga, image, owed)
        if needs_weight:
            gweight = convolve.wgrad(g, _activated(image, owed), convolution, variants[1])
    if needs_bias and convolution.bias is not None:
        gbias = reference.bias_gradient(gy, gstatistics).to(convolution.bias.dtype)
    return gx, gweight, gbias, gnorm


def normalise_activate(x: Tensor, owed: Owed) -> Tensor:
    return nchw(rows.normalise_activate(nhwc(x), owed))


def normalise_activate_backward(gout: Tensor, x: Tensor, owed: Owed) -> tuple[Tensor, Tensor]:
    """Gradients of x and of `owed` [4, G, C], which is empty without a normalisation."""
    gx, gnorm = rows.normalise_activate_backward(nhwc(gout), nhwc(x), owed)
    return nchw(gx), gnorm


def _activated(x: Tensor, owed: Owed) -> Tensor:
    return x if owed.statistics is None and owed.activation.name == "none" else rows.normalise_activate(x, owed)


def _through(ga: Tensor, x: Tensor, owed: Owed) -> tuple[Tensor, Tensor]:
    """Gradients of x and `owed` from that of what the convolution was given, which is lost."""
    if owed.statistics is None and owed.activation.name == "none":
        return nchw(ga), x.new_empty((0,))
    gx, gnorm = rows.normalise_activate_backward(ga, x, owed, in_place=True)
    return nchw(gx), gnorm
