"""Winograd's minimal filtering by itself: both tiles, all passes, every instruction set, edges, refusals."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fastgan import _cpu
from fastgan.errors import FastganError
from fastgan.ops import reference
from fastgan.ops.layers import Activation, Convolution, Measurement, Owed
from fastgan.ops.native import convolve, engine
from fastgan.ops.native.winograd import TILES
from tests.near import EPS, MARGIN, SUM_UNITS, UNITS, rms

pytestmark = pytest.mark.usefixtures("poisoned")

# (N, Ci, H, W), Co, padding, output_padding
CASES = {
    "a side that no tile fills": ((4, 5, 10, 9), 7, (1, 1), (0, 0)),
    "pixels that no tile reaches": ((6, 3, 8, 8), 40, (2, 0), (1, 1)),
    "wider than a vector": ((2, 33, 7, 12), 3, (1, 2), (0, 1)),
    "several blocks": ((20, 16, 16, 24), 48, (1, 1), (0, 0)),
    "one pixel": ((2, 64, 4, 4), 32, (0, 0), (0, 0)),
    "cropped": ((4, 16, 6, 6), 16, (1, 1), (-1, 0)),
    "a weight that no cache keeps": ((130, 330, 4, 4), 360, (1, 1), (0, 0)),  # and more tiles than go with it
}
LARGE = "a weight that no cache keeps"
each_case = pytest.mark.parametrize(
    ("case", "transposed"), [(case, transposed) for case in CASES for transposed in (False, True)
                             if case != LARGE and (transposed or case != "cropped")])
each_tile = pytest.mark.parametrize("variant", TILES)


@pytest.fixture(params=_cpu.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _cpu.isa()
    _cpu.use(request.param)
    yield request.param
    _cpu.use(before)


def draw(case: str, transposed: bool, activation: str, groups: int) -> tuple[Tensor, Owed, Convolution]:
    torch.manual_seed(0)
    shape, co, padding, output_padding = CASES[case]
    ci = shape[1]
    statistics = torch.stack([torch.randn(groups, ci), torch.rand(groups, ci) + 0.5])
    owed = Owed(activation=Activation(activation, 0.2)) if activation == "none" else Owed(
        statistics, torch.rand(ci) + 0.5, torch.randn(groups, ci), Activation(activation, 0.2))
    weight = torch.randn(*((ci, co) if transposed else (co, ci)), 4, 4)
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    return x, owed, Convolution(weight, torch.randn(co), (2, 2), padding, output_padding, transposed)


def passes(x: Tensor, owed: Owed, convolution: Convolution, groups: int, variant: str) -> dict[str, Tensor]:
    """What a stage and its gradients give."""
    y, statistics = engine.stage(x, owed, convolution, groups, Measurement(1e-5), True, variant=variant)
    torch.manual_seed(1)
    gy, gstatistics = torch.randn_like(y), torch.randn_like(statistics)
    gx, gweight, _, gnorm = engine.stage_backward(gy, gstatistics, y, statistics, x, owed, convolution, "rstd", True,
                                                  (True,) * 4, variants=(variant, variant))
    return {"y": y, "statistics": statistics, "gx": gx, "gweight": gweight, "gnorm": gnorm}


def definition(found: dict[str, Tensor], x: Tensor, owed: Owed, convolution: Convolution,
               dtype: torch.dtype) -> dict[str, Tensor]:
    """The same in `dtype`; gradients from the y and the statistics that were found."""
    torch.manual_seed(1)
    gy, gstatistics = torch.randn_like(found["y"]).to(dtype), torch.randn_like(found["statistics"]).to(dtype)
    x, y, statistics = (tensor.to(dtype) for tensor in (x, found["y"], found["statistics"]))
    owed = Owed(*(None if part is None else part.to(dtype) for part in owed[:3]), owed.activation)
    weight, bias, *geometry = convolution
    assert bias is not None
    convolution = Convolution(weight.to(dtype), bias.to(dtype), *geometry)
    gx, gweight, _, gnorm = reference.stage_backward(gy, gstatistics, y, statistics, x, owed, convolution, "rstd",
                                                     (True,) * 4)
    return {"y": reference.stage(x, reference.known(owed), owed.activation, convolution), "gx": gx,
            "gweight": gweight, "gnorm": gnorm}


@each_tile
@each_case
@pytest.mark.parametrize(("activation", "groups"), [("relu", 2), ("leaky_relu", 1), ("tanh", 2), ("none", 1)])
def test_every_pass(case, transposed, activation, groups, variant, isa):
    check(case, transposed, activation, groups, variant)


@each_tile
@pytest.mark.parametrize("transposed", [False, True], ids=["convolution", "transposed"])
def test_by_panels_of_the_weight(transposed, variant):
    check(LARGE, transposed, "leaky_relu", 2, variant)


def check(case: str, transposed: bool, activation: str, groups: int, variant: str) -> None:
    check_passes(*draw(case, transposed, activation, groups), groups, variant)


def check_passes(x: Tensor, owed: Owed, convolution: Convolution, groups: int, variant: str) -> None:
    """As near to float64 as PyTorch's operators."""
    found = passes(x, owed, convolution, groups, variant)
    exact = definition(found, x, owed, convolution, torch.float64)
    eager = definition(found, x, owed, convolution, torch.float32)
    for name, value in exact.items():
        if not value.numel():
            continue
        units = max(UNITS, SUM_UNITS * math.sqrt(x.numel() // x.shape[1])) if name == "gnorm" else UNITS
        allowed = MARGIN * rms(eager[name] - value) + units * EPS[torch.float32] * value.abs().max().item()
        assert rms(found[name] - value) <= allowed, name


@each_tile
def test_an_error_is_that_of_the_definition_summed_term_by_term(variant):
    torch.manual_seed(0)
    x = torch.randn(8, 128, 16, 16).contiguous(memory_format=torch.channels_last)
    convolution = Convolution(torch.randn(256, 128, 4, 4), None, (2, 2), (1, 1))
    exact = reference.convolve(x.double(), convolution._replace(weight=convolution.weight.double()))
    columns = torch.nn.functional.unfold(x, 4, padding=1, stride=2)  # (N, Ci * 16, Ho * Wo)
    chain = torch.zeros(8, 256, 64)
    for term, taps in zip(columns.unbind(1), convolution.weight.flatten(1).unbind(1), strict=True):
        chain += taps[:, None] * term[:, None]
    found = convolve.forward(convolve.nhwc(x), Owed(), convolution, variant)
    error, chained = (rms(y - exact) for y in (convolve.nchw(found), chain.view_as(exact)))
    assert error < (0.5 if variant == "winograd-2x2" else 1.0) * chained


@each_tile
@pytest.mark.parametrize("transposed", [False, True])
def test_threads_change_no_bit(transposed, variant):
    given = draw("several blocks", transposed, "relu", 2)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(passes(*given, 2, variant))
    torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(result[name], value) for name, value in results[0].items())


@each_tile
@pytest.mark.parametrize("transposed", [False, True])
def test_a_bias_may_be_a_slice(transposed, variant):
    x, owed, convolution = draw("wider than a vector", transposed, "relu", 1)
    assert convolution.bias is not None
    sliced = torch.stack([convolution.bias, torch.full_like(convolution.bias, torch.nan)], 1)[:, 0]
    one, other = (convolve.forward(convolve.nhwc(x), owed, convolution._replace(bias=bias), variant)
                  for bias in (convolution.bias, sliced))
    assert torch.equal(one, other)


@pytest.mark.parametrize(("dtype", "kernel", "stride"), [
    (torch.bfloat16, 4, (2, 2)), (torch.float32, 3, (2, 2)), (torch.float32, 4, (2, 1))])
def test_refused_for_other_convolutions(dtype, kernel, stride):
    x, convolution = torch.zeros(1, 8, 8, 16, dtype=dtype), Convolution(
        torch.zeros(5, 16, kernel, kernel, dtype=dtype), None, stride, (1, 1))
    with pytest.raises(FastganError, match="variant 'winograd-2x2': expected one of library, gemm here"):
        convolve.forward(x, Owed(), convolution, "winograd-2x2")


NOTHING = (0, 1, 0, 0, 1, 0, 0.0)


@pytest.mark.parametrize(("given", "message"), [
    ({"tile": 3}, "tile 3: expected 2 or 4"),
    ({"images": 0}, "images 0: expected 1 or more"),
    ({"fine": (4, 0, 3)}, "fine, coarse 0: expected 1 or more"),
    ({"padding": (-1, 0)}, "padding -1: expected 0 or more"),
    ({"x": 0}, "x: expected an address, got null"),
    ({"x": 6}, "x: expected an address divisible by 4"),
    ({"owed": (0, 1, 0, 0, 1, 3, 0.0)}, "activation 3: expected 0, 1 or 2, not tanh"),
    ({"owed": (64, 2, 64, 64, 1, 1, 0.0)}, "groups 2: expected a divisor of the 1 images"),
])
def test_numbers_are_checked_once_more(given, message):
    arguments = {"tile": 2, "images": 1, "fine": (4, 4, 3), "coarse": (2, 2, 5), "padding": (1, 1), "x": 64,
                 "owed": NOTHING, "weight": 64, "bias": 0, "out": 64, "queue": 1, **given}
    with pytest.raises(ValueError, match=message):
        _cpu.winograd_gather(*arguments.values())
