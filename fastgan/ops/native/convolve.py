"""A convolution and its gradients, in variants with the same results.

    library    PyTorch's convolution (oneDNN, cuDNN)
    gemm       a matrix product of patches (im2col), or one whose result is scattered as patches (col2im); on a CPU
    patches    the same in blocks that stay in the cache, for fine images of few channels, in float32 on a CPU
               (csrc/cpu/patches.cpp)
    winograd-2x2, winograd-4x4    Winograd's minimal filtering, F(2, 2) and F(4, 2), in float32 on a CPU, for kernels of
               4x4 with a stride of 2 (csrc/cpu/winograd.h): 1.8 and 2.6 times fewer multiplications

Convolution and transposed convolution are the same three products between a coarse and a fine image. With the coarse
image A [N * Hc * Wc, Cc], the fine image F, its patches P(F) [N * Hc * Wc, kh * kw * Cf] and W [Cc, kh * kw * Cf]:

    to coarse    A = P(F) W^T          a convolution; dgrad of a transposed one
    to fine      F = P^T(A W)          a transposed convolution; dgrad of a convolution
    wgrad        W = A^T P(F)          of both

Images are (N, C, H, W) in channels_last format, and so are weights and their gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastgan.errors import FastganError
from fastgan.ops import torch_ops
from fastgan.ops.casts import cast
from fastgan.ops.layout import channels_last, empty, nhwc
from fastgan.ops.native import extension
from fastgan.ops.specs import ConvSpec, output_size

TILES = {"winograd-2x2": 2, "winograd-4x4": 4}  # side of a tile, in coarse pixels
BLOCK = 64 * 2**20  # bytes of patches in memory
FEW = 8  # maximum number of fine channels for "patches"
WIDE = 32  # minimum number of channels with which Winograd's transforms take little time relative to its products


def variants(device: str, dtype: torch.dtype, weight: Sequence[int], stride: Sequence[int]) -> tuple[str, ...]:
    """The variants for all passes of a convolution on a type of device. weight: the shape of its weight."""
    if device != "cpu":
        return ("library",)
    single = dtype == torch.float32
    narrow = ("patches",) if single and weight[1] <= FEW else ()
    return ("library", "gemm", *narrow, *(TILES if single and (*weight[2:], *stride) == (4, 4, 2, 2) else ()))


class Geometry(NamedTuple):
    """A convolution, as an argument of compiled kernels. tile: of Winograd's variants, 0 for patches."""

    tile: int
    images: int
    fine: tuple[int, int, int]  # H, W, C
    coarse: tuple[int, int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def is_one_patch(self) -> bool:
        """Whether an image is a patch, without a copy: the first layer of a generator, the last of a discriminator."""
        return self.coarse[:2] == (1, 1) and self.padding == (0, 0) and self.kernel == self.fine[:2]

    def reach(self) -> tuple[int, int]:
        """The height and width that the patches of an image cover, including padding."""
        (height, width, _), (sh, sw), (kh, kw) = self.coarse, self.stride, self.kernel
        return (height - 1) * sh + kh, (width - 1) * sw + kw


class Method(NamedTuple):
    """The method of a pass. y: the shape of the convolution's result; kernel: "to_coarse", "to_fine" or "wgrad"."""

    variant: str
    y: tuple[int, ...]
    kernel: str
    geometry: Geometry


@lru_cache(4096)
def method(pass_: str, variant: str, device: str, dtype: torch.dtype, x: Sequence[int], weight: Sequence[int],
           conv: ConvSpec) -> Method:
    """The method of pass "forward", "dgrad" or "wgrad" for x and a weight of these shapes.

    variant: "" for the default. Raises `FastganError` for an unknown variant.
    """
    known = variants(device, dtype, weight, conv.stride)
    if variant and variant not in known:
        raise FastganError(f"variant {variant!r}: expected one of {', '.join(known)} here")
    (one, two, kh, kw), (n, _, h, w) = weight, x
    y = output_size((h, w), (kh, kw), *conv)
    fine, coarse = (y, (h, w)) if conv.transposed else ((h, w), y)
    variant = variant or default(pass_, known, weight, coarse)
    kernel = "wgrad" if pass_ == "wgrad" else "to_fine" if conv.transposed == (pass_ == "forward") else "to_coarse"
    return Method(variant, (n, two if conv.transposed else one, *y), kernel,
                  Geometry(TILES.get(variant, 0), n, (*fine, two), (*coarse, one), (kh, kw), conv.stride, conv.padding))


def default(pass_: str, known: Sequence[str], weight: Sequence[int], coarse: tuple[int, int]) -> str:
    """The variant that is used without a measurement."""
    if "winograd-2x2" in known and min(weight[:2]) >= WIDE:
        return "winograd-2x2"
    if "patches" in known:
        return "patches"
    # oneDNN is slow if the coarse image is one pixel, and in weight gradients of small images
    pixels = coarse[0] * coarse[1]
    return "gemm" if "gemm" in known and (pixels == 1 or (pass_ == "wgrad" and pixels <= 64)) else "library"


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, conv: ConvSpec, variant: str) -> Tensor:
    """conv(x, weight) + bias."""
    how = method("forward", variant, x.device.type, x.dtype, x.shape, weight.shape, conv)
    x = channels_last(x)
    if how.variant == "library":
        return channels_last(torch_ops.convolve(x, weight, bias, conv))
    out, bias = empty(x, *how.y), None if bias is None else bias.to(x.dtype).contiguous()
    if how.variant == "gemm":
        _GEMM[how.kernel](how.geometry, x, channels_last(weight), bias, out)
    else:
        extension.call(x.device, how.kernel, how.geometry, x, channels_last(weight), bias, out)
    return out


