"""The operation in every form, with ordinary activations as input and output, equals the eager layers."""

from __future__ import annotations

import copy
import math
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.memory import peak_mb
from fastgan.errors import FastganError
from fastgan.nn import Chain
from fastgan.nn.blocks import block, read
from fastgan.ops import autograd, reference, synchronised
from fastgan.ops.casts import Casts
from fastgan.ops.library import OPERATORS, passes_of
from fastgan.ops.specs import ConvSpec, NormSpec, RunningStats
from tests.near import EPS, UNITS, used
from tests.test_ops import assert_same, results

pytestmark = pytest.mark.usefixtures("one_thread")

CONVOLUTIONS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(3, 5, (4, 3), (2, 1), (1, 2)),
    "transposed": lambda: nn.ConvTranspose2d(3, 5, (4, 3), (2, 3), 1, (1, 2))}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU, "relu-inplace": lambda: nn.ReLU(True), "leaky": lambda: nn.LeakyReLU(0.2),
    "leaky-inplace": lambda: nn.LeakyReLU(0.2, True), "leaky-negative": lambda: nn.LeakyReLU(-0.5), "tanh": nn.Tanh}
SHAPE = (6, 3, 7, 11)

each_convolution = pytest.mark.parametrize("convolution", CONVOLUTIONS)
each_activation = pytest.mark.parametrize("activation", [*ACTIVATIONS, "none"])
ENGINES = ("reference", "native", "triton")
each_engine = pytest.mark.parametrize("engine", ENGINES)
each_of_kernels = pytest.mark.parametrize("engine", ENGINES[1:])
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Triton's interpreter computes bfloat16 wrongly
each_engine_and_dtype = pytest.mark.parametrize(("engine", "dtype"), [
    pytest.param(engine, dtype, id=f"{engine}-{name}") for engine in ENGINES for name, dtype in DTYPES.items()
    if (engine, name) != ("triton", "bf16")])
# the native engine in float32, against eager PyTorch in float64
_OF_KERNELS: dict[str, Any] = {"rtol": 1e-3, "atol": 2e-4, "check_dtype": False}
TOLERANCE: dict[str, dict[str, Any]] = {"reference": {}, "native": _OF_KERNELS, "triton": _OF_KERNELS}


def layers(convolution: str, activation: str = "leaky", dtype: torch.dtype = torch.float64,
           **norm: Any) -> nn.Sequential:
    """norm: arguments of BatchNorm2d; norm=False for none."""
    torch.manual_seed(0)
    made = [CONVOLUTIONS[convolution]()]
    if norm.pop("norm", True):
        made.append(nn.BatchNorm2d(5, **norm))
        for parameter in made[1].parameters():
            nn.init.normal_(parameter, 1.0, 0.3)
        if made[1].running_mean is not None:
            nn.init.normal_(made[1].running_mean), nn.init.uniform_(made[1].running_var, 0.5, 1.5)
    if activation != "none":
        made.append(ACTIVATIONS[activation]())
    return nn.Sequential(*made).to(dtype)


