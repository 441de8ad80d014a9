"""The kernels of batch normalization and patches: each instruction set, numbers of threads, edge sizes, errors."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module, util
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastgan.errors import FastganError
from fastgan.ops import reference, tickets, torch_ops
from fastgan.ops.native import convolve, extension
from fastgan.ops.native import passes as native
from fastgan.ops.native.convolve import Geometry
from fastgan.ops.specs import ACTIVATIONS, Activation, NormSpec, RunningStats
from tests.near import EPS, UNITS, used

pytestmark = pytest.mark.usefixtures("one_thread", "poisoned")

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
each_dtype = pytest.mark.parametrize("dtype", list(DTYPES.values()), ids=list(DTYPES))
# (N, H, W, C), groups: narrower and wider than a panel, of one channel, with a remainder of rows, in many parts
SHAPES = [((6, 7, 5, 3), 3), ((2, 3, 3, 257), 1), ((4, 1, 1, 600), 2), ((3, 5, 1, 1), 3), ((2, 40, 41, 64), 2),
          ((1, 9, 11, 100), 1)]
each_activation = pytest.mark.parametrize("activation", [Activation(name, 0.2) for name in ACTIVATIONS],
                                          ids=ACTIVATIONS)
each_shape = pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)


CPU = torch.device("cpu")
BUILT = {name.rpartition("_")[2]: name for name in ("fastgan._cpu_portable", "fastgan._cpu_avx2", "fastgan._cpu_avx512")
         if util.find_spec(name)}
# the instruction sets of this processor, each of which includes the previous ones
ISAS = list(BUILT)[:list(BUILT).index(extension.of(CPU).__name__.rpartition("_")[2]) + 1]


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(extension._modules, "cpu", (import_module(BUILT[request.param]), ""))
    return str(request.param)


class Norm(NamedTuple):
    stats: Tensor  # [2, G, C]: mean and rstd
    gamma: Tensor
    beta: Tensor


def draw(shape: tuple[int, ...], groups: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Norm]:
    """y of shape (N, H, W, C) as (N, C, H, W), a gradient, and a normalization of y."""
    torch.manual_seed(0)
    channels = shape[-1]
    stats = torch.stack([torch.randn(groups, channels), torch.rand(groups, channels) + 0.5])
    norm = Norm(stats, torch.randn(channels), torch.randn(channels))
    return nchw(torch.randn(shape).to(dtype)), nchw(torch.randn(shape).to(dtype)), norm


def nchw(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def assert_near(ours: Tensor, eager: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    assert used(ours, eager, exact, UNITS * EPS[dtype] * exact.abs().max().item()) <= 1


def assert_near_float64(ours: Tensor, function: Callable[..., Tensor], *tensors: Tensor | None) -> None:
    """By the rule of tests/near.py; function(*tensors) is the definition."""
    eager, exact = function(*tensors), function(*(None if t is None else t.double() for t in tensors))
    assert ours.shape == exact.shape and ours.dtype == eager.dtype
    assert_near(ours, eager, exact, ours.dtype)


def normalized(y: Tensor, norm: Norm, activation: Activation) -> Tensor:
    """act(batch_norm(y)) with constant statistics."""
    spec = NormSpec(False, None, 0.0, len(norm.stats[0]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "batch_stats", lambda *given: norm.stats)
        return native.bn_act_forward(y, None, norm.gamma, norm.beta, RunningStats(), 0, spec, activation)[0]


@each_shape
@each_dtype
def test_statistics(isa, dtype, shape, groups):
    """Mean and variance within a unit of float32, also far from zero."""
    x = (draw(shape, groups, dtype)[0] + 100.0).to(dtype)
    found = native.batch_stats(x, groups)
    mean, var = torch_ops.measure(x.double(), groups)
    torch.testing.assert_close(found[0].double(), mean, rtol=2**-23, atol=0)
    torch.testing.assert_close(found[1].double(), var, rtol=1e-5, atol=0)


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_running_statistics(isa, dtype, momentum):
    x, *_ = draw((6, 5, 7, 33), 3, torch.float32)
    ours, theirs = (RunningStats(torch.arange(33).to(dtype), torch.ones(33).to(dtype), torch.tensor(2))
                    for _ in range(2))
    found = native.batch_stats(x, 3, 1e-3, ours, momentum)
    expected = reference.batch_stats(x, None, theirs, 70, NormSpec(True, momentum, 1e-3, 3))
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
        return reference.bn_act_forward(y, statistics, gamma, beta, RunningStats(), 0, norm, activation)[0]

    assert_near_float64(normalized(y, norm, activation), function, y, *norm)


@each_shape
@each_dtype
@each_activation
def test_bn_backward(isa, dtype, shape, groups, activation):
    y, ga, norm = draw(shape, groups, dtype)
    (sums, _), count = native.bn_backward_sums(ga, y, *norm, activation), ga.numel() // norm.stats[0].numel()
    assert_near_float64(sums, lambda *given: reference.bn_backward_sums(*given, activation)[0], ga, y, *norm)
    for given in (sums, None):
        assert_near_float64(native.bn_backward_apply(ga, y, *norm, given, count, activation),
                            lambda *given: reference.bn_backward_apply(*given, count, activation), ga, y, *norm, given)


@each_shape
@each_dtype
@each_activation
def test_act_backward(dtype, shape, groups, activation):
    z, ga, _ = draw(shape, groups, dtype)
    kept = torch_ops.activate(z, activation)
    for each in (kept, z > 0) if activation.name == "leaky_relu" else (kept,):
        assert_near_float64(native.act_backward(ga, each, activation),
                            lambda ga, kept: reference.act_backward(ga, kept, activation), ga, each)


def test_normalization_without_gamma_and_beta(isa):
    y, ga, norm = draw((4, 3, 2, 5), 2, torch.float32)
    given, activation = (ga, y, norm.stats, None, None), Activation("relu")
    torch.testing.assert_close(normalized(y, Norm(norm.stats, None, None), activation),
                               normalized(y, Norm(norm.stats, torch.ones(5), torch.zeros(5)), activation))
    for which in range(2):  # of each group, over both
        assert_near_float64(native.bn_backward_sums(*given, activation)[which],
                            lambda *given: reference.bn_backward_sums(*given, activation)[which], *given)  # noqa: B023


# kernel, stride, padding, size of the coarse image
WINDOWS = [((4, 4), (2, 2), (1, 1), (4, 3)), ((3, 2), (1, 3), (0, 1), (6, 2)), ((1, 1), (1, 1), (0, 0), (8, 5)),
           ((2, 2), (4, 3), (0, 0), (3, 2)), ((5, 7), (2, 1), (4, 6), (9, 12)), ((1, 1), (1, 1), (2, 9), (3, 4))]
each_window = pytest.mark.parametrize("window", WINDOWS, ids=lambda window: "-".join(map(str, window)))


def geometry(images: int, channels: int, window: tuple[tuple[int, int], ...]) -> Geometry:
    """The geometry of patches in fine images of 8x5."""
    kernel, stride, padding, size = window
    return Geometry(0, images, (8, 5, channels), (*size, 1), kernel, stride, padding)


def unfolded(a: Tensor, window: tuple[tuple[int, int], ...]) -> Tensor:
    """Patches [N * Hc * Wc, kh * kw * C] of a [N, H, W, C], padded with the zeros that they read."""
    (kh, kw), (sh, sw), (top, left), (height, width) = window
    below, right = (max(0, (n - 1) * s + k - pad - side)
                    for k, s, pad, n, side in zip(*window, a.shape[1:3], strict=True))
    a = F.pad(a, (0, 0, left, right, top, below))
    taps = [a[:, i:i + (height - 1) * sh + 1:sh, j:j + (width - 1) * sw + 1:sw] for i in range(kh) for j in range(kw)]
    return torch.stack(taps, 3).reshape(len(a) * height * width, -1)


@each_dtype
@each_window
@pytest.mark.parametrize("channels", [3, 130])
def test_patches_are_copied(dtype, window, channels):
    x = torch.randn(6, 8, 5, channels).to(dtype)
    for some in (x, x[2:4]):
        assert torch.equal(convolve._patches(geometry(6, channels, window), some), unfolded(some, window))


@each_dtype
@each_window
@pytest.mark.parametrize("channels", [3, 130])
def test_scattering_is_the_transpose(dtype, window, channels):
    torch.manual_seed(0)
    image = torch.zeros(2, 8, 5, channels, dtype=torch.float64, requires_grad=True)
    read = unfolded(image, window)
    patches, bias = torch.randn(read.shape).to(dtype), torch.randn(channels)
    expected = torch.autograd.grad(read, image, patches.double())[0] + bias
    out = torch.empty(image.shape, dtype=dtype)
    convolve._scatter(geometry(2, channels, window), patches, bias, out)
    assert_near(out, expected.to(dtype), expected, dtype)


def test_all_numbers_of_16_bits(isa):
    """Widened and rounded, they are unchanged; numbers between them round to nearest, ties to even."""
    for dtype in (torch.float16, torch.bfloat16):
        every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
        unchanged = Norm(torch.stack([torch.zeros(1, 1), torch.ones(1, 1)]), torch.ones(1), -torch.zeros(1))
        torch.testing.assert_close(normalized(every[:, None, None, None], unchanged, Activation()).flatten(), every,
                                   rtol=0, atol=0, equal_nan=True)
        low, high = torch.tensor([-65519.0, 65519.0] if dtype == torch.float16 else [-3e38, 3e38])
        points = torch.cat([(every[:-1].float() + every[1:].float()) / 2, torch.tensor([1e-8, 3e-5, -6.1e-5])])
        points = points[points.isfinite() & (points >= low) & (points <= high)]
        zeros = torch.zeros(1, len(points), 1, 1, dtype=dtype)  # a is beta, in float32, rounded once
        norm = Norm(torch.zeros(2, 1, len(points)), torch.ones(len(points)), points)
        assert torch.equal(normalized(zeros, norm, Activation()).flatten(), points.to(dtype))


@each_dtype
def test_threads_change_no_bit(isa, dtype):
    def everything() -> list[Tensor]:
        (y, ga, norm), activation = draw((4, 33, 31, 70), 2, dtype), Activation("tanh")
        sums, _ = native.bn_backward_sums(ga, y, *norm, activation)
        return [native.batch_stats(y, 2), normalized(y, norm, activation), sums,
                native.bn_backward_apply(ga, y, *norm, sums, 2046, activation)]

    one = everything()
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(one, everything(), strict=True))


def test_no_rows(isa):
    y, ga, norm = draw((0, 4, 5, 7), 1, torch.float32)
    relu = Activation("relu")
    sums, _ = native.bn_backward_sums(ga, y, *norm, relu)
    assert not sums.any() and not native.batch_stats(y, 1).any()
    assert normalized(y, norm, relu).shape == native.act_backward(ga, y, relu).shape == y.shape
    assert native.bn_backward_apply(ga, y, *norm, sums, 1, relu).shape == y.shape


Y, GA, NORM = draw((4, 5, 6, 7), 2, torch.float32)
ONES, RELU = torch.ones(7), Activation("relu")


def forward(**changed: Tensor) -> Tensor:
    return normalized(Y, NORM._replace(**changed), RELU)


def backward(ga: Tensor, sums: Tensor | None = None) -> Tensor:
    return native.bn_backward_apply(ga, Y, *NORM, sums, 60, RELU)


def update(running: RunningStats) -> Tensor:
    return native.batch_stats(Y, 1, 0.1, running)


@pytest.mark.parametrize(("function", "message"), [
    (lambda: native.batch_stats(Y.double(), 1), "y of dtype torch.float64: expected one of torch.float32"),
    (lambda: native.batch_stats(Y, 3), r"y of shape \(4, 7, 5, 6\): expected 3 equal parts"),
    (lambda: forward(gamma=ONES[:6]), "gamma of shape"),
    (lambda: forward(beta=torch.ones(2, 7)), "beta of shape"),
    (lambda: forward(stats=torch.ones(2, 2, 6)), "stats of shape"),
    (lambda: backward(GA[:2]), r"ga of shape \(2, 7, 5, 6\)"),
    (lambda: native.bn_backward_sums(GA.half(), Y, *NORM, RELU), "ga of shape .* torch.float16: expected"),
    (lambda: backward(GA, NORM.stats[:, :1]), "sums of shape"),
    (lambda: backward(GA.to("meta")), "ga on meta: expected cpu"),
    (lambda: update(RunningStats(ONES[:6], ONES[:6])), "running_mean of shape"),
    (lambda: update(RunningStats(ONES, ONES)), "momentum None: a cumulative average"),
    (lambda: update(RunningStats(None, None, torch.ones(2))), "num_batches_tracked of shape"),
], ids=["dtype", "groups", "gamma", "beta", "stats", "ga", "ga-dtype", "sums", "ga-device", "running", "average",
        "batches"])
def test_refused(function, message):
    with pytest.raises(FastganError, match=message):
        function()


@pytest.mark.parametrize("contiguous", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
def test_any_strides_and_dtypes_of_vectors(isa, contiguous):
    """The results are those of contiguous float32."""
    strided = Norm(NORM.stats.double(), torch.stack([NORM.gamma, ONES], 1)[:, 0], NORM.beta.mul(8).round().half())
    plain = Norm(*(part.float().contiguous() for part in strided))
    y, ga = Y.contiguous(memory_format=contiguous), GA.contiguous(memory_format=contiguous)
    assert torch.equal(normalized(y, strided, RELU), normalized(Y, plain, RELU))
    for one, other in zip(native.bn_backward_sums(ga, y, *strided, RELU),
                          native.bn_backward_sums(GA, Y, *plain, RELU), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("name", "change", "message"), [
    ("y", None, "(y|ga): expected an address, got null"), ("y", 2, "(y|ga): expected an address divisible by 4"),
    ("dtype", 3, "dtype 3: expected 0"), ("rows", -1, "rows -1: expected 0 or more"),
    ("rows", 2**62, r"rows \d+: expected rows \* channels"), ("channels", 0, "channels 0: expected 1 or more"),
    ("groups", 3, "groups 3: expected a divisor of the 4 rows"), ("groups", 0, "groups 0: expected a divisor"),
    ("stats", None, "stats: expected an address, got null"), ("gamma", 0, "gamma: expected an address, got null"),
    ("activation", 4, "activation 4: expected 0 "), ("parts", -1, "parts -1: expected 0 or more"),
    ("parts", 2, "partials: expected an address, got null"), ("sums", 0, "sums: expected an address, got null"),
    ("totals", 0, "totals: expected an address, got null")])
def test_refused_once_more_below(name, change, message):
    y, vectors, sums = torch.zeros(4, 2), torch.ones(2, 2, 2), torch.zeros(2, 2, 2)
    given = {"y": y, "rows": 4, "channels": 2, "groups": 2, "dtype": 0, "stats": vectors, "gamma": vectors,
             "beta": vectors.data_ptr(), "activation": 1, "slope": 0.0, "parts": 0, "partials": None, "sums": sums,
             "totals": torch.zeros(2, 2)}

    def call(y: Any, rows: int, channels: int, groups: int, dtype: int, stats: Any, gamma: Any, beta: int,
             activation: int, slope: float, parts: int, partials: Any, sums: Any, totals: Any) -> None:
        extension.of(CPU).bn_backward_sums(y, y, (rows, channels, groups, dtype),
                                           (stats, gamma, beta, activation, slope), (parts, partials, None), sums,
                                           totals, 1)

    call(**given)
    with pytest.raises(ValueError, match=message):
        call(**{**given, name: change})


@pytest.mark.parametrize("parts", [1, 4])
def test_sums_on_another_device_are_taken_in_parts(monkeypatch, parts):
    calls: list[Any] = []
    monkeypatch.setattr(tickets, "_tickets", {})
    monkeypatch.setattr(extension, "of", lambda device: SimpleNamespace(parts=lambda group_rows, channels: parts))
    monkeypatch.setattr(extension, "call", lambda device, name, *arguments: calls.append((name, arguments)))
    sums, totals = native.bn_backward_sums(GA.to("meta"), Y.to("meta"), *(t.to("meta") for t in NORM), RELU)
    ((name, (_, _, shape, normalization, (given, partials, zeros), *_)),) = calls
    assert (name, shape, given, partials.shape) == ("bn_backward_sums", (120, 7, 2, 0), parts, (2, 2, parts, 7))
    assert normalization[3:] == (1, 0) and sums.shape == (2, 2, 7) and totals.shape == (2, 7) and len(zeros) >= 8


def test_the_instruction_set_is_that_of_pytorch():
    code = "import torch; from fastgan.ops.native import extension as e; print(e.ISA, e.of(torch.device('cpu')))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, "ATEN_CPU_CAPABILITY": "default"}).stdout
    assert told.startswith("portable <module 'fastgan._cpu_portable'")


def test_kernels_are_launched_on_the_device_of_their_tensors(monkeypatch):
    """On the current stream of their device, while another GPU is the current device."""
    where, calls = [0], []

    @contextmanager
    def current(device: torch.device) -> Iterator[None]:
        where.append(device.index)
        yield
        where.pop()

    module = SimpleNamespace(measure=lambda *arguments: calls.append((where[-1], arguments)))
    monkeypatch.setitem(extension._modules, "cuda", (module, ""))
    monkeypatch.setattr(torch.cuda, "device", current)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=100 + device.index))
    extension.call(torch.device("cuda:1"), "measure", 7)
    assert calls == [(1, (7, 101))] and where == [0]
