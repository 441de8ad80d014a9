"""Operations under torch.compile, and whole networks trained by kernels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastgan
import fastgan.nn as fnn
from fastgan import ops, presets
from fastgan.models import DCGANDiscriminator, DCGANGenerator
from fastgan.ops.numerics import MARGIN, rms, used
from fastgan.train.step import GANStep
from tests.test_kernels import chain_layers

pytestmark = pytest.mark.usefixtures("one_thread")

def differentiated(function: Any, network: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    out = function(x)
    torch.manual_seed(3)
    grads = torch.autograd.grad(out, [x, *network.parameters()], torch.randn_like(out))
    return [out.detach(), *grads, *(b.clone() for b in network.buffers())]


class Block(nn.Module):
    """A function of `fastgan.ops` with its tensors as parameters."""

    def __init__(self, impl: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.impl = impl
        self.weight = nn.Parameter(torch.randn(5, 3, 3, 3))
        self.gamma, self.beta = nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(5))
        self.register_buffer("running_mean", torch.zeros(5))
        self.register_buffer("running_var", torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        return ops.conv_bn_act(x, self.weight, None, self.gamma, self.beta, self.running_mean, self.running_var,
                               stat_groups=2, impl=self.impl)


@pytest.mark.parametrize("kind", ["block", "chain"])
def test_compiles_as_a_full_graph(impl, kind):
    network = fnn.Chain(*chain_layers(0.2), impl=impl) if kind == "chain" else Block(impl)
    other = copy.deepcopy(network)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    if kind == "chain":  # the compiler gets its layers
        network = fastgan.to_eager(network)
    for seed in range(2):
        torch.manual_seed(seed)
        x = torch.randn(4, 3, 9, 8)
        for one, two in zip(differentiated(network, network, x), differentiated(compiled, other, x), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "chain": (lambda: fnn.Chain(*chain_layers(0.2)), (3, 9, 8), 1),
    "chain-g2": (lambda: fnn.Chain(*chain_layers(0.2)), (3, 9, 8), 2),
    "generator": (lambda: DCGANGenerator(nz=5, ngf=4, image_size=16), (5,), 1),
    "discriminator": (lambda: DCGANDiscriminator(ndf=4, image_size=16), (3, 16, 16), 1),
}


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("impl", ["reference", "native"])
def test_one_graph_serves_all_batch_sizes(impl, name, backend):
    """Forward and backward."""
    from torch._dynamo.backends.registry import lookup_backend

    make, shape, groups = NETWORKS[name]
    graphs, counts = [], []

    def counting(graph: Any, example: Any) -> Any:
        graphs.append(graph)
        return lookup_backend(backend)(graph, example)

    torch.compiler.reset()
    network = set_impl(make(), impl)
    other = copy.deepcopy(network)
    compiled = torch.compile(other, fullgraph=True, dynamic=True, backend=counting)
    with fnn.stat_groups(network, groups), fnn.stat_groups(other, groups):
        for size in (4, 6, 10):
            torch.manual_seed(size)
            x = torch.randn(size, *shape)
            for one, two in zip(differentiated(network, network, x), differentiated(compiled, other, x), strict=True):
                torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
            counts.append(len(graphs))
    # AOT autograd restarts the first trace, to make constants of numbers like a slope
    assert counts == [1 if backend == "eager" else counts[0]] * 3


EXPORTED = {"block": (lambda: Block("auto"), (3, 9, 8), 2), **NETWORKS}


@pytest.mark.parametrize("name", EXPORTED)
@pytest.mark.parametrize("impl", ["reference", "native"])
def test_exports_with_a_dynamic_batch(impl, name):
    make, shape, _ = EXPORTED[name]
    network = set_impl(make(), impl).eval()
    batch = 2 * torch.export.Dim("half", min=2, max=64)  # divisible into statistic groups
    program = torch.export.export(network, (torch.randn(8, *shape),), dynamic_shapes=({0: batch},)).module()
    for size in (4, 6, 10):
        x = torch.randn(size, *shape)
        torch.testing.assert_close(program(x), network(x), rtol=1e-4, atol=1e-4)


def set_impl(network: nn.Module, impl: str) -> nn.Module:
    for module in network.modules():
        if isinstance(module, fnn.Chain | Block):
            module.impl = impl
    return network


def make_step(impl: str, size: int, dtype: torch.dtype, **fields: Any) -> GANStep:
    torch.manual_seed(0)
    config = presets.get("dcgan-64", **{"nz": 8, "ema": 0.9, **fields})
    networks = DCGANGenerator(8, 8, 3, size), DCGANDiscriminator(8, 3, size)
    for network in networks:
        for parameter in network.parameters():
            if parameter.dim() == 4:
                nn.init.normal_(parameter, 0, 0.1)  # so that a step has the expected updates
        set_impl(network.to(dtype), impl)
    return GANStep(*networks, config.model, config.train)


def trained(impl: str, size: int, dtype: torch.dtype, steps: int, **fields: Any) -> dict[str, Tensor]:
    """Records, parameters and buffers after some steps on the same images and latents."""
    step = make_step(impl, size, dtype, **fields)
    generator = torch.Generator().manual_seed(1)
    step.draw = lambda real: torch.randn(len(real), 8, generator=generator).to(dtype)
    state: dict[str, Tensor] = {}
    for i in range(steps):
        real = torch.rand(4, 3, size, size, generator=generator) * 2 - 1
        state |= {f"{i} {key}": value for key, value in step(real.to(dtype)).items()}
    for name, network in (("g", step.generator), ("d", step.discriminator), ("ema", step.ema.module)):
        state |= {f"{name} {key}": value.detach() for key, value in network.state_dict().items()}
    return state


# Adam divides a gradient by its size: one that is only rounding changes its parameter by the whole learning rate, in
# either direction. So the test checks that nearly all elements agree, far within one update of 2e-4.
UPDATE = 2e-4


@pytest.mark.parametrize(("size", "steps", "fields"), [(16, 3, {}), (32, 2, {}), (64, 1, {}), (16, 2, {"r1": 2.0})],
                         ids=["16-3-steps", "32-2-steps", "64-1-step", "16-2-steps-r1"])
def test_training_is_that_of_the_reference(impl, size, steps, fields):
    ours, eager, exact = (trained(impl, size, dtype, steps, **fields) for impl, dtype in (
        (impl, torch.float32), ("reference", torch.float32), ("reference", torch.float64)))
    assert ours.keys() == exact.keys() and len(exact) > 40
    for key, value in exact.items():
        if not value.is_floating_point():
            assert torch.equal(ours[key], value), key
        else:
            error, theirs = rms(ours[key] - value), rms(eager[key] - value)
            assert error <= 2 * MARGIN * theirs + UPDATE / 50 + 1e-5 * rms(value), f"{key}: {error}, eager {theirs}"


def test_discriminator_of_real_and_fake_in_one_batch(impl):
    """G = 2: outputs, gradients and running statistics of two calls."""
    torch.manual_seed(0)
    network = DCGANDiscriminator(8, 3, 32)
    real, fake = torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32)
    results = []
    for engine, dtype in ((impl, torch.float32), ("reference", torch.float32), ("reference", torch.float64)):
        d = set_impl(copy.deepcopy(network).to(dtype), engine)
        x = torch.cat([real, fake]).to(dtype).requires_grad_()
        if engine != "reference":
            with fnn.stat_groups(d, 2):
                logits = d(x)
        else:
            logits = torch.cat([d(part) for part in x.chunk(2)])
        names, parameters = zip(*d.named_parameters(), strict=True)
        grads = torch.autograd.grad((logits * torch.linspace(-1, 1, 8)).sum(), [x, *parameters])
        results.append({"logits": logits.detach(), **dict(zip(("x", *names), grads, strict=True)),
                        **{key: b.clone() for key, b in d.named_buffers()}})
    ours, eager, exact = results
    for key, value in exact.items():
        assert used(ours[key], eager[key], value, 1e-5) <= 1, key
