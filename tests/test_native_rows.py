"""The compiled row kernels and patches by themselves: each instruction set, threads, edges, refusals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastgan import _cpu
from fastgan.errors import FastganError
from fastgan.ops import reference
from fastgan.ops.layers import ACTIVATIONS, Activation, Measurement, Owed
from fastgan.ops.native import extension, rows
from fastgan.ops.native.rows import Window
from tests.near import EPS, MARGIN, UNITS, rms

pytestmark = pytest.mark.usefixtures("one_thread", "poisoned")

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
each_dtype = pytest.mark.parametrize("dtype", list(DTYPES.values()), ids=list(DTYPES))
# (N, H, W, C), groups: narrower and wider than a panel, of one channel, with a rest of rows, in many parts
SHAPES = [((6, 7, 5, 3), 3), ((2, 3, 3, 257), 1), ((4, 1, 1, 600), 2), ((3, 5, 1, 1), 3), ((2, 40, 41, 64), 2),
          ((1, 9, 11, 100), 1)]
each_shape = pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)


@pytest.fixture(params=_cpu.isas())
def isa(request: pytest.FixtureRequest) -> Any:
    before = _cpu.isa()
    _cpu.use(request.param)
    yield request.param
    _cpu.use(before)


def draw(shape: tuple[int, ...], groups: int, dtype: torch.dtype, activation: str = "leaky_relu",
         ) -> tuple[Tensor, Tensor, Owed]:
    """x, a gradient and what is owed to x."""
    torch.manual_seed(0)
    channels = shape[-1]
    statistics = torch.stack([torch.randn(groups, channels), torch.rand(groups, channels) + 0.5])
    owed = Owed(statistics, torch.randn(channels), torch.randn(groups, channels), Activation(activation, 0.2))
    return torch.randn(shape).to(dtype), torch.randn(shape).to(dtype), owed


def nchw(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def wide(owed: Owed) -> Owed:
    return Owed(*(part.double() for part in owed[:3]), owed.activation)


def assert_near(ours: Tensor, eager: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    error, theirs = rms(ours - exact), rms(eager - exact)
    assert error <= MARGIN * theirs + UNITS * EPS[dtype] * exact.abs().max().item()


@each_shape
@each_dtype
def test_statistics(isa, dtype, shape, groups):
    """Mean and variance of float64 to a unit of float32, far from zero as near it."""
    x = (draw(shape, groups, dtype)[0] + 100.0).to(dtype)
    found = rows.finish_statistics(rows.measure(x, groups), Measurement())
    mean, var = reference.measure(nchw(x).double(), groups)
    torch.testing.assert_close(found[0].double(), mean, rtol=2**-23, atol=0)
    torch.testing.assert_close(found[1].double(), var, rtol=1e-5, atol=0)


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_running_statistics(isa, dtype, momentum):
    x, *_ = draw((6, 5, 7, 33), 3, torch.float32)
    buffers = [[torch.arange(33).to(dtype), torch.ones(33).to(dtype), torch.tensor(2)] for _ in range(2)]
    found = rows.finish_statistics(rows.measure(x, 3), Measurement(1e-3, *buffers[0], momentum))
    expected = reference.measured(nchw(x), 3, Measurement(1e-3, *buffers[1], momentum))
    tolerance = 1e-5 if dtype == torch.float32 else 4 * EPS[dtype]  # the reference rounds after each group
    torch.testing.assert_close([found, *buffers[0]], [expected, *buffers[1]], rtol=tolerance, atol=10 * tolerance)
    assert buffers[0][2] == 5


@each_shape
@each_dtype
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", [True, False], ids=["norm", "no-norm"])
def test_normalise_activate(isa, dtype, shape, groups, activation, norm):
    x, gout, owed = draw(shape, groups, dtype, activation)
    owed = owed if norm else Owed(activation=owed.activation)
    eager, exact = (nhwc_of(reference.normalise_activate(nchw(t), reference.known(o), o.activation))
                    for t, o in ((x, owed), (x.double(), wide(owed) if norm else owed)))
    assert_near(rows.normalise_activate(x, owed), eager, exact, dtype)
    found, (theirs, theirs_norm), (right, right_norm) = rows.normalise_activate_backward(gout, x, owed), *(
        reference.normalise_activate_backward(nchw(g), nchw(t), o)
        for g, t, o in ((gout, x, owed), (gout.double(), x.double(), wide(owed) if norm else owed)))
    assert_near(found[0], nhwc_of(theirs), nhwc_of(right), dtype)
    for one, other, exactly in zip(found[1], theirs_norm, right_norm, strict=True):
        assert_near(one, other, exactly, torch.float32)


def nhwc_of(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


@each_shape
@each_dtype
@pytest.mark.parametrize("spread", ["var", "rstd"])
def test_through_statistics(isa, dtype, shape, groups, spread):
    y, gy, owed = draw(shape, groups, dtype)
    gstatistics, statistics = torch.randn_like(owed.statistics), owed.statistics
    found = rows.through_statistics(gy, y, gstatistics, statistics, spread)
    (gmean, gspread), (mean, deviation) = gstatistics.double(), statistics.double()
    steep = 2 * gspread if spread == "var" else -(deviation**3) * gspread
    parts, each = y.double().unflatten(0, (groups, -1)), y.numel() // mean.numel()
    by = [part[:, None, None, None] for part in (gmean, steep, mean)]
    exact = gy.double() + ((by[0] + by[1] * (parts - by[2])) / each).flatten(0, 1)
    assert_near(found, exact.to(dtype), exact, dtype)


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
    x, _, _ = draw((6, 8, 5, channels), 3, dtype)
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
        torch.testing.assert_close(rows.normalise_activate(every[:, None], Owed())[:, 0], every, rtol=0, atol=0,
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
        x, g, owed = draw((4, 33, 31, 70), 2, dtype, "tanh")
        window = Window((4, 4), (2, 2), (1, 1), (16, 15))
        patches, out = rows.gather(x, window, 0, 4), torch.empty_like(x)
        rows.scatter(patches, owed.gamma, window, out)
        statistics = rows.finish_statistics(rows.measure(x, 2), Measurement())
        return [statistics, *rows.normalise_activate_backward(g, x, owed), patches, out,
                rows.through_statistics(g, x, owed.statistics, statistics, "var")]

    one = everything()
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(one, everything(), strict=True))


def test_no_rows(isa):
    x, gout, owed = draw((0, 4, 5, 7), 1, torch.float32)
    assert rows.normalise_activate(x, owed).shape == x.shape
    gx, gnorm = rows.normalise_activate_backward(gout, x, owed)
    assert gx.shape == x.shape and not gnorm.any()
    assert not rows.finish_statistics(rows.measure(x, 1), Measurement()).any()
    window = Window((2, 2), (1, 1), (0, 0), (3, 4))
    assert rows.gather(x, window, 0, 0).shape == (0, 28)
    rows.scatter(torch.empty(0, 28), None, window, torch.empty(0, 4, 5, 7))


X, G, OWED = draw((4, 5, 6, 7), 2, torch.float32)
ONES = torch.ones(7)


def through(gy: Tensor) -> Tensor:
    return rows.through_statistics(gy, X, OWED.statistics, OWED.statistics, "var")


@pytest.mark.parametrize(("function", "message"), [
    (lambda: rows.measure(X.double(), 1), "x of dtype torch.float64: expected one of torch.float32"),
    (lambda: rows.measure(nchw(X), 1), "x with strides .* expected a contiguous tensor"),
    (lambda: rows.measure(X, 3), r"x of shape \(4, 5, 6, 7\): expected 3 equal parts"),
    (lambda: rows.normalise_activate(X, OWED._replace(gamma=None)), "gamma and beta are None"),
    (lambda: rows.normalise_activate(X, OWED._replace(gamma=ONES.half())), "gamma of shape .* torch.float16"),
    (lambda: rows.normalise_activate(X, OWED._replace(statistics=torch.ones(2, 2, 6))), "statistics of shape"),
    (lambda: rows.normalise_activate_backward(G[:2], X, OWED), r"gout of shape \(2, 5, 6, 7\)"),
    (lambda: rows.normalise_activate_backward(G.half(), X, OWED), "gout of shape .* torch.float16: expected"),
    (lambda: rows.through_statistics(G, X, torch.ones(2, 1, 7), OWED.statistics, "var"), "gstatistics of shape"),
    (lambda: through(G.mT.contiguous().mT), "gy with strides"),
    (lambda: through(G.to("meta")), "gy on meta: expected cpu"),
    (lambda: rows.finish_statistics(rows.measure(X, 1), Measurement(0.1, ONES[:6], ONES[:6])), "running_mean of shape"),
    (lambda: rows.finish_statistics(rows.measure(X, 1), Measurement(0.1, ONES, ONES)), "momentum None without num_bat"),
    (lambda: rows.scatter(X.view(-1, 7), None, WINDOWS[0], torch.empty(4, 8, 5, 7)), "patches of shape"),
], ids=["dtype", "strides", "groups", "null", "gamma", "statistics", "gout", "gout-dtype", "gstatistics", "gy-strides",
        "gy-device", "running", "average", "patches"])
def test_refused(function, message):
    with pytest.raises(FastganError, match=message):
        function()


@pytest.mark.parametrize(("name", "change", "message"), [
    ("x", 0, "x: expected an address, got null"), ("x", 2, "x: expected an address divisible by 4"),
    ("dtype", 3, "dtype 3: expected 0"), ("rows", -1, "rows -1: expected 0 or more"),
    ("rows", 2**62, r"rows \d+: expected rows \* channels"), ("channels", 0, "channels 0: expected 1 or more"),
    ("groups", 3, "groups 3: expected a divisor of the 4 rows"), ("groups", 0, "groups 0: expected a divisor"),
    ("statistic_groups", 3, "statistic_groups 3: expected 1 or 2"),
    ("gamma_groups", 0, "gamma_groups 0: expected 1 or 2"),
    ("gamma", 0, "gamma: expected an address, got null"), ("activation", 4, "activation 4: expected 0 "),
    ("out", 0, "out: expected an address, got null")])
def test_refused_once_more_below(name, change, message):
    x, vectors = torch.zeros(4, 2), torch.ones(2, 2)
    given = {"x": x.data_ptr(), "dtype": 0, "rows": 4, "channels": 2, "groups": 2, "statistics": vectors.data_ptr(),
             "statistic_groups": 1, "gamma": vectors.data_ptr(), "beta": vectors.data_ptr(), "gamma_groups": 2,
             "activation": 1, "slope": 0.0, "out": x.data_ptr(), "queue": 1}
    _cpu.normalise_activate(*given.values())
    with pytest.raises(ValueError, match=message):
        _cpu.normalise_activate(*{**given, name: change}.values())


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
