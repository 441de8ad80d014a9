"""Second derivatives, subsets of gradients, and the kernels that run for each."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgan import ops
from fastgan.ops import reference
from fastgan.ops.library import OPERATORS
from fastgan.ops.specs import Activation, ConvSpec
from fastgan.ops.torch_ops import unpack_bits
from fastgan.ops.triton import gemm_descriptor, gemm_pointer, launch, normalize, passes, reduce, wgrad_pointer
from tests.test_ops import each_kind

pytestmark = pytest.mark.usefixtures("one_thread")

# the modules that launch the kernels of an operation
LAUNCHING = (gemm_descriptor, gemm_pointer, normalize, reduce, wgrad_pointer)
NAMES = ("x", "weight", "bias", "gamma", "beta")


def draw(transposed: bool, co: int = 7) -> dict[str, Tensor]:
    torch.manual_seed(0)
    shapes = {"x": (4, 3, 6, 5), "weight": (3, co, 4, 3) if transposed else (co, 3, 4, 3), "bias": (co,),
              "gamma": (co,), "beta": (co,)}
    return {name: torch.randn(shapes[name]) for name in NAMES}


def block(tensors: dict[str, Tensor], transposed: bool, impl: str, **more: Any) -> Tensor:
    function = ops.conv_transpose_bn_act if transposed else ops.conv_bn_act
    return function(**tensors, activation="leaky_relu", stat_groups=2, impl=impl, **more)


def discriminate(x: Tensor, tensors: dict[str, Tensor], impl: str, groups: int = 1) -> Tensor:
    """Two blocks, the second with batch statistics, and a logit (N, 1, 1, 1)."""
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


@each_kind
@pytest.mark.parametrize("norm", [True, False], ids=["norm", "no-norm"])
def test_any_subset_of_gradients_is_that_of_all(impl, norm, transposed):
    """None is missing, and all are bit for bit the same."""
    names = NAMES if norm else NAMES[:3]
    values = {name: value for name, value in draw(transposed).items() if name in names}
    everything: dict[str, Tensor] = {}
    for count in (len(names), len(names) - 1, 1):
        for subset in itertools.combinations(names, count):
            given = {name: t.clone().requires_grad_(name in subset) for name, t in values.items()}
            loss = block(given, transposed, impl).square().sum()
            grads = dict(zip(subset, torch.autograd.grad(loss, [given[name] for name in subset]), strict=True))
            everything = everything or grads
            assert all(torch.equal(grads[name], everything[name]) for name in subset), subset


class Counting:
    """Counts the launches of each kernel, and runs them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: Counter[str] = Counter()
        for module in LAUNCHING:
            monkeypatch.setattr(module, "launch", self)

    def __call__(self, kernel: Any, *args: Any, **kwargs: Any) -> None:
        self.names[kernel.fn.__name__] += 1
        launch.launch(kernel, *args, **kwargs)


SUMS, APPLY = {"bn_backward_sums_kernel": 1}, {"bn_backward_apply_kernel": 1}


@each_kind
@pytest.mark.parametrize(("needs", "expected"), [
    (("x",), SUMS | APPLY | {"convolve_kernel": 1}),
    (("gamma",), SUMS),
    (("weight",), SUMS | APPLY | {"wgrad_kernel": 1}),
    (("x", "weight", "beta"), SUMS | APPLY | {"convolve_kernel": 1, "wgrad_kernel": 1}),
], ids=lambda value: "-".join(value) or "none")
def test_only_the_kernels_that_are_needed(needs, expected, transposed, monkeypatch):
    """Two launches forward, with the statistics in the first; at most two backward in addition to the convolutions."""
    given = {name: t.requires_grad_(name in needs) for name, t in draw(transposed).items()}
    counting = Counting(monkeypatch)
    y = block(given, transposed, "triton")
    assert counting.names == {"convolve_kernel": 1, "bn_act_forward_kernel": 1}
    counting.names.clear()
    y.sum().backward()
    counting.names.pop("sum_kernel", None)  # a split weight gradient
    assert counting.names == expected
    assert all((given[name].grad is not None) == (name in needs) for name in NAMES)


