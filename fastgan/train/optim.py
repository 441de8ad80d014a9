"""Adam on the device: its learning rate and its count are tensors there, so that a captured step can go on with them.

    PyTorch              p -= lr * (m / c1) / (sqrt(v / c2) + eps)
    TensorFlow, MXNet    p -= lr * sqrt(c2) / c1 * m / (sqrt(v) + eps)

with c1 = 1 - beta1^t and c2 = 1 - beta2^t; Kingma and Ba (2015, section 2) call the second epsilon "hat". PyTorch's
fused kernel computes both: told that t is infinite it corrects nothing, and the correction goes into the learning rate.

An update is skipped, without asking the host, where `found_inf` holds 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam

from fastgan.config import TrainConfig


class DeviceAdam(Adam):
    """Adam with all its state allocated at once and loaded in place, so that no address ever changes.

    Args:
        lr: of a constant schedule. hat: where epsilon stands, see above.
        fused: one kernel for all parameters; else the formula, parameter by parameter (the definition).

    Attributes:
        rate: the learning rate of the next update, a scalar on the device. updates: how many there were.
    """

    found_inf: Tensor | None = None

    def __init__(self, params: Iterable[Tensor], lr: float, betas: tuple[float, float], eps: float, *,
                 hat: bool = False, fused: bool = True) -> None:
        params = list(params)
        wide = torch.promote_types(params[0].dtype, torch.float32)
        self.hat, self.definition = hat, not fused
        self.rate = torch.full((), lr, dtype=wide, device=params[0].device)
        self.updates = torch.zeros_like(self.rate)
        self._endless = torch.full((), math.inf, device=params[0].device)
        super().__init__(params, lr, betas, eps, fused=True, capturable=True)
        self.param_groups[0]["lr"] = self.rate.clone() if hat else self.rate
        for parameter in params:
            self.state[parameter] = {
                "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        group = self.param_groups[0]
        self.updates += 1
        if self.hat or self.definition:
            c1, c2 = (_correction(beta, self.updates) for beta in group["betas"])
        if self.hat:
            group["lr"].copy_(self.rate * c2.sqrt() / c1)
        if self.definition:
            for parameter in group["params"]:
                self._update(parameter, c1, c2)
        else:
            self._update_all()
        if self.found_inf is not None:
            self.updates -= self.found_inf

    def _update_all(self) -> None:
        """PyTorch's fused kernel by itself: `Adam.step` also counts for each parameter, and takes it back."""
        group, states = self.param_groups[0], list(self.state.values())
        count = self._endless if self.hat else self.updates.float()
        torch._fused_adam_(
            group["params"], [p.grad for p in group["params"]], [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states], [], [count] * len(states), lr=group["lr"],
            beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=0.0, eps=group["eps"], amsgrad=False,
            maximize=False, found_inf=self.found_inf)

    def _update(self, parameter: Tensor, c1: Tensor, c2: Tensor) -> None:
        state, grad, eps = self.state[parameter], parameter.grad, self.param_groups[0]["eps"]
        beta1, beta2 = self.param_groups[0]["betas"]
        assert grad is not None
        skip = torch.zeros_like(self.updates) if self.found_inf is None else self.found_inf
        first = torch.lerp(state["exp_avg"], grad, 1 - beta1)
        second = state["exp_avg_sq"] * beta2 + grad.square() * (1 - beta2)
        if self.hat:
            moved = parameter - self.param_groups[0]["lr"] * first / (second.sqrt() + eps)
        else:
            moved = parameter - self.rate * (first / c1) / ((second / c2).sqrt() + eps)
        for old, new in ((state["exp_avg"], first), (state["exp_avg_sq"], second), (parameter, moved)):
            old.copy_(torch.where(skip > 0, old, new))

    def tensors(self) -> list[Tensor]:
        """All that an update changes, but for the parameters."""
        return [self.updates, self.rate, self.param_groups[0]["lr"],
                *(tensor for state in self.state.values() for tensor in state.values())]

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """In place, as `torch.optim.Optimizer.load_state_dict` is not; the learning rate is not part of it."""
        saved = state_dict["state"]
        if len(saved) != len(self.state):
            raise ValueError(f"state of {len(saved)} parameters, expected {len(self.state)}")
        for mine, theirs in zip(self.state.values(), saved.values(), strict=True):
            for key, tensor in mine.items():
                tensor.copy_(theirs[key])
        self.updates.copy_(state_dict["updates"])


def _correction(beta: float, t: Tensor) -> Tensor:
    """1 - beta^t without the cancellation that float32 would suffer in the first steps."""
    return -torch.expm1(t * math.log(beta)) if beta else torch.ones_like(t)


def make_adam(params: Iterable[Tensor], lr: float, config: TrainConfig, *, fused: bool = True) -> DeviceAdam:
    """The optimizer that a configuration asks for, over `params`."""
    return DeviceAdam(params, lr, (config.beta1, config.beta2), config.adam_eps, hat=config.adam_eps_hat, fused=fused)
