"""Each kernel under tiles of many sides, its reductions by themselves, and shapes that nobody has thought of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastgan.ops.triton import apply, convolve, launch, reduce, tiles, wgrad
from fastgan.ops.triton.operand import Operand
from fastgan.ops.triton.tiles import Tile
from tests.near import EPS, run
from tests.test_kernels import ACTIVATIONS, draw, judge_block, judge_stage, stage_of, with_norm
from tests.test_ops import each_kind

pytestmark = pytest.mark.usefixtures("one_thread", "poisoned")

WIDE = ((2, 19, 4, 3), 21, (2, 3), 2, 1, 1, True, 2)  # several blocks of 16 each way
IMAGE = ((2, 5, 6, 5), 7, (3, 3), 2, 1, 0, False, 2)  # several taps in a block
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

    for module in (apply, convolve, reduce, wgrad):
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
    monkeypatch.setattr(wgrad, "programs", lambda arch: 1000)
    monkeypatch.setattr(reduce, "LEVEL", 2)
    with tiles.using(convolve=tile, wgrad=tile, narrow=Tile(16, 2, 8), apply=Tile(8, 8, 1),
                     **{"narrow wgrad": Tile(4, 16, 16)}):
        judge_stage("triton", case, transposed, "leaky_relu", torch.float32, (2, 2, 0, 0))
        judge_block("triton", case, transposed, "relu", torch.float32)
    kernels = {launched for launched, _, _ in seen}
    kernels -= set() if transposed else {"merge_kernel"}  # whose phases are parts of their own
    assert kernels == {"convolve_kernel", "wgrad_kernel", "apply_kernel", "derivative_kernel", "sum_kernel",
                       "norm_gradient_kernel", "statistics_kernel"} | ({"merge_kernel"} if transposed else set())
    assert max(grid[2] for launched, grid, _ in seen if launched == "wgrad_kernel") > 1  # split-K
    if case == IMAGE:
        assert True in flags(seen, "convolve_kernel", "PACKED") | flags(seen, "wgrad_kernel", "PACKED")


@each_kind
@pytest.mark.parametrize("tile", [Tile(4, 1, 16), Tile(16, 4, 8)], ids=lambda t: "x".join(map(str, t)))
@pytest.mark.parametrize("case", [LOGIT, PIXEL], ids=["logit", "pixel"])
def test_narrow_tiles(case, tile, transposed, seen):
    if case == PIXEL and not transposed:
        case = ((6, 2, 3, 3), *PIXEL[1:])
    with tiles.using(narrow=tile, **{"narrow wgrad": Tile(4, 8, 16)}):
        judge_stage("triton", case, transposed, "tanh", torch.float32, (2, 2, 2, 2))
    if case == LOGIT:
        assert True in flags(seen, "convolve_kernel", "NARROW")


def test_every_way_through_the_kernels_is_taken(seen):
    """Or the tests above prove less than they say."""
    with tiles.using(convolve=Tile(64, 64, 16), wgrad=Tile(64, 16, 64)):
        for case in (WIDE, IMAGE, LOGIT):
            for transposed in (False, True):
                judge_stage("triton", case, transposed, "none", torch.float32, (2, 2, 0, 0))
    for kernel in ("convolve_kernel", "wgrad_kernel"):
        for flag in ("NARROW", "PACKED"):
            assert flags(seen, kernel, flag) == {False, True}, (kernel, flag)


def results(case: tuple[Any, ...], transposed: bool, dtype: torch.dtype, fuse: bool = True) -> dict[str, Tensor]:
    tensors = with_norm(draw(case, transposed, norm=False), (2, 2, 0, 0))
    given = {key: t.to(dtype if key in ("x", "weight", "bias") else torch.float32) for key, t in tensors.items()}
    return run(stage_of(case, transposed, "leaky_relu", fuse), given, "triton")


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for key, value in one.items():
        assert torch.equal(value, other[key]), f"{key}: {(value - other[key]).abs().max()}"


@each_kind
@pytest.mark.parametrize("dtype", list(DTYPES.values()), ids=list(DTYPES))
@pytest.mark.parametrize("case", [WIDE, LOGIT], ids=["wide", "logit"])
def test_the_same_bits_fused_or_not(case, dtype, transposed):
    assert_equal(results(case, transposed, dtype), results(case, transposed, dtype, fuse=False))


@each_kind
def test_the_same_bits_each_time(transposed):
    assert_equal(results(WIDE, transposed, torch.float32), results(WIDE, transposed, torch.float32))


@each_kind
@pytest.mark.parametrize("case", [IMAGE, LOGIT], ids=["image", "logit"])
def test_the_same_bits_with_offsets_of_64_bits(case, transposed, monkeypatch):
    small = results(case, transposed, torch.float32, fuse=False)

    def large(kernel: Any, grid: tuple[int, ...], tile: Tile, **arguments: Any) -> None:
        if "LARGE" in arguments:
            arguments["LARGE"] = True
        launch.launch(kernel, grid, tile, **arguments)

    for module in (apply, convolve, wgrad):
        monkeypatch.setattr(module, "launch", large)
    assert_equal(small, results(case, transposed, torch.float32, fuse=False))


def merged(partials: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and M2 [G, C] of partials [3, G, T, C], in float64."""
    count, mean, m2 = partials.double()
    n = count.sum(1)
    whole = (count * mean).sum(1) / n.clamp(min=1)
    return n, whole, (m2 + count * (mean - whole[:, None]).square()).sum(1)


