"""Convolutions that PyTorch computes wrongly on a CPU: engines, and layers that chains call, avoid them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode

import fastgan
from fastgan.ops import convolutions
from proofs import convolutions as proof

TRAINING = """
import sys, torch, fastgan
from torch import nn
torch.set_num_threads(2)
for layer, shape in ((nn.Conv2d(7, 3, 1, 3), (3, 7, 12, 24)), (nn.Conv2d(7, 3, 1, 2), (3, 7, 12, 24)),
                     (nn.ConvTranspose2d(3, 7, 1, 3, 0, 2), (3, 3, 4, 8))):
    net = nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels), nn.LeakyReLU(0.2))
    net = fastgan.convert(net.to(memory_format=torch.channels_last), impl=sys.argv[1])
    for _ in range(20):
        y = net(torch.randn(shape).contiguous(memory_format=torch.channels_last))
        y.backward(torch.randn_like(y))
"""


@pytest.mark.parametrize("impl", ["reference", "native"])
def test_strided_pointwise(impl):
    """Eager PyTorch's weight gradient crashes: it writes beyond a workspace. glibc's checks always detect it."""
    environment = os.environ | (proof.CHECKS if proof.GLIBC.exists() else {})
    ended = subprocess.run([sys.executable, "-c", TRAINING, impl], capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("impl", [name for name in proof.IMPLEMENTATIONS if name != "eager"])
def test_convolutions_that_eager_computes_wrongly(impl):
    """`make faults` continues with random ones."""
    assert proof.search(impl, 0, len(proof.FOUND)) == []


def test_the_search_sees_a_wrong_value_and_a_process_that_dies(monkeypatch):
    def wrong(*given: Any) -> list[Tensor]:
        y, *gradients = proof._reference(*given)
        return [y, 1.01 * gradients[0], *gradients[1:]]

    case = proof.FOUND[0]
    assert proof.errors(case, "reference", 0) == []
    monkeypatch.setitem(proof.IMPLEMENTATIONS, "reference", wrong)
    (told,) = proof.errors(case, "reference", 0)
    assert told.startswith("gx is off by ")
    first, second = proof.search("no such engine", 0, 2)
    assert first.startswith("no such engine, case 0: DIED with 1: Case(x=(3, 7, 12, 24)") and "case 1: DIED" in second


@pytest.mark.parametrize("index", range(len(proof.FOUND), len(proof.FOUND) + 5))
def test_cases_are_drawn_by_seed(index):
    assert proof.draw(3, index) == proof.draw(3, index) != proof.draw(4, index)


def test_one_channel_between():
    """The native engine's images between stages are channels_last; with one channel, two sets of strides are."""
    torch.manual_seed(0)
    eager = nn.Sequential(nn.Conv2d(2, 1, 1), nn.LeakyReLU(0.2), nn.Conv2d(1, 4, (5, 5), (1, 2), (1, 0)))
    converted, x = fastgan.convert(eager, impl="native"), torch.randn(2, 2, 10, 5)
    expected = eager(x)
    for _ in range(5):
        del [torch.full((k,), 1e20) for k in (16, 64, 128, 512, 2048) for _ in range(8)][:]  # shows reads beyond x
        torch.testing.assert_close(converted(x), expected, rtol=1e-4, atol=1e-5)


class Recorder(TorchDispatchMode):
    """Records the convolutions that PyTorch computes, and their gradients: tensors and stride of each."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[list[Tensor], list[int]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.calls.append(([*args[:2]], args[3]))
        if func is torch.ops.aten.convolution_backward.default:
            self.calls.append(([*args[:3]], args[4]))
        return func(*args, **(kwargs or {}))


def convolutions_of(y: Tensor) -> Iterator[tuple[Any, Any]]:
    """Kernel size and stride of PyTorch's convolutions in an autograd graph."""
    rest, seen = [y.grad_fn], set()
    while rest:
        node: Any = rest.pop()
        if node is not None and node not in seen:
            seen.add(node)
            rest += [following for following, _ in node.next_functions]
            if node.name() == "ConvolutionBackward0":
                yield node._saved_weight.shape[2:], node._saved_stride


