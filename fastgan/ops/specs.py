"""An operation a = act(batch_norm(conv(x, weight) + bias)): its tensors, and everything else as a hashable key.

Tensors are the parameters and buffers themselves, read from modules or arguments at call time; never copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

ACTIVATIONS = ("none", "relu", "leaky_relu", "tanh")
GAN_LOSSES = ("logistic", "hinge", "wgan")
FEW_CHANNELS = 16  # tensors with fewer channels are treated as images, for which kernels have special forms


class ConvSpec(NamedTuple):
    """A convolution with weight (Co, Ci, kh, kw), or a transposed one with weight (Ci, Co, kh, kw).

    All but `transposed` are (height, width). output_padding: rows and columns added at the end of the result, as if the
    input were padded further there; removed if negative.
    """

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    output_padding: tuple[int, int] = (0, 0)
    transposed: bool = False

    def channels(self, weight: Tensor) -> tuple[int, int]:
        """(Ci, Co)."""
        one, two = weight.shape[:2]
        return (one, two) if self.transposed else (two, one)

    def output_size(self, x: Tensor, weight: Tensor) -> tuple[int, int]:
        """(Ho, Wo) of the result for x (N, Ci, H, W)."""
        return output_size(x.shape[2:], weight.shape[2:], *self)


class NormSpec(NamedTuple):
    """A batch normalization.

    batch_statistics: normalize with the statistics of the batch, separately for each of `groups` equal parts, and
        update the running statistics group by group; otherwise normalize with the running statistics.
    momentum: None for the average over all batches, counted by num_batches_tracked.
    """

    batch_statistics: bool
    momentum: float | None = 0.1
    eps: float = 1e-5
    groups: int = 1


class Activation(NamedTuple):
    """One of `ACTIVATIONS`. inplace: its layer may overwrite its input."""

    name: str = "none"
    negative_slope: float = 0  # torch.compile treats 0 as a constant, but a default of 0.0 as a variable
    inplace: bool = False

    def keeps_mask(self) -> bool:
        """Whether the backward pass needs the mask z > 0, because a may be overwritten: a leaky_relu not in-place."""
        return self.name == "leaky_relu" and not self.inplace


IDENTITY = Activation()


class BlockSpec(NamedTuple):
    """A block without its tensors; norm is None without batch normalization."""

    conv: ConvSpec
    norm: NormSpec | None = None
    activation: Activation = IDENTITY


class BlockTensors(NamedTuple):
    """weight (4-D); bias, gamma, beta, running_mean, running_var (Co,) or None; num_batches_tracked () or None."""

    weight: Tensor
    bias: Tensor | None = None
    gamma: Tensor | None = None
    beta: Tensor | None = None
    running_mean: Tensor | None = None
    running_var: Tensor | None = None
    num_batches_tracked: Tensor | None = None


class RunningStats(NamedTuple):
    """Buffers of a batch normalization, updated in place: mean and var (C,) or None, num_batches_tracked () or None."""

    mean: Tensor | None = None
    var: Tensor | None = None
    num_batches_tracked: Tensor | None = None


def output_size(image: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
                output_padding: Sequence[int] = (0, 0), transposed: bool = False) -> tuple[int, int]:
    """(Ho, Wo) of a convolution's result for an image of (H, W)."""
    sides = zip(image, kernel, stride, padding, output_padding, strict=True)
    h, w = (((side - 1) * step - 2 * pad + k if transposed else (side + 2 * pad - k) // step + 1) + extra
            for side, k, step, pad, extra in sides)
    return h, w
