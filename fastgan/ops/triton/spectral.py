"""Spectral normalization (Miyato et al. 2018) of all weights of a chain, in three launches, and two backward.

For each weight W, as a matrix [R, K] of R output channels, with vectors u [R] and v [K]:

    rows       t = W v;   in training u = t / |t|, else sigma = u' t
    columns    t = W' u,  sigma = |t|, which is u' W v for v = t / |t|; only in training
    scale      v = t / |t|,   normalized = W / sigma
    backward   dot = sum of g * W,   gW = (g - dot / sigma * u v') / sigma

Norms are at least 1e-12, as in `torch.nn.functional.normalize`. Each program reads a part of one weight, selected by
the program id; sizes are compile-time constants. Weights are read in their order in memory. In a state_dict v has the
order (in, kh, kw); `place` maps columns in memory to it. Norms and sums over a whole weight are computed by the last of
its programs to finish, in a fixed order, so results repeat bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.ops.triton.launch import begin, launch, tickets
from fastgan.ops.triton.reduce import last_arrival
from fastgan.ops.triton.tiles import Tile
from fastgan.ops.triton.update import flat, parts

EPS = tl.constexpr(1e-12)
_ROWS = Tile(rows=4, columns=512, depth=1, warps=8, stages=1)  # wider for weights of fewer rows
_COLUMNS = Tile(rows=64, columns=32, depth=1, warps=4, stages=1)
_SCALE = Tile(rows=2048, columns=1, depth=1, warps=4, stages=1)  # elements per program
_DOT = Tile(rows=8192, columns=1, depth=1, warps=8, stages=1)

Results = tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]


@triton.jit
def at_least_eps(norm):
    """The norm, or 1e-12 if it is smaller; NaN stays."""
    return tl.where(norm < EPS, EPS, norm)


@triton.jit
def sum_of_products(x, y):
    """Sum of x * y over vectors of one element per lane. As in `reduce.moments`, the product must not be contracted
    with the first addition of the sum. A mask does not prevent this if the compiler finds that it is always true."""
    return tl.sum(tl.fma(x, y, tl.zeros_like(x)), 0)


@triton.jit
def place(column, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr):
    """The places in (in, kh, kw) of columns in memory, which are in the order (kh, kw, in), or (in, kh, kw) as well."""
    return column % CHANNELS * (COLUMNS // CHANNELS) + column // CHANNELS


@triton.jit
def product_of_rows(weight, v, product, first,  # [R, K], [K], [R], the first row
                    R: tl.constexpr, K: tl.constexpr, CHANNELS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """product = W v, of BM rows."""
    row = first + tl.arange(0, BM)  # [BM]
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BN):
        column = start + tl.arange(0, BN)  # [BN]
        inside = column < K
        factor = tl.load(v + place(column, K, CHANNELS), mask=inside, other=0.0)
        w = tl.load(weight + row[:, None] * K + column[None, :], mask=(row < R)[:, None] & inside[None, :], other=0.0)
        total += w * factor[None, :]  # [BM, BN]
    tl.store(product + row, tl.sum(total, 1), mask=row < R)


@triton.jit
def spectral_rows_kernel(weights, v, u, products, us, sigmas, tickets,  # P each: [R, K], [K], [R] x 3, [1]; P tickets
                         ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, STARTS: tl.constexpr,
                         ITERATE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr,
                         PDL: tl.constexpr):
    """Grid (programs,). us = u, in training after u = t / |t|. BM, BN: of each weight. BR: a power of 2, at least
    each R.
    """
    begin(PDL)
    program = tl.program_id(0)
    for i in tl.static_range(len(ROWS)):
        if (program >= STARTS[i]) & (program < STARTS[i + 1]):
            product_of_rows(weights[i], v[i], products[i], (program - STARTS[i]) * BM[i], ROWS[i], COLUMNS[i],
                            CHANNELS[i], BM[i], BN[i])
            if last_arrival(tickets + i, STARTS[i + 1] - STARTS[i]):
                row = tl.arange(0, BR)
                inside = row < ROWS[i]
                product = tl.load(products[i] + row, mask=inside, other=0.0)
                if ITERATE:
                    norm = tl.sqrt(sum_of_products(product, product))
                    unit = product / at_least_eps(norm)
                    tl.store(u[i] + row, unit, mask=inside)
                else:
                    unit = tl.load(u[i] + row, mask=inside, other=0.0)
                    tl.store(sigmas[i], sum_of_products(product, unit))
                tl.store(us[i] + row, unit, mask=inside)


@triton.jit
def spectral_columns_kernel(weights, us, vs, sigmas, partials, tickets,  # P each: [R, K], [R], [K], [1]; [programs]
                            ROWS: tl.constexpr, COLUMNS: tl.constexpr, STARTS: tl.constexpr,
                            BM: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, PDL: tl.constexpr):
    """Grid (programs,). vs = W' u, in the order of memory. BP: a power of 2, at least the programs of each weight."""
    begin(PDL)
    program = tl.program_id(0)
    for i in tl.static_range(len(ROWS)):
        if (program >= STARTS[i]) & (program < STARTS[i + 1]):
            column = (program - STARTS[i]) * BN + tl.arange(0, BN)  # [BN]
            inside = column < COLUMNS[i]
            total = tl.zeros((BM, BN), tl.float32)
            for start in range(0, ROWS[i], BM):
                row = start + tl.arange(0, BM)  # [BM]
                factor = tl.load(us[i] + row, mask=row < ROWS[i], other=0.0)
                w = tl.load(weights[i] + row[:, None] * COLUMNS[i] + column[None, :],
                            mask=(row < ROWS[i])[:, None] & inside[None, :], other=0.0)  # [BM, BN]
                total += w * factor[:, None]
            product = tl.sum(total, 0)
            tl.store(vs[i] + column, product, mask=inside)
            tl.store(partials + program, sum_of_products(product, product))
            if last_arrival(tickets + i, STARTS[i + 1] - STARTS[i]):
                part = tl.arange(0, BP)
                squares = tl.load(partials + STARTS[i] + part, mask=part < STARTS[i + 1] - STARTS[i], other=0.0)
                norm = tl.sqrt(tl.sum(squares, 0))
                tl.store(sigmas[i], norm * (norm / at_least_eps(norm)))