def dgrad(g: Tensor, x: Tensor, weight: Tensor, conv: ConvSpec, *, variant: str = "") -> Tensor:
    """The gradient of x from that of conv(x, weight); of x, only shape and strides are read."""
    how = method("dgrad", variant, x.device.type, x.dtype, x.shape, weight.shape, conv)
    g = channels_last(g)
    if how.variant == "library":
        return channels_last(torch_ops.convolve_backward(g, channels_last(x), weight, conv, needs_x=True)[0])
    out = empty(x, *x.shape)
    if how.variant == "gemm":
        _GEMM[how.kernel](how.geometry, g, channels_last(weight), None, out)
    else:
        extension.call(x.device, how.kernel, how.geometry, g, channels_last(weight), None, out)
    return out


def wgrad(g: Tensor, x: Tensor, weight: Tensor, conv: ConvSpec, *, variant: str = "") -> Tensor:
    """The gradient of the weight, in its dtype; of the weight, only shape and dtype are read."""
    how = method("wgrad", variant, x.device.type, x.dtype, x.shape, weight.shape, conv)
    g, x = channels_last(g), channels_last(x)
    if how.variant == "library":
        out = torch_ops.convolve_backward(g, x, cast(weight, x.dtype), conv, needs_weight=True)[1]
        return channels_last(out).to(weight.dtype)
    fine, coarse = (g, x) if conv.transposed else (x, g)
    out = empty(x, *weight.shape)
    if how.variant == "gemm":
        _gemm_wgrad(how.geometry, fine, coarse, out)
    else:
        extension.call(x.device, how.kernel, how.geometry, fine, coarse, out)
    return out.to(weight.dtype)


def _blocks(of: Geometry, fine: Tensor, coarse: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of n images, whose patches take at most `BLOCK` bytes: fine images [n, H, W, C] and coarse images
    [n * Hc * Wc, Cc]."""
    count = max(1, BLOCK // (math.prod((*of.coarse[:2], *of.kernel, of.fine[2])) * fine.element_size()))
    for images, pixels in zip(nhwc(fine).split(count), nhwc(coarse).split(count), strict=True):
        yield images, pixels.flatten(0, 2)


def _patches(of: Geometry, fine: Tensor) -> Tensor:
    """[n * Hc * Wc, kh * kw * C] of images [n, H, W, C]."""
    if of.is_one_patch():
        return fine.flatten(1)
    (n, h, w, c), (height, width), (top, left) = fine.shape, of.reach(), of.padding
    pads = 0, 0, left, max(0, width - left - w), top, max(0, height - top - h)
    padded = F.pad(fine, pads) if any(pads) else fine
    images, rows, columns, _ = padded.stride()
    patches = padded.as_strided((n, *of.coarse[:2], *of.kernel, c),
                                (images, of.stride[0] * rows, of.stride[1] * columns, rows, columns, 1))
    return patches.flatten(3).flatten(0, 2)


def _gemm_to_coarse(of: Geometry, fine: Tensor, weight: Tensor, bias: Tensor | None, coarse: Tensor) -> None:
    matrix = nhwc(weight).flatten(1).t()
    for images, pixels in _blocks(of, fine, coarse):
        if bias is None:
            torch.mm(_patches(of, images), matrix, out=pixels)
        else:
            torch.addmm(bias, _patches(of, images), matrix, out=pixels)


def _gemm_to_fine(of: Geometry, coarse: Tensor, weight: Tensor, bias: Tensor | None, fine: Tensor) -> None:
    matrix = nhwc(weight).flatten(1)
    for images, pixels in _blocks(of, fine, coarse):
        if of.is_one_patch():
            torch.mm(pixels, matrix, out=images.flatten(1))
            if bias is not None:
                images += bias
        else:
            _scatter(of, torch.mm(pixels, matrix), bias, images)


def _scatter(of: Geometry, patches: Tensor, bias: Tensor | None, fine: Tensor) -> None:
    """fine [n, H, W, C] = bias + the sum, in float32, of the patches [n * Hc * Wc, kh * kw * C] that cover a pixel."""
    (n, h, w, c), (height, width), (top, left) = fine.shape, of.reach(), of.padding
    total = fine.new_zeros((n, max(height, top + h), max(width, left + w), c), dtype=torch.float32)
    if bias is not None:
        total += bias
    taps = patches.view(n, *of.coarse[:2], *of.kernel, c)
    for i in range(of.kernel[0]):
        for j in range(of.kernel[1]):
            total[:, i:height - of.kernel[0] + i + 1:of.stride[0],
                  j:width - of.kernel[1] + j + 1:of.stride[1]] += taps[:, :, :, i, j]
    fine.copy_(total[:, top:top + h, left:left + w])


def _gemm_wgrad(of: Geometry, fine: Tensor, coarse: Tensor, out: Tensor) -> None:
    """Summed over blocks in float32."""
    products = (torch.mm(pixels.t(), _patches(of, images)) for images, pixels in _blocks(of, fine, coarse))
    total = next(products)
    for product in products:
        total = total.float() + product
    nhwc(out).copy_(total.view(nhwc(out).shape))


_GEMM = {"to_coarse": _gemm_to_coarse, "to_fine": _gemm_to_fine}
