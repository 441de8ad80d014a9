"""4x4 convolutions of stride 2 on tensor descriptors, in Triton's interpreter against float64, and unsupported cases.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastgan.ops.numerics import PRECISIONS, products
from fastgan.ops.triton import gemm_descriptor, passes, tiles
from fastgan.ops.triton.tiles import Tile
from tests.test_kernel_tiles import flags, seen  # noqa: F401
from tests.test_kernels import judge_block
from tests.test_ops import each_kind

pytestmark = pytest.mark.usefixtures("one_thread", "poisoned")

TMA = {"convolve tma": Tile(64, 32, 64), "wgrad tma": Tile(64, 64, 32)}
KERNELS = {"convolve_tma_kernel", "wgrad_tma_kernel"}


def case_of(transposed: bool, *, batch: int = 4, side: int = 4, ci: int = 64, co: int = 128,
            kernel: tuple[int, int] = (4, 4), bias: bool = True, groups: int = 2) -> tuple[Any, ...]:
    """A case; side: of the coarse image."""
    fine = side if transposed else 2 * side
    return (batch, ci, fine, fine), co, kernel, 2, 1, 0, bias, groups


@each_kind
@pytest.mark.parametrize(("precision", "summed"), [("fp16", "in the launch"), ("tf32", "after it")])
def test_block(precision, summed, transposed, seen, monkeypatch):  # noqa: F811
    """Two statistic groups, boxes of two images, two blocks of input and output channels, a split weight gradient."""
    monkeypatch.setattr(gemm_descriptor, "programs", lambda arch: 1000)
    if summed == "after it":
        monkeypatch.setattr(gemm_descriptor, "_TOGETHER", 1)
    with tiles.using(**TMA), products("tf32" if precision == "tf32" else "fp32"):
        judge_block("triton", case_of(transposed, batch=8), transposed, "leaky_relu", PRECISIONS[precision].dtype)
    assert {launched for launched, _, _ in seen} >= KERNELS
    assert max(grid[2] for launched, grid, _ in seen if launched == "wgrad_tma_kernel") == 2
    assert any(launched == "sum_kernel" for launched, _, _ in seen) == (summed == "after it")


@each_kind
@pytest.mark.parametrize("side", [8, 6], ids=["rows-of-an-image", "boxes-of-2x2"])
def test_boxes(side, transposed, seen):  # noqa: F811
    """Boxes of a part of an image, or of parts of many images; then the weight gradient is computed on pointers."""
    with tiles.using(**TMA):
        case = case_of(transposed, batch=8, side=side, co=64, bias=False)
        judge_block("triton", case, transposed, "relu", torch.float16)
    names = {launched for launched, _, _ in seen}
    assert "convolve_tma_kernel" in names and ("wgrad_tma_kernel" in names) == (side == 8)


@each_kind
@pytest.mark.parametrize(("batch", "groups"), [(9, 3), (3, 1)])
def test_groups_that_end_within_a_box(batch, groups, transposed, seen):  # noqa: F811
    """Boxes of two images: half of the last one of a group is in the next group, or out of bounds. A transposed result
    has no axis for groups, and is computed on pointers if there are several."""
    with tiles.using(**TMA):
        case = case_of(transposed, batch=batch, groups=groups)
        judge_block("triton", case, transposed, "leaky_relu", torch.float16)
    taken = [launched for launched, _, _ in seen if launched in KERNELS]
    assert taken.count("convolve_tma_kernel") == (1 if transposed and groups > 1 else 2)
    assert "wgrad_tma_kernel" in taken and (False in flags(seen, "convolve_tma_kernel", "WHOLE"))


@each_kind
@pytest.mark.parametrize("activation", ["tanh", "leaky_relu"])  # the first saves its result, the second a mask
def test_without_normalization(activation, transposed, seen):  # noqa: F811
    with tiles.using(**TMA):
        case = case_of(transposed, batch=3, groups=1)
        judge_block("triton", case, transposed, activation, torch.float16, norm=False, training=False)
    assert {launched for launched, _, _ in seen} >= KERNELS
    assert flags(seen, "convolve_tma_kernel", "ACTIVATION") == {activation, "none"}
    masks = [arguments["mask"] for launched, _, arguments in seen if launched == "convolve_tma_kernel"]
    assert (masks[0] is not None) == (activation == "leaky_relu") and masks[1] is None


@each_kind
@pytest.mark.parametrize("change", [
    {"batch": 1, "groups": 1}, {"ci": 32}, {"co": 96}, {"kernel": (4, 2)}], ids=lambda change: next(iter(change)))
def test_what_does_not_fit_is_computed_on_pointers(change, transposed, seen):  # noqa: F811
    with tiles.using(**TMA):
        judge_block("triton", case_of(transposed, **change), transposed, "none", torch.float16)
    assert not KERNELS & {launched for launched, _, _ in seen}


def test_float32_to_its_last_bit_and_views_that_are_not_aligned_are_computed_on_pointers():
    x, weight = torch.zeros(4, 8, 8, 64), torch.zeros(64, 4, 4, 64)
    conv = passes.ConvSpec((2, 2), (1, 1))

    def fits(x: torch.Tensor, precision: str) -> bool:
        return gemm_descriptor.convolve(x, weight, None, conv, (4, 4), precision=precision) is not None

    with tiles.using(**TMA):
        assert fits(x, "tf32") and not fits(x, "ieee")
        assert not fits(torch.zeros(x.numel() + 1)[1:].view(x.shape), "tf32")
    assert not fits(x, "tf32")  # the interpreter has no tile for descriptors


def test_a_tile_for_pointers_is_taken_on_pointers():
    problem = {"rows": 128, "columns": 8192, "depth": 64, "size": 2}
    assert tiles.described("convolve", 90, **problem) and not tiles.described("convolve", 80, **problem)
    with tiles.using(convolve=Tile(64, 64, 64)):
        assert tiles.described("convolve", 90, **problem) is None
