"""Optimizers of `torch.optim` in a step that can skip updates and can be captured in a CUDA graph."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastgan.errors import FastganError


class GuardedOptimizer:
    """An optimizer whose update is reverted on the device if `found_inf` is 1.

    On a GPU the optimizer is made capturable, if it has that option, and its learning rates become tensors, so that a
    scheduler of `torch.optim.lr_scheduler` also affects captured steps.

    Attributes:
        optimizer: the given optimizer. found_inf: () float32; if None, updates are never reverted.
    """

    found_inf: Tensor | None = None

    def __init__(self, optimizer: Optimizer, device: torch.device) -> None:
        self.optimizer = optimizer
        for group in optimizer.param_groups if device.type == "cuda" else []:
            if "capturable" in group:
                group["capturable"] = True
            if not isinstance(group["lr"], Tensor):
                group["lr"] = torch.tensor(float(group["lr"]), device=device)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    @torch.no_grad()
    def step(self) -> None:
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        before = {tensor: tensor.clone() for tensor in [*params, *self._state()]} if self.found_inf is not None else {}
        self.optimizer.step()
        if self.found_inf is not None:
            for tensor in [*params, *self._state()]:
                # state that the update created is initially 0
                old = before[tensor] if tensor in before else torch.zeros_like(tensor)
                tensor.copy_(torch.where(self.found_inf.to(tensor.device) > 0, old, tensor))

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none=set_to_none)

    @property
    def is_ready(self) -> bool:
        """Whether the state exists, which optimizers of torch.optim create in their first update."""
        return bool(self.optimizer.state)

    def tensors(self) -> list[Tensor]:
        """All tensors that an update changes, except the parameters."""
        return [*self._state(), *(group["lr"] for group in self.param_groups if isinstance(group["lr"], Tensor))]

    def _state(self) -> list[Tensor]:
        return [value for state in self.optimizer.state.values() for value in state.values()
                if isinstance(value, Tensor)]

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state. This replaces tensors, so that a captured step is captured again."""
        self.optimizer.load_state_dict(state)


def check_optimizers(optimizers: Iterable[Any], networks: Iterable[nn.Module]) -> None:
    """Raise `FastganError` if an optimizer has parameters of another network."""
    optimizers = tuple(optimizers)
    if len(optimizers) != 2 or not all(isinstance(optimizer, Optimizer) for optimizer in optimizers):
        kinds = ", ".join(type(optimizer).__name__ for optimizer in optimizers)
        raise FastganError(f"optimizers is ({kinds}); expected two optimizers of torch.optim, the generator's and the "
                           "discriminator's")
    for index, (optimizer, network) in enumerate(zip(optimizers, networks, strict=True)):
        own = set(network.parameters())
        if not {p for group in optimizer.param_groups for p in group["params"]} <= own:
            name = ("generator", "discriminator")[index]
            raise FastganError(f"optimizers[{index}] has parameters that the {name} does not have; expected the "
                               "generator's optimizer, then the discriminator's")
