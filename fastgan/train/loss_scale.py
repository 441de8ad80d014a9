"""Scaling of the losses of a float16 step against underflow of gradients: a GradScaler for two losses per step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer


class LossScale:
    """Call `scale(loss)`, then `scale.undo(optimizer)` to unscale the gradients, and `scale.update()` once per step.
    All of this runs on the device only."""

    def __init__(self, enabled: bool, device: torch.device) -> None:
        self.enabled = enabled
        self._scaler = GradScaler(device.type, enabled=enabled)
        self(torch.zeros((), dtype=torch.float32, device=device))  # the scaler creates its tensors at the first loss

    def __call__(self, loss: Tensor) -> Tensor:
        return self._scaler.scale(loss)

    def begin(self) -> None:
        """Reset the state that an interrupted step left, because it did not reach `update`."""
        if self.enabled:
            self._scaler._per_optimizer_states.clear()  # not public, but `update` would also change the scale

    def undo(self, optimizer: Optimizer) -> None:
        """Divide the gradients of an optimizer's parameters by the scale."""
        self._scaler.unscale_(optimizer)

    def update(self) -> None:
        """Halve the scale if a gradient of this step has overflowed; double it after many steps without overflow."""
        self._scaler.update()

    def tensors(self) -> list[Tensor]:
        """The tensors that `update` changes."""
        # not public, but state_dict would synchronize with the host
        return [self._scaler._scale, self._scaler._growth_tracker] if self.enabled else []  # type: ignore[list-item]

    def state_dict(self) -> dict[str, Any]:
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the scale in place. It is not changed if the state has none, because of another precision."""
        if self.enabled and state:
            for tensor, key in zip(self.tensors(), ("scale", "_growth_tracker"), strict=True):
                tensor.fill_(state[key])
