"""The operations compared with eager layers, in float64 if numbers matter, and the message of every error."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fastgan import ops
from fastgan.errors import FastganError
from fastgan.ops import torch_ops
from proofs.cases import CASES, name, results

pytestmark = pytest.mark.usefixtures("one_thread")

each_kind = pytest.mark.parametrize("transposed", [False, True], ids=["conv", "transpose"])
each_case = pytest.mark.parametrize(("case", "transposed"), [
    pytest.param(case, transposed, id=f"{name(case)}-{'transpose' if transposed else 'conv'}")
    for case in CASES for transposed in (False, True) if transposed or case[0][2:] != (1, 1)])


class Eager(nn.Module):
    """The layers of a case, seeded; G calls for G groups."""

    def __init__(self, case: tuple[Any, ...], transposed: bool, activation: str, *, norm: bool = True,
                 dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        (_, ci, _, _), co, kernel, stride, padding, extra, bias, self.groups = case
        torch.manual_seed(0)
        given = {"stride": stride, "padding": padding, "bias": bias}
        self.conv = nn.ConvTranspose2d(ci, co, kernel, output_padding=extra, **given) if transposed else nn.Conv2d(
            ci, co, kernel, **given)
        self.norm = nn.BatchNorm2d(co) if norm else None
        self.act = {"relu": nn.ReLU(), "leaky_relu": nn.LeakyReLU(0.2), "tanh": nn.Tanh(), "none": nn.Identity()}[
            activation]
        self.activation = activation
        if norm:
            for parameter in self.norm.parameters():
                nn.init.normal_(parameter, 0.5)
            self.norm.running_mean.normal_(), self.norm.running_var.uniform_(0.5, 2)
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.conv(x).chunk(self.groups)  # one call, as fused: errors depend on the batch
        return self.act(torch.cat([part if self.norm is None else self.norm(part) for part in parts]))

    def fused(self, x: Tensor, **options: Any) -> Tensor:
        conv, norm = self.conv, self.norm
        given: dict[str, Any] = {"stride": conv.stride, "padding": conv.padding, "activation": self.activation,
                                 "training": self.training, "stat_groups": self.groups, "impl": "reference"}
        function = ops.conv_bn_act
        if isinstance(conv, nn.ConvTranspose2d):
            function, given["output_padding"] = ops.conv_transpose_bn_act, conv.output_padding
        four = (None,) * 4 if norm is None else (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        return function(x, conv.weight, conv.bias, *four, **{**given, **options})


def draw(case: tuple[Any, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(case[0], dtype=torch.float64).to(dtype)


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor], **tolerance: float) -> None:
    assert left.keys() == right.keys()
    for key in left:
        torch.testing.assert_close(left[key], right[key], **(tolerance or {"rtol": 1e-10, "atol": 1e-11}),
                                   msg=lambda text, key=key: f"{key}: {text}")


@each_case
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh", "none"])
def test_block_is_the_eager_layers(case, transposed, activation):
    eager = Eager(case, transposed, activation)
    fused = copy.deepcopy(eager)
    x = draw(case)
    assert_same(results(eager, x, eager), results(fused.fused, x, fused))
    assert_same(results(eager.eval(), x, eager), results(fused.eval().fused, x, fused))
    y = fused.fused(x)
    assert y.is_contiguous(memory_format=torch.channels_last)


@each_case
def test_block_without_batch_normalisation(case, transposed):
    eager = Eager(case, transposed, "leaky_relu", norm=False)
    assert_same(results(eager, draw(case), eager), results(eager.fused, draw(case), eager))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_untracked_statistics_are_the_batchs(training):
    case = CASES[0]
    eager = Eager(case, False, "relu").train(training)
    eager.norm = nn.BatchNorm2d(5, track_running_stats=False).double().train(training)
    assert_same(results(eager, draw(case), eager), results(eager.fused, draw(case), eager))


def layouts(x: Tensor) -> dict[str, Tensor]:
    wide = torch.randn(x.shape[0] + 1, x.shape[1] + 2, x.shape[2] * 2, x.shape[3] + 3, dtype=x.dtype)
    sliced = wide[1:, 1:-1, ::2, 2:-1]
    sliced.copy_(x)
    return {"contiguous": x, "channels-last": x.contiguous(memory_format=torch.channels_last), "sliced": sliced,
            "transposed": x.transpose(2, 3).contiguous().transpose(2, 3), "expanded": x[:1].expand(x.shape)}


@each_kind
@pytest.mark.parametrize("layout", layouts(torch.zeros(1, 1, 1, 1)))
def test_layouts_of_the_input(layout, transposed):
    eager = Eager(CASES[0], transposed, "relu")
    fused = copy.deepcopy(eager)
    x = layouts(draw(CASES[0]))[layout]
    before = x.clone()
    assert_same(results(eager, x, eager), results(fused.fused, x, fused))
    fused.fused(x.detach())
    assert torch.equal(x, before)


# maximum error relative to eager's, plus one rounding unit of the largest element
MARGIN = 1.5
EPS = {torch.float32: 2**-24, torch.bfloat16: 2**-9, torch.float16: 2**-12}


def assert_as_near(ours: dict[str, Tensor], eager: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    for key, value in exact.items():
        unit = EPS[ours[key].dtype] * value.abs().max()
        error, allowed = (ours[key] - value).abs().max(), MARGIN * (eager[key] - value).abs().max() + unit
        assert error <= allowed, f"{key}: {error} from float64, eager {(eager[key] - value).abs().max()}"


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("case", CASES[:2], ids=name)
def test_as_near_to_float64_as_eager(case, dtype, transposed):
    eager = Eager(case, transposed, "leaky_relu", dtype=dtype)
    if dtype != torch.float32:
        eager.norm.float()
    fused, exact = copy.deepcopy(eager), copy.deepcopy(eager).double()
    x = draw(case, dtype).contiguous(memory_format=torch.channels_last)  # as fused: kernels depend on it
    assert_as_near(results(fused.fused, x, fused), results(eager, x, eager), results(exact, x.double(), exact))


def test_mean_ten_thousand_times_the_deviation():
    """E[y^2] - E[y]^2 has no correct digit."""
    case = CASES[0]
    exact = Eager(case, False, "relu")
    with torch.no_grad():
        exact.conv.bias = nn.Parameter(exact.conv(draw(case)).std((0, 2, 3)) * 1e4)
        exact.float()
        # as fused: for other layouts a library may start its sums with the bias, which changes the errors of y
        x = draw(case, torch.float32).contiguous(memory_format=torch.channels_last)
        y = exact.conv(x)
        conv, norm, eager = exact.conv, copy.deepcopy(exact.norm), F.relu(exact.norm(y))
        fused = ops.conv_bn_act(x, conv.weight, conv.bias, norm.weight, norm.bias, activation="relu")
        exact.double()
        # from the same rounded y, because the statistics are checked, not the convolution
        y = y.double()
        right = F.relu(exact.norm(y))
    std = y.std((0, 2, 3), correction=0)
    naive = y.float().square().mean((0, 2, 3)) - y.float().mean((0, 2, 3)).square()
    assert (y.mean((0, 2, 3)) / std).min() > 9e3
    assert (naive / std.square() - 1).abs().max() > 0.5  # the naive formula would fail here
    unit = EPS[torch.float32] * right.abs().max()
    allowed = MARGIN * (eager - right).abs().max() + unit
    assert (fused - right).abs().max() <= allowed


SMALL = [((2, 2, 3, 3), 1, (3, 2), 2, 1, 0, True, 1), ((4, 1, 2, 3), 1, (2, 2), 1, 1, 0, False, 2)]


@each_kind
@pytest.mark.parametrize("activation", ["leaky_relu", "tanh"])
@pytest.mark.parametrize("case", SMALL, ids=name)
def test_first_and_second_derivatives(case, activation, transposed):
    network = Eager(case, transposed, activation)
    conv, norm = network.conv, network.norm
    inputs = [t.detach().requires_grad_() for t in (draw(case), conv.weight, norm.weight, norm.bias)]

    def block(x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        function = ops.conv_transpose_bn_act if transposed else ops.conv_bn_act
        return function(x, weight, None, gamma, beta, stride=conv.stride, padding=conv.padding, activation=activation,
                        stat_groups=case[-1])

    assert torch.autograd.gradcheck(block, inputs)
    assert torch.autograd.gradgradcheck(block, inputs)


class ConvolutionBackwards(TorchDispatchMode):
    """output_mask (input, weight, bias) of each convolution that is differentiated."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[list[bool]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default:
            self.masks.append(list(args[-1][:2]))
        return func(*args, **(kwargs or {}))


