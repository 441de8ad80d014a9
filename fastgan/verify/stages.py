"""The blocks of a network, one by one, with the shapes that they have in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastgan.nn import Chain
from fastgan.nn.chain import Layers, flat, read


class Stage(NamedTuple):
    """A block as it stands in a network.

    layers: convolution, normalisation or None, activation or None. shape, made: (Ci, H, W) of its input and (Co, Ho,
    Wo) of its output. groups: G, of its batch statistics.
    """

    name: str
    layers: Layers
    shape: tuple[int, ...]
    made: tuple[int, ...]
    groups: int


def of(network: nn.Module, given: Tensor, letter: str, groups: int) -> list[Stage]:
    """The distinct blocks of `network`, in order, named `letter` and their number; its input is like `given`."""
    shapes = _shapes(network, given)
    found: dict[str, Stage] = {}
    for run in _runs(network):
        for layers in run:
            shape, made = shapes[layers[0]]
            name = f"{letter}{len(found) + 1} {describe(layers, shape, made)}"
            # two with equal descriptions of their layers compute the same function of their parameters
            found.setdefault(f"{layers} {shape}", Stage(name, layers, shape, made, groups))
    return list(found.values())


def describe(layers: Layers, shape: tuple[int, ...], made: tuple[int, ...]) -> str:
    """Such as "3x64x64 -> 64x32x32, 4x4/2 bn leaky_relu"; transposed convolutions have a T after their kernel."""
    convolution, norm, activation = layers
    assert isinstance(convolution, (nn.Conv2d, nn.ConvTranspose2d))
    kernel, stride = _sides(convolution.kernel_size), convolution.stride
    words = [f"{kernel}{'T' * isinstance(convolution, nn.ConvTranspose2d)}/{stride[0]}"]
    words += ["bias"] * (convolution.bias is not None) + ["bn"] * (norm is not None)
    words += {nn.ReLU: ["relu"], nn.LeakyReLU: ["leaky"], nn.Tanh: ["tanh"]}.get(type(activation), [])
    return f"{_sides(shape)} -> {_sides(made)}, {' '.join(words)}"


def _sides(lengths: tuple[int, ...]) -> str:
    return "x".join(map(str, lengths))


def _runs(network: nn.Module) -> Iterator[list[Layers]]:
    """Every run of blocks in the chains of a network, outermost chains only: they read what is nested in them."""
    if isinstance(network, Chain):
        yield from (part for part in read(flat(network)) if isinstance(part, list))
    else:
        for child in network.children():
            yield from _runs(child)


@torch.no_grad()
def _shapes(network: nn.Module, given: Tensor) -> dict[nn.Module, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Of each convolution, the shapes of its input and output without the batch."""
    shapes: dict[nn.Module, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        shapes[module] = tuple(args[0].shape[1:]), tuple(out.shape[1:])

    handles = [module.register_forward_hook(keep) for module in network.modules()
               if isinstance(module, nn.modules.conv._ConvNd)]
    was_training = network.training
    try:
        network.eval()(given)  # running statistics stay as they are
    finally:
        network.train(was_training)
        for handle in handles:
            handle.remove()
    return shapes
