"""A generator as layers of torch.nn and nothing else: a list that JSON can hold, and ten lines can build again.

What the networks do between their layers is said with layers, too. A reshape to TensorFlow's (H, W, C) is Unflatten and
ChannelShuffle; where a transposed convolution is cropped, ZeroPad2d pads by less than nothing; batch normalisation by
the statistics of the batch is one that tracks none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastgan.errors import FastganError
from fastgan.models.dcgan import DCGANGenerator
from fastgan.models.gaussian import GaussianGenerator
from fastgan.models.oreilly import OReillyGenerator
from fastgan.models.pretrained import Pretrained
from fastgan.models.tf_mnist import TFGenerator
from fastgan.nn import to_eager
from fastgan.nn.same_padding import ConvTransposeSame

Described = tuple[str, dict[str, Any]]  # a class of torch.nn and its arguments

ARGUMENTS = {
    "ConvTranspose2d": ("in_channels", "out_channels", "kernel_size", "stride", "padding", "output_padding"),
    "BatchNorm2d": ("num_features", "eps"), "BatchNorm1d": ("num_features", "eps"),
    "Linear": ("in_features", "out_features"), "ReLU": (), "Tanh": (), "Flatten": (), "ZeroPad2d": ("padding",),
    "Unflatten": ("dim", "unflattened_size"), "ChannelShuffle": ("groups",),
}


class PlainGenerator(nn.Module):
    """z (N, nz), and labels (N,) int64 where there is an embedding -> images (N, C, H, W) or points (N, 2).

    Attributes: described, the layers as data; layers, an `nn.Sequential`; embedding, whose row of a label follows z, or
    None; nz. In evaluation mode.
    """

    def __init__(self, described: list[Described], classes: int, nz: int) -> None:
        super().__init__()
        self.described, self.nz = described, nz
        self.layers = nn.Sequential(*(getattr(nn, kind)(**_tuples(arguments)) for kind, arguments in described))
        self.embedding = nn.Embedding(classes, nz) if classes else None
        self.float().eval()

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.embedding is not None:
            z = torch.cat([z, self.embedding(labels)], 1)
        return self.layers(z)

    def weights(self) -> dict[str, Tensor]:
        """The layers' state_dict, and embedding.weight."""
        return {key.removeprefix("layers."): tensor.contiguous() for key, tensor in self.state_dict().items()}


def plain(source: Pretrained) -> PlainGenerator:
    """The generator of `source`, on the CPU, with copies of its weights.

    Raises `FastganError` for a network that is none of `fastgan.models`.
    """
    layers, batch_statistics = _layers(source.generator), source.model.sample_bn == "batch"
    described = [_describe(layer, batch_statistics) for layer in layers]
    made = PlainGenerator(described, len(source.classes), source.model.nz)
    for mine, theirs in zip(made.layers, layers, strict=True):
        state = theirs.state_dict()
        mine.load_state_dict({key: state[key] for key in mine.state_dict()})
    if made.embedding is not None:
        made.embedding.load_state_dict(source.generator.embedding.state_dict())  # type: ignore[union-attr]
    return made


def _layers(generator: nn.Module) -> list[nn.Module]:
    """All that happens to z, in order."""
    if type(generator) not in _BEFORE_MAIN:
        raise FastganError(f"cannot export a {type(generator).__name__}: expected one of "
                           f"{', '.join(kind.__name__ for kind in _BEFORE_MAIN)}")
    eager: Any = to_eager(generator)
    layers = _BEFORE_MAIN[type(generator)](eager)
    for layer in eager.main if isinstance(eager.main, nn.Sequential) else [eager.main]:
        layers.append(layer)
        if isinstance(layer, ConvTransposeSame):
            longer, wider = layer.stage_output_padding
            layers.append(nn.ZeroPad2d((0, wider, 0, longer)))
    return layers


def _from_hwc(side: int, channels: int) -> list[nn.Module]:
    """(N, side * side * channels), read as (N, side, side, channels) -> (N, channels, side, side)."""
    return [nn.Unflatten(1, (side * side * channels, 1, 1)), nn.ChannelShuffle(side * side), nn.Flatten(),
            nn.Unflatten(1, (channels, side, side))]


_BEFORE_MAIN: dict[type[nn.Module], Callable[[Any], list[nn.Module]]] = {
    DCGANGenerator: lambda network: [nn.Unflatten(1, (network.main[0].in_channels, 1, 1))],
    OReillyGenerator: lambda network: [nn.ReLU(), *_from_hwc(2, 25)],
    TFGenerator: lambda network: [network.fc, network.bn0, nn.ReLU(), *_from_hwc(7, 128)],
    GaussianGenerator: lambda network: [],
}


def _tuples(arguments: dict[str, Any]) -> dict[str, Any]:
    """JSON knows only lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}


def _describe(layer: nn.Module, batch_statistics: bool) -> Described:
    kind = next(kind for kind in ARGUMENTS if isinstance(layer, getattr(nn, kind)))
    arguments = {name: getattr(layer, name) for name in ARGUMENTS[kind]}
    if isinstance(layer, (nn.ConvTranspose2d, nn.Linear)):
        arguments["bias"] = layer.bias is not None
    elif isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)) and batch_statistics:
        arguments["track_running_stats"] = False
    return kind, arguments
