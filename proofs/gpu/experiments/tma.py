"""An experiment for sm_90: a 4x4 convolution of stride 2, padding 1 and its gradients on raw operands, by TMA.

    coarse[n, h, w, a]  = sum over kh, kw, b of  fine[n, 2h - 1 + kh, 2w - 1 + kw, b] * weight[a, kh, kw, b]

Images are channels_last. The fine image [N, 2H, 2W, B] is described as [N, H, 2, W, 2B], in which the pixels that one
tap touches are a box; what lies outside is TMA's zero fill. So a loop has no masks and no addresses. Rows of a product
are channels and columns are pixels: a reshaped box stays in shared memory only as wgmma's second operand.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

PIXELS, CHANNELS, DEPTH = 128, 128, 64  # of a tile
SPLIT = 264  # programs that keep an H100 busy, which a weight gradient's depth is divided for


@triton.jit
def _place(tile, H: tl.constexpr, W: tl.constexpr, BI: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr):
    """The image, row and column at which a tile of BI x BH x BW coarse pixels begins."""
    across: tl.constexpr = W // BW
    down: tl.constexpr = H // BH
    return tile // (across * down) * BI, tile // across % down * BH, tile % across * BW


@triton.jit
def to_coarse_kernel(fine, weight, coarse, A: tl.constexpr, B: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
                     BI: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr):
    """fine [N, H, 2, W, 2B], weight [A, 16 B], coarse [N, H, W, A]; grid (tiles of pixels, tiles of channels)."""
    pixels: tl.constexpr = BI * BH * BW
    n, h, w = _place(tl.program_id(0), H, W, BI, BH, BW)
    row = tl.program_id(1) * BC
    products = tl.zeros((BC, pixels), tl.float32)
    blocks: tl.constexpr = B // BK
    for i in range(0, 16 * blocks):
        tap, channel = i // blocks, i % blocks * BK
        kh, kw = tap // 4, tap % 4
        box = fine.load([n, h + (kh + 1) // 2 - 1, (kh + 1) % 2, w + (kw + 1) // 2 - 1, (kw + 1) % 2 * B + channel])
        a = weight.load([row, tap * B + channel])  # [BC, BK]
        products = tl.dot(a, box.reshape(pixels, BK).T, products)
    coarse.store([n, h, w, row], products.to(coarse.dtype).T.reshape([BI, BH, BW, BC]))


@triton.jit
def to_fine_kernel(coarse, weight, fine, A: tl.constexpr, B: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
                   BI: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr):
    """coarse [N, H, W, A], weight [A, 16 B], fine [N, H, 2, W, 2B]; grid (tiles of pixels, of channels, 4 parities)."""
    pixels: tl.constexpr = BI * BH * BW
    n, h, w = _place(tl.program_id(0), H, W, BI, BH, BW)
    row, phase_h, phase_w = tl.program_id(1) * BC, tl.program_id(2) // 2, tl.program_id(2) % 2
    products = tl.zeros((BC, pixels), tl.float32)
    blocks: tl.constexpr = A // BK
    for i in range(0, 4 * blocks):
        tap, channel = i // blocks, i % blocks * BK
        th, tw = tap // 2, tap % 2
        # the fine row 2r + phase_h sees the coarse row r + phase_h - th through kh = 1 - phase_h + 2 th
        box = coarse.load([n, h + phase_h - th, w + phase_w - tw, channel])
        a = weight.load([channel, ((1 - phase_h + 2 * th) * 4 + 1 - phase_w + 2 * tw) * B + row])  # [BK, BC]
        products = tl.dot(a.T, box.reshape(pixels, BK).T, products)
    fine.store([n, h, phase_h, w, phase_w * B + row], products.to(fine.dtype).T.reshape([BI, BH, 1, BW, BC]))


@triton.jit(do_not_specialize=["each", "total"])
def wgrad_kernel(coarse, fine, gw, each, total, A: tl.constexpr, B: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
                 BI: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """coarse [N H W, A], fine [N, H, 2, W, 2B], gw [parts, A, 16, B] float32; grid (rows, taps x columns, parts)."""
    BK: tl.constexpr = BI * BH * BW
    row, part = tl.program_id(0) * BM, tl.program_id(2)
    columns: tl.constexpr = B // BN
    tap, column = tl.program_id(1) // columns, tl.program_id(1) % columns * BN
    kh, kw = tap // 4, tap % 4
    products = tl.zeros((BM, BN), tl.float32)
    for i in range(part * each, tl.minimum(part * each + each, total)):
        n, h, w = _place(i, H, W, BI, BH, BW)
        a = coarse.load([i * BK, row])  # [BK, BM]
        box = fine.load([n, h + (kh + 1) // 2 - 1, (kh + 1) % 2, w + (kw + 1) // 2 - 1, (kw + 1) % 2 * B + column])
        products = tl.dot(a.T, box.reshape(BK, BN), products)
    rows, columns_b = row + tl.arange(0, BM), tap * B + column + tl.arange(0, BN)
    tl.store(gw + part * (A * 16 * B) + rows[:, None] * (16 * B) + columns_b[None, :], products)


def run(kind: str, given: tuple[Tensor, Tensor, Tensor], transposed: bool) -> Tensor:
    """One pass of a convolution, or of a transposed one; given: x, weight and the gradient of y, all (N, C, H, W),
    channels_last, 16 bits.

    The weight's first dimension is of the coarse image's channels either way: (A, B, 4, 4).
    """
    x, weight, gy = given
    coarse, fine = (x, gy) if transposed else (gy, x)
    if kind == "wgrad":
        return _wgrad(coarse, fine)
    if (kind == "conv_forward") == transposed:
        return _to_fine(coarse, weight, torch.empty_like(fine))
    return _to_coarse(fine, weight, torch.empty_like(coarse))


_compiling = False


@contextmanager
def only_compiling() -> Iterator[None]:
    """Within the block kernels are compiled and not started."""
    global _compiling
    _compiling = True
    try:
        yield
    finally:
        _compiling = False


def _start(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    if _compiling:
        kernel.warmup(*arguments, grid=grid, **options)
    else:
        kernel[grid](*arguments, **options)


def _to_coarse(fine: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    (n, a, h, w), b = out.shape, weight.shape[1]
    box, rows = _box(PIXELS, n, h, w), min(CHANNELS, a)
    _start(
        to_coarse_kernel, (n * h * w // _size(box), a // rows),
        _described(fine, (n, h, 2, w, 2 * b), (box[0], box[1], 1, box[2], min(DEPTH, b))),
        _described(weight, (a, 16 * b), (rows, min(DEPTH, b))), _described(out, (n, h, w, a), (*box, rows)),
        A=a, B=b, H=h, W=w, BI=box[0], BH=box[1], BW=box[2], BC=rows, BK=min(DEPTH, b), **_options(rows))
    return out


def _to_fine(coarse: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    (n, a, h, w), b = coarse.shape, weight.shape[1]
    box, rows = _box(PIXELS, n, h, w), min(CHANNELS, b)
    _start(
        to_fine_kernel, (n * h * w // _size(box), b // rows, 4),
        _described(coarse, (n, h, w, a), (*box, min(DEPTH, a))),
        _described(weight, (a, 16 * b), (min(DEPTH, a), rows)),
        _described(out, (n, h, 2, w, 2 * b), (box[0], box[1], 1, box[2], rows)),
        A=a, B=b, H=h, W=w, BI=box[0], BH=box[1], BW=box[2], BC=rows, BK=min(DEPTH, a), **_options(rows))
    return out


def _wgrad(coarse: Tensor, fine: Tensor) -> Tensor:
    (n, a, h, w), b = coarse.shape, fine.shape[1]
    box, rows, columns = _box(DEPTH, n, h, w), min(CHANNELS, a), min(CHANNELS, b)
    total, across = n * h * w // _size(box), a // rows * 16 * (b // columns)
    each = -(-total // max(1, min(total, SPLIT // across)))
    parts = -(-total // each)
    gw = torch.empty((parts, a, 4, 4, b), dtype=torch.float32, device=coarse.device)
    _start(
        wgrad_kernel, (a // rows, 16 * (b // columns), parts),
        _described(coarse, (n * h * w, a), (_size(box), rows)),
        _described(fine, (n, h, 2, w, 2 * b), (box[0], box[1], 1, box[2], columns)), gw, each, total,
        A=a, B=b, H=h, W=w, BI=box[0], BH=box[1], BW=box[2], BM=rows, BN=columns, **_options(rows))
    return gw.sum(0).to(coarse.dtype).permute(0, 3, 1, 2)


def _box(pixels: int, n: int, h: int, w: int) -> tuple[int, int, int]:
    """Images, rows and columns of a tile of so many pixels."""
    across = min(w, pixels)
    down = min(h, pixels // across)
    images = pixels // (across * down)
    if n % images or h % down or w % across:
        raise ValueError(f"{n} images of {h}x{w} pixels are not made of whole tiles of {pixels}")
    return images, down, across


def _size(box: tuple[int, int, int]) -> int:
    return box[0] * box[1] * box[2]


def _options(rows: int) -> dict[str, int]:
    return {"num_warps": 8, "num_stages": 3} if rows == CHANNELS else {"num_warps": 4, "num_stages": 3}


def _described(x: Tensor, shape: tuple[int, ...], box: tuple[int, ...]) -> Any:
    """A descriptor of x, whose memory is contiguous in the order of `shape`."""
    strides = torch.empty(shape, device="meta").stride()
    return TensorDescriptor.from_tensor(torch.as_strided(x, shape, strides), list(box))
