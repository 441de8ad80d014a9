"""The moving average of the generator, which is used for sampling."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class _ResultsAsConstants(TorchFunctionMode):
    """A context manager in which `copy.deepcopy` detaches non-leaf tensors, for which it raises an error otherwise.

    A network that has been called may have such tensors: `torch.nn.utils.spectral_norm` stores the computed weight, and
    a forward may store features.
    """

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            args = (args[0].detach(), *args[1:])
        return func(*args, **(kwargs or {}))


class EMA:
    """average += (1 - decay_t) * (live - average), for parameters.

    decay_t = min(decay, (1 + t) / (10 + t)) after t updates, so that the influence of the random initialization decays
    quickly. t is on the device. Buffers (running statistics) are those of the live network: `module` copies them, and
    `Trainer.pretrained` replaces them by statistics measured for the average.

    Args:
        foreach: update all parameters together in a few kernels, instead of one after the other.
    """

    def __init__(self, network: nn.Module, decay: float, *, foreach: bool = True) -> None:
        self._network, self.decay, self.foreach = network, decay, foreach
        with _ResultsAsConstants():
            self._module = copy.deepcopy(network).requires_grad_(False)
        self._average: list[Tensor] = list(self._module.parameters())
        self.updates = torch.zeros((), dtype=torch.float32, device=next(network.parameters()).device)

    @property
    def module(self) -> nn.Module:
        """The averaged network."""
        for mine, theirs in zip(self._module.buffers(), self._network.buffers(), strict=True):
            mine.copy_(theirs)
        return self._module

    @torch.no_grad()
    def update(self, skip: Tensor) -> None:
        """Update the average, unless `skip` () is 1."""
        live: list[Tensor] = list(self._network.parameters())
        weight = (1 - ((1 + self.updates) / (10 + self.updates)).clamp(max=self.decay)) * (1 - skip)
        weight = weight.to(live[0].dtype)
        if self.foreach:
            # not _foreach_lerp_, which launches a kernel for each tensor if the weight is on the device
            way = torch._foreach_sub(live, self._average)
            torch._foreach_mul_(way, weight)
            torch._foreach_add_(self._average, way)
        else:
            for mine, theirs in zip(self._average, live, strict=True):
                mine.add_((theirs - mine) * weight)
        self.updates += 1 - skip

    def averages_of(self, params: list[Tensor]) -> list[Tensor] | None:
        """The averages of `params`; None unless `params` are all averaged parameters, in order and in float32."""
        live = list(self._network.parameters())
        same = len(live) == len(params) and all(map(operator.is_, live, params))
        return self._average if same and all(one.dtype == torch.float32 for one in self._average) else None

    def tensors(self) -> list[Tensor]:
        """The tensors that an update changes."""
        return [self.updates, *self._average]
