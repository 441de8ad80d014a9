"""Convolution and transposed convolution as one implicit GEMM, each in one launch.

    conv         y[n, oh, ow, co] = bias[co] + sum over kh, kw, ci of
                     x[n, oh * s - p + kh, ow * s - p + kw, ci] * w[co, kh, kw, ci]
    transposed   y[n, oh, ow, co] = bias[co] + sum over the kh, kw with (oh + p - kh) % s = (ow + p - kw) % s = 0, and
                     ci, of x[n, (oh + p - kh) / s, (ow + p - kw) / s, ci] * w[ci, kh, kw, co]

Rows of the GEMM are output pixels, columns output channels, its depth runs over (tap, ci) in one flat loop. In the
transposed convolution the outputs with the same phase ((oh + p) % s, (ow + p) % s) use the same taps: the third axis
of the grid is the phase, and within a phase the taps kh = phase + s * t read a row that moves by -t: no branches, no
zeros multiplied. Both are so one loop, over taps t, that reads row `base + step * t` (step 1, or -1 when transposed).

The same kernel is the input gradient of its twin, with the gradient of the output in place of x.

What follows the sum: an activation, and where asked for the mask z > 0; or the statistics of each channel, from the
values as they are stored. Where columns or depth are few (an image, a logit and its gradient) this is no GEMM: NARROW
multiplies and adds on the ordinary cores instead.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.ops.specs import Activation, ConvSpec
from fastgan.ops.triton import reduce
from fastgan.ops.triton.elementwise import activate
from fastgan.ops.triton.launch import architecture, launch, tickets
from fastgan.ops.triton.reduce import finish_statistics, moments
from fastgan.ops.triton.tiles import choose, covering, fitting

_IDENTITY = Activation()
NARROW = 4  # columns or depth up to which tensor cores, whose tiles are 16 wide, would mostly multiply zeros


@triton.jit(do_not_specialize=["images", "tiles", "H", "W", "HO", "WO", "ci"])  # one build for all sizes of image
def convolve_kernel(
    x,  # [N, H, W, CI]
    weight, bias,  # [CO, KH, KW, CI], or [CI, KH, KW, CO] when TRANSPOSED; [CO]
    y, mask,  # [N, HO, WO, CO] each
    partials, blocks, statistics, tickets,  # as in `reduce.finish_statistics`; None where no statistics are asked for
    images, tiles, H, W, HO, WO,  # images and tiles (of the largest phase) of one group
    ci,  # CI, hidden from the compiler: in a loop that is known to be short it clears the sum after wgmma's fence
    slope,
    CI: tl.constexpr, CO: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, TRANSPOSED: tl.constexpr,
    ACTIVATION: tl.constexpr, PACKED: tl.constexpr, NARROW: tl.constexpr, PRECISION: tl.constexpr, LARGE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, FAN: tl.constexpr,
):
    """Grid (groups * tiles, column blocks, phases). A program computes BM pixels of a phase x BN channels."""
    group = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    phase = tl.program_id(2)

    # the taps of this phase, and its outputs: every SH-th row from first_h
    if TRANSPOSED:
        phase_h, phase_w = phase // SW, phase % SW
        first_h, first_w = (phase_h + SH - PH % SH) % SH, (phase_w + SW - PW % SW) % SW
        taps_h, taps_w = (KH - phase_h + SH - 1) // SH, (KW - phase_w + SW - 1) // SW
        rows_h, rows_w = (HO - first_h + SH - 1) // SH, (WO - first_w + SW - 1) // SW
    else:
        phase_h, phase_w, first_h, first_w = 0, 0, 0, 0
        taps_h, taps_w, rows_h, rows_w = KH, KW, HO, WO
    rows = images * rows_h * rows_w

    m = tile * BM + tl.arange(0, BM)  # [BM]
    valid = m < rows
    row_w = m % tl.maximum(rows_w, 1)
    row = m // tl.maximum(rows_w, 1)
    row_h = row % tl.maximum(rows_h, 1)
    n = group * images + row // tl.maximum(rows_h, 1)
    if LARGE:
        n = n.to(tl.int64)
    if TRANSPOSED:
        oh, ow = first_h + row_h * SH, first_w + row_w * SW
        base_h, base_w = (oh + PH) // SH, (ow + PW) // SW
    else:
        oh, ow = row_h, row_w
        base_h, base_w = oh * SH - PH, ow * SW - PW
    step: tl.constexpr = -1 if TRANSPOSED else 1
    tap_stride_h: tl.constexpr = SH if TRANSPOSED else 1
    tap_stride_w: tl.constexpr = SW if TRANSPOSED else 1
    weight_in: tl.constexpr = KH * KW * CO if TRANSPOSED else 1  # strides of the weight
    weight_tap: tl.constexpr = CO if TRANSPOSED else CI
    weight_out: tl.constexpr = 1 if TRANSPOSED else KH * KW * CI
    base = ((n * H + base_h) * W + base_w) * CI  # [BM]

    column = tl.program_id(1) * BN + tl.arange(0, BN)  # [BN]
    within = column < CO
    k = tl.arange(0, BK)
    if NARROW:
        products = tl.zeros((BM, BN, BK), tl.float32)
    else:
        products = tl.zeros((BM, BN), tl.float32)

    depth_blocks: tl.constexpr = (CI + BK - 1) // BK
    if PACKED:
        steps = (taps_h * taps_w * ci + BK - 1) // BK
    else:
        steps = taps_h * taps_w * ((ci + BK - 1) // BK)
    # at least one, or the sum comes from two places and wgmma waits for each product; a phase without taps is PACKED,
    # and masked
    for i in range(0, tl.maximum(steps, 1)):
        if PACKED:  # [BK]: every element of the depth has its own tap
            flat = i * BK + k
            tap, channel = flat // CI, flat % CI
            known = tap < taps_h * taps_w
            tap_h, tap_w = tap // tl.maximum(taps_w, 1), tap % tl.maximum(taps_w, 1)
            row_in, column_in = base_h[:, None] + step * tap_h[None, :], base_w[:, None] + step * tap_w[None, :]
        else:
            tap, channel = i // depth_blocks, (i % depth_blocks) * BK + k
            known = channel < CI
            tap_h, tap_w = tap // taps_w, tap % taps_w
            row_in, column_in = (base_h + step * tap_h)[:, None], (base_w + step * tap_w)[:, None]
        shift = (step * (tap_h * W + tap_w) * CI + channel)[None, :]
        inside = (row_in >= 0) & (row_in < H) & (column_in >= 0) & (column_in < W) & valid[:, None]
        if PACKED or CI % BK != 0:
            inside = inside & known[None, :]
        a = tl.load(x + base[:, None] + shift, mask=inside, other=0.0)  # [BM, BK]
        tap_index = (phase_h + tap_h * tap_stride_h) * KW + phase_w + tap_w * tap_stride_w
        at = tap_index * weight_tap + channel * weight_in  # [BK]
        if NARROW:
            w = tl.load(weight + column[:, None] * weight_out + at[None, :], mask=within[:, None] & known[None, :],
                        other=0.0)  # [BN, BK]
            products += a[:, None, :].to(tl.float32) * w[None, :, :].to(tl.float32)
        else:
            w = tl.load(weight + at[:, None] + column[None, :] * weight_out, mask=known[:, None] & within[None, :],
                        other=0.0)  # [BK, BN]
            products = tl.dot(a, w, products, input_precision=PRECISION)
    if NARROW:
        result = tl.sum(products, 2)  # [BM, BN]
    else:
        result = products

    if bias is not None:
        result += tl.load(bias + column, mask=within, other=0.0).to(tl.float32)[None, :]
    out = (((n * HO + oh) * WO + ow) * CO)[:, None] + column[None, :]  # [BM, BN]
    stored = valid[:, None] & within[None, :]
    if mask is not None:
        tl.store(mask + out, (result > 0.0).to(tl.uint8), mask=stored)
    tl.store(y + out, activate(result, slope, ACTIVATION).to(y.dtype.element_ty), mask=stored)
    if partials is not None:
        # read back with whole rows of channels in a thread: as a product lies, a column is spread over 8 lanes
        tl.debug_barrier()  # threads of this program have stored what others read
        value = tl.load(y + out, mask=stored, other=0.0).to(tl.float32)
        count, mean, m2 = moments(value, valid[:, None])
        groups, phases = tl.num_programs(0) // tiles, tl.num_programs(2)
        finish_statistics(count, mean, m2, partials, blocks, statistics, tickets, group, groups, tile * phases + phase,
                          tiles * phases, column, within, CO, BN, FAN)


class Convolved(NamedTuple):
    """y [N, Ho, Wo, Co], mask like it or None, statistics [2, G, Co] (mean and biased variance) or None."""

    y: Tensor
    mask: Tensor | None
    statistics: Tensor | None


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, conv: ConvSpec, size: tuple[int, int], *,
             activation: Activation = _IDENTITY, masked: bool = False, groups: int = 0,
             precision: str = "ieee") -> Convolved:
    """act(conv(x, weight) + bias) of x [N, H, W, Ci] with weight [Co, kh, kw, Ci], or [Ci, kh, kw, Co] when transposed.

    Args:
        size: (Ho, Wo). masked: whether to write the mask z > 0. groups: of statistics, 0 for none.
        precision: "ieee" or "tf32", of float32 products.
    """
    n, h, w, ci = x.shape
    co, (kh, kw) = weight.shape[3 if conv.transposed else 0], weight.shape[1:3]
    (ho, wo), taps, transposed, (sh, sw), (ph, pw) = size, kh * kw, conv.transposed, conv.stride, conv.padding
    if transposed and (h, w, ph, pw) == (1, 1, 0, 0) and (ho, wo) == (kh, kw):
        sh, sw = kh, kw  # of one pixel each output has one tap, whatever the stride
    phases, parts = (sh * sw if transposed else 1), max(groups, 1)
    rows = n // parts * (-(-ho // sh) * -(-wo // sw) if transposed else ho * wo)
    depth = -(-kh // sh) * -(-kw // sw) * ci if transposed else taps * ci
    narrow = min(co, depth) <= NARROW
    tile = choose("narrow" if narrow else "convolve", architecture(x.device), rows=rows * parts * phases, columns=co,
                  depth=depth, size=x.element_size())
    bm, bn, bk = tile.rows, tile.columns, tile.depth
    if narrow:
        bk, bn = min(bk, triton.next_power_of_2(depth)), min(bn, triton.next_power_of_2(co))
    packed = (ci < bk and taps > 1) or (transposed and (kh < sh or kw < sw))
    if not narrow:
        bm, bk = covering(rows, bm), fitting(depth if packed else ci, bk)
    tiles = triton.cdiv(rows, bm)
    y = x.new_empty((n, ho, wo, co))
    mask = torch.empty_like(y, dtype=torch.uint8) if masked else None
    partials = blocks = statistics = counts = None
    if groups:
        each = tiles * phases
        fans = reduce.blocks_of(each)
        partials, blocks, statistics = (y.new_empty((lead, groups * length, co), dtype=torch.float32)
                                        for lead, length in ((3, each), (3, fans), (2, 1)))
        counts = tickets(x.device, groups * triton.cdiv(co, bn) * (fans + 1))
    launch(
        convolve_kernel, (parts * tiles, triton.cdiv(co, bn), phases), tile, x=x, weight=weight, bias=bias, y=y,
        mask=mask, partials=partials, blocks=blocks, statistics=statistics, tickets=counts, images=n // parts,
        tiles=tiles, H=h, W=w, HO=ho, WO=wo, ci=ci, slope=float(activation.negative_slope), CI=ci, CO=co, KH=kh, KW=kw,
        SH=sh, SW=sw, PH=ph, PW=pw, TRANSPOSED=transposed, ACTIVATION=activation.name, PACKED=packed, NARROW=narrow,
        PRECISION=precision, LARGE=max(x.numel(), y.numel(), weight.numel()) >= 2**31, BM=bm, BN=bn, BK=bk,
        FAN=reduce.FAN)
    return Convolved(y, mask, statistics)
