"""Gradients as such: the explicit formulas against autograd, gradients of gradients, which kernels run for which."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgan import ops
from fastgan.ops import reference
from fastgan.ops.layers import Activation, Convolution, Owed
from fastgan.ops.triton import launch
from tests.test_ops import each_kind

pytestmark = pytest.mark.usefixtures("one_thread")

each_activation = pytest.mark.parametrize("activation", ["leaky_relu", "relu", "tanh", "none"])
NAMES = ["x", "statistics", "gamma", "beta", "weight", "bias"]


def draw(transposed: bool, groups: int = 2, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    torch.manual_seed(0)
    shapes = {"x": (4, 2, 4, 3), "statistics": (2, groups, 2), "gamma": (2,), "beta": (2,),
              "weight": (2, 3, 3, 2) if transposed else (3, 2, 3, 2), "bias": (3,)}
    made = {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}
    made["statistics"][1] = made["statistics"][1].abs() + 0.5
    return {name: tensor.requires_grad_() for name, tensor in made.items()}


def forward(tensors: dict[str, Tensor], activation: Activation, transposed: bool, spread: str,
            ) -> tuple[Tensor, Tensor]:
    """y, and statistics [2, 2, 3], in operators that autograd knows."""
    x, statistics, gamma, beta, weight, bias = tensors.values()
    # no output_padding: PyTorch itself has no third derivative of it
    convolution = Convolution(weight, bias, (2, 1), (1, 1), (0, 0), transposed)
    y = reference.stage(x, reference.known(Owed(statistics, gamma, beta)), activation, convolution)
    mean, var = reference.measure(y, 2)
    return y, torch.stack([mean, var if spread == "var" else torch.rsqrt(var + 0.1)])


def backward(gy: Tensor, gout: Tensor, y: Tensor, out: Tensor, tensors: dict[str, Tensor], activation: Activation,
             transposed: bool, spread: str) -> tuple[Tensor, ...]:
    x, statistics, gamma, beta, weight, bias = tensors.values()
    # no output_padding: PyTorch itself has no third derivative of it
    convolution = Convolution(weight, bias, (2, 1), (1, 1), (0, 0), transposed)
    return reference.stage_backward(gy, gout, y, out, x, Owed(statistics, gamma, beta, activation), convolution, spread,
                                    (True,) * 4)


@each_kind
@each_activation
@pytest.mark.parametrize("spread", ["var", "rstd"])
def test_explicit_gradient_of_the_stage(spread, activation, transposed):
    tensors, act = draw(transposed), Activation(activation, 0.2)
    y, out = forward(tensors, act, transposed, spread)
    gy, gout = torch.randn_like(y), torch.randn_like(out)
    gx, gstatistics, ggamma, gbeta, gweight, gbias = torch.autograd.grad([y, out], list(tensors.values()), [gy, gout])
    ours = backward(gy, gout, y, out, tensors, act, transposed, spread)
    expected = (gx, gweight, gbias, gstatistics, ggamma, gbeta)
    gnorm = ours[3]
    for one, other in zip((*ours[:3], gnorm[:2], gnorm[2].sum(0), gnorm[3].sum(0)), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    detached = {name: t.detach() for name, t in tensors.items()}
    y, out = y.detach(), out.detach()

    def explicit(gy: Tensor, gout: Tensor, x: Tensor, weight: Tensor, gamma: Tensor) -> tuple[Tensor, ...]:
        return backward(gy, gout, y, out, {**detached, "x": x, "weight": weight, "gamma": gamma}, act, transposed,
                        spread)

    inputs = [gy, gout, *(detached[name] for name in ("x", "weight", "gamma"))]
    assert torch.autograd.gradcheck(explicit, [t.clone().requires_grad_() for t in inputs], fast_mode=True)


@each_kind
def test_second_derivative_of_the_explicit_gradient(transposed):
    """y and its statistics are functions of the inputs here, as in a network."""
    tensors = draw(transposed)

    def gradient(*inputs: Tensor) -> tuple[Tensor, ...]:
        given, act = dict(zip(NAMES, inputs, strict=True)), Activation("tanh")
        y, out = forward(given, act, transposed, "rstd")
        return backward(torch.cos(y), torch.sin(out), y, out, given, act, transposed, "rstd")

    inputs = [t.detach().requires_grad_() for t in tensors.values()]
    assert torch.autograd.gradcheck(gradient, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(gradient, inputs, fast_mode=True)


@each_activation
def test_explicit_gradient_of_normalise_activate(activation):
    x, statistics, gamma, beta, *_ = draw(False).values()
    act = Activation(activation, 0.2)
    a = reference.normalise_activate(x, reference.known(Owed(statistics, gamma, beta)), act)
    ga = torch.randn_like(a, requires_grad=True)
    gx, gnorm = reference.normalise_activate_backward(ga, x, Owed(statistics, gamma, beta, act))
    expected = torch.autograd.grad(a, [x, statistics, gamma, beta], ga)
    for one, other in zip((gx, gnorm[:2], gnorm[2].sum(0), gnorm[3].sum(0)), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)

    def explicit(ga: Tensor, x: Tensor, statistics: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
        return reference.normalise_activate_backward(ga, x, Owed(statistics, gamma, beta, act))

    inputs = [t.detach().requires_grad_() for t in (ga, x, statistics, gamma, beta)]
    assert torch.autograd.gradcheck(explicit, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(explicit, inputs, fast_mode=True)


def discriminate(x: Tensor, tensors: dict[str, Tensor], impl: str, groups: int = 1) -> Tensor:
    """Two blocks, the second one's normalisation by its batch, and a logit (N, 1, 1, 1)."""
    x = ops.conv_bn_act(x, tensors["w1"], tensors["b1"], activation="leaky_relu", impl=impl)
    x = ops.conv_bn_act(x, tensors["w2"], None, tensors["gamma"], tensors["beta"], stat_groups=groups,
                        activation="tanh", impl=impl)
    return ops.conv_transpose_bn_act(x, tensors["w3"], stride=1, padding=2, activation="none", impl=impl)


