"""Adam, where its epsilon stands: PyTorch beside the bias-corrected root, TensorFlow and MXNet beside the raw one.

    PyTorch              p -= lr * (m / c1) / (sqrt(v / c2) + eps)
    TensorFlow, MXNet    p -= lr * sqrt(c2) / c1 * m / (sqrt(v) + eps)

with c1 = 1 - beta1^t and c2 = 1 - beta2^t; Kingma and Ba (2015, section 2) call the second one epsilon hat.

Both skip the update on the device, without asking the host, when `found_inf` is set to a tensor that holds 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from fastgan.config import TrainConfig


class AdamEpsilonHat(Optimizer):
    """Adam with epsilon beside sqrt(v). Parameters in floating point, dense gradients; state as in torch's Adam."""

    found_inf: Tensor | None = None

    def __init__(self, params: Iterable[Tensor], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, **{key: group[key] for key in ("lr", "betas", "eps")})

    def _update(self, parameter: Tensor, lr: float, betas: tuple[float, float], eps: float) -> None:
        state, grad = self.state[parameter], parameter.grad
        assert grad is not None
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        skip = torch.zeros_like(state["step"]) if self.found_inf is None else self.found_inf
        step = state["step"] + 1
        first = torch.lerp(state["exp_avg"], grad, 1 - betas[0])
        second = state["exp_avg_sq"] * betas[1] + grad.square() * (1 - betas[1])
        c1, c2 = (_correction(beta, step.to(parameter.dtype)) for beta in betas)
        moved = parameter - lr * c2.sqrt() / c1 * first / (second.sqrt() + eps)
        for old, new in ((state["step"], step), (state["exp_avg"], first), (state["exp_avg_sq"], second),
                         (parameter, moved)):
            old.copy_(torch.where(skip > 0, old, new))


def _correction(beta: float, t: Tensor) -> Tensor:
    """1 - beta^t without the cancellation that float32 would suffer in the first steps."""
    return -torch.expm1(t * math.log(beta)) if beta else torch.ones_like(t)


def make_adam(params: Iterable[Tensor], lr: float, config: TrainConfig) -> Optimizer:
    """The optimizer that a configuration asks for, over `params`."""
    options: dict[str, Any] = {"lr": lr, "betas": (config.beta1, config.beta2), "eps": config.adam_eps}
    return AdamEpsilonHat(params, **options) if config.adam_eps_hat else Adam(params, fused=True, **options)
