"""The kernels of csrc/cuda, compiled for the CPU (tests/simt), against float64; and that the harness sees mistakes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgan.ops import reference
from fastgan.ops.layers import ACTIVATIONS, Activation, Norm, Owed
from tests import simt
from tests.near import KINK, assert_near
from tests.simt import CSRC, DTYPES, Program, SimtError, build

pytestmark = [pytest.mark.usefixtures("one_thread"),
              pytest.mark.skipif(bool(simt.why_not()), reason=simt.why_not() or "none")]

# rows of a group, channels, groups, parts of a group
CASES = [(1, 1, 1, 1), (7, 3, 2, 2), (33, 8, 1, 1), (37, 100, 3, 2), (5, 25, 1, 7), (130, 12, 2, 3), (9, 520, 1, 2),
         (300, 64, 2, 4), (3, 33, 5, 1), (200, 4, 1, 9)]
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
each_dtype = pytest.mark.parametrize("dtype", list(DTYPES), ids=list(NAMES.values()))
each_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
in_turn = pytest.mark.parametrize(("case", "dtype", "activation"), [
    pytest.param(case, dtype, ACTIVATIONS[(i + j) % 4],
                 id=f"{'x'.join(map(str, case))}-{name}-{ACTIVATIONS[(i + j) % 4]}")
    for i, case in enumerate(CASES) for j, (dtype, name) in enumerate(NAMES.items())])
SLOPE = 0.2
each_case_in_turn = pytest.mark.parametrize(("case", "dtype"), [
    pytest.param(case, list(NAMES)[i % 3], id=f"{'x'.join(map(str, case))}-{list(NAMES.values())[i % 3]}")
    for i, case in enumerate(CASES)])
Results = dict[str, Tensor]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    built = build(tmp_path_factory.mktemp("simt"), sorted((CSRC / "cuda").glob("*.cu")))
    yield built
    assert built.close() == ""


def nan(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, torch.nan, dtype=dtype)


def twice(program: Program, name: str, *arguments: Any, out: int) -> None:
    """A call in two orders of threads and blocks, which must not be told apart by argument `out`."""
    copies = [a.clone() if isinstance(a, Tensor) and a.data_ptr() % 16 == 0 else a for a in arguments]
    program.call(name, *arguments)
    program.call(name, *copies, seed=1)
    assert torch.equal(arguments[out].view(-1).view(torch.uint8), copies[out].view(-1).view(torch.uint8))


def matrix(case: tuple[int, int, int, int], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """[rows, channels], as (N, C, 1, 1) is in memory."""
    rows, channels, groups, _ = case
    torch.manual_seed(seed)
    return torch.randn(rows * groups, channels).to(dtype)


def images(x: Tensor) -> Tensor:
    return x[:, :, None, None]


def shape(x: Tensor, groups: int) -> tuple[int, int, int, int]:
    return x.shape[0], x.shape[1], groups, DTYPES[x.dtype]


def judge(ours: Results, function: Any, x: Tensor, *tensors: Tensor) -> None:
    """Ours, against function(x, *tensors) in x's dtype and in float64."""
    eager = function(x, *tensors)
    exact = function(x.double(), *(t.double() for t in tensors))
    assert set(ours) == set(exact)
    for name, value in exact.items():
        assert ours[name].shape == value.shape, name
    assert_near({name: t.to(x.dtype) if name == "out0" else t for name, t in ours.items()}, eager, exact, len(x))


def measured(program: Program, x: Tensor, groups: int, parts: int, eps: float = -1.0, running: Any = (None, None, None),
             momentum: float = 0.1) -> Tensor:
    """Statistics [2, G, C]."""
    partials, out = nan(3, groups, parts, x.shape[1]), nan(2, groups, x.shape[1])
    twice(program, "measure", *shape(x, groups), x, parts, partials, 0, out=6)
    copies = [None if t is None else t.clone() for t in (*running, out)]
    for seed, (*kept, to) in enumerate(([*running, out], copies)):
        program.call("finish_statistics", partials, x.shape[1], groups, parts, eps, *kept, momentum, to, 0, seed=seed)
    for one, other in zip((*running, out), copies, strict=True):
        assert one is None or torch.equal(one, other)
    return out


