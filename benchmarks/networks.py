"""The suite "networks": generator or discriminator, forward and backward, in eager PyTorch, compiled and in fastgan."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fastgan
from benchmarks import correctness, steps
from benchmarks.implementation import Implementation
from benchmarks.workload import Expected, Job, Workload
from fastgan.config import data_shape
from fastgan.nn import use
from fastgan.ops.numerics import PRECISIONS
from fastgan.train.precision import autocast
from fastgan.verify.step_comparison import perturb

NETWORKS = ("generator", "discriminator")
SETS = 4  # number of different inputs


class ForwardBackward(Job):
    """Forward and backward passes, with gradients of all parameters but not of the input."""

    def __init__(self, workload: Workload, implementation: Implementation, device: torch.device) -> None:
        config = workload.config
        self.images, self.precision = workload.batch, implementation.precision
        layout = torch.contiguous_format if implementation.nchw else torch.channels_last
        index = NETWORKS.index(workload.network)
        self.network: nn.Module = fastgan.to_eager(steps.networks(config, device, layout)[index])
        self.call: Any = self.network
        if implementation.compiled:
            self.call = torch.compile(self.network, mode=implementation.compiled)
        elif implementation.engine != "pytorch":
            self.call = use(fastgan.convert(self.network), implementation.engine)
        shape = data_shape(config) if index else (config.model.nz,)
        self.inputs = [_normal((workload.batch, *shape), seed, device, layout) for seed in range(SETS)]
        with torch.no_grad():  # running statistics do not change
            out = self.network.eval()(self.inputs[0][:2])
        self.network.train()
        self.gradients = [_normal((workload.batch, *out.shape[1:]), 100 + seed, device, layout) for seed in range(SETS)]

    def __call__(self, index: int) -> Tensor:
        x = self.inputs[index % SETS]
        self.network.zero_grad(set_to_none=True)
        with autocast(self.precision, x.device):
            out: Tensor = self.call(x)
        out.backward(self.gradients[index % SETS].to(out.dtype))
        return out

    def results(self) -> dict[str, Tensor]:
        """Output and every gradient of the first call, in float64 on the CPU."""
        results = {"output": self(0), **{f"gradient of {name}": parameter.grad for name, parameter
                                         in self.network.named_parameters() if parameter.grad is not None}}
        return {name: value.detach().cpu().double() for name, value in results.items()}

    def double(self) -> ForwardBackward:
        """Convert to float64, in place."""
        self.network.double()
        self.inputs = [x.double() for x in self.inputs]
        return self

    def check(self, expected: Expected) -> tuple[float, str]:
        return correctness.worst(self.results(), expected, self.precision)

    def failure(self, outcome: Any) -> str:
        return "" if bool(torch.isfinite(outcome).all()) else "an output is not finite"


def expect(workload: Workload, precisions: list[str], device: torch.device) -> Expected:
    """The first call in float64, with eager layers in both layouts, and in float64 with parameters perturbed by a
    rounding unit."""
    def job(precision: str = "fp32", nchw: bool = False) -> ForwardBackward:
        return ForwardBackward(workload, Implementation("eager", precision=precision, nchw=nchw), device)

    with FlopCounterMode(display=False) as counter:
        exact = job().double().results()
    runs = {}
    for precision in precisions:
        off = job().double()
        perturb(off.network, PRECISIONS[precision].unit, torch.Generator().manual_seed(0))
        runs[precision] = [job(precision).results(), job(precision, nchw=True).results(), off.results()]
    return Expected(exact, runs, counter.get_total_flops())


def _normal(shape: tuple[int, ...], seed: int, device: torch.device, layout: torch.memory_format) -> Tensor:
    """Random numbers, the same in each process."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)
    return x.contiguous(memory_format=layout) if x.dim() == 4 else x
