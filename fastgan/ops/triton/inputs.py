"""The inputs of a training step, in two launches: a batch of images from a data set on the device, and copies of all
inputs into the buffers of the step, rounded to their dtypes.

    gather        image = scale * data[i] + shift for the indices i of a row of a queue, mirrored if draw < 0.5
    copy_unless   target = source,   unless the step repeats one that was not finite (`halted`)

A program of `gather` computes a part of one image, and the last to finish advances to the next row. A program of
`copy_unless` copies a part of one tensor, selected by the program id; sizes are compile-time constants.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from fastgan.ops.triton.launch import begin, launch, tickets
from fastgan.ops.triton.reduce import last_arrival
from fastgan.ops.triton.tiles import Tile
from fastgan.ops.triton.update import flat, parts

_TILE = Tile(rows=2048, columns=1, depth=1, warps=4, stages=1)  # elements per program


@triton.jit(do_not_specialize=["rows"])
def gather_kernel(data, labels, queue, cursor, draws,  # [N, C, H * W] bytes, [N], [R, B], [1], [S]
                  images, chosen, tickets,  # [S, H * W, C], [S], one ticket
                  rows, scale, shift,  # R
                  B: tl.constexpr, C: tl.constexpr, PIXELS: tl.constexpr, W: tl.constexpr, BM: tl.constexpr,
                  PDL: tl.constexpr):
    """Grid (parts of an image, S). S <= B images are gathered. labels, draws and chosen may be None."""
    begin(PDL)
    image = tl.program_id(1)
    row = tl.load(cursor)
    source = tl.load(queue + row * B + image)
    at = tl.program_id(0) * BM + tl.arange(0, BM)  # [BM]
    pixel, channel = at // C, at % C
    if draws is not None:
        pixel += tl.where(tl.load(draws + image) < 0.5, W - 1 - 2 * (pixel % W), 0)
    value = tl.load(data + source * (C * PIXELS) + channel * PIXELS + pixel, mask=at < C * PIXELS).to(tl.float32)
    tl.store(images + image.to(tl.int64) * (C * PIXELS) + at, value * scale + shift, mask=at < C * PIXELS)
    if labels is not None:
        if tl.program_id(0) == 0:
            tl.store(chosen + image, tl.load(labels + source))
    if last_arrival(tickets, tl.num_programs(0) * tl.num_programs(1)):
        tl.store(cursor, (row + 1) % rows)


def gather(data: Tensor, labels: Tensor | None, queue: Tensor, cursor: Tensor, draws: Tensor | None, unit_range: bool,
           images: Tensor, chosen: Tensor | None) -> None:
    """Write a batch to `images` float32 (S, C, H, W), channels_last, and its labels to `chosen` (S,).

    Args:
        data: uint8 (N, C, H, W), contiguous.
        labels: int64 (N,), or None.
        queue: int64 (R, B), indices into the data.
        cursor: int64 (1,), the row of the queue whose first S indices are used; advanced to the next row.
        draws: float32 (S,): images with a number below 0.5 are mirrored. None: no image is.
        unit_range: values in [0, 1] instead of [-1, 1].
    """
    size, channels, height, width = images.shape
    scale, shift = (1 / 255, 0.0) if unit_range else (2 / 255, -1.0)
    launch(gather_kernel, (triton.cdiv(images[0].numel(), _TILE.rows), size), _TILE, data=data, labels=labels,
           queue=queue, cursor=cursor, draws=draws, images=images, chosen=chosen, tickets=tickets(data.device, 1),
           rows=len(queue), scale=scale, shift=shift, B=queue.shape[1], C=channels, PIXELS=height * width, W=width,
           BM=_TILE.rows)


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
