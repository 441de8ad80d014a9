"""The suites "step" and "ablation": whole steps, D and then G, by the loop of PyTorch's DCGAN example and by fastgan.

Both start from the same weights and get the same images and noise, so that the updates of the first steps can be
compared with float64. The loop follows the preset: losses, order of updates, Adam.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import fastgan
from benchmarks import correctness
from benchmarks.implementation import Implementation
from benchmarks.workload import Expected, Job, Workload, random_images
from fastgan.config import Config, data_shape
from fastgan.models import build
from fastgan.models.sampling import Noise
from fastgan.nn import use
from fastgan.ops import tuning
from fastgan.ops.tuning import stored
from fastgan.train.graph import GraphedStep
from fastgan.train.optim import make_adam
from fastgan.train.precision import autocast
from fastgan.train.snapshot import Snapshot
from fastgan.train.step import GANStep
from fastgan.trainer import plan_setup
from fastgan.verify import step_comparison
from fastgan.verify.step_comparison import Networks, Setup, state_of

Step = Callable[[Tensor], Any]
SETS = 4  # number of different batches
CHECKED = 2  # steps that are compared with float64
NOISE = 3  # seed of the noise in these steps


class Steps(Job):
    """Steps with random images on the device."""

    def __init__(self, workload: Workload, implementation: Implementation, device: torch.device) -> None:
        self.images, self.implementation = workload.batch, implementation
        layout = torch.contiguous_format if implementation.nchw else torch.channels_last
        self.real = [x.to(device).contiguous(memory_format=layout)
                     for x in random_images(workload, data_shape(workload.config), SETS)]
        self.networks = networks(workload.config, device, layout)
        self.step = make_step(self.networks, workload.config, implementation, self.real[0])

    def __call__(self, index: int) -> Any:
        return self.step(self.real[index % SETS])

    def prepare(self) -> None:
        if isinstance(self.step, GraphedStep):  # its first call allocates the memory of all calls
            step = self.step.step
            assert isinstance(step, GANStep)
            step.allocate(self.real[0])
            with Snapshot(step.state, step.device):
                step.run(step.phase(), self.real[0])

    def check(self, expected: Expected) -> tuple[float, str]:
        before = state_of(*self.networks)
        torch.manual_seed(NOISE)
        for index in range(CHECKED):
            self(index)
        moved = {name: after - before[name] for name, after in state_of(*self.networks).items()}
        return correctness.worst(moved, expected, self.implementation.precision)

    def failure(self, outcome: Any) -> str:
        return failure(self.step, outcome)


def failure(step: Step, outcome: Any) -> str:
    """The reason why a step is invalid: it was not captured, or a loss or gradient is not finite; "" if it is valid."""
    if isinstance(step, GraphedStep) and step.failure:
        return f"no graph: {step.failure}"
    finite = outcome["finite"].item() == 1 if isinstance(outcome, dict) else all(math.isfinite(x) for x in outcome)
    return "" if finite else "a loss or a gradient is not finite"


def networks(config: Config, device: torch.device, layout: torch.memory_format = torch.channels_last) -> Networks:
    """Generator and discriminator with the initial weights of every implementation."""
    torch.manual_seed(0)
    generator, discriminator = (network.to(device=device, memory_format=layout)  # type: ignore[call-overload]
                                for network in build(config.model, data_shape(config)))
    return generator, discriminator


def make_step(networks: Networks, config: Config, implementation: Implementation, like: Tensor) -> Step:
    """The step of an implementation, for batches like `like`.

    A graph with the engine "pytorch" is that of fastgan's loop with eager layers, because PyTorch's loop cannot be
    captured.
    """
    if implementation.engine == "pytorch" and not implementation.graph:
        return pytorch_step(networks, config, implementation)
    generator, discriminator = (
        fastgan.to_eager(network) if implementation.engine == "pytorch" else use(network, implementation.engine)
        for network in networks)
    step = GANStep(generator, discriminator, config.model, config.train, precision=implementation.precision,
                   savings=implementation.step_savings(), history=10)
    if implementation.engine == "auto":
        tuning.use(plan_setup.make(step, (like,), stored.machine(like.device)))
    return GraphedStep(step) if implementation.graph else step


def pytorch_step(networks: Networks, config: Config, implementation: Implementation) -> Step:
    """The loop of PyTorch's DCGAN example: D on real, D on fake, Adam, G through D, Adam."""
    eager = [fastgan.to_eager(network) for network in networks]
    called: list[Any] = eager
    if implementation.compiled:
        called = [torch.compile(network, mode=implementation.compiled) for network in eager]
    elif implementation.converted:
        called = [fastgan.convert(network) for network in eager]
    generator, discriminator = called
    weights = [weight for weight in eager[1].parameters() if weight.requires_grad]
    train, noise = config.train, Noise(config.model.noise, config.model.noise_mean, config.model.nz)
    adam_g, adam_d = (_adam(network, lr or train.lr, config, "fused_adam" in implementation.savings)
                      for network, lr in zip(eager, (train.lr_g, train.lr_d), strict=True))

    def forward(network: Any, x: Tensor) -> Tensor:
        with autocast(implementation.precision, x.device):
            out: Tensor = network(x)
        return out.float()

    def step(real: Tensor) -> tuple[Any, ...]:
        z = noise(len(real), device=real.device)
        fake = forward(generator, z)
        adam_d.zero_grad()
        halves = [(real, 1.0), (fake.detach(), 0.0)]
        losses = []
        for x, label in halves if train.real_first else halves[::-1]:
            loss = _loss(forward(discriminator, x), label) * train.d_loss_weight
            loss.backward()
            losses.append(loss.detach())
        adam_d.step()
        if train.fakes != "reuse":
            fake = forward(generator, noise(len(real), device=real.device) if train.fakes == "fresh-z" else z)
        adam_g.zero_grad()
        for weight in weights:
            weight.requires_grad_("frozen" not in implementation.savings)
        loss = _loss(forward(discriminator, fake), 1.0)
        loss.backward()
        for weight in weights:
            weight.requires_grad_(True)
        adam_g.step()
        losses.append(loss.detach())
        return tuple(one.item() for one in losses) if implementation.reads_losses else tuple(losses)

    return step


