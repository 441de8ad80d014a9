"""Each kernel with tiles of many sizes, its reductions separately, and random shapes."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import triton
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastgan.ops import tickets
from fastgan.ops.specs import Activation, ConvSpec
from fastgan.ops.torch_ops import pack_bits
from fastgan.ops.triton import fence, launch, normalize, passes, reduce, tiles, wgrad_pointer
from fastgan.ops.triton.tiles import Tile
from tests.near import run
from tests.test_kernel_gradients import LAUNCHING
from tests.test_kernels import ACTIVATIONS, block_of, draw, judge_block
from tests.test_ops import each_kind

pytestmark = pytest.mark.usefixtures("one_thread", "poisoned")

WIDE = ((2, 19, 4, 3), 21, (2, 3), 2, 1, 1, True, 2)  # several blocks of 16 in each dimension
IMAGE = ((2, 5, 6, 5), 7, (3, 3), 2, 1, 0, False, 2)  # several rows of a window in a block
FOLDED = ((2, 19, 4, 3), 3, (4, 2), 2, (1, 0), 1, True, 1)  # transposed: phases are columns, some outside of the image
LOGIT = ((4, 19, 3, 4), 1, (3, 3), 1, 0, 0, True, 2)
PIXEL = ((6, 19, 1, 1), 5, (2, 3), 1, 0, 0, False, 2)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}  # the interpreter computes bfloat16 wrongly


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[int, ...], dict[str, Any]]]:
    """Kernel, grid and arguments of each launch."""
    launches: list[tuple[str, tuple[int, ...], dict[str, Any]]] = []

    def record(kernel: Any, grid: tuple[int, ...], tile: Tile, **arguments: Any) -> None:
        launches.append((kernel.fn.__name__, grid, arguments))
        launch.launch(kernel, grid, tile, **arguments)

    for module in LAUNCHING:
        monkeypatch.setattr(module, "launch", record)
    return launches


def flags(seen: list[Any], kernel: str, name: str) -> set[Any]:
    return {arguments[name] for launched, _, arguments in seen if launched == kernel}


@each_kind
@pytest.mark.parametrize(("case", "tile"), [
    pytest.param(WIDE, Tile(16, 16, 16), id="wide-16x16x16"),
    pytest.param(IMAGE, Tile(32, 16, 64), id="image-32x16x64"),
    pytest.param(IMAGE, Tile(16, 64, 32), id="image-16x64x32")])
def test_tiles(case, tile, transposed, seen, monkeypatch):
    monkeypatch.setattr(wgrad_pointer, "programs", lambda arch: 1000)
    monkeypatch.setattr(normalize, "programs", lambda arch: 1000)
    monkeypatch.setattr(reduce, "FAN", 2)
    with tiles.using(convolve=tile, wgrad=tile, narrow=Tile(16, 2, 8), rows=Tile(4, 8, 1)):
        judge_block("triton", case, transposed, "relu", torch.float32)
        judge_block("triton", case, transposed, "leaky_relu", torch.float32, norm=False)
    assert {launched for launched, _, _ in seen} - {"sum_kernel"} == {
        "convolve_kernel", "wgrad_kernel", "bn_act_forward_kernel", "bn_backward_sums_kernel",
        "bn_backward_apply_kernel", "act_backward_kernel"}
    assert max(arguments["programs"] for launched, _, arguments in seen if launched == "bn_backward_sums_kernel") > 1
    if case == IMAGE:
        assert 0 not in flags(seen, "wgrad_kernel", "RUN")


@each_kind
@pytest.mark.parametrize("tile", [Tile(4, 1, 16), Tile(16, 4, 8)], ids=lambda t: "x".join(map(str, t)))
@pytest.mark.parametrize("case", [LOGIT, PIXEL], ids=["logit", "pixel"])
def test_narrow_tiles(case, tile, transposed, seen):
    if case == PIXEL and not transposed:
        case = ((6, 2, 3, 3), *PIXEL[1:])
    with tiles.using(narrow=tile):
        judge_block("triton", case, transposed, "leaky_relu", torch.float32)
    if case == LOGIT:
        assert True in flags(seen, "convolve_kernel", "NARROW")


def test_every_way_through_the_kernels_is_taken(seen):
    """Otherwise the tests above would cover less than they seem to."""
    with tiles.using(convolve=Tile(64, 64, 16), wgrad=Tile(64, 16, 64)):
        for case in (WIDE, IMAGE, LOGIT, FOLDED):
            for transposed in (False, True):
                judge_block("triton", case, transposed, "none", torch.float32, norm=case != FOLDED)
    assert flags(seen, "convolve_kernel", "NARROW") == flags(seen, "convolve_kernel", "FOLD") == {False, True}
    for kernel in ("convolve_kernel", "wgrad_kernel"):
        assert len(flags(seen, kernel, "RUN")) > 1 and 0 in flags(seen, kernel, "RUN")


def results(case: tuple[Any, ...], transposed: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    tensors = draw(case, transposed, norm=case != FOLDED)
    given = {key: t.to(dtype if key in ("x", "weight", "bias") else torch.float32) for key, t in tensors.items()}
    return run(block_of(case, transposed, "leaky_relu"), given, "triton")


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for key, value in one.items():
        assert torch.equal(value, other[key]), f"{key}: {(value - other[key]).abs().max()}"


@each_kind
@pytest.mark.parametrize("dtype", list(DTYPES.values()), ids=list(DTYPES))
def test_the_same_bits_each_time(dtype, transposed):
    assert_equal(results(WIDE, transposed, dtype), results(WIDE, transposed, dtype))


@each_kind
@pytest.mark.parametrize("case", [IMAGE, LOGIT, FOLDED], ids=["image", "logit", "folded"])
def test_the_same_bits_with_offsets_of_64_bits(case, transposed, monkeypatch):
    small = results(case, transposed, torch.float32)

    def large(kernel: Any, grid: tuple[int, ...], tile: Tile, **arguments: Any) -> None:
        if "LARGE" in arguments:
            arguments["LARGE"] = True
        launch.launch(kernel, grid, tile, **arguments)

    for module in LAUNCHING:
        monkeypatch.setattr(module, "launch", large)
    assert_equal(small, results(case, transposed, torch.float32))


@pytest.mark.parametrize("ratio", [0.0, 1e3])
@pytest.mark.parametrize(("rows", "tile"), [(1, 16), (7, 16), (40, 16), (300, 16)], ids=str)
@pytest.mark.parametrize("fan", [2, 32])
def test_statistics_of_many_programs(fan, rows, tile, ratio, monkeypatch):
    """In one block of parts or in many, and with a mean much larger than the deviation."""
    monkeypatch.setattr(reduce, "FAN", fan)
    torch.manual_seed(0)
    x, weight = torch.randn(2 * rows, 4, 3, 3), torch.randn(21, 4, 1, 1) * 0.5
    with tiles.using(convolve=Tile(tile, 16, 16)):
        y, statistics = passes.conv_forward(x, weight, torch.full((21,), ratio), ConvSpec(), 2)
    var, mean = torch.var_mean(y.double().unflatten(0, (2, -1)), (1, 3, 4), correction=0)
    torch.testing.assert_close(statistics[0].double(), mean, rtol=2**-20, atol=1e-5)
    torch.testing.assert_close(statistics[1].double(), var, rtol=2e-4, atol=0)  # means of parts are rounded


@pytest.mark.parametrize("fan", [2, 32])
def test_tickets_are_zero_after_a_launch(fan, monkeypatch):
    monkeypatch.setattr(reduce, "FAN", fan)
    results(WIDE, False, torch.float32)
    assert tickets._tickets and not any(zeros.any() for zeros in tickets._tickets.values())


@each_kind
def test_weight_gradient_in_parts(transposed, seen, monkeypatch):
    monkeypatch.setattr(wgrad_pointer, "programs", lambda arch: 1000)
    with tiles.using(wgrad=Tile(16, 16, 16)):
        judge_block("triton", ((8, 5, 14, 15), 7, (3, 3), 2, 1, 0, False, 2), transposed, "tanh", torch.float32)
    assert max(grid[2] for launched, grid, _ in seen if launched == "wgrad_kernel") > 10
    assert "sum_kernel" in {launched for launched, _, _ in seen}


@pytest.mark.parametrize(("parts", "columns"), [(15, 3), (7, 50), (2, 4500), (1, 1)], ids=str)
def test_add_up(parts, columns):
    torch.manual_seed(0)
    partials = torch.randn(parts, columns)
    torch.testing.assert_close(reduce.add_up(partials, torch.float32).double(), partials.double().sum(0), rtol=1e-5,
                               atol=1e-5)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh"])
@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (3, 5, 7, 9), (2, 64, 16, 16)], ids=str)
def test_derivative_of_an_activation(shape, activation):
    """Computed from a, or from the mask."""
    torch.manual_seed(0)
    z, ga, act = torch.randn(shape), torch.randn(shape), Activation(activation, -0.5)
    exact = z.double().requires_grad_()
    a = {"relu": torch.relu, "tanh": torch.tanh}.get(
        activation, lambda z: torch.nn.functional.leaky_relu(z, -0.5))(exact)
    kept = pack_bits(z > 0) if activation == "leaky_relu" else a.detach().float()
    expected, = torch.autograd.grad(a, exact, ga.double())
    torch.testing.assert_close(passes.act_backward(ga, kept, act).double(), expected, rtol=1e-5, atol=1e-6)


SHAPES = st.fixed_dictionaries({
    "n": st.integers(1, 2), "groups": st.integers(1, 3), "ci": st.sampled_from([1, 2, 3, 5, 17]),
    "co": st.sampled_from([1, 2, 4, 7, 18]), "size": st.tuples(st.integers(1, 7), st.integers(1, 7)),
    "kernel": st.tuples(st.integers(1, 7), st.integers(1, 7)), "stride": st.tuples(*(st.integers(1, 4),) * 2),
    "padding": st.tuples(*(st.integers(0, 3),) * 2), "extra": st.tuples(*(st.integers(0, 3),) * 2),
    "bias": st.booleans(), "activation": st.sampled_from(ACTIVATIONS), "norm": st.booleans()})


@each_kind
@pytest.mark.parametrize("dtype", list(DTYPES.values()), ids=list(DTYPES))
@settings(max_examples=10, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(shape=SHAPES)
def test_drawn_shapes(dtype, transposed, shape):
    """Random blocks with 1 to 7 pixels per side."""
    sides = zip(shape["size"], shape["kernel"], shape["stride"], shape["padding"], shape["extra"], strict=True)
    fitted = []
    for side, k, step, pad, extra in sides:  # clip to bounds instead of discarding
        extra = min(extra, step - 1) if transposed else 0
        pad = min(pad, ((side - 1) * step + k + extra - 1) // 2) if transposed else pad
        fitted.append((side, min(k, k if transposed else side + 2 * pad), step, pad, extra))
    size, kernel, stride, padding, extra = zip(*fitted, strict=True)
    groups = shape["groups"]
    case = ((shape["n"] * groups, shape["ci"], *size), shape["co"], kernel, stride, padding, extra, shape["bias"],
            groups)
    many = shape["n"] > 1  # otherwise a channel may have only one value, without a variance
    judge_block("triton", case, transposed, shape["activation"], dtype, norm=shape["norm"],
                training=many and shape["norm"])


def test_no_pipelining_where_triton_omits_the_fence(monkeypatch):
    """However the tile is chosen; the first launch on such a device warns."""
    problem = {"rows": 2**20, "columns": 256, "depth": 4096, "size": 2}
    assert tiles.choose("convolve", 90, **problem).stages == 3
    monkeypatch.setattr(fence, "missing", lambda arch: True)
    fence.warn.cache_clear()
    assert tiles.choose("convolve", 90, **problem) == Tile(128, 128, 64, 8, 1, 128)
    with tiles.using(wgrad=Tile(64, 64, 64)):
        assert tiles.choose("wgrad", 90, **problem).stages == 1
    with pytest.warns(UserWarning, match="omits a fence in pipelined products for sm_0") as told:
        for _ in range(2):
            passes.act_backward(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), Activation("relu"))
    assert len(told) == 1


def test_whether_triton_omits_the_fence_is_seen_in_a_compiled_kernel():
    code = "from fastgan.ops.triton import fence; print([fence.missing(arch) for arch in (80, 89, 90, 120)])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, "TRITON_INTERPRET": "0"})
    omitted = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7)
    assert done.stdout == f"{[False, False, omitted, False]}\n"
