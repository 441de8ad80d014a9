"""Copies the inputs of a training step into its buffers, rounded to the dtypes of the buffers, in one launch.

    target = source,   unless the step repeats one that was not finite (`halted`)

Each program copies a part of one tensor, selected by the program id; sizes are compile-time constants.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from fastgan.ops.triton.launch import begin, launch
from fastgan.ops.triton.tiles import Tile
from fastgan.ops.triton.update import flat, parts

_TILE = Tile(rows=2048, columns=1, depth=1, warps=4, stages=1)  # elements per program


@triton.jit
def copy_unless_kernel(halted, sources, targets,  # [1], P tensors each
                       SIZES: tl.constexpr, STARTS: tl.constexpr, BM: tl.constexpr, PDL: tl.constexpr):
    """Grid (programs,)."""
    begin(PDL)
    program = tl.program_id(0)
    if tl.load(halted) == 0.0:
        for i in tl.static_range(len(SIZES)):
            if (program >= STARTS[i]) & (program < STARTS[i + 1]):
                at = (program - STARTS[i]) * BM + tl.arange(0, BM)
                value = tl.load(sources[i] + at, mask=at < SIZES[i])
                tl.store(targets[i] + at, value.to(targets[i].dtype.element_ty), mask=at < SIZES[i])


def copy_unless(halted: Tensor, sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    """Copy each source to its target, of the same shape and strides without gaps, unless `halted` (), float32, is 1."""
    sizes, starts = parts(targets, _TILE.rows)
    launch(copy_unless_kernel, (starts[-1],), _TILE, halted=halted, sources=tuple(map(flat, sources)),
           targets=tuple(map(flat, targets)), SIZES=sizes, STARTS=starts, BM=_TILE.rows)
