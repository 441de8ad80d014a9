"""A convolution with its tensors, as the native engine's functions take it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from fastgan.ops.dispatch import ENGINES
from fastgan.ops.specs import ACTIVATIONS, Activation, output_size

__all__ = ["ACTIVATIONS", "ENGINES", "Activation", "Convolution", "output_size"]


class Convolution(NamedTuple):
    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    output_padding: tuple[int, int] = (0, 0)
    transposed: bool = False

    def channels(self) -> tuple[int, int]:
        one, two = self.weight.shape[:2]
        return (one, two) if self.transposed else (two, one)

    def size(self, x: Tensor) -> tuple[int, int]:
        return output_size(x.shape[2:], self.weight.shape[2:], self.stride, self.padding, self.output_padding,
                           self.transposed)
