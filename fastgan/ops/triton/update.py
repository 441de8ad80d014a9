"""An Adam update of a network, in two launches for all of its parameters.

    gradient_norm   norm = |g|,   skip = 1 if the norm or the loss is not finite, or if skip was 1 before,
                    factor = min(1, clip / (norm + 1e-6))
    adam            g = factor * g,   m += (1 - beta1) * (g - m),   v += (1 - beta2) * (g^2 - v)
                    p -= rate / c1 * m / (sqrt(v / c2) + eps)           c = 1 - beta^t for the t-th update
                    p -= rate * sqrt(c2) / c1 * m / (sqrt(v) + eps)     with `hat` (`fastgan/train/optim.py`)
                    16-bit copy = p,   average += weight * (p - average)

Nothing changes if skip is 1. Each program reads a part of one tensor, selected by the program id; sizes are
compile-time constants. The tensors of a parameter have the same memory layout, so all are read as flat arrays. The last
program to finish completes the norm, and increments the counts of updates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from fastgan.ops.triton.gan_loss import exp_of_minus
from fastgan.ops.triton.launch import begin, launch, tickets
from fastgan.ops.triton.reduce import last_arrival
from fastgan.ops.triton.tiles import Tile

_NORM = Tile(rows=8192, columns=1, depth=1, warps=8, stages=1)  # elements per program
_ADAM = Tile(rows=2048, columns=1, depth=1, warps=4, stages=1)


class AdamOptions(NamedTuple):
    """Coefficients of Adam. hat: whether eps is epsilon-hat, see above. decay: of the moving average."""

    beta1: float
    beta2: float
    eps: float
    hat: bool = False
    decay: float = 0.0


class Moments(NamedTuple):
    """The state of Adam: both moments of each parameter (tuples of float32 tensors), counts of updates (C,), their
    increments per update (C,), and the learning rate (). places: for each parameter, the index of its count."""

    first: tuple[Tensor, ...]
    second: tuple[Tensor, ...]
    counts: Tensor
    add: Tensor
    rate: Tensor
    places: tuple[int, ...]


class Average(NamedTuple):
    """A moving average (one float32 tensor for each parameter), and the number of its updates ()."""

    averages: tuple[Tensor, ...]
    updates: Tensor


@triton.jit
def one_minus_exp_of_minus(a):
    """1 - exp(-a) for a >= 0, without cancellation where a is small."""
    series = 1.0
    for i in tl.static_range(6):
        series = 1.0 - a / (7 - i) * series
    series = a * series
    return tl.where(a < 0.25, series, 1.0 - exp_of_minus(a))


@triton.jit
def gradient_norm_kernel(grads, loss, before, result,  # P tensors; [1] each: the loss, the previous skip; [3]
                         partials, tickets, clip,  # [programs], one ticket; 0: no clipping
                         SIZES: tl.constexpr, STARTS: tl.constexpr, BM: tl.constexpr, PDL: tl.constexpr):
    """Grid (programs,). result = norm, skip, factor."""
    begin(PDL)
    program = tl.program_id(0)
    squares = 0.0
    for i in tl.static_range(len(SIZES)):
        if (program >= STARTS[i]) & (program < STARTS[i + 1]):
            at = (program - STARTS[i]) * BM + tl.arange(0, BM)
            g = tl.load(grads[i] + at, mask=at < SIZES[i], other=0.0)
            squares = tl.sum(tl.where(at < SIZES[i], g * g, 0.0), 0)
    tl.store(partials + program, squares)
    programs = tl.num_programs(0)
    if last_arrival(tickets, programs):
        total = tl.zeros((BM,), tl.float32)
        for start in range(0, programs, BM):
            at = start + tl.arange(0, BM)
            total += tl.load(partials + at, mask=at < programs, other=0.0)
        norm = tl.sqrt(tl.sum(total, 0))
        finite = tl.abs(norm + tl.load(loss)) < float("inf")  # false for NaN, too
        tl.store(result, norm)
        tl.store(result + 1, tl.where(finite, tl.load(before), 1.0))
        tl.store(result + 2, tl.where((clip > 0.0) & finite, tl.minimum(clip / (norm + 1e-6), 1.0), 1.0))


@triton.jit
def adam_kernel(parameters, grads, first, second, copies, averages,  # P tensors each
                counts, add, average_updates, rate, norm, tickets,  # [C], [C], [1], [1], [3], one ticket
                betas, rests, logs, eps, decay,  # beta, 1 - beta and -log(beta), a pair each
                SIZES: tl.constexpr, STARTS: tl.constexpr, COUNT: tl.constexpr, COPIED: tl.constexpr,
                AVERAGED: tl.constexpr, HAT: tl.constexpr, CC: tl.constexpr, BM: tl.constexpr, PDL: tl.constexpr):
    """Grid (programs,). COUNT, COPIED: for each parameter, the index of its count, and whether it has a copy."""
    begin(PDL)
    program = tl.program_id(0)
    if tl.load(norm + 1) == 0.0:
        for i in tl.static_range(len(SIZES)):
            if (program >= STARTS[i]) & (program < STARTS[i + 1]):
                at = (program - STARTS[i]) * BM + tl.arange(0, BM)
                within = at < SIZES[i]
                g = tl.load(grads[i] + at, mask=within) * tl.load(norm + 2)
                m = tl.load(first[i] + at, mask=within)
                v = tl.load(second[i] + at, mask=within)
                p = tl.load(parameters[i] + at, mask=within)
                m += rests[0] * (g - m)
                v = betas[1] * v + rests[1] * g * g
                t = tl.load(counts + COUNT[i]) + 1.0
                c1, c2 = one_minus_exp_of_minus(t * logs[0]), one_minus_exp_of_minus(t * logs[1])
                if HAT:
                    p -= tl.load(rate) * tl.sqrt(c2) / c1 * m / (tl.sqrt(v) + eps)
                else:
                    p -= tl.load(rate) / c1 * m / (tl.sqrt(v) / tl.sqrt(c2) + eps)
                tl.store(first[i] + at, m, mask=within)
                tl.store(second[i] + at, v, mask=within)
                tl.store(parameters[i] + at, p, mask=within)
                if COPIED[i]:
                    tl.store(copies[i] + at, p.to(copies[i].dtype.element_ty), mask=within)
                if AVERAGED:
                    done = tl.load(average_updates)
                    average = tl.load(averages[i] + at, mask=within)
                    average += (1.0 - tl.minimum((1.0 + done) / (10.0 + done), decay)) * (p - average)
                    tl.store(averages[i] + at, average, mask=within)
    if last_arrival(tickets, tl.num_programs(0)):  # all have read the counts
        made = 1.0 - tl.load(norm + 1)
        at = tl.arange(0, CC)
        within = at < COUNT[len(COUNT) - 1]
        tl.store(counts + at, tl.load(counts + at, mask=within) + made * tl.load(add + at, mask=within), mask=within)
        if AVERAGED:
            tl.store(average_updates, tl.load(average_updates) + made)


def gradient_norm(grads: Sequence[Tensor], loss: Tensor, skip: Tensor, clip: float) -> Tensor:
    """float32 (3,): the norm of all `grads` (float32), skip and factor, as above.

    Args:
        loss, skip: (), float32. clip: the maximum norm; 0 disables clipping.
    """
    sizes, starts = parts(grads, _NORM.rows)
    result, partials = (grads[0].new_empty(count) for count in (3, starts[-1]))
    launch(gradient_norm_kernel, (starts[-1],), _NORM, grads=tuple(map(flat, grads)), loss=loss, before=skip,
           result=result, partials=partials, tickets=tickets(result.device, 1), clip=float(clip), SIZES=sizes,
           STARTS=starts, BM=_NORM.rows)
    return result


def adam(params: Sequence[Tensor], grads: Sequence[Tensor], moments: Moments, norm: Tensor, options: AdamOptions,
         copies: Sequence[Tensor | None], average: Average | None) -> None:
    """Update float32 `params` in place, with their moments, counts, 16-bit `copies` (None for parameters without one)
    and moving average. Each gradient has the strides of its parameter. norm: from `gradient_norm`."""
    sizes, starts = parts(params, _ADAM.rows)
    averages, updates = average or (params, norm)
    betas, all_flat = (options.beta1, options.beta2), lambda tensors: tuple(map(flat, tensors))
    launch(adam_kernel, (starts[-1],), _ADAM, parameters=all_flat(params), grads=all_flat(grads),
           first=all_flat(moments.first), second=all_flat(moments.second), averages=all_flat(averages),
           copies=all_flat(p if copy is None else copy for p, copy in zip(params, copies, strict=True)),
           counts=moments.counts, add=moments.add, average_updates=updates, rate=moments.rate, norm=norm,
           tickets=tickets(norm.device, 1), betas=betas, rests=tuple(1 - beta for beta in betas),
           logs=tuple(-math.log(beta) if beta else math.inf for beta in betas), eps=options.eps, decay=options.decay,
           SIZES=sizes, STARTS=starts, COUNT=(*moments.places, len(moments.counts)),
           COPIED=tuple(copy is not None for copy in copies), AVERAGED=average is not None, HAT=options.hat,
           CC=triton.next_power_of_2(len(moments.counts)), BM=_ADAM.rows)


def parts(tensors: Sequence[Tensor], block: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The number of elements of each tensor, and the id of its first program, followed by the number of programs."""
    sizes, starts = tuple(tensor.numel() for tensor in tensors), [0]
    for size in sizes:
        starts.append(starts[-1] + triton.cdiv(size, block))
    return sizes, tuple(starts)


def flat(tensor: Tensor) -> Tensor:
    """The same memory in one dimension."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))
