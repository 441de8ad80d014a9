"""Stages and networks: layers called on an input, and back from a gradient. Eager layers, compiled ones, and ours."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fastgan
from fastgan.bench import gate, steps
from fastgan.bench.contender import Contender
from fastgan.bench.entry import Entry
from fastgan.bench.job import Job, Judged, normal, sets_for
from fastgan.config import Config
from fastgan.nn import Chain, use
from fastgan.train.precision import autocast
from fastgan.verify import stages
from fastgan.verify.checks import shape_of

NETWORKS = ("generator", "discriminator")


class Passes(Job):
    """Forward and backward; the gradient of the input too, but for a network's first stage and for whole networks."""

    def __init__(self, entry: Entry, contender: Contender, device: torch.device) -> None:
        layers, shape, self.inner = find(entry)
        self.images, self.precision = entry.batch, contender.precision
        layout = torch.contiguous_format if contender.nchw else torch.channels_last
        self.network = layers.to(device=device, memory_format=layout)  # type: ignore[call-overload]
        self.call: Any = _as(self.network, contender)
        super().__init__(sets_for(4 * entry.batch * max(1, torch.Size(shape).numel())))

        def given(seed: int, *sides: int) -> Tensor:
            made = normal((entry.batch, *sides), seed, device)
            return made.contiguous(memory_format=layout) if made.dim() == 4 else made

        self.inputs = [given(seed, *shape).requires_grad_(self.inner) for seed in range(self.sets)]
        made = _made(self.network, self.inputs[0])
        self.gradients = [given(100 + seed, *made) for seed in range(self.sets)]

    def __call__(self, index: int) -> Tensor:
        x = self.inputs[index % self.sets]
        x.grad = None
        self.network.zero_grad(set_to_none=True)
        with autocast(self.precision, x.device):
            out: Tensor = self.call(x)
        out.backward(self.gradients[index % self.sets].to(out.dtype))
        return out

    def answer(self) -> dict[str, Tensor]:
        """Output, and every gradient, in float64 on the CPU."""
        out, x = self(0), self.inputs[0]
        found = {"output": out, **{f"gradient of {name}": p.grad for name, p in self.network.named_parameters()
                                   if p.grad is not None}}
        if x.grad is not None:
            found["gradient of the input"] = x.grad
        return {name: value.detach().cpu().double() for name, value in found.items()}

    def used(self, judged: Judged | None) -> tuple[float, str]:
        assert judged is not None
        return gate.used(self.answer(), judged, self.precision)

    def trouble(self, outcome: Any) -> str:
        return "" if bool(torch.isfinite(outcome).all()) else "an output is not finite"


def parts(config: Config) -> list[tuple[nn.Module, tuple[int, ...], bool, str]]:
    """Every stage: its layers, the (C, H, W) of its input, whether that has a gradient, its name."""
    networks = steps.networks(config, torch.device("cpu"))
    given = torch.zeros(2, config.model.nz), torch.zeros(2, *shape_of(config))
    found: list[tuple[nn.Module, tuple[int, ...], bool, str]] = []
    for network, like, letter in zip(networks, given, "GD", strict=True):
        for stage in stages.of(network, like, letter, 1):
            layers = nn.Sequential(*copy.deepcopy([one for one in stage.layers if one is not None]))
            found.append((layers, stage.shape, not stage.name.startswith(f"{letter}1 "), stage.name))
    return found


def find(entry: Entry) -> tuple[nn.Module, tuple[int, ...], bool]:
    """Eager layers of an entry, the shape of their input without the batch, whether that has a gradient."""
    config = entry.config
    if entry.part in NETWORKS:
        networks = steps.networks(config, torch.device("cpu"))
        shapes = (config.model.nz,), shape_of(config)
        index = NETWORKS.index(entry.part)
        return fastgan.to_eager(networks[index]), shapes[index], False
    layers, shape, inner, _ = next(part for part in parts(config) if part[3] == entry.part)
    return layers, shape, inner


def judge(entry: Entry, precisions: list[str], device: torch.device) -> Judged:
    """The first call in float64, and how far rounding takes eager layers from it, in either layout."""
    wide = Passes(entry, Contender("float64"), device)
    wide.network.double()
    wide.inputs[0] = wide.inputs[0].detach().double().requires_grad_(wide.inner)
    with FlopCounterMode(display=False) as counter:
        exact = wide.answer()
    eager = {precision: [Passes(entry, Contender("eager", precision=precision, nchw=nchw), device).answer()
                         for nchw in (False, True)] for precision in precisions}
    floor = {precision: gate.floors(exact, runs) for precision, runs in eager.items()}
    return Judged(exact, floor, flops=counter.get_total_flops())


def _as(network: nn.Module, contender: Contender) -> Any:
    """What is called in place of eager layers; it has their parameters."""
    if contender.compiled:
        return torch.compile(network, mode=contender.compiled)
    if contender.engine == "textbook":
        return network
    whole = Chain(*network, impl=contender.engine) if isinstance(network, nn.Sequential) else fastgan.convert(network)
    return use(whole, contender.engine)


@torch.no_grad()
def _made(network: nn.Module, x: Tensor) -> tuple[int, ...]:
    """The shape of what comes out, without the batch; running statistics stay as they are."""
    network.eval()
    shape = tuple(network(x[:2]).shape[1:])
    network.train()
    return shape
