"""Batch normalization and activation, and their derivatives: all passes that are not convolutions.

    bn_statistics       mean and variance of y, if the convolution has not computed them
    bn_act_forward      a = act(z),   z = gamma * xhat + beta,   xhat = (y - mean) * rstd
    bn_backward_sums    sum gz and sum gz * xhat,   gz = ga * act'(z)
    bn_backward_apply   g = gamma * rstd * (gz - (sum gz + xhat * sum gz * xhat) / M)
    act_backward        g = ga * act'(z), from a, or from the mask z > 0

Images are [R, C] with rows (n, h, w), in G equal groups with separate statistics. Arithmetic is in float32, and results
are rounded once. Each is one launch, which also merges its partial results (`reduce.py`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.ops.specs import Activation, NormSpec, RunningStats
from fastgan.ops.triton.elementwise import activate, activate_backward, derivative_of, load_bits, multiply_derived
from fastgan.ops.triton.launch import architecture, begin, launch
from fastgan.ops.triton.reduce import finish_statistics, finish_sums, moments, reduction
from fastgan.ops.triton.tiles import Tile, choose, programs


@triton.jit
def place(group, tile, rows, C, LARGE: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr):
    """Offsets [BM, BC] of a tile of a group in [R, C], and the mask of those within the group."""
    row = tile * BM + tl.arange(0, BM)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = (row < rows)[:, None] & (channel < C)[None, :]
    row += group * rows
    if LARGE:
        row = row.to(tl.int64)
    return row[:, None] * C + channel[None, :], inside


@triton.jit
def load_pair(at, group, groups, channel, known, C):
    """Both vectors [BC] of a group in [2, G, C], in float32."""
    first = tl.load(at + group * C + channel, mask=known, other=0.0)
    return first, tl.load(at + (groups + group) * C + channel, mask=known, other=0.0)


@triton.jit
def load_affine(gamma, beta, channel, known):
    """gamma and beta [BC] in float32; 1 and 0 if they are None."""
    scale = tl.full(channel.shape, 1.0, tl.float32)
    shift = tl.full(channel.shape, 0.0, tl.float32)
    if gamma is not None:
        scale = tl.load(gamma + channel, mask=known, other=1.0).to(tl.float32)
    if beta is not None:
        shift = tl.load(beta + channel, mask=known, other=0.0).to(tl.float32)
    return scale, shift


@triton.jit
def update(running_mean, running_var, tracked,  # [C], [C], an integer or None
           statistics, groups, momentum, unbiased, channel, known, C, CUMULATIVE: tl.constexpr):
    """Update the running statistics of a block of channels, group by group in order. unbiased: M / (M - 1).

    CUMULATIVE: average over all batches. Every program reads their number, so it is incremented after the launch.
    """
    mean = tl.load(running_mean + channel, mask=known, other=0.0).to(tl.float32)
    var = tl.load(running_var + channel, mask=known, other=0.0).to(tl.float32)
    for group in range(0, groups):
        factor = momentum
        if CUMULATIVE:
            factor = 1.0 / (tl.load(tracked) + group + 1).to(tl.float32)
        at = statistics + group * C + channel
        mean = (1.0 - factor) * mean + factor * tl.load(at, mask=known, other=0.0)
        var = (1.0 - factor) * var + factor * unbiased * tl.load(at + groups * C, mask=known, other=0.0)
    tl.store(running_mean + channel, mean.to(running_mean.dtype.element_ty), mask=known)
    tl.store(running_var + channel, var.to(running_var.dtype.element_ty), mask=known)


@triton.jit(do_not_specialize=["rows", "tiles", "groups"])
def bn_statistics_kernel(y, statistics,  # [R, C], a `reduce.Reduction`
                         rows, tiles, groups, C, LARGE: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
                         PDL: tl.constexpr):
    """Grid (groups * tiles, column blocks)."""
    begin(PDL)
    group, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    channel = tl.program_id(1) * BC + tl.arange(0, BC)  # [BC]
    at, inside = place(group, tile, rows, C, LARGE, BM, BC)
    value = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
    count, mean, m2 = moments(value, (tile * BM + tl.arange(0, BM) < rows)[:, None])
    finish_statistics(count, mean, m2, statistics, group, groups, tile, tiles, channel, C)


@triton.jit(do_not_specialize=["rows", "tiles", "groups"])
def bn_act_forward_kernel(
    y, statistics,  # [R, C], [2, G, C]: mean and biased variance of the batch; None to use the running statistics
    gamma, beta,  # [C] or None
    running_mean, running_var, tracked,  # [C], [C], an integer; or None
    stats, a,  # [2, G, C]: mean and rstd, [R, C]
    rows, tiles, groups,  # rows and tiles of one group
    eps, momentum, unbiased, slope, C, CUMULATIVE: tl.constexpr, ACTIVATION: tl.constexpr,
    LARGE: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, PDL: tl.constexpr,
):
    """Grid (groups * tiles, column blocks). Tile 0 of each group writes stats, tile 0 of group 0 also updates."""
    begin(PDL)
    group, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    channel = tl.program_id(1) * BC + tl.arange(0, BC)  # [BC]
    known = channel < C
    if statistics is None:
        mean = tl.load(running_mean + channel, mask=known, other=0.0).to(tl.float32)
        var = tl.load(running_var + channel, mask=known, other=0.0).to(tl.float32)
    else:
        mean, var = load_pair(statistics, group, groups, channel, known, C)
    rstd = 1.0 / tl.sqrt(var + eps)
    if tile == 0:
        tl.store(stats + group * C + channel, mean, mask=known)
        tl.store(stats + (groups + group) * C + channel, rstd, mask=known)
        if statistics is not None:
            if group == 0:
                if running_mean is not None:
                    update(running_mean, running_var, tracked, statistics, groups, momentum, unbiased, channel, known,
                           C, CUMULATIVE)
                if tracked is not None and not CUMULATIVE:
                    if tl.program_id(1) == 0:
                        tl.store(tracked, tl.load(tracked) + groups)
    scale, shift = load_affine(gamma, beta, channel, known)
    at, inside = place(group, tile, rows, C, LARGE, BM, BC)
    value = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
    z = (value - mean[None, :]) * (rstd * scale)[None, :] + shift[None, :]
    tl.store(a + at, activate(z, slope, ACTIVATION).to(a.dtype.element_ty), mask=inside)


@triton.jit
def gz_and_xhat(ga, y, at, inside, mean, rstd, gamma, beta, slope, ACTIVATION: tl.constexpr):
    """ga * act'(z) and (y - mean) * rstd, [BM, BC] each; the first is zero outside."""
    value = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(ga + at, mask=inside, other=0.0).to(tl.float32)
    xhat = (value - mean[None, :]) * rstd[None, :]
    z = xhat * gamma[None, :] + beta[None, :]
    return tl.where(inside, activate_backward(g, z, slope, ACTIVATION), 0.0), xhat