@triton.jit
def spectral_scale_kernel(weights, sigmas, normalized, vs, v,  # P each: [R * K], [1], [R * K], [K], [K]
                          SIZES: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, STARTS: tl.constexpr,
                          ITERATE: tl.constexpr, BM: tl.constexpr, PDL: tl.constexpr):
    """Grid (programs,). vs = v, in the order of memory, changed in training; normalized = W / sigma, rounded."""
    begin(PDL)
    program = tl.program_id(0)
    for i in tl.static_range(len(SIZES)):
        if (program >= STARTS[i]) & (program < STARTS[i + 1]):
            at = (program - STARTS[i]) * BM + tl.arange(0, BM)
            sigma = tl.load(sigmas[i])
            w = tl.load(weights[i] + at, mask=at < SIZES[i])
            tl.store(normalized[i] + at, (w / sigma).to(normalized[i].dtype.element_ty), mask=at < SIZES[i])
            inside = at < COLUMNS[i]
            of_state = v[i] + place(at, COLUMNS[i], CHANNELS[i])
            if ITERATE:
                unit = tl.load(vs[i] + at, mask=inside) / at_least_eps(sigma)  # below eps, sigma < |t| < eps
                tl.store(of_state, unit, mask=inside)
            else:
                unit = tl.load(of_state, mask=inside)
            tl.store(vs[i] + at, unit, mask=inside)


@triton.jit
def spectral_dot_kernel(grads, weights, dots, partials, tickets,  # P each: [R * K] x 2, [1]; [programs], P tickets
                        SIZES: tl.constexpr, STARTS: tl.constexpr, BM: tl.constexpr, BP: tl.constexpr,
                        PDL: tl.constexpr):
    """Grid (programs,). dots = sum of g * W. BP as above."""
    begin(PDL)
    program = tl.program_id(0)
    for i in tl.static_range(len(SIZES)):
        if (program >= STARTS[i]) & (program < STARTS[i + 1]):
            at = (program - STARTS[i]) * BM + tl.arange(0, BM)
            g = tl.load(grads[i] + at, mask=at < SIZES[i], other=0.0).to(tl.float32)
            w = tl.load(weights[i] + at, mask=at < SIZES[i], other=0.0)
            tl.store(partials + program, tl.sum(tl.where(at < SIZES[i], g * w, 0.0), 0))
            if last_arrival(tickets + i, STARTS[i + 1] - STARTS[i]):
                part = tl.arange(0, BP)
                products = tl.load(partials + STARTS[i] + part, mask=part < STARTS[i + 1] - STARTS[i], other=0.0)
                tl.store(dots[i], tl.sum(products, 0))


