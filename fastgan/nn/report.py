"""`fastgan_report`: whether each convolution and batch normalization of a network is or will be fused, or why not."""

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
    """Lines of text. Each begins with the names of the layers that it describes."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[tuple[str, ...]] = []  # names of the layers of each line
        self.expected: set[str] = set()  # names of layers that torch.compile has not traced yet

    def put(self, names: Iterable[str], text: str) -> None:
        """Add a line about these layers, which replaces their previous lines."""
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
        """Report that these layers, of which `layer` is one, run as one operation, or are expected to."""
        # not layer.weight, which may be computed by a parametrization
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
        """Report that a layer outside of a chain is expected to run as an operation when torch.compile traces it."""
        self.put_fused([name], type(layer).__name__, layer, impl, ran=False)
        self.expected.add(name)

    def put_left(self, name: str, layer: nn.Module, reason: str) -> None:
        if isinstance(layer, LAYERS):
            self.put([name], f"not fused: {reason}")

    def put_chain(self, module: Chain, name: str, *, ran: bool) -> None:
        """Report all layers of a chain; before its first call, only those that an outer chain has not reported."""
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