@each_case_in_turn
def test_statistics(program, case, dtype):
    x = matrix(case, dtype)
    out = measured(program, x, case[2], case[3])

    def function(x: Tensor) -> Results:
        mean, var = reference.measure(images(x), case[2])
        return {"out0": x, "out1": mean, "out2": var}

    judge({"out0": x, "out1": out[0], "out2": out[1]}, function, x)


@each_dtype
@pytest.mark.parametrize("ratio", [1e2, 1e4])
def test_statistics_far_from_zero(program, ratio, dtype):
    """Where E[x^2] - E[x]^2 would have no digit left."""
    x = (matrix((500, 12, 1, 3), torch.float32) + torch.linspace(-ratio, ratio, 12)).to(dtype)
    out, exact = measured(program, x, 1, 3), torch.var_mean(x.double(), 0, correction=0)
    torch.testing.assert_close(out[1, 0].double(), exact[0], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(out[0, 0].double(), exact[1], rtol=1e-6, atol=1e-6 * ratio)


@pytest.mark.parametrize("momentum", [0.3, None])
def test_running_statistics(program, momentum):
    x, groups = matrix((9, 25, 3, 2), torch.float32), 3
    ours, theirs = ([torch.linspace(-1, 1, 25), torch.linspace(0.5, 2, 25), torch.tensor(4)] for _ in range(2))
    out = measured(program, x, groups, 2, 1e-5, ours, -1.0 if momentum is None else momentum)
    mean, var = reference.measure(images(x), groups)
    reference.update_running_statistics(*theirs, mean, var, 9, momentum)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out, torch.stack([mean, torch.rsqrt(var + 1e-5)]), rtol=1e-5, atol=1e-6)


def test_batches_are_counted_without_running_statistics(program):
    tracked = torch.tensor(4)
    measured(program, matrix((5, 3, 2, 1), torch.float32), 2, 1, running=(None, None, tracked), momentum=-1.0)
    assert tracked == 6


def vectors(groups: int, channels: int, which: int) -> list[Tensor]:
    """mean, rstd, gamma and beta, for each group or for all: of statistics by bit 0 of `which`, of gamma by bit 1."""
    torch.manual_seed(which)
    first, last = groups if which & 1 else 1, groups if which & 2 else 1
    return [torch.randn(first, channels), torch.rand(first, channels) + 0.5, torch.randn(last, channels),
            torch.randn(last, channels) + 1.0]


def owed(norm: list[Tensor], activation: str) -> tuple[Any, ...]:
    """The structure of kernels.h, spelt out; with the statistics of `norm` as one tensor."""
    kind = ACTIVATIONS.index(activation)
    if not norm:
        return None, 1, None, None, 1, kind, SLOPE
    return torch.stack(norm[:2]), len(norm[0]), norm[2], norm[3], len(norm[2]), kind, SLOPE


def away_from_kinks(x: Tensor, norm: list[Tensor], groups: int) -> Tensor:
    """x without elements so near the kink that rounding decides on their side."""
    z = reference.normalise(images(x.double()), Norm(*(v.double() for v in norm)))[..., 0, 0]
    return torch.where(z.abs() > KINK * z.abs().max(), x, torch.tensor(7.0, dtype=x.dtype))


@in_turn
def test_normalise_activate(program, case, activation, dtype):
    x, groups = matrix(case, dtype), case[2]
    norm, out = vectors(groups, case[1], CASES.index(case)), torch.full_like(x, torch.nan)
    twice(program, "normalise_activate", *shape(x, groups), x, *owed(norm, activation), out, 0, out=12)

    def function(x: Tensor, *norm: Tensor) -> Results:
        return {"out0": reference.normalise_activate(images(x), Norm(*norm), Activation(activation, SLOPE))[..., 0, 0]}

    judge({"out0": out}, function, x, *norm)


def differentiated(program: Program, gout: Tensor, x: Tensor, norm: list[Tensor], activation: str, groups: int,
                   parts: int) -> tuple[Tensor, Tensor]:
    """gx, and the gradients of the normalisation [4, G, C]."""
    gx, partials, out = torch.full_like(x, torch.nan), nan(2, groups, parts, x.shape[1]), nan(4, groups, x.shape[1])
    given = owed(norm, activation)
    twice(program, "normalise_activate_backward", *shape(x, groups), gout, x, *given, parts, gx, partials, 0, out=15)
    program.call("finish_norm_gradient", partials, x.shape[1], groups, parts, *given, out, 0)
    return gx, out


