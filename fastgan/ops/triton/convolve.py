"""Convolution and transposed convolution as one implicit GEMM, each in one launch.

    conv         y[n, oh, ow, co] = sum over kh, kw, ci of
                     a[n, oh * s - p + kh, ow * s - p + kw, ci] * w[kh, kw, ci, co]
    transposed   y[n, oh, ow, co] = sum over the kh, kw with (oh + p - kh) % s = (ow + p - kw) % s = 0, and ci, of
                     a[n, (oh + p - kh) / s, (ow + p - kw) / s, ci] * w[kh, kw, ci, co]

Rows of the GEMM are output pixels, columns output channels, its depth runs over (tap, ci) in one flat loop. In the
transposed convolution the outputs with the same phase ((oh + p) % s, (ow + p) % s) use the same taps: the third axis
of the grid is the phase, and within a phase the taps kh = phase + s * t read a row that moves by -t: no branches, no
zeros multiplied. Both are so one loop, over taps t, that reads row `base + step * t` (step 1, or -1 when transposed).

The same kernel is the input gradient of its twin, with g in place of a (`operand.load`) and weights read the other way
round. What follows the sum is one of:

    none         y = sum + bias
    statistics   and count, mean and centred M2 of each tile's stored values, per channel
    derivative   gx = sum * act'(z) * gamma * rstd with z recomputed from x, and each tile's sums for gamma and beta

Where columns or depth are few (an image, a logit and its gradient) this is no GEMM: NARROW multiplies and adds on the
ordinary cores instead.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.ops.triton.launch import architecture, launch
from fastgan.ops.triton.operand import Operand, derivative, load, measure
from fastgan.ops.triton.tiles import choose, covering, fitting

NARROW = 4  # columns or depth up to which tensor cores, whose tiles are 16 wide, would mostly multiply zeros


@triton.jit(do_not_specialize=["images", "tiles", "H", "W", "HO", "WO", "ci"])  # one build for all sizes of image
def convolve_kernel(
    x, partner, v0, v1, v2, v3,  # the operand: [N, H, W, CI] twice, (CI,) or (G, CI)
    weight, bias,  # strides W_TAP, W_IN, W_OUT; (CHANNELS,)
    y,  # [N, HO, WO, CO]
    other, e0, e1, e2, e3,  # the raw input of the stage, like y, and mean, rstd, gamma, beta, of a derivative
    partials,  # [3, G * TILES * PHASES, CO] count, mean, M2, or [2, ...] sums; float32
    first_stride, last_stride, first_stride_e, last_stride_e,  # over groups, of the vectors
    images, tiles, H, W, HO, WO,  # images and tiles (of the largest phase) of one group
    ci,  # CI, hidden from the compiler: in a loop that is known to be short it clears the sum after wgmma's fence
    slope, inverse_count,
    CI: tl.constexpr, CO: tl.constexpr, CHANNELS: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    W_TAP: tl.constexpr, W_IN: tl.constexpr, W_OUT: tl.constexpr,
    TRANSPOSED: tl.constexpr, KIND: tl.constexpr, ACTIVATION: tl.constexpr, EPILOGUE: tl.constexpr,
    NORM: tl.constexpr, PACKED: tl.constexpr, NARROW: tl.constexpr, PRECISION: tl.constexpr, LARGE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):
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
    base = ((n * H + base_h) * W + base_w) * CI  # [BM]

    column = tl.program_id(1) * BN + tl.arange(0, BN)  # [BN]
    within = column < CO
    k = tl.arange(0, BK)
    if NARROW:
        products = tl.zeros((BM, BN, BK), tl.float32)
    else:
        products = tl.zeros((BM, BN), tl.float32)

    blocks: tl.constexpr = (CI + BK - 1) // BK
    if PACKED:
        steps = (taps_h * taps_w * ci + BK - 1) // BK
    else:
        steps = taps_h * taps_w * ((ci + BK - 1) // BK)
    steps = tl.where(tile * BM < rows, steps, 0)
    for i in range(0, steps):
        if PACKED:  # [BK]: every element of the depth has its own tap
            flat = i * BK + k
            tap, channel = flat // CI, flat % CI
            known = tap < taps_h * taps_w
            tap_h, tap_w = tap // tl.maximum(taps_w, 1), tap % tl.maximum(taps_w, 1)
            row_in, column_in = base_h[:, None] + step * tap_h[None, :], base_w[:, None] + step * tap_w[None, :]
            shift = (step * (tap_h * W + tap_w) * CI + channel)[None, :]
        else:
            tap, channel = i // blocks, (i % blocks) * BK + k
            known = channel < CI
            tap_h, tap_w = tap // taps_w, tap % taps_w
            row_in, column_in = (base_h + step * tap_h)[:, None], (base_w + step * tap_w)[:, None]
            shift = (step * (tap_h * W + tap_w) * CI + channel)[None, :]
        inside = (row_in >= 0) & (row_in < H) & (column_in >= 0) & (column_in < W) & valid[:, None]
        if PACKED or CI % BK != 0:
            inside = inside & known[None, :]
        a = load(x, partner, v0, v1, v2, v3, base[:, None] + shift, inside, group * first_stride + channel,
                 group * last_stride + channel, known, slope, inverse_count, KIND, ACTIVATION)  # [BM, BK]
        tap_weight = ((phase_h + tap_h * tap_stride_h) * KW + phase_w + tap_w * tap_stride_w) * W_TAP
        at = tap_weight + channel * W_IN  # [BK]
        if NARROW:
            w = tl.load(weight + column[:, None] * W_OUT + at[None, :], mask=within[:, None] & known[None, :],
                        other=0.0)  # [BN, BK]
            products += a[:, None, :].to(tl.float32) * w[None, :, :].to(tl.float32)
        else:
            w = tl.load(weight + at[:, None] + column[None, :] * W_OUT, mask=known[:, None] & within[None, :],
                        other=0.0)  # [BK, BN]
            products = tl.dot(a, w, products, input_precision=PRECISION)
    if NARROW:
        result = tl.sum(products, 2)  # [BM, BN]
    else:
        result = products

    channel_out = column % CHANNELS  # a 1x1 input may have its taps among the columns
    if bias is not None:
        result += tl.load(bias + channel_out, mask=within, other=0.0).to(tl.float32)[None, :]
    out = (((n * HO + oh) * WO + ow) * CO)[:, None] + column[None, :]  # [BM, BN]
    stored = valid[:, None] & within[None, :]
    part = ((group * tiles + tile) * tl.num_programs(2) + phase) * CO + column  # [BN]
    size = tl.num_programs(0) * tl.num_programs(2) * CO
    if EPILOGUE == "derivative":
        value = tl.load(other + out, mask=stored, other=0.0).to(tl.float32)
        result, sum_z, sum_zx = derivative(result, value, stored, e0, e1, e2, e3,
                                           group * first_stride_e + channel_out, group * last_stride_e + channel_out,
                                           within, slope, NORM, ACTIVATION)
        if NORM:
            tl.store(partials + part, sum_z, mask=within)
            tl.store(partials + size + part, sum_zx, mask=within)
    rounded = result.to(y.dtype.element_ty)
    tl.store(y + out, rounded, mask=stored)
    if EPILOGUE == "statistics":
        count, mean, m2 = measure(rounded.to(tl.float32), valid[:, None])
        tl.store(partials + part, tl.zeros((BN,), tl.float32) + count, mask=within)
        tl.store(partials + size + part, mean, mask=within)
        tl.store(partials + 2 * size + part, m2, mask=within)


class Geometry(NamedTuple):
    """Of a convolution, or of a transposed one, with its own weights: (Co, kh, kw, Ci), or (Ci, kh, kw, Co)."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    transposed: bool

    def twin(self) -> Geometry:
        """The input gradient's."""
        return self._replace(transposed=not self.transposed)


