"""Heads by themselves, on the CPU: every instruction set, groups, blocks of images, lines of any length, refusals."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fastgan import _cpu
from fastgan.errors import FastganError
from fastgan.ops import reference
from fastgan.ops.layers import ACTIVATIONS, Activation, Convolution, Norm, Owed
from fastgan.ops.native import convolve, head
from tests.near import EPS, MARGIN, SUM_UNITS, UNITS, rms

pytestmark = pytest.mark.usefixtures("one_thread", "poisoned")

# (N, C, H, W), Co, groups
CASES = [((6, 512, 4, 4), 1, 2), ((34, 3, 5, 7), 4, 2), ((1, 257, 1, 3), 2, 1), ((40, 1, 2, 2), 3, 1),
         ((51, 100, 4, 4), 1, 3)]
each_case = pytest.mark.parametrize(("shape", "outputs", "groups"), CASES, ids=str)
each_dtype = pytest.mark.parametrize("dtype", EPS, ids=lambda dtype: str(dtype).removeprefix("torch."))


@pytest.fixture(params=_cpu.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _cpu.isa()
    _cpu.use(request.param)
    yield request.param
    _cpu.use(before)


def draw(shape: tuple[int, ...], outputs: int, groups: int, dtype: torch.dtype,
         activation: str = "leaky_relu") -> tuple[Tensor, Tensor, Owed, Convolution]:
    """x and the gradient of y, both [N, ., ., .], what is owed to x, and the convolution."""
    torch.manual_seed(0)
    n, channels, *size = shape
    statistics = torch.stack([torch.randn(groups, channels), torch.rand(groups, channels) + 0.5])
    owed = Owed(statistics, torch.rand(channels) + 0.5, torch.randn(groups, channels), Activation(activation, 0.2))
    convolution = Convolution(torch.randn(outputs, channels, *size).to(dtype), torch.randn(outputs).to(dtype), (1, 1),
                              (0, 0))
    return torch.randn(n, *size, channels).to(dtype), torch.randn(n, 1, 1, outputs).to(dtype), owed, convolution


def passes(x: Tensor, g: Tensor, owed: Owed, convolution: Convolution, variant: str) -> dict[str, Tensor]:
    return {"y": convolve.forward(x, owed, convolution, variant), "ga": convolve.dgrad(g, x, convolution, variant),
            "gweight": convolve.wgrad(g, x, owed, convolution, variant)}


def definition(x: Tensor, g: Tensor, owed: Owed, convolution: Convolution, dtype: torch.dtype) -> dict[str, Tensor]:
    """The same by PyTorch, in `dtype`."""
    x, g, convolution = x.to(dtype), g.to(dtype), convolution._replace(
        weight=convolution.weight.to(dtype), bias=convolution.bias.to(dtype))
    if owed.statistics is None:
        a = reference.activate(convolve.nchw(x), owed.activation)
    else:
        wide = [part.to(reference.statistics_dtype(dtype)) for part in (*owed.statistics, owed.gamma, owed.beta)]
        a = reference.normalise_activate(convolve.nchw(x), Norm(*wide), owed.activation)
    ga, gweight, _ = reference.convolve_backward(convolve.nchw(g), a, convolution, (True, True, False))
    return {"y": convolve.nhwc(reference.convolve(a, convolution)), "ga": convolve.nhwc(ga), "gweight": gweight}


def judge(x: Tensor, g: Tensor, owed: Owed, convolution: Convolution) -> None:
    found = passes(x, g, owed, convolution, "head")
    eager, exact = (definition(x, g, owed, convolution, dtype) for dtype in (x.dtype, torch.float64))
    for name, value in exact.items():
        assert found[name].shape == value.shape and found[name].dtype == x.dtype, name
        terms = {"y": x[0].numel(), "ga": g.shape[3], "gweight": len(x)}[name]
        units = max(UNITS, SUM_UNITS * terms**0.5) * EPS[x.dtype] * value.abs().max().item()
        assert rms(found[name] - value) <= MARGIN * rms(eager[name] - value) + units, name


@each_case
@each_dtype
def test_passes(isa, dtype, shape, outputs, groups):
    judge(*draw(shape, outputs, groups, dtype))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", [True, False], ids=["norm", "no-norm"])
@each_dtype
def test_what_is_owed(isa, dtype, activation, norm):
    x, g, owed, convolution = draw((6, 40, 3, 3), 1, 2, dtype, activation)
    judge(x, g, owed if norm else Owed(activation=owed.activation), convolution)


@each_dtype
def test_threads_change_no_bit(isa, dtype):
    given = draw((34, 300, 4, 4), 2, 2, dtype)
    one = passes(*given, "head")
    torch.set_num_threads(3)
    assert all(torch.equal(a, b) for a, b in zip(one.values(), passes(*given, "head").values(), strict=True))


def test_no_images(isa):
    found = passes(*draw((0, 20, 4, 4), 1, 1, torch.float32), "head")
    assert found["y"].shape == (0, 1, 1, 1) and found["ga"].shape == (0, 4, 4, 20) and not found["gweight"].any()


def test_which_convolutions_are_heads():
    plain = ((4, 4), (1, 512, 4, 4), (0, 0), (0, 0), False)
    assert head.applies(*plain)
    for place, other in enumerate([(4, 5), (5, 512, 4, 4), (0, 1), (1, 0), True]):
        assert not head.applies(*plain[:place], other, *plain[place + 1:])


def test_default_on_a_cpu_and_a_candidate_on_a_gpu():
    x, _, owed, convolution = draw((2, 20, 4, 4), 1, 1, torch.float32)
    of_a_stage = ("forward", "dgrad", "wgrad")
    assert {convolve.default(each, convolve.nchw(x), convolution) for each in of_a_stage} == {"head"}
    assert convolve.variants("cuda", torch.float32, (1, 20, 4, 4), (1, 1), True) == ("library", "head")
    assert "head" not in convolve.variants("cpu", torch.float32, (1, 20, 4, 4), (1, 1), False)
    with pytest.raises(FastganError, match="variant 'head': expected one of library, gemm here"):
        convolve.forward(x, owed, convolution._replace(padding=(1, 1)), "head")


@pytest.mark.parametrize(("place", "value", "message"), [
    (2, -1, "images -1: expected 0 or more"), (2, 2**62, r"images \d+: expected 0 or more, whose pixels"),
    (3, 0, "pixels 0: expected 1 or more"), (4, 0, "channels 0: expected 1 or more"),
    (5, 0, "outputs 0: expected 1 to 4"), (5, 5, "outputs 5: expected 1 to 4"), (6, 0, "weight: expected an address"),
    (7, 2, "ga: expected an address divisible by 4")])
def test_refused_once_more_below(place, value, message):
    g, weight, ga = torch.zeros(2, 1), torch.zeros(1, 12), torch.zeros(2, 12)
    given = [g.data_ptr(), 0, 2, 4, 3, 1, weight.data_ptr(), ga.data_ptr(), 1]
    _cpu.head_dgrad(*given)
    given[place] = value
    with pytest.raises(ValueError, match=message):
        _cpu.head_dgrad(*given)
