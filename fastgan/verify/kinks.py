"""Slopes in doubt.

Where an activation's input is nearly zero, a rounding decides between two slopes, in eager as in ours, and one such
element may weigh more than all roundings together. In 16 bits these inputs are off by one unit (as root mean square),
so elements within two are in doubt. The exact gradient is taken twice more with the change of slopes moved by two units
to either side; 1.5 x how far that moves the gradient is allowed beside eager's error, as independent errors add, by
their squares (`fastgan.ops.numerics.judge`).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fastgan.ops.numerics import Precision, rms

DOUBT = 2.0  # units from a kink


def doubted(network: nn.Sequential, precision: Precision) -> list[nn.Sequential]:
    """The same layers, twice, with kinks moved to either side of where inputs are in doubt."""
    return [kinked(network, sign * DOUBT * precision.unit) for sign in (-1, 1)]


def kinked(network: nn.Sequential, shift: float) -> nn.Sequential:
    """The same layers with the slopes of relu and leaky relu changing at `shift` times the inputs' rms, not at 0."""
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
