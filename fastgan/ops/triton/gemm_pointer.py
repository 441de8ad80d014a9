"""Convolution and transposed convolution as one implicit GEMM on pointers, each in one launch.

    conv         y[n, oh, ow, co] = bias[co] + sum over kh, kw, ci of
                     x[n, oh * s - p + kh, ow * s - p + kw, ci] * w[co, kh, kw, ci]
    transposed   y[n, oh, ow, co] = bias[co] + sum over the kh, kw with (oh + p - kh) % s = (ow + p - kw) % s = 0, and
                     ci, of x[n, (oh + p - kh) / s, (ow + p - kw) / s, ci] * w[ci, kh, kw, co]

Rows of the GEMM are output pixels, columns are output channels, and the depth runs over (tap, ci) in one flat loop. In
the transposed convolution, the outputs s * q - p + phase (0 <= phase < s) of one phase use the same taps
kh = phase + s * t, and tap t reads row q - t of x. So one loop over taps t, which reads row `base + step * t` (step 1,
or -1 when transposed), computes both, without branches and without products with zeros between pixels.

Phases are the third axis of the grid. Three variants are for few channels:

    FOLD     transposed to an image (64 -> 3): the s * s phases of all channels are columns of one GEMM
    RUN      convolution of an image (3 -> 64): a block of the depth consists of rows of a window, each of which is
             kw * ci contiguous elements, padded to RUN
    NARROW   few columns and few rows (512 -> 1): products and sums without tensor cores, which would mostly multiply
             zeros

The same kernel computes the input gradient of the opposite convolution if x is the gradient of its output. The epilogue
computes either an activation and optionally the mask z > 0, or statistics of each channel from the stored values of y.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.ops.specs import FEW_CHANNELS, IDENTITY, Activation, ConvSpec
from fastgan.ops.triton.elementwise import activate, pack_bits
from fastgan.ops.triton.launch import architecture, begin, launch
from fastgan.ops.triton.reduce import finish_statistics, moments, reduction
from fastgan.ops.triton.tiles import choose, covering, fitting, programs

NARROW = 4  # maximum of columns with NARROW
LONGEST_RUN = 64
FOLDED = 16  # maximum of columns with FOLD


class Conv(NamedTuple):
    """The geometry of a convolution, a compile-time constant of its kernels."""

    CI: int
    CO: int
    KH: int
    KW: int
    SH: int
    SW: int
    PH: int
    PW: int
    TRANSPOSED: bool


@triton.jit
def inside(index, size):
    """0 <= index < size, in one comparison."""
    return index.to(tl.uint32, bitcast=True) < size


@triton.jit
def divide(value, divisor):
    """Quotient and remainder of nonnegative numbers, in cheaper unsigned arithmetic; the quotient by 0 is `value`."""
    quotient = (value.to(tl.uint32, bitcast=True) // tl.maximum(divisor, 1).to(tl.uint32)).to(tl.int32, bitcast=True)
    return quotient, value - quotient * divisor


@triton.jit(do_not_specialize=["images", "tiles", "H", "W", "HO", "WO", "ci"])  # one build for all image sizes
def convolve_kernel(
    x,  # [N, H, W, CI]
    weight, bias,  # [CO, KH, KW, CI], or [CI, KH, KW, CO] when TRANSPOSED; [CO]
    y, mask,  # [N, HO, WO, CO], and bits, 8 to a byte
    statistics,  # a `reduce.Reduction`, or None
    images, tiles, H, W, HO, WO,  # images and tiles (of the largest phase) of one group
    ci,  # CI at run time: in a loop of known short length, the compiler would clear the sum after wgmma's fence
    slope,
    CONV: tl.constexpr, ACTIVATION: tl.constexpr, FOLD: tl.constexpr, RUN: tl.constexpr, NARROW: tl.constexpr,
    PRECISION: tl.constexpr, LARGE: tl.constexpr, PDL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Grid (groups * tiles, column blocks, phases). A program computes BM pixels of a phase x BN channels."""
    begin(PDL)
    CI: tl.constexpr = CONV.CI
    CO: tl.constexpr = CONV.CO
    TRANSPOSED: tl.constexpr = CONV.TRANSPOSED
    step: tl.constexpr = -1 if TRANSPOSED else 1
    stride_h: tl.constexpr = CONV.SH if TRANSPOSED else 1  # in the weight, between taps of a phase
    stride_w: tl.constexpr = CONV.SW if TRANSPOSED else 1
    group, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    column = tl.program_id(1) * BN + tl.arange(0, BN)  # [BN]
    channel_out = column % CO if FOLD else column
    phase = column // CO if FOLD else tl.program_id(2)
    phase_h, phase_w = 0, 0
    if TRANSPOSED:
        phase_h, phase_w = phase // stride_w, phase % stride_w

    # number of taps; first row and column of q, and their number
    taps_h, taps_w, first_h, first_w, rows_h, rows_w = CONV.KH, CONV.KW, 0, 0, HO, WO
    if FOLD:
        taps_h, taps_w = CONV.KH // stride_h, CONV.KW // stride_w
        rows_h, rows_w = (HO + CONV.PH + stride_h - 1) // stride_h, (WO + CONV.PW + stride_w - 1) // stride_w
    elif TRANSPOSED:
        taps_h, taps_w = (CONV.KH - phase_h + stride_h - 1) // stride_h, (CONV.KW - phase_w + stride_w - 1) // stride_w
        first_h = (CONV.PH - phase_h + stride_h - 1) // stride_h
        first_w = (CONV.PW - phase_w + stride_w - 1) // stride_w
        rows_h = (HO + CONV.PH - phase_h + stride_h - 1) // stride_h - first_h
        rows_w = (WO + CONV.PW - phase_w + stride_w - 1) // stride_w - first_w
    m = tile * BM + tl.arange(0, BM)  # [BM]
    valid = m < images * rows_h * rows_w
    row, base_w = divide(m, rows_w)
    n, base_h = divide(row, rows_h)
    n, base_h, base_w = n + group * images, base_h + first_h, base_w + first_w
    if LARGE:
        n = n.to(tl.int64)
    if TRANSPOSED:
        oh, ow = base_h * CONV.SH - CONV.PH, base_w * CONV.SW - CONV.PW  # of phase 0
    else:
        oh, ow = base_h, base_w
        base_h, base_w = base_h * CONV.SH - CONV.PH, base_w * CONV.SW - CONV.PW

    # the depth: offsets within its first block, and number of steps
    k = tl.arange(0, BK)
    gaps: tl.constexpr = stride_h > CONV.KH or stride_w > CONV.KW  # phases without taps
    weight_in: tl.constexpr = CONV.KH * CONV.KW * CO if TRANSPOSED else 1  # strides of the weight
    weight_tap: tl.constexpr = CO if TRANSPOSED else CI
    weight_out: tl.constexpr = 1 if TRANSPOSED else CONV.KH * CONV.KW * CI
    blocks: tl.constexpr = (CI + BK - 1) // BK
    at_pixel = ((n * H + base_h) * W + base_w) * CI  # [BM]
    at_column = channel_out * weight_out + (phase_h * CONV.KW + phase_w) * weight_tap  # [BN]
    within = column < (CO * stride_h * stride_w if FOLD else CO)
    if RUN:
        steps = ci // CI * ((CONV.KH * RUN + BK - 1) // BK)
    else:
        steps = taps_h * taps_w * ((ci + BK - 1) // BK)
    products = tl.zeros((BM, BN, BK) if NARROW else (BM, BN), tl.float32)
    # at least one step: otherwise the sum has two sources, and wgmma waits after each product
    for i in range(0, tl.maximum(steps, 1)):
        if RUN:
            # Reversed, so that the compiler does not detect contiguous elements and distribute them over threads (it
            # cannot load several 2-byte elements at once). Each thread then reads the window of one pixel.
            flat = BK - 1 - k
            kh, element = i * (BK // RUN) + flat // RUN, flat % RUN
            known = (kh < CONV.KH) & (element < CONV.KW * CI)  # [BK]
            read = inside(kh[:, None] + base_h[None, :], H) & inside(element[:, None] + (base_w * CI)[None, :], W * CI)
            a = tl.load(x + at_pixel[None, :] + (kh * (W * CI))[:, None] + element[:, None],
                        mask=read & known[:, None] & valid[None, :], other=0.0).T  # [BM, BK]
            at_weight, shift = kh * (CONV.KW * CI) + element, 0
        else:
            tap, channel = i // blocks, i % blocks * BK
            tap_h, tap_w = tap // tl.maximum(taps_w, 1), tap % tl.maximum(taps_w, 1)
            known = channel + k < CI
            if gaps:
                known = known & (taps_h * taps_w > 0)
            read = (inside(base_h + step * tap_h, H) & inside(base_w + step * tap_w, W) & valid)[:, None]
            if CI % BK != 0 or gaps:
                read = read & known[None, :]
            a = tl.load(x + at_pixel[:, None] + k[None, :] + (step * (tap_h * W + tap_w) * CI + channel), mask=read,
                        other=0.0)
            at_weight = k * weight_in
            shift = (tap_h * (stride_h * CONV.KW) + tap_w * stride_w) * weight_tap + channel * weight_in
        if NARROW:
            w = tl.load(weight + at_column[:, None] + at_weight[None, :] + shift, mask=within[:, None] & known[None, :],
                        other=0.0)  # [BN, BK]
            products += a[:, None, :].to(tl.float32) * w[None, :, :].to(tl.float32)
        else:
            w = tl.load(weight + at_weight[:, None] + at_column[None, :] + shift, mask=known[:, None] & within[None, :],
                        other=0.0)  # [BK, BN]
            products = tl.dot(a, w, products, input_precision=PRECISION)
    result = tl.sum(products, 2) if NARROW else products  # [BM, BN]

    if bias is not None:
        result += tl.load(bias + channel_out, mask=within, other=0.0).to(tl.float32)[None, :]
    out = (((n * HO + oh) * WO + ow) * CO)[:, None] + ((phase_h * WO + phase_w) * CO + channel_out)[None, :]  # [BM, BN]
    stored = valid[:, None] & within[None, :]
    if FOLD:
        inside_h = inside(oh[:, None] + phase_h[None, :], HO)  # type: ignore[index]
        inside_w = inside(ow[:, None] + phase_w[None, :], WO)  # type: ignore[index]
        stored = stored & inside_h & inside_w
    if mask is not None:  # CO is a multiple of 8, and FOLD and NARROW are off
        byte = tl.program_id(1) * (BN // 8) + tl.arange(0, BN // 8)  # [BN / 8]
        to = (((n * HO + oh) * WO + ow) * (CO // 8))[:, None] + ((phase_h * WO + phase_w) * (CO // 8) + byte)[None, :]
        tl.store(mask + to, pack_bits(result), mask=valid[:, None] & (byte < CO // 8)[None, :])
    tl.store(y + out, activate(result, slope, ACTIVATION).to(y.dtype.element_ty), mask=stored)
    if statistics is not None:
        # read back in a layout in which a thread has whole rows of channels; in that of a product, 8 lanes share a
        # column, and threads read what other threads of this program have stored
        tl.debug_barrier()
        value = tl.load(y + out, mask=stored, other=0.0).to(tl.float32)
        count, mean, m2 = moments(value, valid[:, None])
        groups, phases = tl.num_programs(0) // tiles, tl.num_programs(2)
        finish_statistics(count, mean, m2, statistics, group, groups, tile * phases + phase, tiles * phases, column, CO)


class ConvResult(NamedTuple):
    """y [N, Ho, Wo, Co]; or None: the mask, 8 bits to a byte, [N Ho Wo Co / 8], and statistics [2, G, Co], the mean and
    the biased variance."""

    y: Tensor
    mask: Tensor | None
    statistics: Tensor | None


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, conv: ConvSpec, size: tuple[int, int], *,
             activation: Activation = IDENTITY, masked: bool = False, groups: int = 0,
             precision: str = "ieee") -> ConvResult:
    """act(conv(x, weight) + bias) of x [N, H, W, Ci] with weight [Co, kh, kw, Ci], or [Ci, kh, kw, Co] when transposed.

    Args:
        size: (Ho, Wo). masked: whether to write the mask z > 0; Co is then a multiple of 8. groups: number of statistic
            groups; 0: no statistics.
        precision: "ieee" or "tf32", for float32 products.
    """
    n, h, w, ci = x.shape
    co, (kh, kw) = weight.shape[3 if conv.transposed else 0], weight.shape[1:3]
    (ho, wo), transposed, (sh, sw), (ph, pw) = size, conv.transposed, conv.stride, conv.padding
    if transposed and (h, w, ph, pw) == (1, 1, 0, 0) and (ho, wo) == (kh, kw):
        sh, sw = kh, kw  # from one pixel, each output has one tap for any stride
    arch, phases, columns, parts = architecture(x.device), (sh * sw if transposed else 1), co, max(groups, 1)
    fold = phases > 1 and phases * co <= FOLDED and kh % sh == kw % sw == 0 and not (groups or masked)
    rows = n // parts * (-(-ho // sh) * -(-wo // sw) if transposed else ho * wo)
    depth = -(-kh // sh) * -(-kw // sw) * ci if transposed else kh * kw * ci
    if fold:
        rows, columns, phases = n * -(-(ho + ph) // sh) * -(-(wo + pw) // sw), phases * co, 1
    narrow = columns <= NARROW and rows * parts * phases < 64 * programs(arch)
    tile = choose("narrow" if narrow else "convolve", arch, rows=rows * parts * phases, columns=columns, depth=depth,
                  size=x.element_size())
    run = triton.next_power_of_2(kw * ci)
    run = run if not transposed and ci < FEW_CHANNELS and run <= LONGEST_RUN else 0
    bm, bn, bk = tile.rows, tile.columns, tile.depth
    if run:
        bk = max(run, 16, min(bk, run * triton.next_power_of_2(kh)))
    elif narrow:
        bk = min(bk, triton.next_power_of_2(ci))
    else:
        bk = fitting(ci, bk)
    if narrow:
        bn = min(bn, triton.next_power_of_2(columns))
    else:
        bm = covering(rows, bm)
    tiles = triton.cdiv(rows, bm)
    y = x.new_empty((n, ho, wo, co))
    mask = y.new_empty(y.numel() // 8, dtype=torch.uint8) if masked else None
    statistics = reduction(y, 3, groups, tiles * phases, co, triton.cdiv(co, bn)) if groups else None
    launch(
        convolve_kernel, (parts * tiles, triton.cdiv(columns, bn), phases), tile, x=x, weight=weight, bias=bias, y=y,
        mask=mask, statistics=statistics, images=n // parts, tiles=tiles, H=h, W=w, HO=ho, WO=wo, ci=ci,
        slope=float(activation.negative_slope), CONV=Conv(ci, co, kh, kw, sh, sw, ph, pw, transposed),
        ACTIVATION=activation.name, FOLD=fold, RUN=run, NARROW=narrow, PRECISION=precision,
        LARGE=max(x.numel(), y.numel()) >= 2**31, BM=bm, BN=bn, BK=bk)
    return ConvResult(y, mask, None if statistics is None else statistics.result)
