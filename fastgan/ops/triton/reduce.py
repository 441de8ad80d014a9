"""Partial results of programs, merged in a fixed order: statistics by Chan's rule, and sums.

    n = sum n_t,   mean = sum n_t * mean_t / n,   M2 = sum M2_t + n_t * (mean_t - mean)^2

(Chan, Golub, LeVeque 1979, for any number of parts at once.) Means are averaged as differences from the first mean,
which keeps their accuracy if the mean is large compared with the deviation.

The launch that computes partial results also merges them, in two levels: of every `FAN` programs, the last to finish
merges their results; of all such blocks, the last to finish merges the blocks. Which program finishes last varies
between runs; what it merges, and in which order, does not, so results repeat bit for bit. No program waits for another.
Arrivals are counted by tickets: integers that are zero before and after a launch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.ops.triton.launch import begin, launch, tickets
from fastgan.ops.triton.tiles import Tile

FAN = 32  # programs whose results are merged into a block
_FEW = Tile(rows=64, columns=16, depth=1, warps=4, stages=1)  # rows x columns at a time
_WIDE = Tile(rows=8, columns=256, depth=1, warps=4, stages=1)  # for sums of a few long rows


class Reduction(NamedTuple):
    """Memory for the results of G groups of T programs: K vectors of C columns each.

    partials [K, G * T, C], blocks [K, G * B, C] of B blocks of `fan` programs, and result [2, G, C] are float32. There
    are B + 1 int32 tickets for each group and column block, then one for each column block. fan is a compile-time
    constant.
    """

    partials: Tensor
    blocks: Tensor
    result: Tensor
    tickets: Tensor
    fan: tl.constexpr


def reduction(like: Tensor, vectors: int, groups: int, rows: int, columns: int, column_blocks: int) -> Reduction:
    """A `Reduction` for `rows` programs in each group and column block, on the device of `like`."""
    blocks = triton.cdiv(rows, FAN)
    partials, merged, result = (like.new_empty((lead, groups * length, columns), dtype=torch.float32)
                                for lead, length in ((vectors, rows), (vectors, blocks), (2, 1)))
    return Reduction(partials, merged, result, tickets(like.device, column_blocks * (groups * (blocks + 1) + 1)),
                     tl.constexpr(FAN))


@triton.jit
def last_arrival(ticket, arrivals):
    """Whether this program is the last of `arrivals` to call this; if so, the stores of the others are visible."""
    tl.debug_barrier()  # the release below covers the stores of all threads
    last = tl.atomic_add(ticket, 1, sem="acq_rel", scope="gpu") == arrivals - 1
    if last:
        tl.atomic_xchg(ticket, 0, sem="relaxed", scope="gpu")
    tl.debug_barrier()
    return last


@triton.jit
def moments(value, valid):
    """Count (a scalar), mean and centered M2 [K] of the valid elements of value [M, K] (float32; valid [M, 1]).

    A product is masked before it is summed over lanes, here and in all kernels: contracted with the first addition of
    the sum, it would be exact in one lane and rounded in the other, so the lanes would have different sums.
    """
    value = tl.where(valid, value, 0.0)
    count = tl.sum(valid.to(tl.float32))
    mean = tl.sum(value, 0) / tl.maximum(count, 1.0)
    distance = value - mean[None, :]
    return count, mean, tl.sum(tl.where(valid, distance * distance, 0.0), 0)


@triton.jit
def merge(at, size, begin, end, within, C, BT: tl.constexpr):
    """Count, mean and M2 [BC] of rows begin .. end of the counts at `at` [BC], means at + size, and M2 at + 2 size."""
    origin = tl.load(at + begin * C + size, mask=within, other=0.0)
    total = tl.zeros(within.shape, tl.float32)
    drift = tl.zeros(within.shape, tl.float32)
    for start in range(begin, end, BT):
        row = start + tl.arange(0, BT)
        known = (row < end)[:, None] & within[None, :]
        count = tl.load(at[None, :] + row[:, None] * C, mask=known, other=0.0)  # [BT, BC]
        mean = tl.load(at[None, :] + row[:, None] * C + size, mask=known, other=0.0)
        total += tl.sum(count, 0)
        drift += tl.sum(tl.where(known, count * (mean - origin[None, :]), 0.0), 0)
    drift = drift / tl.maximum(total, 1.0)
    squares = tl.zeros(within.shape, tl.float32)
    for start in range(begin, end, BT):
        row = start + tl.arange(0, BT)
        known = (row < end)[:, None] & within[None, :]
        count = tl.load(at[None, :] + row[:, None] * C, mask=known, other=0.0)
        mean = tl.load(at[None, :] + row[:, None] * C + size, mask=known, other=0.0)
        m2 = tl.load(at[None, :] + row[:, None] * C + 2 * size, mask=known, other=0.0)
        distance = mean - origin[None, :] - drift[None, :]
        squares += tl.sum(tl.where(known, m2 + count * distance * distance, 0.0), 0)
    return total, origin + drift, squares


@triton.jit
def add(at, begin, end, within, C, BT: tl.constexpr):
    """Sum [BC] of rows begin .. end of the values at `at` [BC]."""
    total = tl.zeros(within.shape, tl.float32)
    for start in range(begin, end, BT):
        row = start + tl.arange(0, BT)
        known = (row < end)[:, None] & within[None, :]
        total += tl.sum(tl.load(at[None, :] + row[:, None] * C, mask=known, other=0.0), 0)
    return total


@triton.jit
def finish_statistics(count, mean, m2,  # of this program: a scalar, [BC], [BC]
                      reduction, group, groups, row, rows,  # row, of the T rows of a group
                      column, C):  # [BC]; column blocks are the second axis of the grid
    """Merge statistics of all T rows of each group into mean and biased variance [2, G, C]."""
    FAN: tl.constexpr = reduction.fan
    within = column < C
    block, blocks = row // FAN, (rows + FAN - 1) // FAN
    ticket = reduction.tickets + (group * tl.num_programs(1) + tl.program_id(1)) * (blocks + 1)
    size, block_size = groups * rows * C, groups * blocks * C
    first = reduction.partials + group * rows * C + column
    tl.store(first + row * C, tl.zeros(column.shape, tl.float32) + count, mask=within)
    tl.store(first + row * C + size, mean, mask=within)
    tl.store(first + row * C + 2 * size, m2, mask=within)
    end = tl.minimum((block + 1) * FAN, rows)
    if last_arrival(ticket + block, end - block * FAN):
        block_count, block_mean, block_m2 = merge(first, size, block * FAN, end, within, C, FAN)
        to = reduction.blocks + group * blocks * C + column
        tl.store(to + block * C, block_count, mask=within)
        tl.store(to + block * C + block_size, block_mean, mask=within)
        tl.store(to + block * C + 2 * block_size, block_m2, mask=within)
        if last_arrival(ticket + blocks, blocks):
            total, total_mean, total_m2 = merge(to, block_size, 0, blocks, within, C, FAN)
            out = reduction.result + group * C + column
            tl.store(out, total_mean, mask=within)
            tl.store(out + groups * C, total_m2 / tl.maximum(total, 1.0), mask=within)


@triton.jit
def finish_sums(one, two,  # of this program, [BC] each
                reduction, of_all, group, groups, row, rows, column, C):
    """Add up both vectors over all T rows of each group, [2, G, C], and if there are several groups, over all of them
    in `of_all` [2, C]. Other arguments as in `finish_statistics`."""
    FAN: tl.constexpr = reduction.fan
    within = column < C
    block, blocks = row // FAN, (rows + FAN - 1) // FAN
    ticket = reduction.tickets + (group * tl.num_programs(1) + tl.program_id(1)) * (blocks + 1)
    size, block_size = groups * rows * C, groups * blocks * C
    first = reduction.partials + group * rows * C + column
    tl.store(first + row * C, one, mask=within)
    tl.store(first + row * C + size, two, mask=within)
    end = tl.minimum((block + 1) * FAN, rows)
    if last_arrival(ticket + block, end - block * FAN):
        to = reduction.blocks + group * blocks * C + column
        tl.store(to + block * C, add(first, block * FAN, end, within, C, FAN), mask=within)
        tl.store(to + block * C + block_size, add(first + size, block * FAN, end, within, C, FAN), mask=within)
        if last_arrival(ticket + blocks, blocks):
            out = reduction.result + group * C + column
            tl.store(out, add(to, 0, blocks, within, C, FAN), mask=within)
            tl.store(out + groups * C, add(to + block_size, 0, blocks, within, C, FAN), mask=within)
            if groups > 1:
                after = reduction.tickets + groups * tl.num_programs(1) * (blocks + 1) + tl.program_id(1)
                if last_arrival(after, groups):
                    first = reduction.result + column
                    tl.store(of_all + column, add(first, 0, groups, within, C, FAN), mask=within)
                    tl.store(of_all + C + column, add(first + groups * C, 0, groups, within, C, FAN), mask=within)


@triton.jit(do_not_specialize=["rows"])
def sum_kernel(partials, out,  # [T, C], [C]
               rows, C, BT: tl.constexpr, BC: tl.constexpr, PDL: tl.constexpr):
    """out = sum over T of partials, in order. Grid (column blocks,)."""
    begin(PDL)
    column = tl.program_id(0) * BC + tl.arange(0, BC)  # [BC]
    within = column < C
    total = add(partials + column, 0, rows, within, C, BT)
    tl.store(out + column, total.to(out.dtype.element_ty), mask=within)


def add_up(partials: Tensor, dtype: torch.dtype) -> Tensor:
    """[C] in `dtype`: the sum of the T rows of partials [T, C], in order."""
    rows, columns = partials.shape
    out = torch.empty((columns,), dtype=dtype, device=partials.device)
    tile = _WIDE if columns >= 4096 else _FEW
    launch(sum_kernel, (triton.cdiv(columns, tile.columns),), tile, partials=partials, out=out, rows=rows, C=columns,
           BT=tile.rows, BC=tile.columns)
    return out