@pytest.mark.parametrize("ratio", [0.0, 1e3, 1e6])
@pytest.mark.parametrize(("parts", "channels"), [(1, 5), (7, 3), (65, 17), (130, 40)], ids=str)
@pytest.mark.parametrize("level", [512, 8], ids=["one-level", "two-levels"])
def test_finish_statistics(level, parts, channels, ratio, monkeypatch):
    """Parts without elements, parts of unequal size, a mean far beyond the deviation."""
    monkeypatch.setattr(reduce, "LEVEL", level)
    torch.manual_seed(0)
    count = torch.randint(0, 40, (2, parts, 1)).expand(2, parts, channels).float()
    count[:, -1] = 9
    count[:, 0] = 9 if ratio or parts < 3 else 0  # distances are taken from the first mean
    count[:, 1:3] = 0 if parts > 3 else 9
    mean = torch.randn(2, parts, channels) + ratio
    mean[count == 0] = 0
    partials = torch.stack([count, mean, torch.rand(2, parts, channels) * count])
    n, exact, m2 = merged(partials)
    statistics = reduce.finish_statistics(partials, None).double()
    # one rounding of the mean, and of the means that stand as float32
    distance = EPS[torch.float32] * 4 * (1 + exact.abs())
    assert ((statistics[0] - exact).abs() <= distance).all()
    torch.testing.assert_close(statistics[1], m2 / n, rtol=3e-5, atol=float(distance.max()) ** 2)
    rstd = reduce.finish_statistics(partials, 0.1)[1].double()
    torch.testing.assert_close(rstd, (m2 / n + 0.1).rsqrt(), rtol=1e-5, atol=float(distance.max()))


@pytest.mark.parametrize("momentum", [0.3, None], ids=["momentum", "cumulative"])
def test_running_statistics_group_by_group(momentum):
    torch.manual_seed(0)
    count = torch.full((3, 4, 5), 6.0)
    partials = torch.stack([count, torch.randn(3, 4, 5), torch.rand(3, 4, 5)])
    kept, tracked = [torch.randn(5), torch.rand(5)], torch.tensor(2)
    expected = [value.double() for value in kept]
    n, mean, m2 = merged(partials)
    for g in range(3):
        factor = 1 / (3 + g) if momentum is None else momentum
        for value, new in zip(expected, (mean[g], m2[g] / (n[g] - 1)), strict=True):
            value.mul_(1 - factor).add_(new, alpha=factor)
    reduce.finish_statistics(partials, None, *kept, tracked, momentum)
    torch.testing.assert_close([value.double() for value in kept], expected, rtol=1e-5, atol=1e-6)
    assert tracked == 5


@pytest.mark.parametrize(("channels", "each"), [(3, None), (50, 7), (4500, 2), (1, 1)], ids=str)
def test_add_up(channels, each):
    torch.manual_seed(0)
    partials = torch.randn(2, 15, channels)
    sums = reduce.add_up(partials, torch.float32, each)
    expected = torch.stack([part.double().sum(1) for part in partials.split(each or 15, 1)], 1)
    torch.testing.assert_close(sums.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("level", [512, 4], ids=["one-level", "two-levels"])
@pytest.mark.parametrize("shared", [False, True], ids=["by-group", "shared"])
def test_norm_gradient(shared, level, monkeypatch):
    monkeypatch.setattr(reduce, "LEVEL", level)
    torch.manual_seed(0)
    partials, rstd, gamma = torch.randn(2, 3, 11, 21), torch.rand(3, 21) + 0.5, torch.randn(3, 21)
    if shared:
        rstd, gamma = rstd[:1], gamma[0]
    sum_z, sum_zx = partials.double().sum(2)
    expected = torch.stack([-gamma * rstd * sum_z, gamma * sum_zx / rstd, sum_zx, sum_z])
    torch.testing.assert_close(reduce.norm_gradient(partials, rstd, gamma).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["var", "rstd"])
def test_apply_of_the_gradient_through_statistics(kind):
    torch.manual_seed(0)
    gy, y = torch.randn(4, 3, 5, 37), torch.randn(4, 3, 5, 37)
    gmean, gspread, mean, spread = (torch.rand(2, 37) + 0.5 for _ in range(4))
    a = apply.apply(Operand(gy, kind, y, (gmean, gspread, mean, spread), inverse_count=1 / 30))
    steep = 2 * gspread if kind == "var" else -(spread**3) * gspread
    wide = [v.double().repeat_interleave(2, 0)[:, None, None] for v in (gmean, steep, mean)]
    expected = gy + (wide[0] + wide[1] * (y - wide[2])) / 30
    torch.testing.assert_close(a.double(), expected, rtol=1e-5, atol=1e-6)


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
    """Any stage of 1 to 7 pixels a side."""
    sides = zip(shape["size"], shape["kernel"], shape["stride"], shape["padding"], shape["extra"], strict=True)
    fitted = []
    for side, k, step, pad, extra in sides:  # bring into bounds rather than discard
        extra = min(extra, step - 1) if transposed else 0
        pad = min(pad, ((side - 1) * step + k + extra - 1) // 2) if transposed else pad
        fitted.append((side, min(k, k if transposed else side + 2 * pad), step, pad, extra))
    size, kernel, stride, padding, extra = zip(*fitted, strict=True)
    groups = shape["groups"]
    case = ((shape["n"] * groups, shape["ci"], *size), shape["co"], kernel, stride, padding, extra, shape["bias"],
            groups)
    judge_stage("triton", case, transposed, shape["activation"], dtype,
                (groups, groups, 0, 0) if shape["norm"] else None)
