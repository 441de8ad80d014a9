"""Networks whose activations change their slope at a small distance from zero.

If the input of an activation is nearly zero, rounding decides between two slopes, both in eager PyTorch and in fastgan,
and the effect of one such element may exceed that of all other roundings together. In 16 bits the RMS error of these
inputs is one rounding unit, so that the slope of elements within two units is uncertain. The exact gradient is computed
twice more, with the kink shifted by two units in both directions, and 1.5 times the distance between these gradients is
allowed in addition to eager PyTorch's error; independent errors are added in quadrature (`fastgan.ops.numerics.judge`).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fastgan.ops.numerics import Precision, rms

DOUBT = 2.0  # uncertain distance from a kink, in rounding units


def doubted(network: nn.Sequential, precision: Precision) -> list[nn.Sequential]:
    """Two copies of the layers, with kinks shifted by two rounding units of the precision in both directions."""
    return [kinked(network, sign * DOUBT * precision.unit) for sign in (-1, 1)]


def kinked(network: nn.Sequential, shift: float) -> nn.Sequential:
    """A copy of the layers in which the slope of (leaky) ReLU changes at `shift` times the RMS of its input."""
    network = copy.deepcopy(network)
    for key, layer in network.named_children():
        if isinstance(layer, (nn.ReLU, nn.LeakyReLU)):
            setattr(network, key, _Kinked(getattr(layer, "negative_slope", 0.0), shift))
    return network


class _Kinked(nn.Module):
    def __init__(self, slope: float, shift: float) -> None:
        super().__init__()
        self.slope, self.shift = slope, shift

    def forward(self, z: Tensor) -> Tensor:
        fixed = z.detach()
        one, slope = torch.ones_like(fixed), torch.full_like(fixed, self.slope)
        steep = torch.where(fixed > self.shift * rms(fixed), one, slope)
        return fixed * torch.where(fixed > 0, one, slope) + steep * (z - fixed)
