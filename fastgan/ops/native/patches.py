"""Convolutions between a fine image of few channels and a coarse one, as products of patches that stay in the cache.

csrc/cpu/patches.cpp has the mathematics. For every kernel and stride, in float32 on a CPU. All images are [N, H, W, C];
weights are (Cc, Cf, kh, kw).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastgan.ops.casts import cast
from fastgan.ops.layers import Convolution
from fastgan.ops.native import extension
from fastgan.ops.native.rows import Window

FEW = 8  # channels up to which patches are short


def applies(dtype: torch.dtype, weight: Sequence[int]) -> bool:
    """Whether a convolution, by its weight's shape, is one of these."""
    return dtype == torch.float32 and weight[1] <= FEW


def to_coarse(x: Tensor, convolution: Convolution, bias: Tensor | None, window: Window) -> Tensor:
    """A convolution, [N, *window.size, Cc]."""
    out = x.new_empty((len(x), *window.size, len(convolution.weight)))
    _convolve("patches_to_coarse", x, convolution, bias, window, out, fine=x)
    return out


def to_fine(x: Tensor, convolution: Convolution, bias: Tensor | None, window: Window,
            size: tuple[int, int]) -> Tensor:
    """A transposed convolution, [N, *size, Cf]."""
    out = x.new_empty((len(x), *size, convolution.weight.shape[1]))
    _convolve("patches_to_fine", x, convolution, bias, window, out, fine=out)
    return out


def wgrad(coarse: Tensor, fine: Tensor, window: Window) -> Tensor:
    """The weight's gradient, [Cc, kh, kw, Cf]."""
    out = coarse.new_empty((coarse.shape[3], *window.kernel, fine.shape[3]))
    extension.call(coarse.device, "patches_wgrad", len(coarse), fine.shape[1:], coarse.shape[3], fine.data_ptr(),
                   coarse.data_ptr(), *window, out.data_ptr())
    return out


def _convolve(name: str, x: Tensor, convolution: Convolution, bias: Tensor | None, window: Window, out: Tensor, *,
              fine: Tensor) -> None:
    """A pass from x into out."""
    weight = cast(convolution.weight, x.dtype).permute(0, 2, 3, 1).contiguous()
    bias = None if bias is None else bias.to(x.dtype).contiguous()
    extension.call(
        x.device, name, len(x), fine.shape[1:], len(weight), x.data_ptr(), *window, weight.data_ptr(),
        0 if bias is None else bias.data_ptr(), out.data_ptr())