class Residual(nn.Module):
    """A block that a chain calls unchanged."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.body, self.skip = nn.Conv2d(8, 6, 3, 2, 1), nn.Conv2d(8, 6, 1, 2)
        self.scales = [scale]

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.scales[0] * self.skip(x)


class Weight(nn.Module):
    """A convolution without a layer of PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * 0.5, stride=(1, 2), padding="valid")


def hooked() -> nn.Module:
    layer = nn.Conv2d(8, 6, 1, 2)
    layer.register_forward_hook(lambda *_: None)
    return layer


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "block": Residual, "weight": Weight, "hook": hooked, "groups": lambda: nn.Conv2d(8, 6, 1, 3, groups=2),
    "spectral-norm": lambda: parametrizations.spectral_norm(nn.Conv2d(8, 6, 1, 2, "valid")),
    "valid": lambda: nn.Conv2d(8, 6, 1, 2, "valid"),
    "transposed": lambda: nn.ConvTranspose2d(8, 6, 1, 2, output_padding=1, groups=2),
    "stride-5": lambda: nn.Conv2d(8, 6, 1, 5),
}


@pytest.mark.parametrize("impl", ["reference", "native"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_that_a_chain_calls(name, impl):
    """Their gradients are those of eager PyTorch, without strided 1x1 convolutions."""
    torch.manual_seed(0)
    eager = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), LAYERS[name]()).to(memory_format=torch.channels_last).eval()
    converted, x = fastgan.convert(eager, impl=impl), torch.randn(2, 3, 13, 10)
    parameters = list(eager.parameters())
    compiled = list(convolutions_of(converted(x)))  # before the recorder: Dynamo does not compile within a mode
    assert not [stride for kernel, stride in compiled if kernel == (1, 1) and max(stride) > 1]
    with Recorder() as seen:
        ours = torch.autograd.grad(converted(x).square().sum(), parameters)
    assert len(seen.calls) >= 2
    assert not [stride for tensors, stride in seen.calls if tensors[-1].shape[2:] == (1, 1) and max(stride) > 1]
    exact = torch.autograd.grad(eager.double()(x.double()).square().sum(), list(eager.parameters()))
    for one, other in zip(ours, exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("latent", [False, True], ids=["image", "latent"])
def test_a_chain_that_calls_all_its_layers(latent):
    """Its input is not an image: the first layer is linear."""
    layers = [nn.Linear(5, 8 * 4 * 4), nn.Unflatten(1, (8, 4, 4))] if latent else [nn.Identity()]
    net = fastgan.nn.Chain(*layers, nn.Conv2d(8, 6, 1, 2), impl="reference").to(memory_format=torch.channels_last)
    with Recorder() as seen:
        net(torch.randn(3, 5) if latent else torch.randn(3, 8, 4, 4)).sum().backward()
    assert [stride for _, stride in seen.calls] == [[1, 1]] * 2


@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "transpose"])
@pytest.mark.parametrize("channels", [(1, 4), (4, 1)], ids=["from-one", "to-one"])
def test_one_channel_has_the_strides_of_a_contiguous_tensor(channels, transposed):
    ci, co = channels
    x = proof.laid_out(torch.randn(2, ci, 7, 5), "NHWC").requires_grad_()
    weight = proof.laid_out(torch.randn((ci, co, 3, 3) if transposed else (co, ci, 3, 3)), "NHWC").requires_grad_()
    with Recorder() as seen:
        y = (convolutions.conv_transpose2d if transposed else convolutions.conv2d)(x, weight)
        y.backward(proof.laid_out(torch.randn(y.shape), "NHWC"))
    single = [tensor for tensors, _ in seen.calls for tensor in tensors if tensor.shape[1] == 1]
    assert single
    for tensor in single:
        assert tensor.stride() == torch.empty(tensor.shape).stride()