def _loss(logits: Tensor, label: float) -> Tensor:
    """Cross-entropy of logits (N,), or of two classes (N, 2): the loss of every preset."""
    if logits.dim() == 2:
        return F.cross_entropy(logits, torch.full_like(logits[:, 0], label, dtype=torch.long))
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))


def _adam(network: nn.Module, lr: float, config: Config, fused: bool) -> torch.optim.Optimizer:
    """PyTorch's Adam, or fastgan's if the preset adds epsilon in a way that PyTorch does not support."""
    train, weights = config.train, [p for p in network.parameters() if p.requires_grad]
    if train.adam_eps_hat:
        return make_adam(weights, lr, train, fused=fused)
    return torch.optim.Adam(weights, lr, (train.beta1, train.beta2), train.adam_eps, fused=fused or None)


def expect(workload: Workload, precisions: list[str], device: torch.device) -> Expected:
    """Updates of the first steps in float64 and in runs that differ by rounding, and the operations of a step."""
    config = workload.config
    draw = Noise(config.model.noise, config.model.noise_mean, config.model.nz)
    torch.manual_seed(NOISE)
    noise = [draw(workload.batch, device=device).cpu() for _ in range(2 * CHECKED)]
    images = random_images(workload, data_shape(config), SETS)[:CHECKED]
    start = networks(config, torch.device("cpu"), torch.contiguous_format)
    setups = [Setup(start, config, images, noise, precision, device) for precision in precisions]
    with FlopCounterMode(display=False) as counter:
        exact = step_comparison.exact_steps(setups[0])
    return Expected(exact, {setup.precision: step_comparison.rounded_runs(setup) for setup in setups},
                    counter.get_total_flops() / CHECKED)
