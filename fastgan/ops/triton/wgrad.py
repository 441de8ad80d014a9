"""The weight gradient of both convolutions: a GEMM over pixels, split over programs and added up in order.

    gw[a, kh, kw, b] = sum over n, h, w of  coarse[n, h, w, a] * fine[n, h * s - p + kh, w * s - p + kw, b]

A convolution's coarse operand is the gradient of its output and its fine one the activated input; a transposed
convolution's are the activated input and the gradient. Rows are the coarse channels, columns (tap, fine channel), the
depth runs over the pixels of the coarse grid, group by group. `split` parts of the depth go to programs of their own,
whose partial sums are then added in a fixed order: the same bits each time, without atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.ops.triton.launch import architecture, launch
from fastgan.ops.triton.operand import Operand, load
from fastgan.ops.triton.reduce import add_up
from fastgan.ops.triton.tiles import choose, covering, fitting, programs

NARROW = 4  # rows up to which this is no GEMM, as in `convolve.py`


@triton.jit(do_not_specialize=["images", "blocks", "blocks_each", "blocks_all", "HC", "WC", "HF", "WF"])
def wgrad_kernel(
    coarse, coarse_partner, a0, a1, a2, a3,  # [N, HC, WC, A] twice, (A,) or (G, A)
    fine, fine_partner, b0, b1, b2, b3,  # [N, HF, WF, B] twice, (B,) or (G, B)
    gw,  # [SPLIT, A, KH, KW, B]
    first_stride_a, last_stride_a, first_stride_b, last_stride_b,  # over groups, of the vectors
    images, blocks, blocks_each, blocks_all,  # images, and depth blocks, of one group; of one program; of all groups
    HC, WC, HF, WF, slope_a, inverse_count_a, slope_b, inverse_count_b,
    A: tl.constexpr, B: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    KIND_A: tl.constexpr, ACTIVATION_A: tl.constexpr, KIND_B: tl.constexpr, ACTIVATION_B: tl.constexpr,
    PACKED: tl.constexpr, NARROW: tl.constexpr, PRECISION: tl.constexpr, LARGE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):
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
    pixels = images * HC * WC
    if NARROW:
        products = tl.zeros((BK, BM, BN), tl.float32)
    else:
        products = tl.zeros((BM, BN), tl.float32)
    for block in range(split * blocks_each, tl.minimum((split + 1) * blocks_each, blocks_all)):
        group = block // blocks
        k = (block % blocks) * BK + tl.arange(0, BK)  # [BK]
        valid = k < pixels
        w = k % WC
        line = k // WC
        h = line % HC
        n = group * images + line // HC
        if LARGE:
            n = n.to(tl.int64)
        at = ((n * HC + h) * WC + w) * A
        a = load(coarse, coarse_partner, a0, a1, a2, a3, at[:, None] + row[None, :],
                 valid[:, None] & row_known[None, :], group * first_stride_a + row, group * last_stride_a + row,
                 row_known, slope_a, inverse_count_a, KIND_A, ACTIVATION_A)  # [BK, BM]
        fh, fw = (h * SH - PH)[:, None] + kh, (w * SW - PW)[:, None] + kw  # [BK, BN] or [BK, 1]
        inside = (fh >= 0) & (fh < HF) & (fw >= 0) & (fw < WF) & valid[:, None] & column_known[None, :]
        b = load(fine, fine_partner, b0, b1, b2, b3, ((n[:, None] * HF + fh) * WF + fw) * B + channel[None, :], inside,
                 group * first_stride_b + channel, group * last_stride_b + channel, column_known, slope_b,
                 inverse_count_b, KIND_B, ACTIVATION_B)  # [BK, BN]
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


def wgrad(coarse: Operand, fine: Operand, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int],
          dtype: torch.dtype, *, groups: int, precision: str = "ieee") -> Tensor:
    """[A, kh, kw, B] in `dtype` from operands [N, HC, WC, A] and [N, HF, WF, B], whose groups divide `groups`."""
    n, hc, wc, a = coarse.tensor.shape
    _, hf, wf, b = fine.tensor.shape
    kh, kw = kernel
    device, pixels = coarse.tensor.device, n // groups * hc * wc
    narrow = a <= NARROW
    tile = choose("narrow wgrad" if narrow else "wgrad", architecture(device), rows=a, columns=kh * kw * b,
                  depth=pixels, size=coarse.tensor.element_size())
    bm = triton.next_power_of_2(a) if narrow else fitting(a, tile.rows)
    bk = tile.depth if narrow else covering(pixels, tile.depth)
    packed = b % tile.columns != 0 and b < tile.columns
    grid = (triton.cdiv(a, bm),
            triton.cdiv(kh * kw * b, tile.columns) if packed else kh * kw * triton.cdiv(b, tile.columns))
    blocks = triton.cdiv(pixels, bk)
    split = max(1, min(blocks * groups, programs(architecture(device)) // (grid[0] * grid[1])))
    each = triton.cdiv(blocks * groups, split)
    split = triton.cdiv(blocks * groups, each)
    gw = torch.empty((split, a, kh, kw, b), dtype=dtype if split == 1 else torch.float32, device=device)
    a_vectors, a_first, a_last = coarse.spread(groups)
    b_vectors, b_first, b_last = fine.spread(groups)
    launch(
        wgrad_kernel, (*grid, split), tile, coarse=coarse.tensor, coarse_partner=coarse.partner, a0=a_vectors[0],
        a1=a_vectors[1], a2=a_vectors[2], a3=a_vectors[3], fine=fine.tensor, fine_partner=fine.partner,
        b0=b_vectors[0], b1=b_vectors[1], b2=b_vectors[2], b3=b_vectors[3], gw=gw, first_stride_a=a_first,
        last_stride_a=a_last, first_stride_b=b_first, last_stride_b=b_last, images=n // groups, blocks=blocks,
        blocks_each=each, blocks_all=blocks * groups, HC=hc, WC=wc, HF=hf, WF=wf, slope_a=coarse.negative_slope,
        inverse_count_a=coarse.inverse_count, slope_b=fine.negative_slope, inverse_count_b=fine.inverse_count,
        A=a, B=b, KH=kh, KW=kw, SH=stride[0], SW=stride[1], PH=padding[0], PW=padding[1], KIND_A=coarse.kind,
        ACTIVATION_A=coarse.activation, KIND_B=fine.kind, ACTIVATION_B=fine.activation, PACKED=packed,
        NARROW=narrow, PRECISION=precision, LARGE=max(coarse.tensor.numel(), fine.tensor.numel()) >= 2**31, BM=bm,
        BN=tile.columns, BK=bk)
    return gw[0] if split == 1 else add_up(gw.view(1, split, -1), dtype).view(a, kh, kw, b)
