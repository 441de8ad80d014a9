"""Partial results of programs, put together in a fixed order: statistics by Chan's rule, and sums.

    n = sum n_t,   mean = sum n_t * mean_t / n,   M2 = sum M2_t + n_t * (mean_t - mean)^2

(Chan, Golub, LeVeque 1979, for any number of parts at once.) Means are averaged as distances from the first one, which
keeps the digits where the mean is large beside the deviation.

The launch that makes partial results also puts them together, in two levels: of every `FAN` programs, the last to
arrive merges what all of them have stored; of all such blocks, the last to arrive merges the blocks. Which program is
the last changes from run to run; what it adds up, and in which order, does not, so results repeat bit for bit. No
program waits for another. Arrivals are counted by tickets, which are zero before a launch and after it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.ops.triton.launch import launch
from fastgan.ops.triton.tiles import Tile

FAN = 32  # programs whose results are merged at a time
_FEW = Tile(rows=64, columns=16, depth=1, warps=4, stages=1)  # parts x columns at a time
_WIDE = Tile(rows=8, columns=256, depth=1, warps=4, stages=1)  # for sums of a few long rows


def blocks_of(parts: int) -> int:
    """The number of blocks of `FAN` parts."""
    return triton.cdiv(parts, FAN)


@triton.jit
def last_arrival(ticket, arrivals):
    """Whether this program is the last of `arrivals` to come here; then it sees what the others have stored."""
    tl.debug_barrier()  # the release below covers the stores of all threads
    last = tl.atomic_add(ticket, 1, sem="acq_rel", scope="gpu") == arrivals - 1
    if last:
        tl.atomic_xchg(ticket, 0, sem="relaxed", scope="gpu")
    tl.debug_barrier()
    return last


@triton.jit
def moments(value, valid):
    """Count (a scalar), mean and centred M2 [K] of the valid elements of value [M, K] (float32; valid [M, 1]).

    A product is selected before it is summed, here and in all kernels: contracted with the first addition of a sum
    over lanes, it would be exact in one lane and rounded in the other, and the lanes would end with different sums.
    """
    value = tl.where(valid, value, 0.0)
    count = tl.sum(valid.to(tl.float32))
    mean = tl.sum(value, 0) / tl.maximum(count, 1.0)
    distance = value - mean[None, :]
    return count, mean, tl.sum(tl.where(valid, distance * distance, 0.0), 0)


@triton.jit
def merge(at, size, begin, end, within, C, BT: tl.constexpr, BC: tl.constexpr):
    """Count, mean and M2, [BC] each, of parts begin .. end; counts are at [BC], means and M2 `size` and 2 size on."""
    origin = tl.load(at + begin * C + size, mask=within, other=0.0)
    count = tl.zeros((BC,), tl.float32)
    drift = tl.zeros((BC,), tl.float32)
    for t in range(begin, end, BT):
        part = t + tl.arange(0, BT)
        inside = (part < end)[:, None] & within[None, :]
        n = tl.load(at[None, :] + part[:, None] * C, mask=inside, other=0.0)  # [BT, BC]
        mean = tl.load(at[None, :] + part[:, None] * C + size, mask=inside, other=0.0)
        count += tl.sum(n, 0)
        drift += tl.sum(tl.where(inside, n * (mean - origin[None, :]), 0.0), 0)
    drift = drift / tl.maximum(count, 1.0)
    m2 = tl.zeros((BC,), tl.float32)
    for t in range(begin, end, BT):
        part = t + tl.arange(0, BT)
        inside = (part < end)[:, None] & within[None, :]
        n = tl.load(at[None, :] + part[:, None] * C, mask=inside, other=0.0)
        mean = tl.load(at[None, :] + part[:, None] * C + size, mask=inside, other=0.0)
        distance = mean - origin[None, :] - drift[None, :]
        spread = tl.load(at[None, :] + part[:, None] * C + 2 * size, mask=inside, other=0.0)
        m2 += tl.sum(tl.where(inside, spread + n * distance * distance, 0.0), 0)
    return count, origin + drift, m2


@triton.jit
def add(at, begin, end, within, C, BT: tl.constexpr, BC: tl.constexpr):
    """Sum [BC] of parts begin .. end of what is at [BC]."""
    total = tl.zeros((BC,), tl.float32)
    for t in range(begin, end, BT):
        part = t + tl.arange(0, BT)
        inside = (part < end)[:, None] & within[None, :]
        total += tl.sum(tl.load(at[None, :] + part[:, None] * C, mask=inside, other=0.0), 0)
    return total


@triton.jit
def finish_statistics(count, mean, m2,  # of this program: a scalar, [BC], [BC]
                      partials, blocks, statistics,  # [3, G * T, C], [3, G * B, C]; [2, G, C]: mean and biased variance
                      tickets,  # [G * column blocks * (B + 1)]
                      group, groups, part, parts,  # T, in blocks of FAN: B of them
                      column, within,  # [BC]
                      C, BC: tl.constexpr, FAN: tl.constexpr):
    """Statistics of all T parts of each group. Column blocks are the second axis of the grid."""
    fan, fans = part // FAN, (parts + FAN - 1) // FAN
    ticket = tickets + (group * tl.num_programs(1) + tl.program_id(1)) * (fans + 1)
    size = groups * parts * C
    to = partials + (group * parts + part) * C + column
    tl.store(to, tl.zeros((BC,), tl.float32) + count, mask=within)
    tl.store(to + size, mean, mask=within)
    tl.store(to + 2 * size, m2, mask=within)
    end = tl.minimum((fan + 1) * FAN, parts)
    if last_arrival(ticket + fan, end - fan * FAN):
        n, centre, spread = merge(partials + group * parts * C + column, size, fan * FAN, end, within, C, FAN, BC)
        block_size = groups * fans * C
        block = blocks + group * fans * C + column
        tl.store(block + fan * C, n, mask=within)
        tl.store(block + fan * C + block_size, centre, mask=within)
        tl.store(block + fan * C + 2 * block_size, spread, mask=within)
        if last_arrival(ticket + fans, fans):
            total, whole, squares = merge(block, block_size, 0, fans, within, C, FAN, BC)
            out = statistics + group * C + column
            tl.store(out, whole, mask=within)
            tl.store(out + groups * C, squares / tl.maximum(total, 1.0), mask=within)


@triton.jit
def finish_sums(first, second,  # of this program, [BC] each
                partials, blocks, sums,  # [2, G * T, C], [2, G * B, C], [2, G, C]
                tickets, group, groups, part, parts, column, within,
                C, BC: tl.constexpr, FAN: tl.constexpr):
    """Sums of both over all T parts of each group; arguments as in `finish_statistics`."""
    fan, fans = part // FAN, (parts + FAN - 1) // FAN
    ticket = tickets + (group * tl.num_programs(1) + tl.program_id(1)) * (fans + 1)
    size = groups * parts * C
    to = partials + (group * parts + part) * C + column
    tl.store(to, first, mask=within)
    tl.store(to + size, second, mask=within)
    end = tl.minimum((fan + 1) * FAN, parts)
    if last_arrival(ticket + fan, end - fan * FAN):
        at = partials + group * parts * C + column
        block_size = groups * fans * C
        block = blocks + group * fans * C + column
        tl.store(block + fan * C, add(at, fan * FAN, end, within, C, FAN, BC), mask=within)
        tl.store(block + fan * C + block_size, add(at + size, fan * FAN, end, within, C, FAN, BC), mask=within)
        if last_arrival(ticket + fans, fans):
            out = sums + group * C + column
            tl.store(out, add(block, 0, fans, within, C, FAN, BC), mask=within)
            tl.store(out + groups * C, add(block + block_size, 0, fans, within, C, FAN, BC), mask=within)


@triton.jit(do_not_specialize=["parts"])
def sum_kernel(partials, out,  # [T, C], [C]
               parts, C, BT: tl.constexpr, BC: tl.constexpr):
    """out = sum over T of partials, in order. Grid (column blocks,)."""
    column = tl.program_id(0) * BC + tl.arange(0, BC)  # [BC]
    within = column < C
    total = add(partials + column, 0, parts, within, C, BT, BC)
    tl.store(out + column, total.to(out.dtype.element_ty), mask=within)


def add_up(partials: Tensor, dtype: torch.dtype) -> Tensor:
    """[C] in `dtype`: the sum of the T parts of partials [T, C], in order."""
    parts, columns = partials.shape
    out = torch.empty((columns,), dtype=dtype, device=partials.device)
    tile = _WIDE if columns >= 4096 else _FEW
    launch(sum_kernel, (triton.cdiv(columns, tile.columns),), tile, partials=partials, out=out, parts=parts, C=columns,
           BT=tile.rows, BC=tile.columns)
    return out
