"""The kernels of csrc/cuda, compiled for the CPU (tests/simt), against float64, and that the harness detects bugs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from fastgan.ops import reference, torch_ops
from fastgan.ops.specs import ACTIVATIONS, Activation, NormSpec, RunningStats
from tests import simt
from tests.near import KINK, assert_near
from tests.simt import CSRC, DTYPES, Argument, Program, SimtError, build

pytestmark = [pytest.mark.usefixtures("one_thread"),
              pytest.mark.skipif(bool(simt.why_not()), reason=simt.why_not() or "none")]


class Case(NamedTuple):
    rows: int  # of a group
    channels: int
    groups: int
    parts: int  # of a group

    def __str__(self) -> str:
        return "x".join(map(str, self))


CASES = [Case(1, 1, 1, 1), Case(7, 3, 2, 2), Case(33, 8, 1, 1), Case(37, 100, 3, 2), Case(5, 25, 1, 7),
         Case(130, 12, 2, 3), Case(9, 520, 1, 2), Case(300, 64, 2, 4), Case(3, 33, 5, 1), Case(200, 4, 1, 9)]
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
SLOPE = 0.2
each_dtype = pytest.mark.parametrize("dtype", list(NAMES), ids=list(NAMES.values()))
each_activation = pytest.mark.parametrize("activation", [Activation(name, SLOPE) for name in ACTIVATIONS],
                                          ids=ACTIVATIONS)
# the dtypes in turn, and for each dtype the activations in turn
each_case = pytest.mark.parametrize(("case", "dtype"), [
    pytest.param(case, dtype, id=f"{case}-{NAMES[dtype]}")
    for case, dtype in zip(CASES, list(NAMES) * 4, strict=False)])
each_case_and_dtype = pytest.mark.parametrize(("case", "dtype", "activation"), [
    pytest.param(case, dtype, Activation(name, SLOPE), id=f"{case}-{NAMES[dtype]}-{name}")
    for i, case in enumerate(CASES) for dtype, name in zip(NAMES, (ACTIVATIONS * 2)[i % 4:], strict=False)])


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    built = build(tmp_path_factory.mktemp("simt"), sorted((CSRC / "cuda").glob("*.cu")))
    yield built
    assert built.close() == ""


def nan(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, torch.nan, dtype=dtype)


def matrix(case: Case, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """[rows, channels], the memory of (N, C, 1, 1)."""
    torch.manual_seed(seed)
    return torch.randn(case.rows * case.groups, case.channels).to(dtype)


def images(x: Tensor) -> Tensor:
    return x[:, :, None, None]


def shape(x: Tensor, groups: int = 1) -> tuple[int, int, int, int]:
    return x.shape[0], x.shape[1], groups, DTYPES[x.dtype]


def kind(activation: Activation) -> tuple[int, float]:
    return ACTIVATIONS.index(activation.name), float(activation.negative_slope)


def called(program: Program, name: str, *arguments: Argument, out: Tensor) -> Tensor:
    """`out`, one of the arguments, after a call; the bits must be the same in two orders of threads and blocks."""
    other = out.clone()
    program.call(name, *arguments)
    program.call(name, *(other if argument is out else argument for argument in arguments), seed=1)
    assert torch.equal(out.view(-1).view(torch.uint8), other.view(-1).view(torch.uint8))
    return out


def assert_near_float64(ours: Tensor, function: Callable[..., Tensor], *tensors: Tensor | None) -> None:
    """By the rule of tests/near.py; function(*tensors) is the definition."""
    eager = function(*tensors)
    exact = function(*(None if t is None else t.double() for t in tensors))
    assert ours.shape == exact.shape and ours.dtype == eager.dtype
    assert_near({"out0": ours}, {"out0": eager}, {"out0": exact}, len(tensors[0]) if tensors[0] is not None else 0)


def tickets(x: Tensor) -> Tensor:
    return torch.zeros(x.shape[1] + 1, dtype=torch.int32)


def measured(program: Program, x: Tensor, groups: int, parts: int, eps: float = -1.0,
             running: RunningStats = RunningStats(), momentum: float = 0.1) -> Tensor:  # noqa: B008
    """Statistics [2, G, C]."""
    results = [[t if t is None else t.clone() for t in (*running, nan(2, groups, x.shape[1]))] for _ in range(2)]
    for seed, (*buffers, out) in enumerate(results):
        program.call("batch_stats", *shape(x, groups), x, eps, *buffers, momentum, parts,
                     nan(3, groups, parts, x.shape[1]), zeros := tickets(x), out, 0, seed=seed)
        assert not zeros.any()
    torch.testing.assert_close(*results, rtol=0, atol=0)
    for buffer, updated in zip(running, results[0], strict=False):
        if buffer is not None:
            buffer.copy_(updated)
    return results[0][-1]


@each_case
def test_statistics(program, case, dtype):
    x = matrix(case, dtype)
    out = measured(program, x, case.groups, case.parts)
    assert_near_float64(out[0], lambda x: torch_ops.measure(images(x), case.groups)[0], x)
    assert_near_float64(out[1], lambda x: torch_ops.measure(images(x), case.groups)[1], x)


@each_dtype
@pytest.mark.parametrize("ratio", [1e2, 1e4])
def test_statistics_far_from_zero(program, ratio, dtype):
    """E[x^2] - E[x]^2 would have no correct digit."""
    x = (matrix(Case(500, 12, 1, 3), torch.float32) + torch.linspace(-ratio, ratio, 12)).to(dtype)
    mean, var = measured(program, x, 1, 3)
    exact_var, exact_mean = torch.var_mean(x.double(), 0, correction=0)
    torch.testing.assert_close(var[0].double(), exact_var, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(mean[0].double(), exact_mean, rtol=1e-6, atol=1e-6 * ratio)


@pytest.mark.parametrize("momentum", [0.3, None])
def test_running_statistics(program, momentum):
    x, groups = matrix(Case(9, 25, 3, 2), torch.float32), 3
    ours, theirs = (RunningStats(torch.linspace(-1, 1, 25), torch.linspace(0.5, 2, 25), torch.tensor(4))
                    for _ in range(2))
    out = measured(program, x, groups, 2, 1e-5, ours, -1.0 if momentum is None else momentum)
    expected = reference.batch_stats(images(x), None, theirs, 9, NormSpec(True, momentum, 1e-5, groups))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


def test_batches_are_counted_without_running_statistics(program):
    batches = torch.tensor(4)
    measured(program, matrix(Case(5, 3, 2, 1), torch.float32), 2, 1, running=RunningStats(None, None, batches),
             momentum=-1.0)
    assert batches == 6


class Norm(NamedTuple):
    stats: Tensor  # [2, G, C]: mean and rstd
    gamma: Tensor
    beta: Tensor


def norm_of(case: Case) -> Norm:
    torch.manual_seed(case.channels)
    groups, channels = case.groups, case.channels
    stats = torch.stack([torch.randn(groups, channels), torch.rand(groups, channels) + 0.5])
    return Norm(stats, torch.randn(channels), torch.randn(channels) + 1.0)


def defined(y: Tensor, stats: Tensor, gamma: Tensor, beta: Tensor, activation: Activation) -> Tensor:
    """act(batch_norm(y)) with these statistics, in PyTorch operators."""
    statistics, norm = torch.stack([stats[0], stats[1]**-2]), NormSpec(True, None, 0.0, stats.shape[1])
    a, _ = reference.bn_act_forward(images(y), statistics, gamma, beta, RunningStats(), 0, norm, activation)
    return a[..., 0, 0]


def away_from_kinks(y: Tensor, norm: Norm) -> Tensor:
    """y without elements so close to the kink of relu that rounding determines on which side they are."""
    z = defined(y.double(), *(t.double() for t in norm), Activation())
    return torch.where(z.abs() > KINK * z.abs().max(), y, torch.tensor(7.0, dtype=y.dtype))


@each_case_and_dtype
def test_bn_act_forward(program, case, dtype, activation):
    y, norm, a = matrix(case, dtype), norm_of(case), nan(case.rows * case.groups, case.channels, dtype=dtype)
    called(program, "bn_act_forward", *shape(y, case.groups), y, *norm, *kind(activation), a, 0, out=a)
    assert_near_float64(a, lambda *given: defined(*given, activation), y, *norm)


def sums_of(program: Program, ga: Tensor, y: Tensor, norm: Norm, activation: Activation, groups: int,
            parts: int) -> Tensor:
    """[2, G, C] of `bn_backward_sums`, whose totals over several groups are checked."""
    partials, sums, zeros = nan(2, groups, parts, y.shape[1]), nan(2, groups, y.shape[1]), tickets(y)
    totals = nan(2, y.shape[1]) if groups > 1 else None
    called(program, "bn_backward_sums", *shape(y, groups), ga, y, *norm, *kind(activation), parts, partials, zeros,
           sums, totals, 0, out=sums)
    assert not zeros.any()
    if totals is not None:
        torch.testing.assert_close(totals, sums.sum(1), rtol=1e-5, atol=1e-5)
    return sums


@each_case_and_dtype
def test_bn_backward_sums(program, case, dtype, activation):
    norm = norm_of(case)
    y, ga = away_from_kinks(matrix(case, dtype), norm), matrix(case, dtype, 1)
    sums = sums_of(program, ga, y, norm, activation, case.groups, case.parts)
    def exact(ga: Tensor, y: Tensor, *norm: Tensor) -> Tensor:
        return reference.bn_backward_sums(images(ga), images(y), *norm, activation)[0]

    assert_near_float64(sums, exact, ga, y, *norm)


@pytest.mark.parametrize("in_place", [False, True], ids=["g", "ga"])
@pytest.mark.parametrize("batch_statistics", [True, False], ids=["sums", "no-sums"])
@each_case_and_dtype
def test_bn_backward_apply(program, case, dtype, activation, batch_statistics, in_place):
    norm = norm_of(case)
    y, ga = away_from_kinks(matrix(case, dtype), norm), matrix(case, dtype, 1)
    sums = torch.randn(2, case.groups, case.channels) * case.rows if batch_statistics else None
    given = ga.clone()
    g = given if in_place else torch.full_like(ga, torch.nan)
    called(program, "bn_backward_apply", *shape(y, case.groups), given, y, *norm, *kind(activation), sums,
           1 / case.rows, g, 0, out=g)

    def function(ga: Tensor, y: Tensor, stats: Tensor, gamma: Tensor, beta: Tensor, sums: Tensor | None) -> Tensor:
        return reference.bn_backward_apply(images(ga), images(y), stats, gamma, beta, sums, case.rows,
                                        activation)[..., 0, 0]

    assert_near_float64(g, function, ga, y, *norm, sums)


def test_nothing_flows_through_running_statistics(program):
    """Not even from an infinite output."""
    y, ga, g = torch.full((4, 8), torch.inf), torch.ones(4, 8), nan(4, 8)
    norm = norm_of(Case(4, 8, 1, 1))
    program.call("bn_backward_apply", *shape(y), ga, y, *norm, *kind(Activation()), None, 1.0, g, 0)
    torch.testing.assert_close(g, (norm[0][1, 0] * norm[1]).expand(4, 8))


@each_activation
def test_what_is_not_a_number_stays_so(program, activation):
    z = torch.tensor([[torch.nan, torch.inf, -torch.inf, 0.0]])
    a, zeros, ones = torch.zeros_like(z), torch.zeros(1, 4), torch.ones(1, 4)
    unchanged = torch.stack([zeros, ones]), ones, zeros
    program.call("bn_act_forward", *shape(z), z, *unchanged, *kind(activation), a, 0)
    torch.testing.assert_close(a, torch_ops.activate(z, activation), equal_nan=True)


def unaligned(x: Tensor) -> Tensor:
    """A copy whose address is not a multiple of 16 bytes."""
    copy = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x)
    assert copy.data_ptr() % 16 == x.element_size()
    return copy


@pytest.mark.parametrize("which", ["y", "ga", "stats", "gamma", "beta", "sums"])
@each_dtype
def test_unaligned_addresses(program, dtype, which):
    """The results are those of aligned ones."""
    case, activation = Case(40, 64, 2, 2), Activation("relu")
    aligned = {"ga": matrix(case, dtype, 1), "y": matrix(case, dtype), **norm_of(case)._asdict(),
               "sums": torch.randn(2, 2, 64)}

    def everything(ga: Tensor, y: Tensor, sums: Tensor, **norm: Tensor) -> list[Tensor]:
        a, g, of = torch.empty_like(y), torch.empty_like(y), (*norm.values(), *kind(activation))
        program.call("bn_act_forward", *shape(y, 2), y, *of, a, 0)
        program.call("bn_backward_apply", *shape(y, 2), ga, y, *of, sums, 1 / 40, g, 0)
        return [a, g]

    given = {**aligned, which: unaligned(aligned[which])}
    torch.testing.assert_close(everything(**given), everything(**aligned), rtol=0, atol=0)
    expected, found = (sums_of(program, t["ga"], t["y"], Norm(t["stats"], t["gamma"], t["beta"]), activation, 2, 2)
                       for t in (aligned, given))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(measured(program, given["y"], 2, 2), measured(program, aligned["y"], 2, 2))


@each_dtype
def test_no_rows(program, dtype):
    case, activation = Case(0, 5, 1, 1), Activation("relu")
    y, norm = matrix(case, dtype), norm_of(case)
    program.call("bn_act_forward", *shape(y), y, *norm, *kind(activation), y, 0)
    program.call("bn_backward_apply", *shape(y), y, y, *norm, *kind(activation), None, 1.0, y, 0)
    assert not measured(program, y, 1, 1).any()
    assert not sums_of(program, y, y, norm, activation, 1, 1).any()


def test_grid_that_does_not_fit(program):
    x = torch.zeros(70000, 1)
    with pytest.raises(SimtError, match="measure kernel, grid of 1x70000x1: invalid configuration argument"):
        program.call("batch_stats", *shape(x, 70000), x, 0.0, None, None, None, 0.0, 1, nan(3, 70000, 1, 1),
                     tickets(x), nan(2, 70000, 1), 0)


def check_statistics(program: Program, aligned: bool = True) -> None:
    x = torch.zeros(2 * 64 * 12 + 1)[1:].view(128, 12).copy_(matrix(Case(64, 12, 2, 64), torch.float32))
    x = x.clone() if aligned else x
    torch.testing.assert_close(measured(program, x, 2, 64), torch.stack(torch_ops.measure(images(x), 2)))


# file, original text, replacement, expected message
MISTAKES = {
    "no-barrier-before-reading": ("tile.h", "    __syncthreads();\n    Value total{};", "    Value total{};", "wrong"),
    "no-barrier-before-writing": ("tile.h", "    __syncthreads();  // the next", "    // the next", "wrong"),
    "barrier-not-for-all": ("tile.h", "    __syncthreads();\n    Value total{};",
                            "    if (lane < 1 << bits) __syncthreads();\n    Value total{};",
                            "deadlock|not a valid value"),
    "thread-that-leaves": ("statistics.cu", "    Moments moments[V];",
                           "    if (!tile.inside) return;\n    Moments moments[V];", "deadlock"),
    "one-row-more": ("statistics.cu", "i < steps;", "i <= steps;", "heap-buffer-overflow"),
    "one-part-more": ("statistics.cu", "part < gridDim.x;", "part <= gridDim.x;", "heap-buffer-overflow"),
    "first-block-merges": ("tile.h", "count - 1) == count - 1", "count - 1) == 0", "wrong"),
    "one-channel-more": ("tile.h", "inside(channel < channels)", "inside(channel <= channels)", "heap-buffer-overflow"),
    "one-warp-more": ("tile.h", "other < WARPS;", "other <= WARPS;", "index 8 out of bounds"),
    "one-shuffle-less": ("tile.h", "distance >= 1 << bits;", "distance > 1 << bits;", "wrong"),
    "unaligned": ("elements.h", "(address) % 16 == 0", "(address) % 1 == 0", "misaligned address"),
}
# sources that the bugs do not concern, and that would be compiled for each of them
OTHERS = re.compile(r" +case (DType::.*float16|Activation::(none|relu|tanh)): return f.*\n")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_seen(program, mistake, tmp_path):
    """Statistics by a copy of the sources with one bug, in float32."""
    file, right, wrong, seen = MISTAKES[mistake]
    for source in (CSRC / "cuda").iterdir():
        (tmp_path / source.name).write_text(OTHERS.sub("", source.read_text()))
    text = (tmp_path / file).read_text()
    assert text.count(right) == 1
    (tmp_path / file).write_text(text.replace(right, wrong))
    for harness in ("main.o", "simt.o"):
        (tmp_path / harness).symlink_to(program.path.with_name(harness))
    source = tmp_path / (file if file.endswith(".cu") else "statistics.cu")
    refusal: dict[str, Any] = ({"expected_exception": AssertionError} if seen == "wrong" else
                               {"expected_exception": SimtError, "match": seen})
    program = build(tmp_path, [source], "-Wl,--unresolved-symbols=ignore-all")
    with closing(program), pytest.raises(**refusal):
        check_statistics(program, aligned=mistake != "unaligned")
