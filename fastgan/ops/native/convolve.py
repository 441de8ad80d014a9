"""A convolution and its gradients, in variants that compute the same.

    library    PyTorch's convolution: oneDNN's, cuDNN's
    gemm       a matrix product of gathered patches, or one whose result is scattered as patches; on a CPU
    patches    the same in blocks that stay in the cache, for fine images of few channels, in float32 on a CPU
               (`patches.py`)
    winograd-2x2, winograd-4x4    in float32 on a CPU, for kernels of 4x4 with a stride of 2 (`winograd.py`)

Both kinds of convolution, seen from their coarse and their fine image, are the same three products. With A the coarse
image [N * Hc * Wc, Cc], F the fine one, P(F) its patches [N * Hc * Wc, kh * kw * Cf] and W [Cc, kh * kw * Cf]:

    to coarse    A = P(F) W^T          a convolution; dgrad of a transposed one
    to fine      F = P^T(A W)          a transposed convolution; dgrad of a convolution
    wgrad        W = A^T P(F)          of both

Images come in blocks, so that there are never more than `BLOCK` bytes of patches. All images here are [N, H, W, C].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.ops import reference
from fastgan.ops.casts import cast
from fastgan.ops.layers import Convolution, output_size
from fastgan.ops.layout import nchw, nhwc
from fastgan.ops.native import patches, rows, winograd
from fastgan.ops.native.rows import Window
from fastgan.ops.native.winograd import TILES
from fastgan.ops.specs import ConvSpec

BLOCK = 64 * 2**20
WIDE = 32  # channels from which on transforms cost little beside their products


@cache
def variants(device: str, dtype: torch.dtype, weight: Sequence[int], stride: Sequence[int]) -> tuple[str, ...]:
    """Those that can compute any pass of a convolution on that type of device. weight: the shape of its weight."""
    if device != "cpu":
        return ("library",)
    narrow = ("patches",) if patches.applies(dtype, weight) else ()
    return ("library", "gemm", *narrow, *(TILES if winograd.applies(dtype, weight[2:], stride) else ()))


def chosen(pass_: str, x: Tensor, convolution: Convolution, variant: str) -> str:
    """The variant of pass "forward", "dgrad" or "wgrad" for x [N, H, W, C]; for "", the one that is taken without
    measuring. `FastganError` for one that there is not."""
    weight, _, *geometry = convolution
    return _chosen(pass_, variant, x.device.type, x.dtype, x.shape[1:3], weight.shape, *geometry)


@cache
def _chosen(pass_: str, variant: str, device: str, dtype: torch.dtype, image: Sequence[int], weight: Sequence[int],
            stride: Sequence[int], padding: Sequence[int], output_padding: Sequence[int], transposed: bool) -> str:
    known = variants(device, dtype, weight, stride)
    if variant in known:
        return variant
    if variant:
        raise FastganError(f"variant {variant!r}: expected one of {', '.join(known)} here")
    to_fine = pass_ == ("forward" if transposed else "dgrad")
    if "winograd-2x2" in known and min(weight[:2]) >= WIDE:
        return "winograd-2x2"
    if "patches" in known and (to_fine or pass_ == "wgrad"):
        return "patches"
    # oneDNN is slow where the coarse image is a pixel, where the fine one has a few channels and is made or
    # differentiated, and in weight gradients of small images
    height, width = image if transposed else output_size(image, weight[2:], stride, padding)
    gemm = height * width == 1 or (to_fine and weight[1] <= 4) or (pass_ == "wgrad" and height * width <= 64)
    return "gemm" if gemm and "gemm" in known else "library"


def forward(x: Tensor, convolution: Convolution, variant: str) -> Tensor:
    """conv(x, weight) + bias."""
    variant = chosen("forward", x, convolution, variant)
    if variant in TILES:
        to, bias = winograd.to_fine if convolution.transposed else winograd.to_coarse, convolution.bias
        return to(TILES[variant], x, convolution, None if bias is None else bias.to(x.dtype),
                  convolution.size(nchw(x)))
    if variant == "library":
        weight, bias = cast(convolution.weight, x.dtype), convolution.bias
        narrow = convolution._replace(weight=weight, bias=None if bias is None else bias.to(x.dtype))
        return nhwc(reference.convolve(nchw(x), narrow.weight, narrow.bias, ConvSpec(*narrow[2:])))
    size = convolution.size(nchw(x))
    window = _window(convolution, *(x.shape[1:3] if convolution.transposed else size))
    if variant == "patches":
        if convolution.transposed:
            return patches.to_fine(x, convolution, convolution.bias, window, size)
        return patches.to_coarse(x, convolution, convolution.bias, window)
    weight = _matrix(convolution, x.dtype)
    if convolution.transposed:
        return _to_fine(x, weight, convolution.bias, window, size)
    return _to_coarse(x, weight, convolution.bias, window)


def dgrad(g: Tensor, x: Tensor, convolution: Convolution, variant: str) -> Tensor:
    """The gradient of x from that of conv(x, weight); of x, only shape and strides are read."""
    variant = chosen("dgrad", x, convolution, variant)
    if variant in TILES:
        to = winograd.to_coarse if convolution.transposed else winograd.to_fine
        return to(TILES[variant], g, convolution, None, (x.shape[1], x.shape[2]))
    if variant == "library":
        narrow = convolution._replace(weight=cast(convolution.weight, x.dtype), bias=None)
        return nhwc(reference.convolve_backward(nchw(g), nchw(x), narrow.weight, ConvSpec(*narrow[2:]),
                                                needs_x=True)[0])
    size = x.shape[1], x.shape[2]
    window = _window(convolution, *(size if convolution.transposed else g.shape[1:3]))
    if variant == "patches":
        if convolution.transposed:
            return patches.to_coarse(g, convolution, None, window)
        return patches.to_fine(g, convolution, None, window, size)
    weight = _matrix(convolution, x.dtype)
    if convolution.transposed:
        return _to_coarse(g, weight, None, window)
    return _to_fine(g, weight, None, window, size)


def wgrad(g: Tensor, x: Tensor, convolution: Convolution, variant: str) -> Tensor:
    """The gradient of the weight, in its dtype and with the memory order [., kh, kw, .]."""
    weight = convolution.weight
    coarse, fine = (x, g) if convolution.transposed else (g, x)
    variant = chosen("wgrad", x, convolution, variant)
    if variant in TILES:
        return nchw(winograd.wgrad(TILES[variant], coarse, fine, convolution.padding)).to(weight.dtype)
    if variant == "library":
        narrow = convolution._replace(weight=cast(weight, x.dtype), bias=None)
        gweight = reference.convolve_backward(nchw(g), nchw(x), narrow.weight, ConvSpec(*narrow[2:]),
                                              needs_weight=True)[1]
        return nchw(nhwc(gweight).to(weight.dtype))
    window = _window(convolution, *coarse.shape[1:3])
    if variant == "patches":
        return nchw(patches.wgrad(coarse, fine, window)).to(weight.dtype)
    one, two, height, width = weight.shape
    return nchw(_wgrad(coarse, fine, window).view(one, height, width, two)).to(weight.dtype)


def _window(convolution: Convolution, height: int, width: int) -> Window:
    kernel = convolution.weight.shape[2:]
    return Window((kernel[0], kernel[1]), convolution.stride, convolution.padding, (height, width))


def _matrix(convolution: Convolution, dtype: torch.dtype) -> Tensor:
    """The weight as [Cc, kh * kw * Cf]."""
    return nhwc(cast(convolution.weight, dtype)).flatten(1)


def _blocks(x: Tensor, elements: int) -> Iterator[tuple[int, int]]:
    """(first, count) of images whose patches of so many elements each fit into a block."""
    count = max(1, BLOCK // (elements * x.element_size()))
    return ((first, min(count, len(x) - first)) for first in range(0, len(x), count))


def _pixels(x: Tensor, first: int, count: int) -> Tensor:
    """[count * H * W, C], of some images."""
    return x[first:first + count].flatten(0, 2)


def _is_one_patch(x: Tensor, window: Window) -> bool:
    """Whether an image is a patch as it lies in memory: the first layer of a generator, the last of a discriminator."""
    return window.size == (1, 1) and window.padding == (0, 0) and window.kernel == x.shape[1:3]


def _patches(x: Tensor, window: Window, first: int, count: int) -> Tensor:
    """[count * Hc * Wc, kh * kw * C], of some images."""
    return x[first:first + count].flatten(1) if _is_one_patch(x, window) else rows.gather(x, window, first, count)


def _to_coarse(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    out = x.new_empty((len(x), *window.size, len(weight)))
    bias = None if bias is None else bias.to(x.dtype)
    for first, count in _blocks(x, window.elements(x.shape[3])):
        patches, block = _patches(x, window, first, count), out[first:first + count].flatten(0, 2)
        if bias is None:
            torch.mm(patches, weight.t(), out=block)
        else:
            torch.addmm(bias, patches, weight.t(), out=block)
    return out


def _to_fine(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window, size: tuple[int, int]) -> Tensor:
    channels = weight.shape[1] // (window.kernel[0] * window.kernel[1])
    out = x.new_empty((len(x), *size, channels))
    for first, count in _blocks(x, window.elements(channels)):
        block = out[first:first + count]
        if _is_one_patch(out, window):
            torch.mm(_pixels(x, first, count), weight, out=block.flatten(1))
            if bias is not None:
                block += bias
        else:
            rows.scatter(torch.mm(_pixels(x, first, count), weight), bias, window, block)
    return out


def _wgrad(coarse: Tensor, fine: Tensor, window: Window) -> Tensor:
    """[Cc, kh * kw * Cf], summed over blocks in float32."""
    products = (torch.mm(_pixels(coarse, first, count).t(), _patches(fine, window, first, count))
                for first, count in _blocks(fine, window.elements(fine.shape[3])))
    total = next(products, None)
    if total is None:
        return fine.new_zeros((coarse.shape[3], window.kernel[0] * window.kernel[1] * fine.shape[3]))
    for product in products:
        total = total.float() + product
    return total
