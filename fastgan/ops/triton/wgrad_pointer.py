"""The weight gradient of both convolutions on pointers: a GEMM over pixels, split over programs and summed in order.

    gw[a, kh, kw, b] = sum over n, h, w of  coarse[n, h, w, a] * fine[n, h * s - p + kh, w * s - p + kw, b]

In a convolution, coarse is the gradient of the output and fine the input; in a transposed convolution, coarse is the
input and fine the gradient. Rows are the coarse channels, columns are (tap, fine channel), and the depth runs over the
pixels of the coarse grid. The columns of a row of a window are kw * b contiguous elements, padded to RUN for few fine
channels (an image). The depth is split over programs, whose partial sums are then added in a fixed order: results
repeat bit for bit, without atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.ops.specs import FEW_CHANNELS, IDENTITY, Activation
from fastgan.ops.triton.elementwise import derivative_of, load_bits, multiply_derived
from fastgan.ops.triton.gemm_pointer import LONGEST_RUN, Conv, divide, inside
from fastgan.ops.triton.launch import architecture, begin, launch
from fastgan.ops.triton.reduce import add_up
from fastgan.ops.triton.tiles import choose, covering, fitting, programs


@triton.jit(do_not_specialize=["pixels", "each"])
def wgrad_kernel(
    coarse, fine,  # [N, HC, WC, CO], [N, HF, WF, CI]
    saved, slope,  # to multiply coarse by act': a [like coarse] or the bits z > 0, 8 or 64 to a word; else None
    gw,  # [SPLIT, CO, KH, KW, CI]
    pixels, each,  # N * HC * WC; depth blocks of one program
    HC: tl.constexpr, WC: tl.constexpr, HF: tl.constexpr, WF: tl.constexpr, CONV: tl.constexpr,
    DERIVATIVE: tl.constexpr, RUN: tl.constexpr, WHOLE: tl.constexpr,  # WHOLE: BK divides the pixels
    PRECISION: tl.constexpr, LARGE: tl.constexpr, PDL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Grid (row blocks, column blocks, SPLIT). A program computes BM x BN of gw from `each` blocks of BK pixels."""
    begin(PDL)
    CI: tl.constexpr = CONV.CI
    CO: tl.constexpr = CONV.CO
    row = tl.program_id(0) * BM + tl.arange(0, BM)  # [BM]
    split = tl.program_id(2)
    window: tl.constexpr = RUN if RUN else CONV.KW * CI
    column = tl.program_id(1) * BN + tl.arange(0, BN)  # [BN]
    kh, element = column // window, column % window
    kw = element // CI
    # if tiles are whole, masks are constants, which the compiler removes
    known = ((kh < CONV.KH) & (element < CONV.KW * CI)) | (not RUN and CONV.KH * window % BN == 0)
    at_fine, at_weight = kh * (WF * CI) + element, kh * (CONV.KW * CI) + element
    within = (row < CO) | (CO % BM == 0)
    at_coarse = row[:, None] + (tl.arange(0, BK) * CO)[None, :]  # [BM, BK]
    products = tl.zeros((BM, BN), tl.float32)
    blocks = tl.minimum(each, (pixels + BK - 1) // BK - split * each)
    for block in range(0, tl.maximum(blocks, 1)):  # at least one, as in `gemm_pointer.py`
        first = (split * each + block) * BK
        k = first + tl.arange(0, BK)  # [BK]
        valid = (k < pixels) | WHOLE
        line, w = divide(k, WC)
        n, h = divide(line, HC)
        base_h, base_w = h * CONV.SH - CONV.PH, w * CONV.SW - CONV.PW
        # row n * HF + base_h of all images, computed without n if HF is SH * HC
        at_line = line * CONV.SH + n * (HF - CONV.SH * HC) - CONV.PH
        if LARGE:
            first, at_line = first.to(tl.int64), at_line.to(tl.int64)
        at = at_coarse + first * CO  # [BM, BK]
        a = tl.load(coarse + at, mask=valid[None, :] & within[:, None], other=0.0)
        if DERIVATIVE == "mask":
            WIDTH: tl.constexpr = saved.dtype.element_ty.primitive_bitwidth
            skipped = tl.program_id(0) * (BM // WIDTH)
            at_word = (first + tl.arange(0, BK)) * (CO // WIDTH) + skipped
            bits = load_bits(saved, at_word, CO // WIDTH - skipped, valid, BM)
            a = multiply_derived(a, bits, slope, DERIVATIVE)
        elif saved is not None:
            of_z = tl.load(saved + at, mask=valid[None, :] & within[:, None], other=0.0)
            a = multiply_derived(a, of_z, slope, DERIVATIVE)
        base = fine + (at_line * WF + base_w) * CI  # [BK]
        read = inside(base_h[:, None] + kh[None, :], HF) & inside(base_w[:, None] + kw[None, :], WF)  # [BK, BN]
        read = read & valid[:, None] & known[None, :]
        b = tl.load(base[:, None] + at_fine[None, :], mask=read, other=0.0)  # [BK, BN]
        products = tl.dot(a, b, products, input_precision=PRECISION)
    size: tl.constexpr = CONV.KH * CONV.KW * CI
    out = split.to(tl.int64) * (CO * size) + row.to(tl.int64)[:, None] * size + at_weight[None, :]  # [BM, BN]
    tl.store(gw + out, products.to(gw.dtype.element_ty), mask=within[:, None] & known[None, :])


def wgrad(coarse: Tensor, fine: Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int],
          dtype: torch.dtype, *, precision: str = "ieee", saved: Tensor | None = None,
          activation: Activation = IDENTITY) -> Tensor:
    """[A, kh, kw, B] in `dtype` from coarse [N, HC, WC, A] and fine [N, HF, WF, B].

    saved: a, or if A is a multiple of 8 the mask z > 0, with which coarse is first multiplied by act'.
    """
    n, hc, wc, a = coarse.shape
    _, hf, wf, b = fine.shape
    (kh, kw), pixels, arch = kernel, n * hc * wc, architecture(coarse.device)
    tile = choose("wgrad", arch, rows=a, columns=kh * kw * b, depth=pixels, size=coarse.element_size())
    bm, bk = fitting(a, tile.rows), covering(pixels, tile.depth)
    run = triton.next_power_of_2(kw * b)
    run = run if b < FEW_CHANNELS and run <= LONGEST_RUN else 0
    columns = kh * (run or kw * b)
    bn = covering(columns, tile.columns)
    warps = max(4, tile.warps * bn // tile.columns)
    tile = tile._replace(warps=warps, registers=min(255, tile.registers * tile.warps // warps))
    grid = (triton.cdiv(a, bm), triton.cdiv(columns, bn))
    blocks = triton.cdiv(pixels, bk)
    split = max(1, min(blocks // 2, programs(arch) // (grid[0] * grid[1])))
    each = triton.cdiv(blocks, split)
    split = triton.cdiv(blocks, each)
    gw = coarse.new_empty((split, a, kh, kw, b), dtype=dtype if split == 1 else torch.float32)
    if saved is not None and saved.dtype == torch.uint8 and a % 64 == bm % 64 == 0:
        saved = saved.view(torch.int64)
    launch(
        wgrad_kernel, (*grid, split), tile, coarse=coarse, fine=fine, gw=gw, pixels=pixels, each=each, HC=hc, WC=wc,
        HF=hf, WF=wf, CONV=Conv(b, a, kh, kw, *stride, *padding, False), RUN=run, WHOLE=pixels % bk == 0,
        PRECISION=precision, LARGE=max(coarse.numel(), fine.numel()) >= 2**31, BM=bm, BN=bn, BK=bk,
        **derivative_of(activation, saved))
    return gw[0] if split == 1 else add_up(gw.view(split, -1), dtype).view(a, kh, kw, b)
