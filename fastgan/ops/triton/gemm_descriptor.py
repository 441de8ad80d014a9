"""4x4 convolutions of stride 2 and padding 1 as GEMMs on tensor descriptors (TMA), on sm_90 and newer.

    coarse[n, h, w, a]  = sum over kh, kw, b of  fine[n, 2h - 1 + kh, 2w - 1 + kw, b] * weight[a, kh, kw, b]
    fine[n, 2h + f, 2w + e, b]  = sum over th, tw, a of  coarse[n, h + f - th, w + e - tw, a]
                                      * weight[a, 1 - f + 2 th, 1 - e + 2 tw, b]          f, e, th, tw in {0, 1}

and the weight gradient of both. The fine image [N, 2H, 2W, B] is described as [N, H, 2, W, 2B], in which the pixels
that one tap reads are a box, and TMA fills the padding with zeros. So the loop has no masks and no address arithmetic
per thread. Rows of a product are channels and columns are pixels, because a reshaped box can stay in shared memory only
as the second operand of wgmma. Functions of the same names on pointers compute everything else: other kernels and
strides, fewer than 64 channels, boxes that would be mostly empty, float32 without tf32.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fastgan.ops.specs import IDENTITY, Activation, ConvSpec
from fastgan.ops.triton.elementwise import activate, pack_bits
from fastgan.ops.triton.gemm_pointer import Conv, ConvResult
from fastgan.ops.triton.launch import architecture, begin, launch, tickets
from fastgan.ops.triton.reduce import add_up, finish_statistics, last_arrival, moments, reduction
from fastgan.ops.triton.tiles import WASTE, covering, described, programs

_CHANNELS = 64  # minimum of a tile
_TOGETHER = 4  # maximum of partial sums that wgrad's launch adds itself: only a few programs of it would add more
_FORM = (4, 4), (2, 2), (1, 1)  # kernel, stride, padding


@triton.jit
def place(tile, down, across, BOX: tl.constexpr):
    """The image, row and column of coarse pixels at which a tile begins; `down` x `across` tiles cover an image."""
    return (tile // (across * down) * BOX[0], tile // across % down * BOX[1], tile % across * BOX[2])


@triton.jit(do_not_specialize=["images", "tiles", "down", "across"])
def convolve_tma_kernel(
    x, weight,  # conv: [N, H, 2, W, 2 CI], [CO, 16 CI]; transposed: [N, H, W, CI], [CI, 16 CO]
    bias,  # [CO]
    y,  # conv: [G, N / G, H, W, CO]; transposed: [N, H, 2, W, 2 CO]
    mask,  # a bit for each element of y, 8 to a byte
    statistics,  # a `reduce.Reduction`, or None
    images, tiles, down, across,  # images and tiles of a group; tiles along the height and the width of an image
    slope,
    CONV: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    WHOLE: tl.constexpr,  # whether a group consists of whole boxes; otherwise its last boxes extend beyond it
    BOX: tl.constexpr,  # images, rows and columns of a tile, in coarse pixels
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PDL: tl.constexpr,
):
    """Grid (groups * tiles, channel blocks, phases). A program computes BM channels x BN coarse pixels of a phase."""
    begin(PDL)
    CI: tl.constexpr = CONV.CI
    CO: tl.constexpr = CONV.CO
    group, tile, phase = tl.program_id(0) // tiles, tl.program_id(0) % tiles, tl.program_id(2)
    image, h, w = place(tile, down, across, BOX)
    n, row = group * images + image, tl.program_id(1) * BM
    phase_h, phase_w = phase // 2, phase % 2
    products = tl.zeros((BM, BN), tl.float32)
    blocks: tl.constexpr = CI // BK
    for i in range(0, (4 if CONV.TRANSPOSED else 16) * blocks):
        tap, channel = i // blocks, i % blocks * BK
        if CONV.TRANSPOSED:
            th, tw = tap // 2, tap % 2
            box = x.load([n, h + phase_h - th, w + phase_w - tw, channel])
            a = weight.load([channel, ((1 - phase_h + 2 * th) * 4 + 1 - phase_w + 2 * tw) * CO + row]).T  # [BM, BK]
        else:
            kh, kw = tap // 4, tap % 4
            box = x.load([n, h + (kh + 1) // 2 - 1, (kh + 1) % 2, w + (kw + 1) // 2 - 1, (kw + 1) % 2 * CI + channel])
            a = weight.load([row, tap * CI + channel])  # [BM, BK]
        products = tl.dot(a, box.reshape(BN, BK).T, products, input_precision=PRECISION)
    channels = row + tl.arange(0, BM)  # [BM]
    if bias is not None:
        products += tl.load(bias + channels).to(tl.float32)[:, None]
    if CONV.TRANSPOSED:
        to = [n, h, phase_h, w, phase_w * CO + row]
    else:
        to = [group, image, h, w, row]
    if mask is not None:  # by pointers, because the bytes of a tile's channels are fewer than a descriptor's 16
        pixel = tl.arange(0, BN)
        in_row, line = pixel % BOX[2], pixel // BOX[2] % BOX[1]
        at_image = image + pixel // (BOX[1] * BOX[2])
        at_line = ((at_image + group * images) * (down * BOX[1]) + h + line).to(tl.int64)
        at_pixel = at_line * (across * BOX[2]) + w + in_row
        if CONV.TRANSPOSED:
            at_pixel = (2 * at_line + phase_h) * (2 * across * BOX[2]) + 2 * (w + in_row) + phase_w
        byte = row // 8 + tl.arange(0, BM // 8)
        tl.store(mask + at_pixel[:, None] * (CO // 8) + byte[None, :], pack_bits(products.T),
                 mask=(at_image < images)[:, None])
    result = activate(products, slope, ACTIVATION).to(y.dtype)
    y.store(to, result.T.reshape(y.block_shape))
    if statistics is not None:
        # always true: without a branch, ptxas moves the rounding to float16 into the pipeline and serializes wgmma
        if tiles > 0:
            valid = (tl.arange(0, BN) < (images - image) * (BOX[1] * BOX[2])) | WHOLE  # images are the slowest axis
            count, mean, m2 = moments(result.T.to(tl.float32), valid[:, None])
            groups, phases = tl.num_programs(0) // tiles, tl.num_programs(2)
            finish_statistics(count, mean, m2, statistics, group, groups, tile * phases + phase, tiles * phases,
                              channels, CO)


@triton.jit(do_not_specialize=["each", "blocks"])
def wgrad_tma_kernel(
    coarse, fine,  # [N * H * W, CO], [N, H, 2, W, 2 CI]
    gw,  # [CO, 4, 4, CI]; without tickets the partial sums, [SPLIT, CO, 4, 4, CI]
    partials, tickets,  # [SPLIT, CO, 4, 4, CI], an int32 for each row and column block; or None
    each, blocks,  # depth blocks of one program, and of all programs
    H: tl.constexpr, W: tl.constexpr, CONV: tl.constexpr, PRECISION: tl.constexpr, BOX: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PDL: tl.constexpr,
):
    """Grid (row blocks, tap x column blocks, SPLIT). A program computes BM x BN of gw from `each` boxes of BK pixels.
    With tickets, the last of SPLIT programs to finish adds all their partial sums in order."""
    begin(PDL)
    CI: tl.constexpr = CONV.CI
    row, split = tl.program_id(0) * BM, tl.program_id(2)
    per_tap: tl.constexpr = CI // BN
    tap, column = tl.program_id(1) // per_tap, tl.program_id(1) % per_tap * BN
    kh, kw = tap // 4, tap % 4
    products = tl.zeros((BM, BN), tl.float32)
    for block in range(split * each, tl.minimum(split * each + each, blocks)):
        n, h, w = place(block, H // BOX[1], W // BOX[2], BOX)
        a = coarse.load([block * BK, row])  # [BK, BM]
        box = fine.load([n, h + (kh + 1) // 2 - 1, (kh + 1) % 2, w + (kw + 1) // 2 - 1, (kw + 1) % 2 * CI + column])
        products = tl.dot(a.T, box.reshape(BK, BN), products, input_precision=PRECISION)
    rows, columns = row + tl.arange(0, BM), tap * CI + column + tl.arange(0, BN)
    size: tl.constexpr = CONV.CO * 16 * CI
    out = rows[:, None] * (16 * CI) + columns[None, :]  # [BM, BN]
    if tickets is None:
        tl.store(gw + split.to(tl.int64) * size + out, products.to(gw.dtype.element_ty))
    else:
        tl.store(partials + split.to(tl.int64) * size + out, products)
        ticket = tickets + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
        if last_arrival(ticket, tl.num_programs(2)):
            at = partials + out
            total = tl.load(at)
            for _ in range(1, tl.num_programs(2)):
                at += size
                total += tl.load(at)
            tl.store(gw + out, total.to(gw.dtype.element_ty))


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, conv: ConvSpec, size: tuple[int, int], *,
             activation: Activation = IDENTITY, masked: bool = False, groups: int = 0,
             precision: str = "ieee") -> ConvResult | None:
    """Same as `gemm_pointer.convolve`; None if these kernels do not support the arguments."""
    n, h, w, ci = x.shape
    co, fine = weight.shape[3 if conv.transposed else 0], size if conv.transposed else (h, w)
    if not _fits(weight.shape[1:3], conv.stride, conv.padding, fine, (ci, co), (x, weight), precision):
        return None
    (h, w), parts, phases = (fine[0] // 2, fine[1] // 2), max(groups, 1), 4 if conv.transposed else 1
    images = n // parts
    tile = described("convolve", architecture(x.device), rows=co, columns=n * h * w * phases, depth=ci,
                     size=x.element_size())
    box = _box(tile.columns, images, h, w) if tile else None
    if tile is None or box is None or ci % tile.depth or (conv.transposed and parts > 1 and images % box[0]):
        return None  # descriptors have at most five axes: none is left for the groups of a transposed result
    bm, bn, bk = tile.rows if co % tile.rows == 0 else _CHANNELS, tile.columns, tile.depth
    y = x.new_empty((n, *size, co))
    mask = y.new_empty(y.numel() // 8, dtype=torch.uint8) if masked else None
    tiles = triton.cdiv(images, box[0]) * (h // box[1]) * (w // box[2])
    statistics = reduction(y, 3, groups, tiles * phases, co, co // bm) if groups else None
    coarse_box, fine_box = box, (box[0], box[1], 1, box[2])
    if conv.transposed:
        given = _describe(x, (n, h, w, ci), (*coarse_box, bk)), _describe(weight, (ci, 16 * co), (bk, bm))
        shape, stored = (n, h, 2, w, 2 * co), (*fine_box, bm)
    else:
        given = _describe(x, (n, h, 2, w, 2 * ci), (*fine_box, bk)), _describe(weight, (co, 16 * ci), (bm, bk))
        shape, stored = (parts, images, h, w, co), (1, *coarse_box, bm)
    launch(
        convolve_tma_kernel, (parts * tiles, co // bm, phases), tile, x=given[0], weight=given[1], bias=bias,
        y=_describe(y, shape, stored), mask=mask,
        statistics=statistics, images=images, tiles=tiles, down=h // box[1], across=w // box[2],
        slope=float(activation.negative_slope), CONV=Conv(ci, co, 4, 4, 2, 2, 1, 1, conv.transposed),
        ACTIVATION=activation.name, PRECISION=precision, WHOLE=images % box[0] == 0, BOX=box, BM=bm, BN=bn, BK=bk)
    return ConvResult(y, mask, None if statistics is None else statistics.result)


def wgrad(coarse: Tensor, fine: Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int],
          dtype: torch.dtype, *, precision: str = "ieee") -> Tensor | None:
    """Same as `wgrad_pointer.wgrad`; None if these kernels do not support the arguments."""
    n, h, w, a = coarse.shape
    b, arch = fine.shape[3], architecture(coarse.device)
    if not _fits(kernel, stride, padding, fine.shape[1:3], (a, b), (coarse, fine), precision):
        return None
    tile = described("wgrad", arch, rows=a, columns=16 * b, depth=n * h * w, size=coarse.element_size())
    box = _box(tile.depth, n, h, w) if tile else None
    # coarse, the first operand, is read as rows of a matrix, so the pixels of a box must be contiguous in it
    if tile is None or box is None or box[2] != w or (box[1] != h and box[0] > 1):
        return None
    bm, bn = (side if channels % side == 0 else _CHANNELS for channels, side in ((a, tile.rows), (b, tile.columns)))
    grid, blocks = (a // bm, 16 * (b // bn)), triton.cdiv(n * h * w, tile.depth)
    tile = tile._replace(warps=max(4, tile.warps * bm * bn // (tile.rows * tile.columns)))
    # one program of 8 warps per multiprocessor: two would leave twice as many partial sums
    each = triton.cdiv(blocks, max(1, min(blocks // 2, programs(arch) * 4 // tile.warps // (grid[0] * grid[1]))))
    split = triton.cdiv(blocks, each)
    together = 1 < split <= _TOGETHER
    sums = coarse.new_empty((split, a, 4, 4, b), dtype=dtype if split == 1 else torch.float32)
    gw = coarse.new_empty((a, 4, 4, b), dtype=dtype) if together else sums
    launch(
        wgrad_tma_kernel, (*grid, split), tile, coarse=_describe(coarse, (n * h * w, a), (tile.depth, bm)),
        fine=_describe(fine, (n, h, 2, w, 2 * b), (box[0], box[1], 1, box[2], bn)), gw=gw,
        partials=sums if together else None,
        tickets=tickets(coarse.device, grid[0] * grid[1]) if together else None, each=each, blocks=blocks, H=h, W=w,
        CONV=Conv(b, a, 4, 4, 2, 2, 1, 1, False), PRECISION=precision, BOX=box, BM=bm, BN=bn, BK=tile.depth)
    if split == 1:
        return gw[0]
    return gw if together else add_up(sums.view(split, -1), dtype).view(a, 4, 4, b)


def _fits(kernel: Any, stride: Any, padding: Any, fine: Any, channels: tuple[int, int], operands: tuple[Tensor, ...],
          precision: str) -> bool:
    """Whether these kernels support the geometry, channels, dtype and alignment."""
    return ((tuple(kernel), tuple(stride), tuple(padding)) == _FORM and fine[0] % 2 == fine[1] % 2 == 0
            and not any(count % _CHANNELS for count in channels) and operands[0].numel() > 0
            and (operands[0].element_size() == 2 or precision == "tf32")
            and not any(one.storage_offset() * one.element_size() % 16 for one in operands))


def _box(pixels: int, n: int, h: int, w: int) -> tuple[int, int, int] | None:
    """Images, rows and columns of a tile of `pixels` coarse pixels (a power of two) for n images; None if such tiles
    would cover more than WASTE times the pixels that tiles on pointers cover."""
    across = math.gcd(w, pixels)
    down = math.gcd(h, pixels // across)
    images, side = pixels // (across * down), covering(n * h * w, pixels)
    boxed, tiled = triton.cdiv(n, images) * images * h * w, triton.cdiv(n * h * w, side) * side
    return None if boxed > WASTE * tiled else (images, down, across)


def _describe(x: Tensor, shape: tuple[int, ...], box: tuple[int, ...]) -> TensorDescriptor:
    """A descriptor of contiguous x, viewed in another shape."""
    strides = [math.prod(shape[i + 1:]) for i in range(len(shape))]
    return TensorDescriptor(x, list(shape), strides, list(box))
