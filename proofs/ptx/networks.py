"""The chains of one and two blocks that are executed in the simulator."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from proofs.cases import CASES
from proofs.cases import name as name_of


class Layer(NamedTuple):
    co: int
    kernel: int | tuple[int, int] = 4
    stride: int | tuple[int, int] = 2
    padding: int | tuple[int, int] = 1
    extra: int | tuple[int, int] = 0
    transposed: bool = False
    bias: bool = False
    norm: bool = True
    activation: str = "leaky_relu"


class Case(NamedTuple):
    name: str
    shape: tuple[int, int, int, int]
    layers: tuple[Layer, ...]
    groups: int = 1
    training: bool = True


HEAD = Layer(1, 4, 1, 0, norm=False, activation="none")
IMAGE = Layer(3, transposed=True, norm=False, activation="tanh")
# the cases for tile configurations; the first two also launch all narrow kernels
GENERATOR = Case("128-64-3 transposed", (4, 128, 4, 4), (Layer(64, transposed=True, activation="relu"), IMAGE))
DISCRIMINATOR = Case("64-128-1", (4, 64, 8, 8), (Layer(128), HEAD), 2)
ODD = [
    Case("70-100-70", (4, 70, 7, 5), (Layer(100, bias=True), Layer(70, 3, 2, 1, 1, transposed=True)), 2),
    Case("3-64-25", (4, 3, 13, 11), (Layer(64, norm=False), Layer(25, 3, 1, 1)), 4),
    Case("25-128-64 transposed", (6, 25, 3, 5), (Layer(128, 3, transposed=True), Layer(64, 4, 2, 1)), 3),
]
DESCRIBED = [  # on descriptors: whole boxes; groups that end within a box of 2 or 8 images; masks
    Case("64-128-128-64 described", (16, 64, 8, 8), (Layer(128), Layer(128, transposed=True),
                                                     Layer(64, transposed=True)), 2),
    Case("64-128-128 described in part", (10, 64, 16, 16), (Layer(128), Layer(128)), 2),
    Case("64-128-64 described, bare", (5, 64, 8, 8), (Layer(128, norm=False),
                                                      Layer(64, transposed=True, norm=False))),
]
HEADS = [
    Case("z 100-512-3", (8, 100, 1, 1), (Layer(512, 4, 1, 0, transposed=True, activation="relu"), IMAGE)),
    Case("3-64-512-1", (4, 3, 16, 16), (Layer(64, norm=False), Layer(512), HEAD), 2),
    Case("1-64-1", (4, 1, 12, 8), (Layer(64), Layer(1, transposed=True, activation="tanh"))),
    Case("3-24-40 masks", (4, 3, 9, 11), (Layer(24, norm=False), Layer(40, 3, 2, 1, 1, transposed=True, norm=False))),
    Case("many tiles", (17, 2, 32, 32), (Layer(3, 1, 1, 0), Layer(20, 1, 1, 0))),  # merged in two levels
    GENERATOR, DISCRIMINATOR, *ODD,
]


def from_tests() -> Iterator[Case]:
    """Each case of the operations' tests after a block with batch normalization, or alone."""
    for case, transposed in itertools.product(CASES, (False, True)):
        shape, co, kernel, stride, padding, extra, bias, groups = case
        if shape[2:] == (1, 1) and not transposed:
            continue
        before = () if shape[2:] == (1, 1) else (Layer(shape[1], 1, 1, 0),)
        layer = Layer(co, kernel, stride, padding, extra if transposed else 0, transposed, bias)
        yield Case(name_of(case) + "-transpose" * transposed, shape, (*before, layer), groups)


def without_statistics(case: Case) -> tuple[Case, Case]:
    """The case with running statistics, and without batch normalization."""
    bare = tuple(layer._replace(norm=False) for layer in case.layers)
    return (case._replace(name=case.name + " evaluation", training=False),
            case._replace(name=case.name + " bare", layers=bare))


def build(case: Case) -> nn.Sequential:
    """Eager layers, seeded, with scales and shifts that differ between channels."""
    torch.manual_seed(0)
    modules: list[nn.Module] = []
    ci = case.shape[1]
    for layer in case.layers:
        given: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding, "bias": layer.bias}
        modules.append(nn.ConvTranspose2d(ci, layer.co, layer.kernel, output_padding=layer.extra, **given)
                       if layer.transposed else nn.Conv2d(ci, layer.co, layer.kernel, **given))
        if layer.norm:
            norm = nn.BatchNorm2d(layer.co)
            nn.init.normal_(norm.weight, 1.0, 0.5)
            nn.init.normal_(norm.bias, 0.5, 0.5)
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.normal_(0.0, 0.5)
            norm.running_var.uniform_(0.5, 2)
            modules.append(norm)
        if layer.activation != "none":
            modules.append({"relu": nn.ReLU(), "leaky_relu": nn.LeakyReLU(0.2), "tanh": nn.Tanh()}[layer.activation])
        ci = layer.co
    return nn.Sequential(*modules).train(case.training)


def cast(network: nn.Sequential, dtype: torch.dtype) -> nn.Sequential:
    """Mixed precision: convolutions in `dtype`, batch normalization in float32 (or float64)."""
    network = copy.deepcopy(network).to(dtype)
    for module in network:
        if isinstance(module, nn.BatchNorm2d) and dtype.itemsize < 4:
            module.float()
    return network
