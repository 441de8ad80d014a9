"""An operand written out, and its derivative: what a stage does on the way in, for tensors that no stage follows.

    apply        out = the operand's elements (`operand.load`), [R, C] with rows (n, h, w)
    derivative   gx = gout * act'(z) * gamma * rstd, and each tile's sums for gamma and beta
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.ops.triton.launch import architecture, launch
from fastgan.ops.triton.operand import Operand, derivative, load
from fastgan.ops.triton.tiles import Tile, choose


@triton.jit
def place(rows, tiles, C: tl.constexpr, LARGE: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr):
    """Of this program: its group; its channels [BC], and which exist; its elements [BM, BC], and which exist."""
    group, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    row = tile * BM + tl.arange(0, BM)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    known = channel < C
    inside = (row < rows)[:, None] & known[None, :]
    row += group * rows
    if LARGE:
        row = row.to(tl.int64)
    at = row[:, None] * C + channel[None, :]
    return group, channel, known, at, inside


@triton.jit(do_not_specialize=["rows", "tiles"])
def apply_kernel(x, partner, v0, v1, v2, v3, out,  # [R, C] twice, (C,) or (G, C), [R, C]
                 first_stride, last_stride, rows, tiles,  # rows and tiles of one group
                 slope, inverse_count, C: tl.constexpr, KIND: tl.constexpr, ACTIVATION: tl.constexpr,
                 LARGE: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr):
    group, channel, known, at, inside = place(rows, tiles, C, LARGE, BM, BC)
    value = load(x, partner, v0, v1, v2, v3, at, inside, group * first_stride + channel, group * last_stride + channel,
                 known, slope, inverse_count, KIND, ACTIVATION)
    tl.store(out + at, value, mask=inside)


@triton.jit(do_not_specialize=["rows", "tiles"])
def derivative_kernel(gout, x, mean, rstd, gamma, beta, gx,  # [R, C] twice, (C,) or (G, C), [R, C]
                      partials,  # [2, G * TILES, C]
                      first_stride, last_stride, rows, tiles, slope, C: tl.constexpr, NORM: tl.constexpr,
                      ACTIVATION: tl.constexpr, LARGE: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr):
    group, channel, known, at, inside = place(rows, tiles, C, LARGE, BM, BC)
    g = tl.load(gout + at, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    g, sum_z, sum_zx = derivative(g, value, inside, mean, rstd, gamma, beta, group * first_stride + channel,
                                  group * last_stride + channel, known, slope, NORM, ACTIVATION)
    tl.store(gx + at, g.to(gx.dtype.element_ty), mask=inside)
    if NORM:
        part = tl.program_id(0) * C + channel
        tl.store(partials + part, sum_z, mask=known)
        tl.store(partials + tl.num_programs(0) * C + part, sum_zx, mask=known)


def _tile(x: Tensor, rows: int) -> tuple[Tile, int, int]:
    """The tile for `rows` x C, and its sides: as wide as the channels, and the higher the fewer they are."""
    tile = choose("apply", architecture(x.device), rows=rows, columns=x.shape[3], depth=1, size=x.element_size())
    width = min(tile.columns, triton.next_power_of_2(x.shape[3]))
    return tile, tile.rows * tile.columns // width, width


def apply(operand: Operand) -> Tensor:
    """The operand's elements, [N, H, W, C] in its tensor's dtype."""
    x = operand.tensor
    groups, channels = operand.groups(), x.shape[3]
    rows = x.numel() // channels // groups
    tile, height, width = _tile(x, rows)
    tiles, out = triton.cdiv(rows, height), torch.empty_like(x)
    vectors, first, last = operand.spread(groups)
    launch(apply_kernel, (groups * tiles, triton.cdiv(channels, width)), tile, x=x, partner=operand.partner,
           v0=vectors[0], v1=vectors[1], v2=vectors[2], v3=vectors[3], out=out, first_stride=first, last_stride=last,
           rows=rows, tiles=tiles, slope=operand.negative_slope, inverse_count=operand.inverse_count, C=channels,
           KIND=operand.kind, ACTIVATION=operand.activation, LARGE=x.numel() >= 2**31, BM=height, BC=width)
    return out


def differentiate(gout: Tensor, operand: Operand) -> tuple[Tensor, Tensor | None]:
    """gx [N, H, W, C], and partials [2, G, tiles, C] of a normalised operand, from the gradient of `apply(operand)`."""
    x = operand.tensor
    groups, channels = operand.groups(), x.shape[3]
    rows, norm = x.numel() // channels // groups, operand.kind == "normalised"
    tile, height, width = _tile(x, rows)
    tiles, gx = triton.cdiv(rows, height), torch.empty_like(x)
    partials = torch.empty((2, groups, tiles, channels), dtype=torch.float32, device=x.device) if norm else None
    vectors, first, last = operand.spread(groups)
    launch(derivative_kernel, (groups * tiles, triton.cdiv(channels, width)), tile, gout=gout, x=x, mean=vectors[0],
           rstd=vectors[1], gamma=vectors[2], beta=vectors[3], gx=gx, partials=partials, first_stride=first,
           last_stride=last, rows=rows, tiles=tiles, slope=operand.negative_slope, C=channels, NORM=norm,
           ACTIVATION=operand.activation, LARGE=x.numel() >= 2**31, BM=height, BC=width)
    return gx, partials