@each_kind
@pytest.mark.parametrize(("x_needs", "w_needs"), [(True, False), (False, True), (True, True)],
                         ids=["frozen-weight", "frozen-input", "both"])
def test_only_the_gradients_that_are_asked_for(x_needs, w_needs, transposed):
    network = Eager(CASES[0], transposed, "relu")
    network.conv.weight.requires_grad_(w_needs)
    y = network.fused(draw(CASES[0]).requires_grad_(x_needs))
    with ConvolutionBackwards() as seen:
        y.sum().backward()
    assert seen.masks == [[x_needs, w_needs]]


@each_kind
def test_compiles_as_a_full_graph(transposed):
    eager = Eager(CASES[1], transposed, "leaky_relu")
    compiled = copy.deepcopy(eager)
    function = torch.compile(compiled.fused, fullgraph=True, backend="aot_eager")
    assert_same(results(eager, draw(CASES[1]), eager), results(function, draw(CASES[1]), compiled))


@each_kind
def test_empty_batch(transposed):
    shape = (0, 3, 17, 19)
    eager = Eager((shape, *CASES[0][1:]), transposed, "relu").eval()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y, expected = eager.fused(x), eager(x)
    assert y.shape == expected.shape
    assert [g.shape for g in torch.autograd.grad(y.sum(), [x, eager.conv.weight])] == [shape, eager.conv.weight.shape]
    eager.train(), torch.testing.assert_close(eager.fused(x), eager(x))