# x, weight, stride, padding, output_padding, dilation
CUT = {
    "pointwise": ((2, 3, 5, 4), (2, 3, 1, 1), (2, 3), (0, 0), None, 1),
    "pointwise-dilated": ((2, 3, 5, 4), (2, 3, 1, 1), (2, 1), (0, 0), None, 2),
    "padded-pointwise": ((2, 3, 5, 4), (2, 3, 1, 1), (2, 3), (1, 1), None, 1),
    "one-pixel": ((2, 3, 4, 5), (2, 3, 3, 3), (4, 4), (1, 1), None, 1),
    "one-column": ((2, 3, 5, 2), (2, 3, 2, 4), (2, 3), (1, 2), None, 1),
    "one-row-dilated": ((2, 3, 3, 6), (2, 3, 2, 2), (3, 2), (0, 1), None, 2),
    "narrow": ((2, 3, 3, 5), (2, 3, 3, 3), (4, 2), (2, 1), None, 1),
    "no-cut": ((2, 3, 5, 6), (2, 3, 3, 3), (2, 2), (1, 1), None, 1),
    "pointwise-transpose": ((2, 3, 2, 3), (3, 2, 1, 1), (2, 3), (0, 0), (0, 1), 1),
    "one-pixel-transpose": ((2, 3, 1, 1), (3, 2, 3, 4), (2, 3), (1, 0), (1, 2), 1),
    "one-row-transpose": ((2, 3, 1, 2), (3, 2, 2, 2), (2, 2), (1, 0), (1, 1), 1),
    "narrow-transpose": ((2, 3, 2, 3), (3, 2, 4, 3), (4, 2), (3, 1), (1, 1), 1),
    "far-transpose": ((2, 3, 2, 3), (3, 2, 1, 1), (1, 2), (0, 0), (1, 1), 2),
}


def cut_case(name: str) -> tuple[list[Tensor], Callable[..., Tensor], Callable[..., Tensor]]:
    """(x, weight, bias) in float64, the function of this library, and that of PyTorch."""
    x, weight, stride, padding, longer, dilation = CUT[name]
    torch.manual_seed(0)
    given = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in (x, weight, (2,))]
    if longer is None:
        kept = {"stride": stride, "padding": padding, "dilation": dilation}
        return given, partial(convolutions.conv2d, **kept), partial(F.conv2d, **kept)
    kept = {"stride": stride, "padding": padding, "output_padding": longer, "dilation": dilation}
    return given, partial(convolutions.conv_transpose2d, **kept), partial(F.conv_transpose2d, **kept)


@pytest.mark.parametrize("name", CUT)
def test_values_and_derivatives_are_those_of_pytorch(name):
    given, ours, eager = cut_case(name)
    torch.testing.assert_close(ours(*given), eager(*given))
    torch.testing.assert_close(ours(*given[:2]), eager(*given[:2]))
    assert torch.autograd.gradcheck(ours, given) and torch.autograd.gradgradcheck(ours, given)


@pytest.mark.parametrize("needs", [(True, True), (False, True), (True, False)], ids=str)
@pytest.mark.parametrize("name", [name for name in CUT if CUT[name][-1] == 1])
def test_backward_is_the_gradient(name, needs):
    given, _, eager = cut_case(name)
    _, _, stride, padding, longer, _ = CUT[name]
    y = eager(*given)
    g = torch.randn_like(y)
    expected = torch.autograd.grad(y, given, g)
    got = convolutions.backward(g, *given[:2], stride, padding, longer or (0, 0), longer is not None, needs)
    for need, one, other in zip(needs, got, expected[:2], strict=True):
        if need:
            torch.testing.assert_close(one, other)
