"""The moving average of the generator, from which pictures are drawn."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class EMA:
    """average += (1 - decay_t) * (live - average) for parameters; buffers (running statistics) follow the live ones.

    decay_t = min(decay, (1 + t) / (10 + t)) after t updates, so that the average forgets its random start.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(network).requires_grad_(False)
        self.decay = decay
        device = next(network.parameters()).device
        self.updates = torch.zeros((), device=device)

    @torch.no_grad()
    def update(self, network: nn.Module, skip: Tensor) -> None:
        """Take one step towards `network`; none where `skip` () holds 1."""
        weight = (1 - ((1 + self.updates) / (10 + self.updates)).clamp(max=self.decay)) * (1 - skip)
        live: list[Tensor] = list(network.parameters())
        average: list[Tensor] = list(self.module.parameters())
        torch._foreach_lerp_(average, live, [weight.to(live[0].dtype)] * len(live))
        for mine, theirs in zip(self.module.buffers(), network.buffers(), strict=True):
            mine.copy_(torch.where(skip > 0, mine, theirs))
        self.updates += 1 - skip