@in_turn
def test_normalise_activate_backward(program, case, activation, dtype):
    groups, norm = case[2], vectors(case[2], case[1], CASES.index(case))
    x, gout = away_from_kinks(matrix(case, dtype), norm, groups), matrix(case, dtype, 1)
    gx, gnorm = differentiated(program, gout, x, norm, activation, groups, case[3])

    def function(x: Tensor, gout: Tensor, *norm: Tensor) -> Results:
        gx, gnorm = reference.normalise_activate_backward(
            images(gout), images(x), Owed(torch.stack(norm[:2]), norm[2].expand(groups, -1), norm[3],
                                          Activation(activation, SLOPE)))
        return {"out0": gx[..., 0, 0], "grad": gnorm}

    judge({"out0": gx, "grad": gnorm}, function, x, gout, *norm)


@each_dtype
@each_activation
def test_activation_alone(program, activation, dtype):
    x, gout = matrix((50, 24, 1, 1), dtype), matrix((50, 24, 1, 1), dtype, 1)
    out, gx = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
    program.call("normalise_activate", *shape(x, 1), x, *owed([], activation), out, 0)
    program.call("normalise_activate_backward", *shape(x, 1), gout, x, *owed([], activation), 2, gx, None, 0)
    kind = Activation(activation, SLOPE)
    torch.testing.assert_close(out, reference.activate(x, kind))
    torch.testing.assert_close(gx, reference.normalise_activate_backward(images(gout), images(x),
                                                                         Owed(activation=kind))[0][..., 0, 0])


@each_activation
def test_what_is_not_a_number_stays_so(program, activation):
    x = torch.tensor([[torch.nan, torch.inf, -torch.inf, 0.0]])
    out = torch.zeros_like(x)
    program.call("normalise_activate", *shape(x, 1), x, *owed([], activation), out, 0)
    torch.testing.assert_close(out, reference.activate(x, Activation(activation, SLOPE)), equal_nan=True)


@pytest.mark.parametrize("spread", ["var", "rstd"])
@each_case_in_turn
def test_through_statistics(program, case, dtype, spread):
    rows, channels, groups, _ = case
    gy, y, g = matrix(case, dtype), matrix(case, dtype, 1), torch.full_like(matrix(case, dtype), torch.nan)
    gstatistics, statistics = torch.randn(2, groups, channels), torch.rand(2, groups, channels) + 0.5
    twice(program, "through_statistics", *shape(gy, groups), gy, y, gstatistics, statistics, int(spread == "rstd"),
          g, 0, out=9)

    def function(gy: Tensor, y: Tensor, gstatistics: Tensor, statistics: Tensor) -> Results:
        wide = reference.statistics_dtype(y.dtype)
        steep = -statistics[1] ** 3 * gstatistics[1] if spread == "rstd" else 2 * gstatistics[1]
        parts = y.to(wide).unflatten(0, (groups, rows))
        through = (gstatistics[0, :, None] + steep[:, None] * (parts - statistics[0, :, None])) / rows
        return {"out0": (gy.to(wide) + through.flatten(0, 1)).to(gy.dtype)}

    judge({"out0": g}, function, gy, y, gstatistics, statistics)


@each_dtype
@pytest.mark.parametrize("size", [1, 300])
@pytest.mark.parametrize("targets", [(1.0,), (0.9, 0.0), tuple(i / 20 for i in range(21))], ids=len)
def test_logistic(program, targets, size, dtype):
    torch.manual_seed(size)
    logits = (4 * torch.randn(len(targets) * size)).to(dtype)
    loss, probability, gradient = nan(len(targets)), nan(len(targets)), nan(len(logits))
    twice(program, "logistic", len(logits), 1, len(targets), DTYPES[dtype], logits, torch.tensor(targets), loss,
          probability, gradient, 0, out=6)
    right = torch.tensor(targets).double()  # as they are given
    wide = logits.double()
    expected = reference.logistic_loss(wide, right.tolist())
    torch.testing.assert_close(loss.double(), expected[0], rtol=3e-6, atol=1e-7)
    torch.testing.assert_close(probability.double(), expected[1], rtol=3e-6, atol=1e-7)
    slopes = reference.logistic_loss_backward(torch.ones(len(targets)), wide, right.tolist())
    torch.testing.assert_close(gradient.double(), slopes, rtol=3e-6, atol=1e-7 / size)