@pytest.mark.parametrize("co", [7, 8, 24, 64, 192])  # bits that do not begin at bytes; words of 8 and of 64 bits
@each_kind
def test_mask_of_a_leaky_relu(transposed, co, monkeypatch):
    tensors = draw(transposed, co)
    conv, act = ConvSpec((2, 2), (1, 1), transposed=transposed), Activation("leaky_relu", -0.3)
    counting = Counting(monkeypatch)
    a, mask = OPERATORS["triton"].conv_act_forward(*(tensors[name] for name in NAMES[:3]), conv, act)
    assert counting.names == {"convolve_kernel": 1} and mask.dtype == torch.uint8 and len(mask) == -(-a.numel() // 8)
    positive = unpack_bits(mask, a)
    assert torch.equal(positive, a * torch.where(positive, 1, act.negative_slope) > 0)
    assert 0.3 < positive.float().mean() < 0.7
    ga = torch.randn(a.shape).to(memory_format=torch.channels_last)
    assert torch.equal(passes.act_backward(ga, mask, act), torch.where(positive, ga, ga * act.negative_slope))


@pytest.mark.parametrize("co", [7, 8, 64, 192])
@pytest.mark.parametrize(("activation", "inplace"), [("relu", False), ("tanh", False), ("leaky_relu", True),
                                                     ("leaky_relu", False)], ids=["relu", "tanh", "a", "mask"])
def test_activation_within_the_weight_gradient_of_an_image(activation, inplace, co, monkeypatch):
    """One launch with the same bits as two; two launches for a mask whose bits of a pixel do not begin at a byte."""
    tensors = draw(False, co)
    x, weight = tensors["x"].to(memory_format=torch.channels_last), tensors["weight"]
    conv, act = ConvSpec((2, 2), (1, 1)), Activation(activation, 0.2, inplace)
    a, mask = OPERATORS["triton"].conv_act_forward(x, weight, None, conv, act)
    ga, saved = torch.randn_like(a), mask if mask.numel() else a
    counting = Counting(monkeypatch)
    found = OPERATORS["triton"].wgrad(ga, x, weight, conv, saved, act)
    two_launches = {"act_backward_kernel"} if mask.numel() and co % 8 else set()
    assert set(counting.names) - {"sum_kernel"} == {"wgrad_kernel"} | two_launches
    assert torch.equal(found, OPERATORS["triton"].wgrad(passes.act_backward(ga, saved, act), x, weight, conv))
    expected = reference.wgrad(*(t.double() for t in (ga, x, weight)), conv, saved if mask.numel() else saved.double(),
                               act)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("needs", [("weight",), ("weight", "x"), ("weight", "bias")], ids="-".join)
def test_where_the_activation_is_within_the_weight_gradient(needs, monkeypatch):
    given = {name: t.requires_grad_(name in needs) for name, t in draw(False, 8).items() if name in NAMES[:3]}
    loss = block(given, False, "triton").sum()
    counting = Counting(monkeypatch)
    loss.backward()
    assert counting.names["act_backward_kernel"] == (needs != ("weight",)) and counting.names["wgrad_kernel"] == 1


def test_no_gradient_no_backward(impl):
    assert not block(draw(False), False, impl).requires_grad


@each_kind
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "last"])
def test_gradient_has_the_strides_of_the_weight(impl, memory_format, transposed):
    """`torch.optim.Adam(fused=True)` on a CPU assumes it."""
    given = draw(transposed)
    given["weight"] = given["weight"].contiguous(memory_format=memory_format).requires_grad_()
    gradient, = torch.autograd.grad(block(given, transposed, impl).sum(), given["weight"])
    assert gradient.stride() == given["weight"].stride()
