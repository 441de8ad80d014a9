"""What an engine is told: convolutions, batch normalisations and activations as plain data.

Read from modules or arguments at call time; tensors are the very parameters and buffers, never copies.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

ACTIVATIONS = ("none", "relu", "leaky_relu", "tanh")


class Convolution(NamedTuple):
    """weight (Co, Ci, kh, kw), or (Ci, Co, kh, kw) when transposed; bias (Co,) or None."""

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    output_padding: tuple[int, int] = (0, 0)
    transposed: bool = False


class Norm(NamedTuple):
    """A normalisation whose statistics are known: each (G, C) or (C,), float32 (float64 for float64 inputs)."""

    mean: Tensor
    rstd: Tensor
    gamma: Tensor
    beta: Tensor


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
    negative_slope: float = 0.0
    inplace: bool = False


class Block(NamedTuple):
    """Convolution, then batch normalisation if there is one, then activation."""

    convolution: Convolution
    norm: BatchNorm | None = None
    activation: Activation = Activation()