@each_dtype
def test_addresses_that_no_16_bytes_begin_with(program, dtype):
    """The very results of those with which they do."""
    case = (40, 64, 2, 2)
    norm, x, gout = vectors(2, 64, 3), matrix(case, dtype), matrix(case, dtype, 1)
    aligned = differentiated(program, gout, x, norm, "relu", 2, 2)[0]
    room = torch.zeros(x.numel() + 1, dtype=dtype)
    shifted = room[1:].view(x.shape).copy_(x)
    assert shifted.data_ptr() % 16 == x.element_size()
    torch.testing.assert_close(differentiated(program, gout, shifted, norm, "relu", 2, 2)[0], aligned, rtol=0, atol=0)
    torch.testing.assert_close(measured(program, shifted, 2, 2), measured(program, x, 2, 2))


@each_dtype
def test_no_rows(program, dtype):
    x, norm = torch.empty(0, 5, dtype=dtype), vectors(1, 5, 0)
    program.call("normalise_activate", *shape(x, 1), x, *owed(norm, "relu"), x, 0)
    program.call("through_statistics", *shape(x, 1), x, x, nan(2, 1, 5), nan(2, 1, 5), 0, x, 0)
    assert not measured(program, x, 1, 1).any()
    assert not differentiated(program, x, x, norm, "relu", 1, 1)[1].any()


def test_grid_that_does_not_fit(program):
    x = torch.zeros(70000, 1)
    with pytest.raises(SimtError, match="measure kernel, grid of 1x70000x1: invalid configuration argument"):
        program.call("measure", *shape(x, 70000), x, 1, nan(3, 70000, 1, 1), 0)


def check_statistics(program: Program, aligned: bool = True) -> None:
    x = torch.zeros(2 * 16 * 12 + 1)[1:].view(32, 12).copy_(matrix((16, 12, 2, 16), torch.float32))
    x = x.clone() if aligned else x
    torch.testing.assert_close(measured(program, x, 2, 16), torch.stack(reference.measure(images(x), 2)))


# file, what stands there, what is written instead, what is seen
MISTAKES = {
    "no-barrier-before-reading": ("tile.h", "    __syncthreads();\n    Value total;", "    Value total;", "wrong"),
    "no-barrier-before-writing": ("tile.h", "    __syncthreads();  // the next", "    // the next", "wrong"),
    "barrier-not-for-all": ("tile.h", "    __syncthreads();\n    Value total;",
                            "    if (lane < 1 << bits) __syncthreads();\n    Value total;", "deadlock"),
    "thread-that-leaves": ("statistics.cu", "    Moments moments[V];",
                           "    if (!place.inside) return;\n    Moments moments[V];", "deadlock"),
    "one-row-more": ("statistics.cu", "i < many;", "i <= many;", "heap-buffer-overflow"),
    "one-part-more": ("statistics.cu", "part < parts;", "part <= parts;", "heap-buffer-overflow"),
    "one-channel-more": ("tile.h", "inside(channel < channels)", "inside(channel <= channels)", "heap-buffer-overflow"),
    "one-warp-more": ("tile.h", "other < WARPS;", "other <= WARPS;", "index 8 out of bounds"),
    "one-shuffle-less": ("tile.h", "distance >= 1 << bits;", "distance > 1 << bits;", "wrong"),
    "unaligned": ("elements.h", "(matrix) % 16 == 0", "(matrix) % 1 == 0", "misaligned address"),
}
# what mistakes are not about, and would be compiled for each of them
OTHERS = re.compile(r" +case (DType::.*float16|Activation::(none|relu|tanh)): return f.*\n")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_seen(program, mistake, tmp_path):
    """Statistics by a copy of the sources with one mistake in it, in float32."""
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
