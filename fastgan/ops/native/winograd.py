"""4x4 convolutions of stride 2 by Winograd's minimal filtering: F(2, 2) and F(4, 2), in float32 on a CPU.

They take 1.8 and 2.6 times fewer multiplications than the definition; csrc/cpu/winograd.h has the mathematics. Both
kinds of convolution, and their gradients, are three passes between a fine and a coarse image, all [N, H, W, C]; their
weight is (Cc, Cf, 4, 4).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastgan.ops.layers import Convolution
from fastgan.ops.native import extension

TILES = {"winograd-2x2": 2, "winograd-4x4": 4}  # coarse pixels that are made at a time


def applies(dtype: torch.dtype, kernel: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether a convolution is one of these."""
    return dtype == torch.float32 and tuple(kernel) == (4, 4) and tuple(stride) == (2, 2)


def to_coarse(tile: int, x: Tensor, convolution: Convolution, bias: Tensor | None, size: tuple[int, int]) -> Tensor:
    """A convolution, [N, *size, Cc]."""
    weight = _weight(convolution)
    out = x.new_empty((len(x), *size, len(weight)))
    _convolve("winograd_gather", tile, x, weight, bias, out, fine=x, coarse=out, padding=convolution.padding)
    return out


def to_fine(tile: int, x: Tensor, convolution: Convolution, bias: Tensor | None, size: tuple[int, int]) -> Tensor:
    """A transposed convolution, [N, *size, Cf]."""
    weight = _weight(convolution)
    out = x.new_empty((len(x), *size, weight.shape[3]))
    _convolve("winograd_scatter", tile, x, weight, bias, out, fine=out, coarse=x, padding=convolution.padding)
    return out


def wgrad(tile: int, coarse: Tensor, fine: Tensor, padding: tuple[int, int]) -> Tensor:
    """The weight's gradient, [Cc, 4, 4, Cf]."""
    out = coarse.new_empty((coarse.shape[3], 4, 4, fine.shape[3]))
    extension.call(coarse.device, "winograd_wgrad", tile, len(coarse), fine.shape[1:], coarse.shape[1:], padding,
                   fine.data_ptr(), coarse.data_ptr(), out.data_ptr())
    return out


def _convolve(name: str, tile: int, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, *, fine: Tensor,
              coarse: Tensor, padding: tuple[int, int]) -> None:
    """A pass from x into out, of which one is the fine image and the other the coarse one."""
    bias = None if bias is None else bias.contiguous()
    extension.call(
        x.device, name, tile, len(x), fine.shape[1:], coarse.shape[1:], padding, x.data_ptr(), weight.data_ptr(),
        0 if bias is None else bias.data_ptr(), out.data_ptr())


def _weight(convolution: Convolution) -> Tensor:
    """[Cc, 4, 4, Cf]"""
    return convolution.weight.to(torch.float32).permute(0, 2, 3, 1).contiguous()
