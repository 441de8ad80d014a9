"""The compiled row kernels and patches by themselves: each instruction set, threads, edges, refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastgan import _cpu
from fastgan.errors import FastganError
from fastgan.ops import passes, reference
from fastgan.ops.layers import ACTIVATIONS, Activation
from fastgan.ops.native import extension, rows
from fastgan.ops.native.rows import Window
from fastgan.ops.passes import RunningStats
from fastgan.ops.specs import NormSpec
from tests.near import EPS, UNITS, used

pytestmark = pytest.mark.usefixtures("one_thread", "poisoned")

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
each_dtype = pytest.mark.parametrize("dtype", list(DTYPES.values()), ids=list(DTYPES))
# (N, H, W, C), groups: narrower and wider than a panel, of one channel, with a rest of rows, in many parts
SHAPES = [((6, 7, 5, 3), 3), ((2, 3, 3, 257), 1), ((4, 1, 1, 600), 2), ((3, 5, 1, 1), 3), ((2, 40, 41, 64), 2),
          ((1, 9, 11, 100), 1)]
each_activation = pytest.mark.parametrize("activation", [Activation(name, 0.2) for name in ACTIVATIONS],
                                          ids=ACTIVATIONS)
each_shape = pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)


@pytest.fixture(params=_cpu.isas())
def isa(request: pytest.FixtureRequest) -> Any:
    before = _cpu.isa()
    _cpu.use(request.param)
    yield request.param
    _cpu.use(before)


class Norm(NamedTuple):
    stats: Tensor  # [2, G, C]: mean and rstd
    gamma: Tensor
    beta: Tensor


def draw(shape: tuple[int, ...], groups: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Norm]:
    """y, a gradient and a normalization of y."""
    torch.manual_seed(0)
    channels = shape[-1]
    stats = torch.stack([torch.randn(groups, channels), torch.rand(groups, channels) + 0.5])
    norm = Norm(stats, torch.randn(channels), torch.randn(channels))
    return torch.randn(shape).to(dtype), torch.randn(shape).to(dtype), norm


def nchw(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def nhwc(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def assert_near(ours: Tensor, eager: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    assert used(ours, eager, exact, UNITS * EPS[dtype] * exact.abs().max().item()) <= 1


def assert_near_float64(ours: Tensor, function: Callable[..., Tensor], *tensors: Tensor | None) -> None:
    """By the rule of tests/near.py; function(*tensors) is the definition."""
    eager, exact = function(*tensors), function(*(None if t is None else t.double() for t in tensors))
    assert ours.shape == exact.shape and ours.dtype == eager.dtype
    assert_near(ours, eager, exact, ours.dtype)


@each_shape
@each_dtype
def test_statistics(isa, dtype, shape, groups):
    """Mean and variance of float64 to a unit of float32, far from zero as near it."""
    x = (draw(shape, groups, dtype)[0] + 100.0).to(dtype)
    found = rows.finish_statistics(rows.measure(x, groups))
    mean, var = reference.measure(nchw(x).double(), groups)
    torch.testing.assert_close(found[0].double(), mean, rtol=2**-23, atol=0)
    torch.testing.assert_close(found[1].double(), var, rtol=1e-5, atol=0)


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_running_statistics(isa, dtype, momentum):
    x, *_ = draw((6, 5, 7, 33), 3, torch.float32)
    ours, theirs = (RunningStats(torch.arange(33).to(dtype), torch.ones(33).to(dtype), torch.tensor(2))
                    for _ in range(2))
    found = rows.finish_statistics(rows.measure(x, 3), 1e-3, ours, momentum)
    expected = passes.batch_stats(nchw(x), None, theirs, 70, NormSpec(True, momentum, 1e-3, 3))
    tolerance = 1e-5 if dtype == torch.float32 else 4 * EPS[dtype]  # the reference rounds after each group
    torch.testing.assert_close([found, *ours], [expected, *theirs], rtol=tolerance, atol=10 * tolerance)
    assert ours.num_batches_tracked == 5


@each_shape
@each_dtype
@each_activation
def test_bn_act_forward(isa, dtype, shape, groups, activation):
    y, _, norm = draw(shape, groups, dtype)

    def function(y: Tensor, stats: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        statistics, norm = torch.stack([stats[0], stats[1]**-2]), NormSpec(True, None, 0.0, groups)
        return nhwc(passes.bn_act_forward(nchw(y), statistics, gamma, beta, RunningStats(), 0, norm, activation)[0])

    assert_near_float64(rows.bn_act_forward(y, *norm, activation), function, y, *norm)


@each_shape
@each_dtype
@each_activation
def test_bn_backward(isa, dtype, shape, groups, activation):
    y, ga, norm = draw(shape, groups, dtype)
    sums, count = rows.bn_backward_sums(ga, y, *norm, activation), ga.numel() // norm.stats[0].numel()
    assert_near_float64(
        sums, lambda ga, y, *norm: passes.bn_backward_sums(nchw(ga), nchw(y), *norm, activation), ga, y, *norm)

    def function(ga: Tensor, y: Tensor, stats: Tensor, gamma: Tensor, beta: Tensor, sums: Tensor | None) -> Tensor:
        return nhwc(passes.bn_backward_apply(nchw(ga), nchw(y), stats, gamma, beta, sums, count, activation))

    for given in (sums, None):
        assert_near_float64(rows.bn_backward_apply(ga, y, *norm, given, count, activation), function, ga, y, *norm,
                            given)


@each_shape
@each_dtype
@each_activation
def test_activation_alone(isa, dtype, shape, groups, activation):
    z, ga, _ = draw(shape, groups, dtype)
    expected = reference.activate(z, activation)
    a = rows.activate_(z.clone(), activation)
    assert_near(a, expected, reference.activate(z.double(), activation), dtype)
    assert_near_float64(rows.act_backward(ga, a, activation),
                        lambda ga, a: passes.act_backward(ga, a, activation), ga, a)


def test_normalization_without_gamma_and_beta(isa):
    y, ga, norm = draw((4, 3, 2, 5), 2, torch.float32)
    given, activation = (ga, y, norm.stats, None, None), Activation("relu")
    torch.testing.assert_close(rows.bn_act_forward(*given[1:], activation), rows.bn_act_forward(
        y, norm.stats, torch.ones(5), torch.zeros(5), activation))
    assert_near_float64(rows.bn_backward_sums(*given, activation), lambda ga, y, *norm: passes.bn_backward_sums(
        nchw(ga), nchw(y), *norm, activation), *given)


WINDOWS = [Window((4, 4), (2, 2), (1, 1), (4, 3)), Window((3, 2), (1, 3), (0, 1), (6, 2)),
           Window((1, 1), (1, 1), (0, 0), (8, 5)), Window((2, 2), (4, 3), (0, 0), (3, 2)),
           Window((5, 7), (2, 1), (4, 6), (9, 12)), Window((1, 1), (1, 1), (2, 9), (3, 4))]


def unfolded(a: Tensor, window: Window) -> Tensor:
    """Patches [N * Hc * Wc, kh * kw * C] of a [N, H, W, C], with as many zeros around it as they read."""
    (top, left), (kh, kw), (sh, sw), (height, width) = window.padding, window.kernel, window.stride, window.size
    below, right = (max(0, (n - 1) * s + k - pad - side) for n, s, k, pad, side in zip(
        window.size, window.stride, window.kernel, window.padding, a.shape[1:3], strict=True))
    a = F.pad(a, (0, 0, left, right, top, below))
    taps = [a[:, i:i + (height - 1) * sh + 1:sh, j:j + (width - 1) * sw + 1:sw] for i in range(kh) for j in range(kw)]
    return torch.stack(taps, 3).reshape(len(a) * height * width, -1)


@each_dtype
@pytest.mark.parametrize("window", WINDOWS, ids=lambda window: "-".join(map(str, window)))
@pytest.mark.parametrize("channels", [3, 130, 300])
def test_gather_copies_patches(isa, dtype, window, channels):
    x, *_ = draw((6, 8, 5, channels), 3, dtype)
    patches = torch.cat([rows.gather(x, window, first, 2) for first in (0, 2, 4)])
    assert torch.equal(patches, unfolded(x, window))


@each_dtype
@pytest.mark.parametrize("window", WINDOWS, ids=lambda window: "-".join(map(str, window)))
@pytest.mark.parametrize("channels", [3, 130])
def test_scatter_is_the_transpose_of_gather(isa, dtype, window, channels):
    torch.manual_seed(0)
    image = torch.zeros(2, 8, 5, channels, dtype=torch.float64, requires_grad=True)
    read = unfolded(image, window)
    patches, bias = torch.randn(read.shape).to(dtype), torch.randn(channels)
    expected = torch.autograd.grad(read, image, patches.double())[0] + bias
    out = torch.empty(image.shape, dtype=dtype)
    rows.scatter(patches, bias, window, out)
    assert_near(out, expected.to(dtype), expected, dtype)


def test_all_numbers_of_16_bits(isa):
    """Widened and rounded again they are the same; numbers between them go to the nearest, ties to even."""
    for dtype in (torch.float16, torch.bfloat16):
        every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
        torch.testing.assert_close(rows.activate_(every[:, None].clone(), Activation())[:, 0], every, rtol=0, atol=0,
                                   equal_nan=True)
        low, high = torch.tensor([-65519.0, 65519.0] if dtype == torch.float16 else [-3e38, 3e38])
        points = torch.cat([(every[:-1].float() + every[1:].float()) / 2, torch.tensor([1e-8, 3e-5, -6.1e-5])])
        points = points[points.isfinite() & (points >= low) & (points <= high)]
        kept = points.to(dtype)
        zeros = torch.zeros(1, 1, points.numel(), 1, dtype=dtype)  # scatter: float32 bias, rounded once
        out = torch.empty(1, 1, 1, points.numel(), dtype=dtype)
        rows.scatter(zeros.view(1, -1), points, Window((1, 1), (1, 1), (0, 0), (1, 1)), out)
        assert torch.equal(out.flatten(), kept)


@each_dtype
def test_threads_change_no_bit(isa, dtype):
    def everything() -> list[Tensor]:
        (y, ga, norm), activation = draw((4, 33, 31, 70), 2, dtype), Activation("tanh")
        window = Window((4, 4), (2, 2), (1, 1), (16, 15))
        patches, out = rows.gather(y, window, 0, 4), torch.empty_like(y)
        rows.scatter(patches, norm.gamma, window, out)
        sums = rows.bn_backward_sums(ga, y, *norm, activation)
        return [rows.finish_statistics(rows.measure(y, 2)), rows.bn_act_forward(y, *norm, activation), patches, out,
                sums, rows.bn_backward_apply(ga, y, *norm, sums, 2046, activation),
                rows.act_backward(ga, y, activation)]

    one = everything()
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(one, everything(), strict=True))


def test_no_rows(isa):
    y, ga, norm = draw((0, 4, 5, 7), 1, torch.float32)
    relu, sums = Activation("relu"), rows.bn_backward_sums(ga, y, *norm, Activation("relu"))
    assert not sums.any() and not rows.finish_statistics(rows.measure(y, 1)).any()
    assert rows.bn_act_forward(y, *norm, relu).shape == rows.act_backward(ga, y, relu).shape == y.shape
    assert rows.bn_backward_apply(ga, y, *norm, sums, 1, relu).shape == y.shape
    window = Window((2, 2), (1, 1), (0, 0), (3, 4))
    assert rows.gather(y, window, 0, 0).shape == (0, 28)
    rows.scatter(torch.empty(0, 28), None, window, torch.empty(0, 4, 5, 7))


Y, GA, NORM = draw((4, 5, 6, 7), 2, torch.float32)
ONES, RELU = torch.ones(7), Activation("relu")


def forward(**changed: Tensor) -> Tensor:
    return rows.bn_act_forward(Y, *NORM._replace(**changed), RELU)


def backward(ga: Tensor, sums: Tensor | None = None) -> Tensor:
    return rows.bn_backward_apply(ga, Y, *NORM, sums, 60, RELU)


def update(running: RunningStats) -> Tensor:
    return rows.finish_statistics(rows.measure(Y, 1), 0.1, running)


@pytest.mark.parametrize(("function", "message"), [
    (lambda: rows.measure(Y.double(), 1), "x of dtype torch.float64: expected one of torch.float32"),
    (lambda: rows.measure(nchw(Y), 1), "x with strides .* expected a contiguous tensor"),
    (lambda: rows.measure(Y, 3), r"x of shape \(4, 5, 6, 7\): expected 3 equal parts"),
    (lambda: forward(gamma=ONES[:6]), "gamma of shape"),
    (lambda: forward(beta=torch.ones(2, 7)), "beta of shape"),
    (lambda: forward(stats=torch.ones(2, 2, 6)), "stats of shape"),
    (lambda: forward(stats=NORM.stats.double()), "stats of shape .* torch.float64: expected"),
    (lambda: backward(GA[:2]), r"ga of shape \(2, 5, 6, 7\)"),
    (lambda: rows.bn_backward_sums(GA.half(), Y, *NORM, RELU), "ga of shape .* torch.float16: expected"),
    (lambda: backward(GA, NORM.stats[:, :1]), "sums of shape"),
    (lambda: rows.act_backward(GA.mT.contiguous().mT, Y, RELU), "ga with strides"),
    (lambda: rows.act_backward(GA.to("meta"), Y, RELU), "ga on meta: expected cpu"),
    (lambda: update(RunningStats(ONES[:6], ONES[:6])), "running_mean of shape"),
    (lambda: update(RunningStats(ONES, ONES)), "momentum None without num_batches_tracked"),
    (lambda: rows.scatter(Y.view(-1, 7), None, WINDOWS[0], torch.empty(4, 8, 5, 7)), "patches of shape"),
], ids=["dtype", "strides", "groups", "gamma", "beta", "stats", "stats-dtype", "ga", "ga-dtype", "sums", "ga-strides",
        "ga-device", "running", "average", "patches"])
def test_refused(function, message):
    with pytest.raises(FastganError, match=message):
        function()


@pytest.mark.parametrize(("name", "change", "message"), [
    ("y", 0, "y: expected an address, got null"), ("y", 2, "y: expected an address divisible by 4"),
    ("dtype", 3, "dtype 3: expected 0"), ("rows", -1, "rows -1: expected 0 or more"),
    ("rows", 2**62, r"rows \d+: expected rows \* channels"), ("channels", 0, "channels 0: expected 1 or more"),
    ("groups", 3, "groups 3: expected a divisor of the 4 rows"), ("groups", 0, "groups 0: expected a divisor"),
    ("stats", 0, "stats: expected an address, got null"), ("gamma", 0, "gamma: expected an address, got null"),
    ("activation", 4, "activation 4: expected 0 "), ("parts", 0, "parts 0: expected 1 or more"),
    ("parts", 2, "partials: expected an address, got null"), ("sums", 0, "sums: expected an address, got null")])
def test_refused_once_more_below(name, change, message):
    y, vectors, sums = torch.zeros(4, 2), torch.ones(2, 2, 2), torch.zeros(2, 2, 2)
    given = {"ga": y.data_ptr(), "y": y.data_ptr(), "dtype": 0, "rows": 4, "channels": 2, "groups": 2,
             "stats": vectors.data_ptr(), "gamma": vectors.data_ptr(), "beta": vectors.data_ptr(), "activation": 1,
             "slope": 0.0, "parts": 1, "partials": 0, "sums": sums.data_ptr(), "queue": 1}

    def call(ga: int, y: int, dtype: int, rows: int, channels: int, groups: int, stats: int, gamma: int, beta: int,
             activation: int, slope: float, *rest: int) -> None:
        _cpu.bn_backward_sums(ga, y, dtype, rows, channels, groups, (stats, gamma, beta, activation, slope), *rest)

    call(*given.values())
    with pytest.raises(ValueError, match=message):
        call(*{**given, name: change}.values())


@pytest.mark.parametrize("parts", [1, 4])
def test_sums_on_another_device_are_taken_in_parts(monkeypatch, parts):
    calls: list[Any] = []
    monkeypatch.setattr(extension, "of", lambda device: SimpleNamespace(parts=lambda group_rows, channels: parts))
    monkeypatch.setattr(extension, "call", lambda device, name, *arguments: calls.append((name, arguments)))
    sums = rows.bn_backward_sums(GA.to("meta"), Y.to("meta"), *(t.to("meta") for t in NORM), RELU)
    ((name, (_, _, dtype, count, channels, groups, normalization, given, *_)),) = calls
    assert (name, dtype, count, channels, groups, given) == ("bn_backward_sums", 0, 120, 7, 2, parts)
    assert normalization[3:] == (1, 0) and sums.shape == (2, 2, 7)


def test_instruction_set_that_is_not_there():
    with pytest.raises(ValueError, match=r"isa sse9: this processor and this build have .*portable"):
        _cpu.use("sse9")


def test_kernels_are_launched_on_the_device_of_their_tensors(monkeypatch):
    """Where another GPU is the current one, by the stream that is current on theirs."""
    where, calls = [0], []

    @contextmanager
    def current(device: torch.device) -> Iterator[None]:
        where.append(device.index)
        yield
        where.pop()

    module = SimpleNamespace(measure=lambda *arguments: calls.append((where[-1], arguments)))
    monkeypatch.setitem(extension._found, "cuda", (module, ""))
    monkeypatch.setattr(torch.cuda, "device", current)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=100 + device.index))
    extension.call(torch.device("cuda:1"), "measure", 7)
    assert calls == [(1, (7, 101))] and where == [0]