@pytest.mark.parametrize("penalty", ["r1", "wgan-gp"])
def test_gradient_penalty(impl, penalty):
    """The gradient of a gradient's norm, in all parameters and the input."""
    torch.manual_seed(0)
    shapes = {"x": (4, 3, 12, 12), "w1": (6, 3, 4, 4), "b1": (6,), "w2": (5, 6, 4, 4), "gamma": (5,), "beta": (5,),
              "w3": (5, 1, 3, 3)}
    values = {name: torch.randn(shape) * (0.3 if len(shape) == 4 and name != "x" else 1)
              for name, shape in shapes.items()}
    results = []
    for engine, dtype in ((impl, torch.float32), ("reference", torch.float64)):
        given = {name: value.to(dtype, copy=True).requires_grad_() for name, value in values.items()}
        x = given["x"]
        logits = discriminate(x, given, engine)
        slope, = torch.autograd.grad(logits.sum(), x, create_graph=True)
        norms = slope.flatten(1).square().sum(1)
        loss = norms.mean() if penalty == "r1" else (norms.sqrt() - 1).square().mean()
        loss = loss + logits.square().mean()
        results.append([loss, *torch.autograd.grad(loss, list(given.values()))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-5 * other.abs().max().item())


def stage(tensors: dict[str, Tensor], transposed: bool, impl: str) -> tuple[Tensor, ...]:
    x, statistics, gamma, beta, weight, bias = tensors.values()
    return ops.stage(x, (statistics[0], statistics[1], gamma, beta), "leaky_relu", weight, bias,
                     transposed=transposed, stat_groups=2, impl=impl)


@each_kind
def test_any_subset_of_gradients_is_that_of_all(impl, transposed):
    """Not one missing, not one bit different."""
    values = {name: t.detach() for name, t in draw(transposed, dtype=torch.float32).items()}
    everything: dict[str, Tensor] = {}
    for count in (6, 5, 1):
        for subset in itertools.combinations(NAMES, count):
            given = {name: t.clone().requires_grad_(name in subset) for name, t in values.items()}
            y, mean, var = stage(given, transposed, impl)
            loss = y.square().sum() + mean.sin().sum() + var.cos().sum()
            grads = dict(zip(subset, torch.autograd.grad(loss, [given[name] for name in subset]), strict=True))
            everything = everything or grads
            assert all(torch.equal(grads[name], everything[name]) for name in subset), subset


class Counting:
    """How often each kernel starts; the kernels run all the same."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from fastgan.ops.triton import apply, convolve, reduce, wgrad

        self.names: Counter[str] = Counter()
        for module in (apply, convolve, reduce, wgrad):
            monkeypatch.setattr(module, "launch", self)

    def __call__(self, kernel: Any, *args: Any, **kwargs: Any) -> None:
        self.names[kernel.fn.__name__] += 1
        launch.launch(kernel, *args, **kwargs)


@each_kind
@pytest.mark.parametrize(("needs", "expected"), [
    (("x",), {"convolve_kernel": 1, "norm_gradient_kernel": 1}),
    (("gamma",), {"convolve_kernel": 1, "norm_gradient_kernel": 1}),
    (("weight",), {"wgrad_kernel": 1}),
    (("bias",), {}),
    (("x", "weight", "bias"), {"convolve_kernel": 1, "norm_gradient_kernel": 1, "wgrad_kernel": 1}),
], ids=lambda value: "-".join(value) or "none")
def test_only_the_kernels_that_are_needed(needs, expected, transposed, monkeypatch):
    given = {name: t.detach().requires_grad_(name in needs)
             for name, t in draw(transposed, dtype=torch.float32).items()}
    counting = Counting(monkeypatch)
    y = stage(given, transposed, "triton")[0]
    assert counting.names == {"convolve_kernel": 1, "statistics_kernel": 1}
    counting.names.clear()
    y.sum().backward()
    counting.names.pop("sum_kernel", None)  # a split weight gradient
    assert counting.names == expected
    assert all((given[name].grad is not None) == (name in needs) for name in NAMES)


def test_no_gradient_no_backward(impl):
    given = {name: t.detach() for name, t in draw(False, dtype=torch.float32).items()}
    assert not any(out.requires_grad for out in stage(given, False, impl))


@each_kind
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "last"])
def test_gradient_has_the_strides_of_the_weight(impl, memory_format, transposed):
    """`torch.optim.Adam(fused=True)` on a CPU takes them for granted."""
    given = draw(transposed, dtype=torch.float32)
    given["weight"] = given["weight"].detach().contiguous(memory_format=memory_format).requires_grad_()
    gradient, = torch.autograd.grad(stage(given, transposed, impl)[0].sum(), given["weight"])
    assert gradient.stride() == given["weight"].stride()
