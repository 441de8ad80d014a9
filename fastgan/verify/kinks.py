"""Networks whose activations change slope slightly beside zero.

Where the input of an activation is nearly zero, one rounding decides between two slopes, in eager PyTorch as in
fastgan, and one such element may weigh more than all other roundings together. In 16 bits these inputs are off by one
unit (as root mean square), so elements within two units may go either way. The exact gradient is computed twice more
with the kink moved by two units to either side, and 1.5 x the distance between these gradients is allowed beside
eager's error; independent errors add by their squares (`fastgan.ops.numerics.judge`).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fastgan.ops.numerics import Precision, rms

DOUBT = 2.0  # units from a kink


def doubted(network: nn.Sequential, precision: Precision) -> list[nn.Sequential]:
    """Two copies of the layers, with kinks moved by two units of the precision to either side."""
    return [kinked(network, sign * DOUBT * precision.unit) for sign in (-1, 1)]


def kinked(network: nn.Sequential, shift: float) -> nn.Sequential:
    """A copy of the layers in which the slope of (leaky) ReLU changes at `shift` times the rms of its input."""
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