def convolve(operand: Operand, weight: Tensor, bias: Tensor | None, size: tuple[int, int], geometry: Geometry, *,
             groups: int = 1, statistics: bool = False, derivative_of: Operand | None = None,
             precision: str = "ieee") -> tuple[Tensor, Tensor | None]:
    """Convolve an operand [N, H, W, Ci] with weight [Co, kh, kw, Ci], or [Ci, kh, kw, Co] when transposed.

    Args:
        size: (Ho, Wo). groups: statistic groups; tiles do not straddle them.
        statistics: measure the result. derivative_of: the stage's own input, whose derivative follows a gradient.
        precision: "ieee" or "tf32", of float32 products.

    Returns [N, Ho, Wo, Co] and partials [3 or 2, groups, tiles, Co] or None.
    """
    x = operand.tensor
    n, h, w, ci = x.shape
    co, (kh, kw) = weight.shape[3 if geometry.transposed else 0], weight.shape[1:3]
    (ho, wo), taps = size, kh * kw
    y = torch.empty((n, ho, wo, co), dtype=x.dtype, device=x.device)
    transposed, channels = geometry.transposed, co
    strides = (co, taps * co, 1) if transposed else (ci, 1, taps * ci)
    if transposed and (h, w, *geometry.padding) == (1, 1, 0, 0) and (ho, wo) == (kh, kw):
        # one pixel becomes kh * kw: a plain GEMM whose columns are the taps
        transposed, kh, kw, ho, wo, co, taps = False, 1, 1, 1, 1, taps * co, 1
    (sh, sw), (ph, pw) = geometry.stride, geometry.padding
    phases = sh * sw if transposed else 1
    rows = n // groups * (-(-ho // sh) * -(-wo // sw) if transposed else ho * wo)
    depth = -(-kh // sh) * -(-kw // sw) * ci if transposed else taps * ci
    narrow = min(co, depth) <= NARROW
    epilogue = "statistics" if statistics else "derivative" if derivative_of else "none"
    tile = choose("narrow" if narrow else "convolve", architecture(x.device), rows=rows * groups * phases, columns=co,
                  depth=depth, size=x.element_size(), epilogue=epilogue)
    bk, bn = tile.depth, tile.columns
    if narrow:
        bk, bn = min(bk, triton.next_power_of_2(depth)), min(bn, triton.next_power_of_2(co))
    bm, packed = tile.rows, ci < bk and taps > 1
    if not narrow:
        bm, bk = covering(rows, bm), fitting(depth if packed else ci, bk)
    tiles = triton.cdiv(rows, bm)
    kinds = 3 if statistics else 2 if derivative_of is not None and derivative_of.kind == "normalised" else 0
    partials = y.new_empty((kinds, groups * tiles * phases, co), dtype=torch.float32) if kinds else None
    vectors, first, last = operand.spread(groups)
    e_vectors, e_first, e_last = derivative_of.spread(groups) if derivative_of else ([None] * 4, 0, 0)
    acts = derivative_of or operand
    largest = max(x.numel(), y.numel(), weight.numel())
    launch(
        convolve_kernel, (groups * tiles, triton.cdiv(co, bn), phases), tile,
        x=x, partner=operand.partner, v0=vectors[0], v1=vectors[1], v2=vectors[2], v3=vectors[3], weight=weight,
        bias=bias, y=y, other=derivative_of.tensor if derivative_of else None, e0=e_vectors[0], e1=e_vectors[1],
        e2=e_vectors[2], e3=e_vectors[3], partials=partials, first_stride=first, last_stride=last,
        first_stride_e=e_first, last_stride_e=e_last, images=n // groups, tiles=tiles, H=h, W=w, HO=ho, WO=wo, ci=ci,
        slope=acts.negative_slope, inverse_count=operand.inverse_count, CI=ci, CO=co, CHANNELS=channels, KH=kh, KW=kw,
        SH=sh, SW=sw, PH=ph, PW=pw, W_TAP=strides[0], W_IN=strides[1], W_OUT=strides[2], TRANSPOSED=transposed,
        KIND=operand.kind, ACTIVATION=acts.activation,
        EPILOGUE=epilogue, NORM=kinds == 2, PACKED=packed, NARROW=narrow, PRECISION=precision, LARGE=largest >= 2**31,
        BM=bm, BN=bn, BK=bk)
    return y, None if partials is None else partials.view(kinds, groups, -1, channels)
