"""`fastgan_report`: for each convolution and batch normalisation of a network, what is or will be fused, or why not."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import torch
from torch import nn

from fastgan.nn.blocks import read, why_not
from fastgan.nn.chain import Chain, named_layers
from fastgan.ops import engines

LAYERS = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)


class Report(list[str]):
    """Lines of text, each about the layers whose names it begins with."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[tuple[str, ...]] = []  # of the layers of each line
        self.expected: set[str] = set()  # names of layers that torch.compile has not reached yet

    def put(self, names: Iterable[str], text: str) -> None:
        """Write a line about these layers in the place of the lines that they had."""
        names = tuple(names)
        self.expected.difference_update(names)
        old = [i for i, others in enumerate(self.names) if set(others) & set(names)]
        for i in reversed(old):
            del self[i], self.names[i]
        place = old[0] if old else len(self)
        self.insert(place, f"{', '.join(names)}: {text}")
        self.names.insert(place, names)

    def has(self, name: str) -> bool:
        return any(name in names for names in self.names)

    def put_fused(self, names: Iterable[str], kinds: str, layer: nn.Module, impl: str, *, ran: bool) -> None:
        """Write that these layers, of which `layer` is one, run as one operation, or are expected to."""
        # not layer.weight, which a parametrization computes
        tensor = next(chain(layer.parameters(), layer.buffers()), torch.empty(0))
        engine = engines.named(impl, tensor.device, tensor.dtype)
        if engines.why_not(engine, tensor.device):
            engine = "reference"
        if engine == "reference":
            text = f"{kinds}{'' if ran else ', to run'} as PyTorch operators"
        else:
            text = f"fused {kinds}" if ran else f"{kinds}, to be fused"
        self.put(names, f"{text} (engine: {engine})")

    def put_expected(self, name: str, layer: nn.Module, impl: str) -> None:
        """Write that a layer outside of a chain runs as an operation once torch.compile has reached it."""
        self.put_fused([name], type(layer).__name__, layer, impl, ran=False)
        self.expected.add(name)

    def put_left(self, name: str, layer: nn.Module, reason: str) -> None:
        if isinstance(layer, LAYERS):
            self.put([name], f"left as it is, {reason}")

    def put_chain(self, module: Chain, name: str, *, ran: bool) -> None:
        """Write about all layers of a chain; before its first call, only where a chain around it has not."""
        layers = iter(named_layers(module, name))
        for part in read([layer for _, layer in named_layers(module, name)]):
            if not isinstance(part, list):
                label, layer = next(layers)
                if ran or not self.has(label):
                    self.put_left(label, layer, why_not(layer) or "no fusable convolution comes before it")
                continue
            for block in part:
                named = [next(layers) for layer in block if layer is not None]
                if ran or not self.has(named[0][0]):
                    kinds = " + ".join(type(layer).__name__ for _, layer in named)
                    self.put_fused([label for label, _ in named], kinds, block[0], module.impl, ran=ran)
