"""The weight gradient of both convolutions: a GEMM over pixels, split over programs and added up in order.

    gw[a, kh, kw, b] = sum over n, h, w of  coarse[n, h, w, a] * fine[n, h * s - p + kh, w * s - p + kw, b]

A convolution's coarse operand is the gradient of its output and its fine one the input; a transposed convolution's are
the input and the gradient. Rows are the coarse channels, columns (tap, fine channel), the depth runs over the pixels
of the coarse grid. `split` parts of the depth go to programs of their own, whose partial sums are then added in a fixed
order: the same bits each time, without atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.ops.triton.launch import architecture, launch
from fastgan.ops.triton.reduce import add_up
from fastgan.ops.triton.tiles import choose, covering, fitting, programs

NARROW = 4  # rows up to which this is no GEMM, as in `convolve.py`


@triton.jit(do_not_specialize=["pixels", "each"])
def wgrad_kernel(
    coarse, fine,  # [N, HC, WC, A], [N, HF, WF, B]
    gw,  # [SPLIT, A, KH, KW, B]
    pixels, each,  # N * HC * WC; depth blocks of one program
    HC: tl.constexpr, WC: tl.constexpr, HF: tl.constexpr, WF: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    PACKED: tl.constexpr, NARROW: tl.constexpr, PRECISION: tl.constexpr, LARGE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):
    """Grid (row blocks, column blocks, SPLIT). A program computes BM x BN of gw from `each` blocks of BK pixels."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)  # [BM]
    row_known = row < A
    split = tl.program_id(2)
    if PACKED:  # [BN]: every column has its own tap
        flat = tl.program_id(1) * BN + tl.arange(0, BN)
        tap, channel = flat // B, flat % B
        column_known = tap < KH * KW
        kh, kw = (tap // KW)[None, :], (tap % KW)[None, :]
    else:
        per_tap: tl.constexpr = (B + BN - 1) // BN
        tap = tl.program_id(1) // per_tap
        channel = (tl.program_id(1) % per_tap) * BN + tl.arange(0, BN)
        column_known = channel < B
        kh, kw = tap // KW, tap % KW
    if NARROW:
        products = tl.zeros((BK, BM, BN), tl.float32)
    else:
        products = tl.zeros((BM, BN), tl.float32)
    for block in range(0, tl.maximum(each, 1)):  # at least one, as in `convolve.py`
        k = (split * each + block) * BK + tl.arange(0, BK)  # [BK]
        valid = k < pixels
        w = k % WC
        h = k // WC % HC
        n = k // (WC * HC)
        if LARGE:
            n = n.to(tl.int64)
        at = ((n * HC + h) * WC + w) * A
        a = tl.load(coarse + at[:, None] + row[None, :], mask=valid[:, None] & row_known[None, :],
                    other=0.0)  # [BK, BM]
        fh, fw = (h * SH - PH)[:, None] + kh, (w * SW - PW)[:, None] + kw  # [BK, BN] or [BK, 1]
        inside = (fh >= 0) & (fh < HF) & (fw >= 0) & (fw < WF) & valid[:, None] & column_known[None, :]
        b = tl.load(fine + ((n[:, None] * HF + fh) * WF + fw) * B + channel[None, :], mask=inside,
                    other=0.0)  # [BK, BN]
        if NARROW:
            products += a[:, :, None].to(tl.float32) * b[:, None, :].to(tl.float32)
        else:
            products = tl.dot(tl.trans(a), b, products, input_precision=PRECISION)
    if NARROW:
        result = tl.sum(products, 0)  # [BM, BN]
    else:
        result = products
    out = row.to(tl.int64)[:, None] * (KH * KW * B) + (tap * B + channel)[None, :]  # [BM, BN]
    out += split.to(tl.int64) * (A * KH * KW * B)
    tl.store(gw + out, result.to(gw.dtype.element_ty), mask=row_known[:, None] & column_known[None, :])


def wgrad(coarse: Tensor, fine: Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int],
          dtype: torch.dtype, *, precision: str = "ieee") -> Tensor:
    """[A, kh, kw, B] in `dtype` from coarse [N, HC, WC, A] and fine [N, HF, WF, B]."""
    n, hc, wc, a = coarse.shape
    _, hf, wf, b = fine.shape
    (kh, kw), pixels, arch = kernel, n * hc * wc, architecture(coarse.device)
    narrow = a <= NARROW
    tile = choose("narrow wgrad" if narrow else "wgrad", arch, rows=a, columns=kh * kw * b, depth=pixels,
                  size=coarse.element_size())
    bm = triton.next_power_of_2(a) if narrow else fitting(a, tile.rows)
    bk = tile.depth if narrow else covering(pixels, tile.depth)
    # as wide as the tile, or as the fine channels where they divide it
    bn = next((side for side in (tile.columns, tile.columns // 2, tile.columns // 4) if b % side == 0), tile.columns)
    packed = b < bn
    warps = max(4, tile.warps * bn // tile.columns)
    tile = tile._replace(warps=warps, registers=min(255, tile.registers * tile.warps // warps))
    grid = (triton.cdiv(a, bm), triton.cdiv(kh * kw * b, bn) if packed else kh * kw * triton.cdiv(b, bn))
    blocks = triton.cdiv(pixels, bk)
    split = max(1, min(blocks, programs(arch) // (grid[0] * grid[1])))
    each = triton.cdiv(blocks, split)
    split = triton.cdiv(blocks, each)
    gw = coarse.new_empty((split, a, kh, kw, b), dtype=dtype if split == 1 else torch.float32)
    launch(
        wgrad_kernel, (*grid, split), tile, coarse=coarse, fine=fine, gw=gw, pixels=pixels, each=each, HC=hc, WC=wc,
        HF=hf, WF=wf, A=a, B=b, KH=kh, KW=kw, SH=stride[0], SW=stride[1], PH=padding[0], PW=padding[1], PACKED=packed,
        NARROW=narrow, PRECISION=precision, LARGE=max(coarse.numel(), fine.numel()) >= 2**31, BM=bm, BN=bn,
        BK=bk)
    return gw[0] if split == 1 else add_up(gw.view(split, -1), dtype).view(a, kh, kw, b)
