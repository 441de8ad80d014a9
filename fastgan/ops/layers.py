"""What an engine is told: convolutions, batch normalisations and activations as plain data.

Read from modules or arguments at call time; tensors are the very parameters and buffers, never copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

ENGINES = ("reference", "native", "triton")
ACTIVATIONS = ("none", "relu", "leaky_relu", "tanh")


class Convolution(NamedTuple):
    """weight (Co, Ci, kh, kw), or (Ci, Co, kh, kw) when transposed; bias (Co,) or None.

    output_padding: rows and columns that the result has more at its end than stride and padding give it, as the
    padding there is wider; fewer when negative.
    """

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    output_padding: tuple[int, int] = (0, 0)
    transposed: bool = False

    def channels(self) -> tuple[int, int]:
        """(Ci, Co)."""
        one, two = self.weight.shape[:2]
        return (one, two) if self.transposed else (two, one)

    def size(self, x: Tensor) -> tuple[int, int]:
        """(Ho, Wo) of what it makes of x (N, Ci, H, W)."""
        return output_size(x.shape[2:], self.weight.shape[2:], self.stride, self.padding, self.output_padding,
                           self.transposed)


def output_size(image: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
                output_padding: Sequence[int] = (0, 0), transposed: bool = False) -> tuple[int, int]:
    """(Ho, Wo) of what a convolution makes of an image of (H, W)."""
    sides = zip(image, kernel, stride, padding, output_padding, strict=True)
    h, w = (((side - 1) * step - 2 * pad + k if transposed else (side + 2 * pad - k) // step + 1) + extra
            for side, k, step, pad, extra in sides)
    return h, w


class BatchNorm(NamedTuple):
    """A batch normalisation as its layer stands; gamma, beta and the running statistics are (C,) or None.

    `batch_statistics`: normalise by the batch's own statistics, and with them update those running ones that are given
    (`momentum` None: their plain average, counted by `num_batches_tracked`); otherwise normalise by the running ones.
    """

    gamma: Tensor | None
    beta: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    batch_statistics: bool
    momentum: float | None
    eps: float


class Activation(NamedTuple):
    """One of `ACTIVATIONS`; `inplace` where its layer says that the input may be overwritten."""

    name: str = "none"
    negative_slope: float = 0  # torch.compile takes 0 for a constant, and 0.0 that is a default for a variable
    inplace: bool = False

    def keeps_mask(self) -> bool:
        """Whether the backward pass needs the mask z > 0, because a may be overwritten: a leaky_relu not in-place."""
        return self.name == "leaky_relu" and not self.inplace


class Block(NamedTuple):
    """Convolution, then batch normalisation if there is one, then activation."""

    convolution: Convolution
    norm: BatchNorm | None = None
    activation: Activation = Activation()