def test_cumulative_average_without_a_count_is_refused():
    zeros = torch.zeros(2)
    with pytest.raises(FastganError, match="momentum None: a cumulative average"):
        torch_ops.update_running_statistics(zeros, zeros, None, zeros[None], zeros[None], 4, None)
    with pytest.raises(FastganError, match="count 1: expected more than 1"):
        torch_ops.update_running_statistics(zeros, zeros, None, zeros[None], zeros[None], 1, 0.1)


GOOD: dict[str, Any] = {"x": torch.zeros(4, 3, 8, 8), "weight": torch.zeros(5, 3, 4, 4), "bias": torch.zeros(5),
                        "gamma": torch.ones(5), "beta": torch.zeros(5), "running_mean": torch.zeros(5),
                        "running_var": torch.ones(5)}
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": [1.0]}, TypeError, r"x is \[1.0\] \(list\), expected a Tensor \(N, Ci, H, W\)"),
    ({"x": torch.zeros(3, 8, 8)}, FastganError, r"x of shape \(3, 8, 8\): expected \(N, Ci, H, W\)"),
    ({"x": torch.zeros(4, 3, 8, 8, dtype=torch.int32)}, FastganError, "x of dtype torch.int32: expected one of"),
    ({"x": torch.zeros(4, 3, 8, 8).to_mkldnn()}, FastganError, "x of layout torch._mkldnn: expected torch.strided"),
    ({"x": torch.zeros(4, 3, 1, 1)}, FastganError, "x of 1x1 pixels: too small for a kernel of 4x4"),
    ({"x": torch.zeros(4, 3, 0, 8)}, FastganError, "x of 0x8 pixels: too small"),
    ({"x": torch.zeros(4, 3, 8, 8, device="meta")}, FastganError, "weight on cpu: expected x's device, meta"),
    ({"weight": None}, TypeError, "weight is None"),
    ({"weight": torch.zeros(5, 2, 4, 4)}, FastganError, r"weight of shape \(5, 2, 4, 4\): expected .* Ci = 3"),
    ({"weight": torch.zeros(5, 3, 8, 4)}, FastganError, "kernel of 8x4: expected sides of 1 to 7"),
    ({"weight": torch.zeros(5, 3, 4, 4).double()}, FastganError, "weight of dtype torch.float64: expected x's"),
    ({"bias": torch.zeros(4)}, FastganError, r"bias of shape \(4,\): expected \(5,\)"),
    ({"bias": 1.0}, TypeError, r"bias is 1.0 \(float\), expected a Tensor \(5,\) or None"),
    ({"bias": torch.zeros(5).double()}, FastganError, "bias of dtype torch.float64: expected the weight's"),
    ({"gamma": torch.zeros(1, 5)}, FastganError, r"gamma of shape \(1, 5\): expected \(5,\)"),
    ({"beta": None}, FastganError, "beta is None but gamma is not: expected both or neither"),
    ({"gamma": torch.zeros(5).half()}, FastganError, "gamma of dtype torch.float16: expected torch.float32"),
    ({"running_var": None}, FastganError, "running_var is None but running_mean is not"),
    ({"running_var": torch.zeros(5).double()}, FastganError, "running_var of dtype torch.float64: expected gamma's"),
    ({"gamma": None, "beta": None}, FastganError, "running_mean and running_var without gamma and beta"),
    ({"stride": 5}, FastganError, "stride 5: expected 1 to 4"),
    ({"stride": 0}, FastganError, "stride 0: expected 1 to 4"),
    ({"stride": 2.0}, TypeError, r"stride is 2.0 \(float\), expected an int or a pair"),
    ({"stride": (2, 2, 2)}, TypeError, r"stride is \(2, 2, 2\) \(tuple\), expected an int or a pair"),
    ({"padding": -1}, FastganError, "padding -1: expected at least 0"),
    ({"padding": "same"}, TypeError, "padding is 'same'"),
    ({"activation": "gelu"}, FastganError, "activation 'gelu': expected one of 'none', 'relu', 'leaky_relu', 'tanh'"),
    ({"negative_slope": "steep"}, TypeError, "negative_slope is 'steep'"),
    ({"negative_slope": float("nan")}, FastganError, "negative_slope nan: expected a finite number"),
    ({"training": 1}, TypeError, "training is 1"),
    ({"momentum": None}, FastganError, "momentum None: .*fastgan.nn"),
    ({"eps": 0.0}, FastganError, "eps 0.0: expected a positive number"),
    ({"stat_groups": 3}, FastganError, "stat_groups 3: expected a positive number that divides the batch of 4"),
    ({"stat_groups": 0}, FastganError, "stat_groups 0"),
    ({"stat_groups": 1.0}, TypeError, "stat_groups is 1.0"),
    ({"impl": "triton", "x": torch.zeros(4, 3, 8, 8).double(), "weight": torch.zeros(5, 3, 4, 4).double(),
      "bias": None, "gamma": None, "beta": None, "running_mean": None, "running_var": None}, FastganError,
     "x of dtype torch.float64: impl 'triton' computes in torch.float32"),
    ({"impl": "cuda"}, FastganError, "impl 'cuda': expected 'auto', 'reference', 'native', 'triton'"),
    ({"x": torch.zeros(1, 3, 2, 2), "padding": 1}, FastganError, "Expected more than 1 value per channel"),
    ({"x": torch.zeros(4, 3, 2, 2), "stat_groups": 4}, FastganError, "Expected more than 1 value per channel"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD,
                         ids=[f"{i}-{'-'.join(change)}" for i, (change, _, _) in enumerate(BAD)])