@triton.jit(do_not_specialize=["rows", "tiles", "programs", "groups"])
def bn_backward_sums_kernel(
    ga, y, stats, gamma, beta,  # [R, C] twice, [2, G, C], [C] or None
    sums, of_all,  # a `reduce.Reduction`; [2, C], written if there are several groups
    rows, tiles, programs, groups,  # rows, tiles and programs of one group
    slope, C, ACTIVATION: tl.constexpr, LARGE: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, PDL: tl.constexpr,
):
    """Grid (groups * programs, column blocks). A program sums every programs-th tile of its group."""
    begin(PDL)
    group, program = tl.program_id(0) // programs, tl.program_id(0) % programs
    channel = tl.program_id(1) * BC + tl.arange(0, BC)  # [BC]
    known = channel < C
    mean, rstd = load_pair(stats, group, groups, channel, known, C)
    scale, shift = load_affine(gamma, beta, channel, known)
    sum_gz = tl.zeros((BM, BC), tl.float32)
    sum_gz_xhat = tl.zeros((BM, BC), tl.float32)
    for tile in range(program, tiles, programs):
        at, inside = place(group, tile, rows, C, LARGE, BM, BC)
        gz, xhat = gz_and_xhat(ga, y, at, inside, mean, rstd, scale, shift, slope, ACTIVATION)
        sum_gz += gz
        sum_gz_xhat += tl.where(inside, gz * xhat, 0.0)
    finish_sums(tl.sum(sum_gz, 0), tl.sum(sum_gz_xhat, 0), sums, of_all, group, groups, program, programs, channel,
                C)


