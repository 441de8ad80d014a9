"""A generator as an `nn.Sequential` of `torch.nn` layers, described by a JSON list from which PyTorch can rebuild it.

Operations between layers become layers too: a reshape in TensorFlow's (H, W, C) order is Unflatten and ChannelShuffle,
cropping after a transposed convolution is ZeroPad2d with negative padding, and batch normalization with the statistics
of the batch is a BatchNorm layer without running statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastgan.errors import FastganError
from fastgan.models import weights
from fastgan.models.dcgan import DCGANGenerator
from fastgan.models.gaussian import GaussianGenerator
from fastgan.models.oreilly import OReillyGenerator
from fastgan.models.pretrained import MAX_SIDE, Pretrained
from fastgan.models.tf_mnist import TFGenerator
from fastgan.nn import to_eager
from fastgan.nn.same_padding import ConvTransposeSame

LayerSpec = tuple[str, dict[str, Any]]  # the name of a class in torch.nn, and its arguments

ARGUMENTS = {
    "ConvTranspose2d": ("in_channels", "out_channels", "kernel_size", "stride", "padding", "output_padding"),
    "BatchNorm2d": ("num_features", "eps"), "BatchNorm1d": ("num_features", "eps"),
    "Linear": ("in_features", "out_features"), "ReLU": (), "Tanh": (), "Flatten": (), "ZeroPad2d": ("padding",),
    "Unflatten": ("dim", "unflattened_size"), "ChannelShuffle": ("groups",),
}
_MAX_ELEMENTS = 64 * MAX_SIDE**2  # of an intermediate tensor


class SequentialGenerator(nn.Module):
    """z (N, nz), and labels (N,) int64 if there is an embedding -> images (N, C, H, W) or points (N, 2).

    Attributes: specs, the layers as data; layers, an `nn.Sequential`; embedding, which is appended to z, or None; nz.
    The module is in evaluation mode. Raises ValueError for a layer that `to_sequential` does not write.
    """

    def __init__(self, specs: list[LayerSpec], classes: int, nz: int) -> None:
        super().__init__()
        self.specs, self.nz = specs, nz
        self.layers = nn.Sequential(*(_layer(name, arguments) for name, arguments in specs))
        self.embedding = nn.Embedding(classes, nz) if classes else None
        self.float().eval()

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.embedding is not None:
            z = torch.cat([z, self.embedding(labels)], 1)
        return self.layers(z)

    def weights(self) -> dict[str, Tensor]:
        """The state_dict of `layers`, and embedding.weight if there is one."""
        return {key.removeprefix("layers."): tensor.contiguous() for key, tensor in self.state_dict().items()}


def load_weights(generator: SequentialGenerator, state: dict[str, Tensor]) -> None:
    """The inverse of `SequentialGenerator.weights`. Raises `FastganError` for weights that do not fit."""
    weights.put({key if key.startswith("embedding.") else f"layers.{key}": tensor for key, tensor in state.items()},
                generator, "the file")


def check_output(generator: SequentialGenerator, shape: tuple[int, ...]) -> None:
    """Raise ValueError if the images do not have this shape, or an intermediate tensor is much larger."""
    x = torch.empty(2, generator.nz * (1 if generator.embedding is None else 2), dtype=torch.float32)
    for layer in generator.layers:
        x = layer(x)
        if x.numel() > _MAX_ELEMENTS:
            raise ValueError(f"{type(layer).__name__} returns {tuple(x.shape)}; expected at most {_MAX_ELEMENTS} "
                             "elements")
    if tuple(x.shape[1:]) != shape:
        raise ValueError(f"its layers return {tuple(x.shape[1:])}; expected {shape}")


def to_sequential(source: Pretrained) -> SequentialGenerator:
    """The generator of `source` on the CPU, with copies of its weights.

    Raises `FastganError` for a network that is not from `fastgan.models`.
    """
    layers, batch_statistics = _layers(source.generator), source.model.sample_bn == "batch"
    specs = [_spec(layer, batch_statistics) for layer in layers]
    made = SequentialGenerator(specs, len(source.classes), source.model.nz)
    for new, old in zip(made.layers, layers, strict=True):
        state = old.state_dict()
        new.load_state_dict({key: state[key] for key in new.state_dict()})
    if made.embedding is not None:
        made.embedding.load_state_dict(source.generator.embedding.state_dict())  # type: ignore[union-attr]
    return made


def _layer(name: str, arguments: dict[str, Any]) -> nn.Module:
    allowed = {*ARGUMENTS.get(name, ()), "bias", "track_running_stats"}
    if name not in ARGUMENTS or not set(arguments) <= allowed:
        raise ValueError(f"layer {name!r} with {', '.join(arguments)}: expected one of {', '.join(ARGUMENTS)}")
    # JSON stores tuples as lists
    return getattr(nn, name)(**{key: tuple(value) if isinstance(value, list) else value
                                for key, value in arguments.items()})


def _spec(layer: nn.Module, batch_statistics: bool) -> LayerSpec:
    name = next(name for name in ARGUMENTS if isinstance(layer, getattr(nn, name)))
    arguments = {key: getattr(layer, key) for key in ARGUMENTS[name]}
    if isinstance(layer, (nn.ConvTranspose2d, nn.Linear)):
        arguments["bias"] = layer.bias is not None
    elif isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)) and batch_statistics:
        arguments["track_running_stats"] = False
    return name, arguments


def _layers(generator: nn.Module) -> list[nn.Module]:
    """All layers that are applied to z, in order."""
    if type(generator) not in _BEFORE_MAIN:
        raise FastganError(f"cannot export a {type(generator).__name__}: expected one of "
                           f"{', '.join(kind.__name__ for kind in _BEFORE_MAIN)}")
    eager: Any = to_eager(generator)
    layers = _BEFORE_MAIN[type(generator)](eager)
    for layer in eager.main if isinstance(eager.main, nn.Sequential) else [eager.main]:
        layers.append(layer)
        if isinstance(layer, ConvTransposeSame):
            bottom, right = layer.stage_output_padding
            layers.append(nn.ZeroPad2d((0, right, 0, bottom)))
    return layers


def _from_hwc(side: int, channels: int) -> list[nn.Module]:
    """Layers that convert (N, side * side * channels), in the order (H, W, C), to (N, channels, side, side)."""
    return [nn.Unflatten(1, (side * side * channels, 1, 1)), nn.ChannelShuffle(side * side), nn.Flatten(),
            nn.Unflatten(1, (channels, side, side))]


_BEFORE_MAIN: dict[type[nn.Module], Callable[[Any], list[nn.Module]]] = {
    DCGANGenerator: lambda network: [nn.Unflatten(1, (network.main[0].in_channels, 1, 1))],
    OReillyGenerator: lambda network: [nn.ReLU(), *_from_hwc(2, 25)],
    TFGenerator: lambda network: [network.fc, network.bn0, nn.ReLU(), *_from_hwc(7, 128)],
    GaussianGenerator: lambda network: [],
}
