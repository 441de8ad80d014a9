"""Winograd's minimal filtering: both tiles, all passes, every instruction set, edge sizes, errors."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.ops import reference, torch_ops
from fastgan.ops.native import convolve, extension
from fastgan.ops.native import passes as native_passes
from fastgan.ops.native.convolve import TILES
from fastgan.ops.numerics import rms
from fastgan.ops.specs import ConvSpec
from tests.near import EPS, UNITS, used
from tests.test_native_rows import isa  # noqa: F401 (a fixture)

pytestmark = pytest.mark.usefixtures("poisoned")

# (N, Ci, H, W), Co, padding, output_padding
CASES = {
    "a side that no tile fills": ((4, 5, 10, 9), 7, (1, 1), (0, 0)),
    "pixels that no tile reaches": ((6, 3, 8, 8), 40, (2, 0), (1, 1)),
    "wider than a vector": ((2, 33, 7, 12), 3, (1, 2), (0, 1)),
    "several blocks": ((20, 16, 16, 24), 48, (1, 1), (0, 0)),
    "one pixel": ((2, 64, 4, 4), 32, (0, 0), (0, 0)),
    "cropped": ((4, 16, 6, 6), 16, (1, 1), (-1, 0)),
    "a weight that no cache keeps": ((130, 330, 4, 4), 360, (1, 1), (0, 0)),  # and more tiles than fit with it
}
LARGE = "a weight that no cache keeps"
each_case = pytest.mark.parametrize(
    ("case", "transposed"), [(case, transposed) for case in CASES for transposed in (False, True)
                             if case != LARGE and (transposed or case != "cropped")])
each_tile = pytest.mark.parametrize("variant", TILES)


def draw(case: str, transposed: bool) -> tuple[Tensor, Tensor, Tensor, ConvSpec]:
    """x, weight, bias and the convolution."""
    torch.manual_seed(0)
    shape, co, padding, output_padding = CASES[case]
    weight = torch.randn(*((shape[1], co) if transposed else (co, shape[1])), 4, 4)
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    return x, weight, torch.randn(co), ConvSpec((2, 2), padding, output_padding, transposed)


def passes_of(engine: ModuleType, x: Tensor, weight: Tensor, bias: Tensor, conv: ConvSpec,
              **variant: str) -> dict[str, Tensor]:
    """The results of an engine's convolution passes for the same inputs."""
    y, _ = engine.conv_forward(x, weight, bias, conv, 0, **variant)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype)
    return {"y": y, "gx": engine.dgrad(g, x, weight, conv, **variant),
            "gweight": engine.wgrad(g, x, weight, conv, **variant)}


@each_tile
@each_case
def test_every_pass(case, transposed, variant, isa):  # noqa: F811
    check_passes(*draw(case, transposed), variant)


@each_tile
@pytest.mark.parametrize("transposed", [False, True], ids=["convolution", "transposed"])
def test_by_panels_of_the_weight(transposed, variant):
    check_passes(*draw(LARGE, transposed), variant)


def check_passes(x: Tensor, weight: Tensor, bias: Tensor, conv: ConvSpec, variant: str) -> None:
    """Errors are within the limit relative to those of PyTorch's operators."""
    found = passes_of(native_passes, x, weight, bias, conv, variant=variant)
    eager = passes_of(reference, x, weight, bias, conv)
    exact = passes_of(reference, x.double(), weight.double(), bias.double(), conv)
    for name, value in exact.items():
        assert used(found[name], eager[name], value, UNITS * EPS[torch.float32] * value.abs().max().item()) <= 1, name


@each_tile
def test_an_error_is_that_of_the_definition_summed_term_by_term(variant):
    torch.manual_seed(0)
    x = torch.randn(8, 128, 16, 16).contiguous(memory_format=torch.channels_last)
    weight, conv = torch.randn(256, 128, 4, 4), ConvSpec((2, 2), (1, 1))
    exact = torch_ops.convolve(x.double(), weight.double(), None, conv)
    columns = torch.nn.functional.unfold(x, 4, padding=1, stride=2)  # (N, Ci * 16, Ho * Wo)
    chain = torch.zeros(8, 256, 64)
    for term, taps in zip(columns.unbind(1), weight.flatten(1).unbind(1), strict=True):
        chain += taps[:, None] * term[:, None]
    found = convolve.forward(x, weight, None, conv, variant)
    error, chained = (rms(y - exact) for y in (found, chain.view_as(exact)))
    assert error < (0.5 if variant == "winograd-2x2" else 1.0) * chained


@each_tile
@pytest.mark.parametrize("transposed", [False, True])
def test_threads_change_no_bit(transposed, variant):
    given = draw("several blocks", transposed)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(passes_of(native_passes, *given, variant=variant))
    torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(result[name], value) for name, value in results[0].items())


@each_tile
@pytest.mark.parametrize("transposed", [False, True])
def test_a_bias_may_be_a_slice(transposed, variant):
    x, weight, bias, conv = draw("wider than a vector", transposed)
    sliced = torch.stack([bias, torch.full_like(bias, torch.nan)], 1)[:, 0]
    one, other = (convolve.forward(x, weight, each, conv, variant) for each in (bias, sliced))
    assert torch.equal(one, other)


@pytest.mark.parametrize(("dtype", "kernel", "stride"), [
    (torch.bfloat16, 4, (2, 2)), (torch.float32, 3, (2, 2)), (torch.float32, 4, (2, 1))])
def test_refused_for_other_convolutions(dtype, kernel, stride):
    x, weight = torch.zeros(1, 16, 8, 8, dtype=dtype), torch.zeros(5, 16, kernel, kernel, dtype=dtype)
    with pytest.raises(FastganError, match="variant 'winograd-2x2': expected one of library, gemm here"):
        convolve.forward(x, weight, None, ConvSpec(stride, (1, 1)), "winograd-2x2")


@pytest.mark.parametrize(("given", "message"), [
    ({"tile": 3}, "tile 3: expected 0, 2 or 4"),
    ({"images": 0}, "images 0: expected 1 or more"),
    ({"fine": (4, 0, 3)}, "fine, coarse 0: expected 1 or more"),
    ({"kernel": (4, 3)}, "kernel 3: expected 4"),
    ({"stride": (1, 2)}, "stride 1: expected 2"),
    ({"tile": 0, "stride": (0, 2)}, "stride 0: expected 1 or more"),
    ({"padding": (-1, 0)}, "padding -1: expected 0 or more"),
    ({"x": 0}, "from: expected an address, got null"),
    ({"x": 6}, "from: expected an address divisible by 4"),
])
def test_numbers_are_checked_once_more(given, message):
    numbers = {"tile": 2, "images": 1, "fine": (4, 4, 3), "coarse": (2, 2, 5), "kernel": (4, 4), "stride": (2, 2),
               "padding": (1, 1), "x": 64, **given}
    x = numbers.pop("x")
    with pytest.raises(ValueError, match=message):
        extension.of(torch.device("cpu")).to_coarse(convolve.Geometry(**numbers), x, 64, None, 64, 1)
