"""What an operation does, apart from its tensors: plain data that can be compared and used as a key."""

from __future__ import annotations

from typing import NamedTuple

from fastgan.ops.layers import Activation


class ConvSpec(NamedTuple):
    """A convolution, or a transposed one. All but `transposed` are (height, width)."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    output_padding: tuple[int, int] = (0, 0)
    transposed: bool = False


class NormSpec(NamedTuple):
    """A batch normalization.

    batch_statistics: normalize by the statistics of the batch, one set for each of `groups` equal parts, and update the
        running ones, group by group; otherwise normalize by the running ones.
    momentum: None for the plain average of all batches.
    """

    batch_statistics: bool
    momentum: float | None = 0.1
    eps: float = 1e-5
    groups: int = 1


class BlockSpec(NamedTuple):
    """act(batch_norm(conv(x, weight) + bias))."""

    conv: ConvSpec
    norm: NormSpec
    activation: Activation