@triton.jit(do_not_specialize=["rows", "tiles", "groups"])
def bn_backward_apply_kernel(
    ga, y, stats, gamma, beta, sums, g,  # [R, C] twice, [2, G, C], [C] or None, [2, G, C] or None, [R, C]
    rows, tiles, groups, inverse_count, slope, C, ACTIVATION: tl.constexpr, LARGE: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr, PDL: tl.constexpr,
):
    """Grid (groups * tiles, column blocks)."""
    begin(PDL)
    group, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    channel = tl.program_id(1) * BC + tl.arange(0, BC)  # [BC]
    known = channel < C
    mean, rstd = load_pair(stats, group, groups, channel, known, C)
    scale, shift = load_affine(gamma, beta, channel, known)
    at, inside = place(group, tile, rows, C, LARGE, BM, BC)
    gz, xhat = gz_and_xhat(ga, y, at, inside, mean, rstd, scale, shift, slope, ACTIVATION)
    if sums is not None:
        total_gz, total_gz_xhat = load_pair(sums, group, groups, channel, known, C)
        gz = gz - ((total_gz * inverse_count)[None, :] + xhat * (total_gz_xhat * inverse_count)[None, :])
    tl.store(g + at, (gz * (scale * rstd)[None, :]).to(g.dtype.element_ty), mask=inside)


