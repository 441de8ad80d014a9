"""What tiles leave behind, put together in a fixed order: statistics by Chan's rule, and sums.

    n = sum n_t,   mean = sum n_t * mean_t / n,   M2 = sum M2_t + n_t * (mean_t - mean)^2

(Chan, Golub, LeVeque 1979, for any number of parts at once.) Means are averaged as distances from the first one, which
keeps the digits where the mean is large beside the deviation. More than `LEVEL` parts are put together in two levels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.ops.triton.launch import launch
from fastgan.ops.triton.tiles import Tile

LEVEL = 512
_FEW = Tile(rows=64, columns=16, depth=1, warps=4, stages=1, registers=255)  # parts x channels at a time
_WIDE = Tile(rows=8, columns=256, depth=1, warps=4, stages=1)  # for sums of a few long rows


@triton.jit
def merge(at, size, begin, end, within, C: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr):
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
def add(at, begin, end, within, C: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr):
    """Sum [BC] of parts begin .. end of what stands at [BC]."""
    total = tl.zeros((BC,), tl.float32)
    for t in range(begin, end, BT):
        part = t + tl.arange(0, BT)
        inside = (part < end)[:, None] & within[None, :]
        total += tl.sum(tl.load(at[None, :] + part[:, None] * C, mask=inside, other=0.0), 0)
    return total


@triton.jit(do_not_specialize=["parts", "each"])
def merge_kernel(partials, out,  # [3, G * T, C], [3, G * CHUNKS, C]
                 parts, each,  # T, and how many of them are in a chunk
                 C: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr):
    column = tl.program_id(0) * BC + tl.arange(0, BC)  # [BC]
    within = column < C
    chunk, chunks = tl.program_id(1), tl.num_programs(1)
    group, groups = tl.program_id(2), tl.num_programs(2)
    count, mean, m2 = merge(partials + group * parts * C + column, groups * parts * C, chunk * each,
                            tl.minimum((chunk + 1) * each, parts), within, C, BT, BC)
    to, size = out + (group * chunks + chunk) * C + column, groups * chunks * C
    tl.store(to, count, mask=within)
    tl.store(to + size, mean, mask=within)
    tl.store(to + 2 * size, m2, mask=within)


@triton.jit(do_not_specialize=["groups", "parts"])
def statistics_kernel(partials,  # [3, G * T, C]
                      statistics,  # [2, G, C]: mean, and biased var or rstd
                      running_mean, running_var, tracked,  # (C,), (C,), an integer: updated in place
                      groups, parts, eps, momentum,
                      RSTD: tl.constexpr, CUMULATIVE: tl.constexpr,
                      C: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr):
    column = tl.program_id(0) * BC + tl.arange(0, BC)  # [BC]
    within = column < C
    if running_mean is not None:
        kept_mean = tl.load(running_mean + column, mask=within, other=0.0).to(tl.float32)
        kept_var = tl.load(running_var + column, mask=within, other=0.0).to(tl.float32)
    if CUMULATIVE:
        batches = (tl.load(tracked) + groups).to(tl.float32)
    elif tracked is not None:
        if tl.program_id(0) == 0:
            tl.store(tracked, tl.load(tracked) + groups)
    for group in range(0, groups):
        count, mean, m2 = merge(partials + group * parts * C + column, groups * parts * C, 0, parts, within, C, BT, BC)
        var = m2 / tl.maximum(count, 1.0)
        to = statistics + group * C + column
        tl.store(to, mean, mask=within)
        if RSTD:
            tl.store(to + groups * C, 1.0 / tl.sqrt(var + eps), mask=within)
        else:
            tl.store(to + groups * C, var, mask=within)
        if running_mean is not None:
            factor = momentum
            if CUMULATIVE:
                factor = 1.0 / (batches - (groups - 1 - group))
            kept_mean = (1.0 - factor) * kept_mean + factor * mean
            kept_var = (1.0 - factor) * kept_var + factor * (m2 / tl.maximum(count - 1.0, 1.0))
    if running_mean is not None:
        tl.store(running_mean + column, kept_mean.to(running_mean.dtype.element_ty), mask=within)
        tl.store(running_var + column, kept_var.to(running_var.dtype.element_ty), mask=within)


@triton.jit(do_not_specialize=["parts", "each"])
def sum_kernel(partials, out,  # [G, T, C], [G, CHUNKS, C]
               parts, each, C: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr):
    column = tl.program_id(0).to(tl.int64) * BC + tl.arange(0, BC)  # [BC]
    within = column < C
    chunk, chunks, group = tl.program_id(1), tl.num_programs(1), tl.program_id(2)
    total = add(partials + group.to(tl.int64) * parts * C + column, chunk * each,
                tl.minimum((chunk + 1) * each, parts), within, C, BT, BC)
    tl.store(out + (group * chunks + chunk) * C + column, total.to(out.dtype.element_ty), mask=within)


@triton.jit(do_not_specialize=["parts"])
def norm_gradient_kernel(partials,  # [2, G, T, C]: sums of gz and of gz * (x - mean) * rstd
                         rstd, gamma,  # (C,) or (G, C)
                         out,  # [4, G, C]: gradients of mean, rstd, gamma, beta
                         rstd_stride, gamma_stride, parts, C: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr):
    column = tl.program_id(0) * BC + tl.arange(0, BC)  # [BC]
    within = column < C
    group, groups = tl.program_id(1), tl.num_programs(1)
    at = partials + group * parts * C + column
    sum_z = add(at, 0, parts, within, C, BT, BC)
    sum_zx = add(at + groups * parts * C, 0, parts, within, C, BT, BC)
    scale = tl.load(rstd + group * rstd_stride + column, mask=within, other=1.0)
    steep = tl.load(gamma + group * gamma_stride + column, mask=within, other=0.0)
    to, size = out + group * C + column, groups * C
    tl.store(to, -steep * scale * sum_z, mask=within)
    tl.store(to + size, steep * sum_zx / scale, mask=within)
    tl.store(to + 2 * size, sum_zx, mask=within)
    tl.store(to + 3 * size, sum_z, mask=within)


def finish_statistics(partials: Tensor, eps: float | None, running_mean: Tensor | None = None,
                      running_var: Tensor | None = None, tracked: Tensor | None = None,
                      momentum: float | None = None) -> Tensor:
    """[2, G, C]: mean, and biased var (eps None) or rstd, from partials [3, G, T, C]; running ones updated in place.

    `momentum` None: their plain average over the batches that `tracked` counts.
    """
    _, groups, parts, channels = partials.shape
    if parts > LEVEL:
        chunks = triton.cdiv(parts, LEVEL)
        merged = partials.new_empty((3, groups, chunks, channels))
        launch(merge_kernel, (triton.cdiv(channels, _FEW.columns), chunks, groups), _FEW, partials=partials, out=merged,
               parts=parts, each=LEVEL, C=channels, BT=_FEW.rows, BC=_FEW.columns)
        partials, parts = merged, chunks
    statistics = partials.new_empty((2, groups, channels))
    cumulative = momentum is None and running_mean is not None
    launch(statistics_kernel, (triton.cdiv(channels, _FEW.columns),), _FEW, partials=partials, statistics=statistics,
           running_mean=running_mean, running_var=running_var, tracked=tracked, groups=groups, parts=parts,
           eps=0.0 if eps is None else eps, momentum=0.0 if momentum is None else momentum, RSTD=eps is not None,
           CUMULATIVE=cumulative, C=channels, BT=_FEW.rows, BC=_FEW.columns)
    if cumulative and tracked is not None:
        tracked.add_(groups)  # after every program has read it; a kernel that does not start has counted nothing
    return statistics


def add_up(partials: Tensor, dtype: torch.dtype, each: int | None = None) -> Tensor:
    """[G, CHUNKS, C] in `dtype`: sums of `each` (or all) of the T parts of partials [G, T, C], in order."""
    groups, parts, channels = partials.shape
    each = each or parts
    chunks = triton.cdiv(parts, each)
    out = torch.empty((groups, chunks, channels), dtype=dtype, device=partials.device)
    tile = _WIDE if channels >= 4096 else _FEW
    launch(sum_kernel, (triton.cdiv(channels, tile.columns), chunks, groups), tile, partials=partials, out=out,
           parts=parts, each=each, C=channels, BT=tile.rows, BC=tile.columns)
    return out


def norm_gradient(partials: Tensor, rstd: Tensor, gamma: Tensor) -> Tensor:
    """[4, G, C], gradients of mean, rstd, gamma and beta, from partials [2, G, T, C] of `convolve` or `apply`."""
    _, groups, parts, channels = partials.shape
    if parts > LEVEL:
        partials = add_up(partials.view(2 * groups, parts, channels), torch.float32, LEVEL)
        parts = partials.shape[1]
    out = partials.new_empty((4, groups, channels))
    strides = [channels if part.dim() == 2 and len(part) == groups > 1 else 0 for part in (rstd, gamma)]
    launch(norm_gradient_kernel, (triton.cdiv(channels, _FEW.columns), groups), _FEW, partials=partials, rstd=rstd,
           gamma=gamma, out=out, rstd_stride=strides[0], gamma_stride=strides[1], parts=parts, C=channels,
           BT=_FEW.rows, BC=_FEW.columns)
    return out