def images(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


class Ours(nn.Module):
    """A copy of a Sequential's layers as one operation; kernels compute float64 in float32."""

    def __init__(self, eager: nn.Sequential, engine: str, groups: int = 1) -> None:
        super().__init__()
        self.layers, self.engine, self.groups = copy.deepcopy(eager), engine, groups
        if engine != "reference" and self.layers[0].weight.dtype == torch.float64:
            self.layers.float()

    def forward(self, x: Tensor) -> Tensor:
        [[one]] = read(list(self.layers))
        if self.engine != "reference" and x.dtype == torch.float64:
            x = x.float()
        function, arguments = autograd.bind(x, *block(*one, self.groups), self.engine)
        return function.apply(*arguments)[0]


def assert_equal_to_eager(eager: nn.Sequential, x: Tensor, engine: str, groups: int = 1) -> None:
    """Output, gradients and buffers in two calls, because running statistics change."""
    ours = Ours(eager, engine, groups)
    for _ in range(2):
        expected = results(lambda x: torch.cat([eager(part) for part in x.chunk(groups)]), x, eager)
        assert_same(results(ours, x, ours.layers), expected, **TOLERANCE[engine])


@each_engine
@each_convolution
@each_activation
def test_training(convolution, activation, engine):
    assert_equal_to_eager(layers(convolution, activation), images(), engine)


@each_engine
@each_convolution
@each_activation
def test_without_batch_normalization(convolution, activation, engine):
    if activation == "leaky-inplace":
        x, eager = images(), layers(convolution, "leaky", norm=False)
        ours = Ours(layers(convolution, activation, norm=False), engine)
        assert_same(results(ours, x, ours.layers), results(eager, x, eager), **TOLERANCE[engine])
    assert_equal_to_eager(layers(convolution, activation, norm=False), images(), engine)


@each_engine
@pytest.mark.parametrize("groups", [2, 3, 6])
@pytest.mark.parametrize("momentum", [0.1, None, 0.0], ids=["momentum", "cumulative", "zero"])
def test_statistic_groups(groups, momentum, engine):
    eager = layers("conv", momentum=momentum)
    ours = Ours(eager, engine, groups)
    assert_equal_to_eager(eager, images(), engine, groups)
    ours(images())
    assert ours.layers[1].num_batches_tracked == groups


@each_engine
@pytest.mark.parametrize("norm", [{}, {"track_running_stats": False}, {"affine": False}, {"momentum": None},
                                  {"eps": 0.1}], ids=["usual", "untracked", "not-affine", "cumulative", "eps"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@each_convolution
def test_batch_normalizations(convolution, training, norm, engine):
    assert_equal_to_eager(layers(convolution, **norm).train(training), images(), engine)


@each_engine
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("frozen", [["0.weight"], ["0.bias"], ["1.weight"], ["1.bias"],
                                    ["0.weight", "0.bias", "1.weight", "1.bias"]], ids=" ".join)
def test_frozen_parameters(frozen, training, engine):
    eager = layers("conv").train(training)
    for name in frozen:
        eager.get_parameter(name).requires_grad_(False)
    assert_equal_to_eager(eager, images(), engine)


@each_engine
def test_gradient_of_parameters_alone(engine):
    eager = layers("conv")
    ours = Ours(eager, engine)
    for network in (eager, ours):
        network(images()).square().sum().backward()
    for one, other in zip(eager.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, **(TOLERANCE[engine] or {"rtol": 1e-9, "atol": 1e-9}))


@each_engine
@each_activation
@pytest.mark.parametrize("norm", [True, False], ids=["norm", "no-norm"])
def test_not_a_number_stays_one(activation, norm, engine):
    eager, x = layers("conv", activation, norm=norm).eval(), images()
    x[0, 0, 3, 4] = float("nan")
    expected = eager(x)
    assert expected.isnan().any()
    torch.testing.assert_close(Ours(eager, engine)(x), expected, equal_nan=True, **TOLERANCE[engine])


@each_engine
@pytest.mark.parametrize("activation", ["leaky", "leaky-negative", "tanh", "none"])
@pytest.mark.parametrize(("norm", "training"), [(True, True), (True, False), (False, True)],
                         ids=["training", "evaluation", "no-norm"])
@each_convolution
def test_second_derivatives(convolution, norm, training, activation, engine):
    """R1 differentiated by parameters and by the image, compared with eager PyTorch; no buffer is updated twice."""
    eager = layers(convolution, activation, norm=norm).train(training)
    ours = Ours(eager, engine)

    def penalty(network: nn.Module, layers: nn.Sequential) -> list[Tensor]:
        x = images().requires_grad_()
        out = network(x)
        slope, = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        wanted = [x, *layers.parameters()]
        grads = torch.autograd.grad(slope.square().sum() + out.sum(), wanted, allow_unused=True)
        return [torch.zeros_like(one) if grad is None else grad for one, grad in zip(wanted, grads, strict=True)]

    right = penalty(eager, eager)
    largest = max(float(one.abs().max()) for one in right)  # the size of the terms of a gradient that cancels
    for one, other in zip(right, penalty(ours, ours.layers), strict=True):
        small, scale = (1e-8, float(one.abs().max() + 1)) if engine == "reference" else (1e-4, largest)
        torch.testing.assert_close(other.double(), one, rtol=small, atol=small * scale)
    assert_same(dict(ours.layers.named_buffers()), dict(eager.named_buffers()), **TOLERANCE[engine])


def test_gradgradcheck():
    ours, x = Ours(layers("conv", "tanh"), "reference", 2), images()[:4, :, :4, :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(ours, x) and torch.autograd.gradgradcheck(ours, x)


@each_engine
@pytest.mark.parametrize("norm", [True, False], ids=["norm", "no-norm"])
@pytest.mark.parametrize("after", [
    lambda y: y.add_(1), lambda y: F.elu(y, inplace=True), lambda y: F.dropout(y, 0.5, inplace=True)],
    ids=["add", "elu", "dropout"])
@pytest.mark.parametrize("activation", ["leaky", "none"])
def test_results_may_be_overwritten(activation, after, norm, engine):
    """As in eager PyTorch: if its backward does not read them, ours does not either."""
    eager = layers("conv", activation, norm=norm)
    ours = Ours(eager, engine)
    both = []
    for network, parameters in ((eager, eager), (ours, ours.layers)):
        def run(x: Tensor, network: nn.Module = network) -> Tensor:
            torch.manual_seed(5)
            return after(network(x))

        x = images() if engine == "reference" else images().to(memory_format=torch.channels_last)
        both.append(results(run, x, parameters))  # dropout draws in memory order
    assert_same(*reversed(both), **TOLERANCE[engine])


@each_engine
@each_convolution
@each_activation
@pytest.mark.parametrize("norm", [True, False], ids=["norm", "no-norm"])
def test_results_are_no_views(norm, activation, convolution, engine):
    x = images().requires_grad_()
    y = Ours(layers(convolution, activation, norm=norm), engine)(x)
    assert not y._is_view() and y.untyped_storage().nbytes() == y.numel() * y.element_size()


@pytest.mark.parametrize("last", ["neither", "input", "weight"])
@each_convolution
def test_memory_format_is_that_of_eager(convolution, last):
    eager, x = layers(convolution), images()
    if last == "input":
        x = x.contiguous(memory_format=torch.channels_last)
    if last == "weight":
        eager.to(memory_format=torch.channels_last)
    ours = Ours(eager, "reference")
    (y, out), x = (eager(x), ours(x)), x.requires_grad_()
    assert out.stride() == y.stride()
    ours(x).sum().backward()
    assert all(one.grad.stride() == one.stride() for one in ours.parameters())


@each_engine_and_dtype
@pytest.mark.parametrize("activation", ["tanh", "none"])
@each_convolution
def test_as_near_to_float64_as_eager(convolution, activation, engine, dtype):
    """Without kinks, at which rounding selects the slope."""
    eager = layers(convolution, activation, dtype)
    eager[1].float()
    ours, exact, x = Ours(eager, engine), copy.deepcopy(eager).double(), images(dtype)
    expected, theirs = results(exact, x.double(), exact), results(eager, x, eager)
    for key, value in results(ours, x, ours.layers).items():
        # the interpreter adds a channel up row by row
        units = UNITS if engine != "triton" else max(UNITS, math.sqrt(expected["y"].numel() / 5))
        roundings = units * EPS[theirs[key].dtype] * float(expected[key].abs().max())
        assert used(value, theirs[key], expected[key], roundings) <= 1, key


@each_engine
def test_lent_casts_of_weights(engine):
    ours, x = Ours(layers("conv", "tanh", torch.float32), engine), images(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        expected = results(ours, x, ours.layers)
        with Casts(ours.parameters(), torch.bfloat16).lent():
            ours.layers[1].reset_running_stats()
            lent = results(ours, x, ours.layers)
    for key in ("y", "x", "0.weight", "1.weight"):
        assert torch.equal(lent[key], expected[key]), key


@each_engine
def test_statistics_of_one_process_are_its_own(engine):
    eager = layers("conv")
    ours = Ours(eager, engine)
    expected = results(eager, images(), eager)
    with synchronised.over(1):
        assert_same(results(ours, images(), ours.layers), expected, **TOLERANCE[engine])


@each_engine
def test_functional_gradients(engine):
    """torch.func.grad, and functional_call with other parameters."""
    for norm in (True, False):
        eager = layers("conv", "tanh", norm=norm).eval()
        ours = Ours(eager, engine)

        def loss(parameters: dict[str, Tensor], network: nn.Module) -> Tensor:
            return torch.func.functional_call(network, parameters, (images(),)).square().sum()

        one = torch.func.grad(loss)(dict(eager.named_parameters()), eager)
        other = torch.func.grad(loss)(dict(ours.named_parameters()), ours)
        assert_same({key.removeprefix("layers."): value for key, value in other.items()}, one, **TOLERANCE[engine])


@each_engine
@pytest.mark.parametrize("norm", [True, False], ids=["norm", "no-norm"])
def test_compiles_as_a_full_graph(norm, engine):
    """In a chain, which a compiler sees as eager layers."""
    eager, dtype = layers("conv", norm=norm), torch.float64 if engine == "reference" else torch.float32
    ours = Chain(*copy.deepcopy(eager), impl=engine).to(dtype)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    assert_same(results(compiled, images(dtype), ours), results(eager, images(), eager), **TOLERANCE[engine])


def test_one_value_per_channel():
    with pytest.raises(FastganError, match="Expected more than 1 value per channel when training, got an output of 2x"):
        autograd.bind(torch.zeros(2, 3, 3, 3), *block(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), None, 2), "reference")


@each_of_kernels
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("groups", [1, 3])
def test_passes(activation, groups, engine):
    """Each compared with the reference's pass of the same name and arguments."""
    [[one]] = read(list(layers("conv", activation, torch.float32)))
    tensors, (conv, _, act) = block(*one)
    x, norm = images(torch.float32), NormSpec(True, groups=groups)
    weight, bias, gamma, beta = (tensor.detach() for tensor in tensors[:4])
    both = []
    for kernels in (reference, OPERATORS[engine]):
        running = RunningStats(torch.zeros(5), torch.ones(5), torch.zeros((), dtype=torch.int64))
        y, statistics = kernels.conv_forward(x, weight, bias, conv, groups)
        found, count = {"y": y, "statistics": statistics}, y.numel() // (5 * groups)
        found["a"], found["stats"] = kernels.bn_act_forward(y, statistics, gamma, beta, running, count, norm,
                                                            act)
        found["a of y alone"], found["stats of y alone"] = kernels.bn_act_forward(
            y, None, gamma, beta, RunningStats(), count, norm, act)
        found["synchronised a"], _ = kernels.bn_act_forward(y, 2 * statistics, gamma, beta, RunningStats(), 7, norm,
                                                            act)
        found |= dict(zip(("running mean", "running var", "tracked"), running, strict=True))
        ga = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
        of_bn = ga, y, found["stats"], gamma, beta
        found["sums"], found["sums over groups"] = kernels.bn_backward_sums(*of_bn, act)
        found["g"] = kernels.bn_backward_apply(*of_bn, found["sums"], count, act)
        found["g of running statistics"] = kernels.bn_backward_apply(*of_bn, None, 1, act)
        found["a without norm"], mask = kernels.conv_act_forward(x, weight, bias, conv, act)
        found["mask"] = mask
        found["g without norm"] = kernels.act_backward(ga, mask if mask.numel() else found["a without norm"],
                                                      act)
        found["gx"], found["gw"] = kernels.dgrad(ga, x, weight, conv), kernels.wgrad(ga, x, weight, conv)
        both.append(found)
    assert_same(both[1], both[0], rtol=1e-4, atol=1e-4)


@each_of_kernels
def test_operators(engine):
    """Schemas and results with fake tensors match those with real tensors."""
    y, vector = images(torch.float32).to(memory_format=torch.channels_last), torch.rand(3) + 0.5
    stats, act = torch.stack([vector, vector])[:, None].contiguous(), ("leaky_relu", 0.2, False)
    conv = (2, 1), (1, 1), (0, 0), False
    weight = torch.randn(5, 3, 3, 3).to(memory_format=torch.channels_last)
    g = OPERATORS[engine].conv_forward(y, weight, None, ConvSpec(*conv), 0)[0]
    count = torch.zeros((), dtype=torch.int64)
    for name, *given in [
        ("conv_forward", y, weight, None, *conv, 0), ("conv_forward", y, weight, torch.randn(5), *conv, 2),
        ("conv_act_forward", y, weight, None, *conv, *act),
        ("conv_act_forward", y, weight, None, *conv, "leaky_relu", 0.2, True),
        ("bn_act_forward", y, stats.repeat(1, 2, 1), vector, vector, vector.clone(), vector.clone(), count, 9, True,
         0.1, 1e-5, 2, *act),
        ("bn_act_forward", y, None, None, None, vector.clone(), vector.clone(), None, 1, False, None, 1e-5, 1, *act),
        ("bn_backward_sums", y.clone(), y, stats, vector, vector, *act),
        ("bn_backward_apply", y.clone(), y, stats, vector, None, stats, 5, *act),
        ("bn_backward_sums", y.clone(), y, stats.repeat(1, 2, 1), vector, vector, *act),
        ("act_backward", y.clone(), y, *act), ("dgrad", g, y, weight, *conv),
        ("wgrad", g, y, weight, *conv, None, "none", 0.0, False),
        *[("wgrad", g, y, weight, *conv, g.clone(), *act)] * (engine == "triton"),
    ]:
        operator = getattr(torch.ops.fastgan, name).default
        torch.library.opcheck(operator, (engine, *given), test_utils=["test_schema", "test_faketensor"])


class Seen(TorchDispatchMode):
    """The names of fastgan's operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names += [func.name().removeprefix("fastgan::")] * (func.namespace == "fastgan")
        return func(*args, **(kwargs or {}))


@each_of_kernels
def test_operators_are_called_where_somebody_looks(engine):
    """Otherwise the functions are called, which is faster and has the same bits."""
    eager = layers("conv", dtype=torch.float32)
    ours, other, x = Ours(eager, engine), Ours(copy.deepcopy(eager), engine), images(torch.float32)
    assert not isinstance(passes_of(engine, x, x).wgrad, types.MethodType)
    expected = results(other, x, other)
    with Seen() as seen:
        found = results(ours, x, ours)
    assert seen.names == ["conv_forward", "bn_act_forward", "bn_backward_sums", "bn_backward_apply", "dgrad", "wgrad"]
    with torch.profiler.profile() as profile:
        ours(x)
    assert {"fastgan::conv_forward", "fastgan::bn_act_forward"} <= {event.name for event in profile.events()}
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_memory_is_that_of_eager_pytorch_and_one_gradient():
    """In a network's forward and backward passes: autograd keeps a block's ga until its gx is computed, but eager
    PyTorch frees it between two layers."""
    torch.manual_seed(0)
    eager = nn.Sequential(nn.Conv2d(3, 32, 4, 2, 1), nn.LeakyReLU(0.2, True), nn.Conv2d(32, 64, 4, 2, 1),
                          nn.BatchNorm2d(64), nn.LeakyReLU(0.2, True), nn.Conv2d(64, 64, 4, 2, 1),
                          nn.BatchNorm2d(64), nn.ReLU(True)).to(memory_format=torch.channels_last)
    x = torch.randn(16, 3, 64, 64).contiguous(memory_format=torch.channels_last)

    def peak(network: nn.Module) -> float:
        parameters = list(network.parameters())

        def call() -> None:
            torch.autograd.grad(network(x).square().sum(), parameters)

        call()
        return peak_mb(call)

    ours = Chain(*copy.deepcopy(eager), impl="native")
    of_the_second_block = 16 * 64 * 16 * 16 * 4 / 2**20
    assert peak(ours) <= peak(eager) + 1.05 * of_the_second_block
