"""The end of a training step in one launch: diversity of the fake images, metrics, and whether training continues.

    diversity = E[std of a pixel over the fakes] / E[std of a pixel over the reals]
    halted    = skip, 1 if an update was not made; with a loss scale, which skips updates itself, 1 if a loss is not
                finite
    row t mod R of the metrics = (metrics, diversity, 1 - halted),   t += 1 - halted

Each program reads some pixels of all images, twice; the last program to finish computes the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from fastgan.ops.triton.launch import begin, launch, tickets
from fastgan.ops.triton.reduce import last_arrival
from fastgan.ops.triton.tiles import Tile

_TILE = Tile(rows=16, columns=64, depth=1, warps=4, stages=1)  # images x values at a time


class StepState(NamedTuple):
    """State of a step on the device: skip and halted (), float32; t (), int64; rows (R, F) of metrics, float32.
    losses: the number of leading metrics that are losses of this step. scaled: whether there is a loss scale."""

    skip: Tensor
    halted: Tensor
    t: Tensor
    rows: Tensor
    losses: int
    scaled: bool


@triton.jit
def finish_step_kernel(images, metrics, skip, halted, t, rows,  # [2, N, K], F - 2 scalars, [1] each, [R, F]
                       out, partials, tickets,  # [2]: diversity and 1 - halted; [2, programs], one ticket
                       N, K, R, REAL_FIRST: tl.constexpr, LOSSES: tl.constexpr, SCALED: tl.constexpr,
                       BT: tl.constexpr, BC: tl.constexpr, PDL: tl.constexpr):
    """Grid (programs,)."""
    begin(PDL)
    program, programs = tl.program_id(0), tl.num_programs(0)
    column = program * BC + tl.arange(0, BC)  # [BC]
    within = column < K
    for half in tl.static_range(2):
        mean = tl.zeros((BC,), tl.float32)
        for start in range(0, N, BT):
            image = start + tl.arange(0, BT)
            at = ((half * N + image).to(tl.int64) * K)[:, None] + column[None, :]
            known = (image < N)[:, None] & within[None, :]
            mean += tl.sum(tl.load(images + at, mask=known, other=0.0).to(tl.float32), 0)
        mean = mean / N
        squares = tl.zeros((BC,), tl.float32)
        for start in range(0, N, BT):
            image = start + tl.arange(0, BT)
            at = ((half * N + image).to(tl.int64) * K)[:, None] + column[None, :]
            known = (image < N)[:, None] & within[None, :]
            distance = tl.load(images + at, mask=known, other=0.0).to(tl.float32) - mean[None, :]
            squares += tl.sum(tl.where(known, distance * distance, 0.0), 0)
        deviation = tl.sqrt(squares / N)
        tl.store(partials + half * programs + program, tl.sum(tl.where(within, deviation, 0.0), 0))
    if last_arrival(tickets, programs):
        first, second = tl.zeros((BC,), tl.float32), tl.zeros((BC,), tl.float32)
        for start in range(0, programs, BC):
            at = start + tl.arange(0, BC)
            first += tl.load(partials + at, mask=at < programs, other=0.0)
            second += tl.load(partials + programs + at, mask=at < programs, other=0.0)
        real, fake = tl.sum(first, 0) / K, tl.sum(second, 0) / K
        if not REAL_FIRST:
            real, fake = fake, real
        diversity = fake / tl.where(real < 1e-8, 1e-8, real)  # keeps NaN
        stop = tl.load(skip)
        if SCALED:
            total = 0.0
            for i in tl.static_range(LOSSES):
                total += tl.abs(tl.load(metrics[i]))
            stop = tl.where(total < float("inf"), tl.load(halted), 1.0)
        finite = 1.0 - stop
        now = tl.load(t)
        row = rows + (now % R) * (len(metrics) + 2)
        for i in tl.static_range(len(metrics)):
            tl.store(row + i, tl.load(metrics[i]))
        tl.store(row + len(metrics), diversity)
        tl.store(row + len(metrics) + 1, finite)
        tl.store(out, diversity)
        tl.store(out + 1, finite)
        tl.store(halted, stop)
        tl.store(t, now + finite.to(tl.int64))


def finish_step(images: Tensor, metrics: Sequence[Tensor], state: StepState, *, real_first: bool) -> Tensor:
    """float32 (2,): the diversity of the fakes, and 1 - halted; `state` is updated in place.

    Args:
        images: (2 N, ...), the real and the fake half, without gaps in memory. metrics: F - 2 scalars, float32 (); in a
            row, the two returned values follow them.
    """
    count, size = len(images) // 2, images[0].numel()
    programs = triton.cdiv(size, _TILE.columns)
    out, partials = (state.rows.new_empty(shape) for shape in (2, (2, programs)))
    launch(finish_step_kernel, (programs,), _TILE, images=images, metrics=tuple(metrics), skip=state.skip,
           halted=state.halted, t=state.t, rows=state.rows, out=out, partials=partials,
           tickets=tickets(images.device, 1), N=count, K=size, R=len(state.rows), REAL_FIRST=real_first,
           LOSSES=state.losses, SCALED=state.scaled, BT=_TILE.rows, BC=_TILE.columns)
    return out