@triton.jit
def spectral_gradient_kernel(grads, us, vs, sigmas, dots, out,  # P each: [R * K], [R], [K], [1], [1], [R * K]
                             SIZES: tl.constexpr, COLUMNS: tl.constexpr, STARTS: tl.constexpr, BM: tl.constexpr,
                             PDL: tl.constexpr):
    """Grid (programs,). out = (g - dot / sigma * u v') / sigma."""
    begin(PDL)
    program = tl.program_id(0)
    for i in tl.static_range(len(SIZES)):
        if (program >= STARTS[i]) & (program < STARTS[i + 1]):
            at = (program - STARTS[i]) * BM + tl.arange(0, BM)
            inside = at < SIZES[i]
            sigma = tl.load(sigmas[i])
            g = tl.load(grads[i] + at, mask=inside).to(tl.float32)
            outer = (tl.load(us[i] + at // COLUMNS[i], mask=inside) * tl.load(vs[i] + at % COLUMNS[i], mask=inside))
            tl.store(out[i] + at, (g - tl.load(dots[i]) / sigma * outer) / sigma, mask=inside)


def spectral_norm(weights: Sequence[Tensor], u: Sequence[Tensor], v: Sequence[Tensor], iterate: bool,
                  dtype: torch.dtype) -> Results:
    """As `fastgan.ops.reference.spectral_norm`, of float32 weights that are contiguous or channels_last."""
    rows, columns = tuple(map(len, weights)), tuple(weight[0].numel() for weight in weights)
    matrices = {"ROWS": rows, "COLUMNS": columns}
    channels = tuple(k if weight.is_contiguous() else weight.shape[1]
                     for weight, k in zip(weights, columns, strict=True))
    normalized = tuple(torch.empty_like(weight, dtype=dtype) for weight in weights)
    us, products = (tuple(torch.empty_like(one) for one in u) for _ in range(2))
    vs = tuple(torch.empty_like(weight[0]) for weight in weights)
    sigmas = tuple(one.new_empty(()) for one in u)
    of_weights, count = _flat(weights), tickets(u[0].device, len(weights))
    heights = tuple(min(_ROWS.rows, triton.next_power_of_2(one)) for one in rows)
    starts = _starts(rows, heights)
    launch(spectral_rows_kernel, (starts[-1],), _ROWS, weights=of_weights, v=tuple(v), u=tuple(u), products=products,
           us=us, sigmas=sigmas, tickets=count, **matrices, CHANNELS=channels, STARTS=starts, ITERATE=iterate,
           BM=heights, BN=tuple(_ROWS.rows * _ROWS.columns // height for height in heights),
           BR=triton.next_power_of_2(max(rows)))
    if iterate:
        starts = _starts(columns, [_COLUMNS.columns] * len(columns))
        launch(spectral_columns_kernel, (starts[-1],), _COLUMNS, weights=of_weights, us=us, vs=_flat(vs), sigmas=sigmas,
               partials=u[0].new_empty(starts[-1]), tickets=count, **matrices, STARTS=starts, BM=_COLUMNS.rows,
               BN=_COLUMNS.columns, BP=_most(starts))
    sizes, starts = parts(weights, _SCALE.rows)
    launch(spectral_scale_kernel, (starts[-1],), _SCALE, weights=of_weights, sigmas=sigmas,
           normalized=_flat(normalized), vs=_flat(vs), v=tuple(v), SIZES=sizes, COLUMNS=columns, CHANNELS=channels,
           STARTS=starts, ITERATE=iterate, BM=_SCALE.rows)
    return normalized, us, vs, sigmas


def spectral_norm_backward(grads: Sequence[Tensor], weights: Sequence[Tensor], us: Sequence[Tensor],
                           vs: Sequence[Tensor], sigmas: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """As `fastgan.ops.reference.spectral_norm_backward`."""
    grads = [g if g.stride() == weight.stride() else torch.empty_like(weight, dtype=g.dtype).copy_(g)
             for g, weight in zip(grads, weights, strict=True)]
    of_grads, columns = _flat(grads), tuple(weight[0].numel() for weight in weights)
    out, dots = tuple(map(torch.empty_like, weights)), tuple(map(torch.empty_like, sigmas))
    sizes, starts = parts(weights, _DOT.rows)
    launch(spectral_dot_kernel, (starts[-1],), _DOT, grads=of_grads, weights=_flat(weights), dots=dots,
           partials=sigmas[0].new_empty(starts[-1]), tickets=tickets(sigmas[0].device, len(sizes)), SIZES=sizes,
           STARTS=starts, BM=_DOT.rows, BP=_most(starts))
    sizes, starts = parts(weights, _SCALE.rows)
    launch(spectral_gradient_kernel, (starts[-1],), _SCALE, grads=of_grads, us=tuple(us), vs=_flat(vs),
           sigmas=tuple(sigmas), dots=dots, out=_flat(out), SIZES=sizes, COLUMNS=columns, STARTS=starts, BM=_SCALE.rows)
    return out


def _flat(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(map(flat, tensors))


def _starts(lengths: Sequence[int], blocks: Sequence[int]) -> tuple[int, ...]:
    """The number of the first program for each length; then of all programs."""
    return tuple(accumulate(map(triton.cdiv, lengths, blocks), initial=0))


def _most(starts: Sequence[int]) -> int:
    """A power of 2, at least the programs of each weight."""
    return int(triton.next_power_of_2(max(after - before for before, after in pairwise(starts))))
