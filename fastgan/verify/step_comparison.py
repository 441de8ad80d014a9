"""Part two of the certificate: the changes of parameters and running statistics by whole training steps.

The same steps, from the same weights, on the same images and noise, are run with fastgan's engine, with eager PyTorch
in the same precision, and in float64. The change of all parameters of a network together is compared. In its first
steps, Adam moves each parameter by about lr times the sign of its gradient, so rounding decides the direction if the
gradient is nearly zero, which then affects other parameters. The largest distance of four runs from float64 is allowed
(`fastgan.ops.numerics.judge_runs`):

    eager
    eager with another order of summation: reversed batch, channels_last
    float64, twice, from parameters that are perturbed by one rounding unit of the precision

Because Adam normalizes gradients, wrong factors are found only by part one. This part checks how steps use the engines:
order of calls, frozen networks, running statistics, and everything that a graph stores.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import fastgan
from fastgan.config import Config, data_shape
from fastgan.errors import FastganError
from fastgan.models import build
from fastgan.models.sampling import Noise
from fastgan.nn import use
from fastgan.ops import numerics
from fastgan.train.graph import GraphedStep
from fastgan.train.step import GANStep

# not float16, whose first steps are skipped until the loss scale is small enough
PRECISIONS = ("fp32", "tf32", "bf16")
Networks = tuple[nn.Module, nn.Module]
Moved = dict[str, Tensor]  # changes by name, flattened, in float64 on the CPU


class Setup(NamedTuple):
    """The inputs of all runs, on the CPU: generator and discriminator in float32, images (N, C, H, W), or points, for
    each step, and noise (N, nz) in order. precision, device: those of the steps that are compared."""

    networks: Networks
    config: Config
    images: list[Tensor]
    noise: list[Tensor]
    precision: str
    device: torch.device


def make_setup(config: Config, batch: int, steps: int, precision: str, device: torch.device) -> Setup:
    """Networks with a fixed seed, smooth random images, and noise for two draws per step."""
    torch.manual_seed(0)
    networks, shape = build(config.model, data_shape(config)), data_shape(config)
    generator = torch.Generator().manual_seed(2)
    images = [torch.rand(batch, *shape, generator=generator) * 2 - 1 for _ in range(steps)]
    if len(shape) == 3:
        images = [nn.functional.avg_pool2d(one, 5, 1, 2) * 2 for one in images]
    noise = Noise(config.model.noise, config.model.noise_mean, config.model.nz)
    return Setup(networks, config, images, [noise(batch, generator=generator) for _ in range(2 * steps)], precision,
                 device)


def compare(setup: Setup, impl: str) -> dict[str, numerics.Nearness]:
    """Compare steps of one engine and eager steps with float64."""
    exact, runs, ours = exact_steps(setup), rounded_runs(setup), _moved(setup, _fused(setup, impl))
    return {name: numerics.judge_runs(ours[name], [run[name] for run in runs], value, numerics.FLOAT32)
            for name, value in exact.items()}


def exact_steps(setup: Setup) -> Moved:
    """The changes of parameters and running statistics by steps in float64."""
    return _moved(setup, _eager(setup), exact=True)


def rounded_runs(setup: Setup) -> list[Moved]:
    """The four runs that differ from `exact_steps` by rounding. The first is eager PyTorch."""
    unit = numerics.PRECISIONS[setup.precision].unit
    runs = [_moved(setup, _eager(setup)), _moved(setup, _eager(setup), reordered=True)]
    for seed in (0, 1):
        networks = _eager(setup)
        generator = torch.Generator().manual_seed(seed)
        for network in networks:
            perturb(network.double(), unit, generator)
        runs.append(_moved(setup, networks, exact=True))
    return runs


def why_no_graph(device: torch.device) -> str:
    """The reason why steps are not compared as a CUDA graph; "" if they are."""
    return "" if device.type == "cuda" else "no CUDA device"


def compare_graph(setup: Setup, impl: str, allowed: dict[str, numerics.Nearness]) -> dict[str, numerics.Nearness]:
    """Compare steps replayed as a CUDA graph with eager steps of the same engine. Both draw noise on the device.

    Their changes may differ by the error that is `allowed` for the engine relative to float64, and the random state of
    the device must be equal afterwards.
    """
    graphs: list[GraphedStep] = []

    def graphed(step: GANStep) -> GraphedStep:
        graphs.append(GraphedStep(step))
        return graphs[0]

    def run(wrap: Callable[[GANStep], Any]) -> tuple[Moved, Tensor]:
        torch.manual_seed(3)
        moved = _moved(setup, _fused(setup, impl), wrap=wrap)
        return moved, torch.cuda.get_rng_state(setup.device) if setup.device.type == "cuda" else torch.get_rng_state()

    (eager, eager_state), (replayed, replayed_state) = run(lambda step: step), run(graphed)
    if graphs[0].failure:
        raise FastganError(f"not captured: {graphs[0].failure}")
    graphs[0].close()
    distances = {name: float((replayed[name] - value).norm()) / (float(value.norm()) or 1.0)
                 for name, value in eager.items()}
    same_state = torch.equal(eager_state, replayed_state)
    return {**{name: numerics.Nearness("rms", apart, 0.0, allowed[name].allowed) for name, apart in distances.items()},
            "random state": numerics.Nearness("equality", float(not same_state), 0.0, 0.0)}


def _fused(setup: Setup, impl: str) -> Networks:
    generator, discriminator = copy.deepcopy(setup.networks)
    return use(generator, impl), use(discriminator, impl)


def _eager(setup: Setup) -> Networks:
    generator, discriminator = copy.deepcopy(setup.networks)
    return fastgan.to_eager(generator), fastgan.to_eager(discriminator)


@torch.no_grad()
def perturb(network: nn.Module, unit: float, generator: torch.Generator) -> None:
    """Perturb each parameter by noise of `unit` times its RMS. `generator` is on the CPU."""
    for parameter in network.parameters():
        noise = torch.randn(parameter.shape, dtype=torch.float64, generator=generator).to(parameter)
        parameter.add_(noise * unit * parameter.square().mean().sqrt())


def _moved(setup: Setup, networks: Networks, *, exact: bool = False, reordered: bool = False,
           wrap: Callable[[GANStep], Any] | None = None) -> Moved:
    """The changes of parameters and running statistics of each network by the steps.

    exact: compute in float64. reordered: use another order of summation, with reversed batches and channels_last.
    wrap: a function that returns a replacement for the step, which then draws its own noise.
    """
    place = torch.device("cpu") if exact and setup.device.type == "mps" else setup.device  # mps has no float64
    dtype = torch.float64 if exact else torch.float32
    layout = torch.channels_last if reordered else torch.preserve_format
    generator, discriminator = (network.to(place, dtype).to(memory_format=layout) for network in networks)
    before = state_of(generator, discriminator)

    def as_given(x: Tensor) -> Tensor:
        return (x.flip(0) if reordered else x).to(place, dtype)

    step = GANStep(generator, discriminator, setup.config.model, setup.config.train,
                   precision="fp32" if exact else setup.precision)
    if wrap is None:
        noise = iter(setup.noise)
        step.draw = lambda like: as_given(next(noise))  # type: ignore[method-assign]
    call = step if wrap is None else wrap(step)
    for images in setup.images:
        call(as_given(images))
    return {name: after - before[name] for name, after in state_of(generator, discriminator).items()}


def state_of(generator: nn.Module, discriminator: nn.Module) -> Moved:
    """All parameters, running means and running variances of each network, each as one vector."""
    vectors: Moved = {}
    for name, network in (("generator", generator), ("discriminator", discriminator)):
        buffers = dict(network.named_buffers())
        parts: dict[str, list[Tensor]] = {
            "parameters": list(network.parameters()),
            "running means": [buffers[key] for key in buffers if key.endswith("running_mean")],
            "running variances": [buffers[key] for key in buffers if key.endswith("running_var")]}
        vectors |= {f"{name} {what}": torch.cat([tensor.detach().cpu().double().flatten() for tensor in tensors])
                    for what, tensors in parts.items() if tensors}
    return vectors