@triton.jit
def act_backward_kernel(ga, saved, g,  # [size] each; saved may be bits, 8 to a byte
                        size, slope, DERIVATIVE: tl.constexpr, LARGE: tl.constexpr, B: tl.constexpr,
                        PDL: tl.constexpr):
    """Grid (blocks,)."""
    begin(PDL)
    block = tl.program_id(0)
    if LARGE:
        block = block.to(tl.int64)
    at = block * B + tl.arange(0, B)  # [B]
    value = tl.load(ga + at, mask=at < size, other=0.0)
    if DERIVATIVE == "mask":
        byte = block * (B // 8) + tl.arange(0, B // 8)
        of_z = load_bits(saved, byte, 1, 8 * byte < size, 8).T.reshape(B)
    else:
        of_z = tl.load(saved + at, mask=at < size, other=0.0)
    tl.store(g + at, multiply_derived(value, of_z, slope, DERIVATIVE), mask=at < size)


class _Grid(NamedTuple):
    """Tiles of height x width of [R, C] in G groups: `tiles` for the `rows` of a group, `columns` for the channels."""

    tile: Tile
    rows: int
    height: int
    width: int
    tiles: int
    columns: int


def _grid(x: Tensor, groups: int) -> _Grid:
    """Tiles as wide as the channels, and higher for fewer channels."""
    channels = x.shape[3]
    rows = x.numel() // channels // groups
    tile = choose("rows", architecture(x.device), rows=rows, columns=channels, depth=1, size=x.element_size())
    width = min(tile.columns, triton.next_power_of_2(channels))
    height = tile.rows * tile.columns // width
    return _Grid(tile, rows, height, width, triton.cdiv(rows, height), triton.cdiv(channels, width))


def _large(x: Tensor) -> bool:
    return x.numel() >= 2**31


def bn_statistics(y: Tensor, groups: int) -> Tensor:
    """Mean and biased variance [2, G, C] of y [N, H, W, C]."""
    grid, channels = _grid(y, groups), y.shape[3]
    statistics = reduction(y, 3, groups, grid.tiles, channels, grid.columns)
    launch(bn_statistics_kernel, (groups * grid.tiles, grid.columns), grid.tile, y=y, statistics=statistics,
           rows=grid.rows, tiles=grid.tiles, groups=groups, C=channels, LARGE=_large(y), BM=grid.height, BC=grid.width)
    return statistics.result


def bn_act_forward(y: Tensor, statistics: Tensor | None, gamma: Tensor | None, beta: Tensor | None,
                   running: RunningStats, count: int, norm: NormSpec, activation: Activation) -> tuple[Tensor, Tensor]:
    """a [N, H, W, C] and stats [2, G, C] of y [N, H, W, C]. statistics: of the batch, None to compute them."""
    groups = norm.groups if norm.batch_statistics else 1
    if norm.batch_statistics and statistics is None:
        statistics = bn_statistics(y, groups)
    grid, channels, a = _grid(y, groups), y.shape[3], torch.empty_like(y)
    stats = y.new_empty((2, groups, channels), dtype=torch.float32)
    tracked = running.num_batches_tracked
    cumulative = norm.batch_statistics and norm.momentum is None and running.mean is not None
    launch(
        bn_act_forward_kernel, (groups * grid.tiles, grid.columns), grid.tile, y=y, statistics=statistics, gamma=gamma,
        beta=beta, running_mean=running.mean, running_var=running.var, tracked=tracked, stats=stats, a=a,
        rows=grid.rows, tiles=grid.tiles, groups=groups, eps=norm.eps,
        momentum=0.0 if norm.momentum is None else norm.momentum, unbiased=count / max(count - 1, 1),
        slope=float(activation.negative_slope), C=channels, CUMULATIVE=cumulative, ACTIVATION=activation.name,
        LARGE=_large(y), BM=grid.height, BC=grid.width)
    if cumulative and tracked is not None:
        tracked.add_(groups)
    return a, stats


def bn_backward_sums(ga: Tensor, y: Tensor, stats: Tensor, gamma: Tensor | None, beta: Tensor | None,
                     activation: Activation) -> tuple[Tensor, Tensor]:
    """Sums [2, G, C] of each group, and [2, C] over all groups, or (0,) if there is only one."""
    (_, groups, channels), arch = stats.shape, architecture(y.device)
    grid = _grid(y, groups)
    each = max(1, min(grid.tiles, programs(arch) // (groups * grid.columns)))  # programs of a group
    sums = reduction(y, 2, groups, each, channels, grid.columns)
    of_all = y.new_empty((2, channels) if groups > 1 else 0, dtype=torch.float32)
    launch(
        bn_backward_sums_kernel, (groups * each, grid.columns), grid.tile, ga=ga, y=y, stats=stats, gamma=gamma,
        beta=beta, sums=sums, of_all=of_all, rows=grid.rows, tiles=grid.tiles, programs=each, groups=groups,
        slope=float(activation.negative_slope), C=channels, ACTIVATION=activation.name, LARGE=_large(y),
        BM=grid.height, BC=grid.width)
    return sums.result, of_all


def bn_backward_apply(ga: Tensor, y: Tensor, stats: Tensor, gamma: Tensor | None, beta: Tensor | None,
                      sums: Tensor | None, count: int, activation: Activation) -> Tensor:
    """g [N, H, W, C]."""
    groups, channels = stats.shape[1:]
    grid, g = _grid(y, groups), torch.empty_like(y)
    launch(
        bn_backward_apply_kernel, (groups * grid.tiles, grid.columns), grid.tile, ga=ga, y=y, stats=stats, gamma=gamma,
        beta=beta, sums=sums, g=g, rows=grid.rows, tiles=grid.tiles, groups=groups, inverse_count=1.0 / count,
        slope=float(activation.negative_slope), C=channels, ACTIVATION=activation.name, LARGE=_large(y),
        BM=grid.height, BC=grid.width)
    return g


def act_backward(ga: Tensor, saved: Tensor, activation: Activation) -> Tensor:
    """g, of the shape of ga; both are contiguous."""
    g, size = torch.empty_like(ga), ga.numel()
    tile = choose("rows", architecture(ga.device), rows=size, columns=1, depth=1, size=ga.element_size())
    launch(act_backward_kernel, (triton.cdiv(size, tile.rows * tile.columns),), tile, ga=ga, g=g, size=size,
           LARGE=_large(ga), B=tile.rows * tile.columns, **derivative_of(activation, saved))
    return g
