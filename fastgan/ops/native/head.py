"""A convolution whose kernel is as large as its image, with few outputs: the last one of a discriminator.

    forward    y [N, Co] = a w^T + bias      a [N, kh * kw * C]: what is owed to x, done on the way; w [Co, kh * kw * C]
    dgrad      ga = g w
    wgrad      gw = g^T a

GEMMs of one row or column: a library pads them to a tile of many. Here each of a, ga and w is read or written once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastgan.ops.casts import cast
from fastgan.ops.layers import Convolution, Owed
from fastgan.ops.native import extension, rows

MOST_OUTPUTS = 4  # as csrc/include/fastgan/kernels.h has it


def applies(size: Sequence[int], weight: Sequence[int], padding: Sequence[int], output_padding: Sequence[int],
            transposed: bool) -> bool:
    """Whether a convolution of images of `size` (H, W) with a weight of shape (Co, Ci, kh, kw) is one of these."""
    return not (transposed or any(padding) or any(output_padding)) and weight[0] <= MOST_OUTPUTS and (
        tuple(weight[2:]) == tuple(size))


def forward(x: Tensor, owed: Owed, convolution: Convolution) -> Tensor:
    """[N, 1, 1, Co] from x [N, H, W, C]."""
    weight, bias, vectors = _weight(convolution, x), convolution.bias, rows.Vectors(x, owed)
    bias = None if bias is None else bias.to(x.dtype).float().contiguous()
    y = x.new_empty((len(x), 1, 1, len(weight)), dtype=torch.float32)
    extension.call(
        x.device, "head_forward", *_sizes(x), owed.groups(), len(weight), *vectors.with_activation(),
        weight.data_ptr(), 0 if bias is None else bias.data_ptr(), y.data_ptr())
    return y.to(x.dtype)


def dgrad(g: Tensor, x: Tensor, convolution: Convolution) -> Tensor:
    """[N, H, W, C] from g [N, 1, 1, Co]; of x, only the shape is asked."""
    weight, wide, ga = _weight(convolution, x), g.float(), torch.empty_like(x)
    _, *sizes = _sizes(x)
    extension.call(x.device, "head_dgrad", wide.data_ptr(), *sizes, len(weight), weight.data_ptr(), ga.data_ptr())
    return ga


def wgrad(g: Tensor, x: Tensor, owed: Owed) -> Tensor:
    """[Co, H, W, C] in float32, from g [N, 1, 1, Co] and x."""
    wide, vectors = g.float(), rows.Vectors(x, owed)
    gweight = x.new_empty((g.shape[3], *x.shape[1:]), dtype=torch.float32)
    extension.call(x.device, "head_wgrad", *_sizes(x), owed.groups(), len(gweight), *vectors.with_activation(),
                   wide.data_ptr(), gweight.data_ptr())
    return gweight


def _sizes(x: Tensor) -> tuple[int, int, int, int, int]:
    """x's address and dtype, images, pixels, channels."""
    images, height, width, channels = x.shape
    return x.data_ptr(), rows.DTYPES[x.dtype], images, height * width, channels


def _weight(convolution: Convolution, x: Tensor) -> Tensor:
    """[Co, kh, kw, C], rounded as x is, in float32."""
    return cast(convolution.weight, x.dtype).float().permute(0, 2, 3, 1).contiguous()