def test_refusals(change, error, message):
    given = {**GOOD, **change}
    before = {key: value.clone() for key, value in given.items() if isinstance(value, Tensor)}
    with pytest.raises(error, match=message):
        ops.conv_bn_act(**given)
    assert all(torch.equal(given[key], value) for key, value in before.items()
               if value.device.type == "cpu" and value.layout == torch.strided)
    ops.conv_bn_act(**GOOD)


@pytest.mark.parametrize(("extra", "error", "message"), [
    (2, FastganError, "output_padding 2: expected less than the stride, 2"),
    (-1, FastganError, "output_padding -1: expected at least 0"),
    ("1", TypeError, "output_padding is '1'"),
])
def test_refused_output_padding(extra, error, message):
    with pytest.raises(error, match=message):
        ops.conv_transpose_bn_act(torch.zeros(1, 3, 4, 4), torch.zeros(3, 5, 4, 4), output_padding=extra)


@pytest.mark.parametrize("impl", ["reference", "native", "triton"])
def test_integers_of_numpy_are_integers(impl):
    torch.manual_seed(0)
    x, weight, gamma, beta = torch.randn(4, 3, 5, 6), torch.randn(3, 5, 4, 3), torch.rand(5), torch.randn(5)
    given = {"stride": (2, 3), "padding": 1, "output_padding": (1, 0), "negative_slope": 2, "stat_groups": 2}
    results = [ops.conv_transpose_bn_act(x, weight, None, gamma, beta, impl=impl, activation="leaky_relu", **options)
               for options in (given, {key: np.asarray(value)[()] if isinstance(value, int) else
                                       tuple(map(np.int64, value)) for key, value in given.items()})]
    assert torch.equal(*results)
    for wrong in (np.float64(2), np.bool_(True), True, np.array([2])):
        with pytest.raises(TypeError, match="stride is "):
            ops.conv_bn_act(x, weight.transpose(0, 1), stride=wrong, impl=impl)


def test_autocast_as_for_eager_layers():
    eager = Eager(CASES[0], False, "relu", dtype=torch.float32)
    fused = copy.deepcopy(eager)
    x = draw(CASES[0], torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = fused.fused(x)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y, eager(x))
        fused.fused(y[:, :3])  # as a second layer: 16-bit input, 32-bit weight
