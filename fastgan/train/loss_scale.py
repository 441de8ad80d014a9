"""The loss of a float16 step, scaled so that small gradients survive: torch's GradScaler for two losses of one step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer


class LossScale:
    """`scale(loss)`, `scale.undo(optimizer)` on its gradients, and `scale.update()` once a step; on the device only."""

    def __init__(self, enabled: bool, device: torch.device) -> None:
        self.enabled = enabled
        self._scaler = GradScaler(device.type, enabled=enabled)
        self(torch.zeros((), dtype=torch.float32, device=device))  # it makes its tensors at the first loss

    def __call__(self, loss: Tensor) -> Tensor:
        return self._scaler.scale(loss)

    def begin(self) -> None:
        """Reset what an interrupted step has unscaled, as no `update` came after it."""
        if self.enabled:
            self._scaler._per_optimizer_states.clear()  # no public way: `update` clears them too, and changes the scale

    def undo(self, optimizer: Optimizer) -> None:
        """Divide the gradients of an optimizer's parameters by the scale."""
        self._scaler.unscale_(optimizer)

    def update(self) -> None:
        """Halve the scale if a gradient of this step has overflowed, double it after many that have not."""
        self._scaler.update()

    def tensors(self) -> list[Tensor]:
        """The tensors that `update` changes."""
        # no public way to them; its state_dict reads them on the host
        return [self._scaler._scale, self._scaler._growth_tracker] if self.enabled else []  # type: ignore[list-item]

    def state_dict(self) -> dict[str, Any]:
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the scale in place; after a run in another precision, which had none, it starts anew."""
        if self.enabled and state:
            for tensor, key in zip(self.tensors(), ("scale", "_growth_tracker"), strict=True):
                tensor.fill_(state[key])
