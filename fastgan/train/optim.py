"""Adam whose learning rate and step counts are device tensors, so that a captured step can change them.

    PyTorch              p -= lr * (m / c1) / (sqrt(v / c2) + eps)
    TensorFlow, MXNet    p -= lr * sqrt(c2) / c1 * m / (sqrt(v) + eps)

with c1 = 1 - beta1^t and c2 = 1 - beta2^t; the second epsilon is "epsilon hat" of Kingma and Ba (2015, section 2).
PyTorch's fused kernel computes both: for the second, t is infinite, which disables its bias correction, and the
learning rate contains the correction.

An update is skipped on the device if `found_inf` is 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import compress
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam

from fastgan.config import TrainConfig


class DeviceAdam(Adam):
    """Adam whose state is loaded in place, so that addresses never change.

    Like PyTorch's Adam, it skips parameters without a gradient, and counts the updates of each parameter; with `hat`,
    all parameters share one count, as in TensorFlow. Moments are created when a parameter first requires gradients.

    Args:
        lr: the base learning rate. hat: whether to use epsilon hat, see above.
        fused: use one kernel for all parameters, instead of the formula for each parameter (the reference).

    Attributes:
        rate: the learning rate of the next update, a scalar on the device. updates: number of updates of each
            parameter, float32 (P,).
    """

    found_inf: Tensor | None = None

    def __init__(self, params: Iterable[Tensor], lr: float, betas: tuple[float, float], eps: float, *,
                 hat: bool = False, fused: bool = True) -> None:
        params = list(params)
        device, wide = params[0].device, torch.promote_types(params[0].dtype, torch.float32)
        self.hat, self.definition = hat, not fused
        self.rate = torch.full((), lr, dtype=wide, device=device)
        self.updates = torch.zeros(len(params), dtype=torch.float32, device=device)
        self._counts = self.updates.unbind()
        self._updated: dict[tuple[bool, ...], Tensor] = {}  # increments of the counts
        self._endless = torch.full((), math.inf, dtype=torch.float32, device=device)
        super().__init__(params, lr, betas, eps, fused=True, capturable=True)
        self.param_groups[0]["lr"] = self.rate.clone() if hat else self.rate
        self._add_to_counts(tuple(p.requires_grad for p in params))
        self.tensors()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        group = self.param_groups[0]
        used = tuple(p.grad is not None for p in group["params"])
        add = self._add_to_counts(used)
        self.updates += add
        if self.hat:
            c1, c2 = self._corrections(self._counts[0])
            group["lr"].copy_(self.rate * c2.sqrt() / c1)
        params, counts = list(compress(group["params"], used)), list(compress(self._counts, used))
        if self.definition:
            for parameter, count in zip(params, counts, strict=True):
                self._update(parameter, count)
        else:
            self._update_all(params, [self._endless] * len(params) if self.hat else counts)
        if self.found_inf is not None:
            self.updates.addcmul_(add, self.found_inf, value=-1)

    def moments(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor, Tensor, Tensor, tuple[int, ...]]:
        """For the parameters with a gradient: both moments, the counts of updates (P,) and their increments, the
        learning rate (), and the index of each parameter's count."""
        params = self.param_groups[0]["params"]
        used = [index for index, p in enumerate(params) if p.grad is not None]
        states = [self._moments(params[index]) for index in used]
        add = self._add_to_counts(tuple(p.grad is not None for p in params))
        return (tuple(state["exp_avg"] for state in states), tuple(state["exp_avg_sq"] for state in states),
                self.updates, add, self.rate, tuple(0 if self.hat else index for index in used))

    def _add_to_counts(self, used: tuple[bool, ...]) -> Tensor:
        """float32 (P,): 1 for each parameter that has a gradient. Cached, because a captured step reads it."""
        if used not in self._updated:
            counted = torch.tensor([self.hat or one for one in used], device=self.updates.device)
            self._updated[used] = counted.to(self.updates.dtype)
        return self._updated[used]

    def _update_all(self, params: list[Tensor], counts: list[Tensor]) -> None:
        """Call PyTorch's fused kernel directly, because `Adam.step` would also update counts for each parameter."""
        group, states = self.param_groups[0], list(map(self._moments, params))
        torch._fused_adam_(
            params, [p.grad for p in params if p.grad is not None], [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states], [], counts, lr=group["lr"], beta1=group["betas"][0],
            beta2=group["betas"][1], weight_decay=0.0, eps=group["eps"], amsgrad=False, maximize=False,
            found_inf=self.found_inf)

    def _update(self, parameter: Tensor, count: Tensor) -> None:
        state, grad, eps = self._moments(parameter), parameter.grad, self.param_groups[0]["eps"]
        beta1, beta2 = self.param_groups[0]["betas"]
        assert grad is not None
        skip = torch.zeros_like(count) if self.found_inf is None else self.found_inf
        first = torch.lerp(state["exp_avg"], grad, 1 - beta1)
        second = state["exp_avg_sq"] * beta2 + grad.square() * (1 - beta2)
        if self.hat:
            moved = parameter - self.param_groups[0]["lr"] * first / (second.sqrt() + eps)
        else:
            c1, c2 = self._corrections(count)
            moved = parameter - self.rate * (first / c1) / ((second / c2).sqrt() + eps)
        for old, new in ((state["exp_avg"], first), (state["exp_avg_sq"], second), (parameter, moved)):
            old.copy_(torch.where(skip > 0, old, new))

    def _corrections(self, count: Tensor) -> list[Tensor]:
        return [_correction(beta, count.to(self.rate.dtype)) for beta in self.param_groups[0]["betas"]]

    def _moments(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state |= {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
        elif state["exp_avg"].stride() != parameter.stride():  # fused kernels iterate over memory
            state |= {name: torch.empty_like(parameter).copy_(tensor) for name, tensor in state.items()}
        return state

    def tensors(self) -> list[Tensor]:
        """All tensors that an update changes, except the parameters; moments only of those that require gradients."""
        return [self.updates, self.rate, self.param_groups[0]["lr"],
                *(tensor for parameter in self.param_groups[0]["params"] if parameter.requires_grad
                  for tensor in self._moments(parameter).values())]

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state in place, unlike `torch.optim.Optimizer.load_state_dict`, and without the learning rate.

        Older files contain only the parameters that require gradients, and one count for all of them.
        """
        saved, params = state_dict["state"], self.param_groups[0]["params"]
        size = len(state_dict["param_groups"][0]["params"])
        theirs = params if size == len(params) else [p for p in params if p.requires_grad]
        if size != len(theirs):
            raise ValueError(f"state of {size} parameters, expected {len(theirs)}")
        keys, updates = {parameter: key for key, parameter in enumerate(theirs)}, state_dict["updates"].expand(size)
        needed = {key for parameter, key in keys.items() if parameter.requires_grad and updates[key] > 0}
        if not needed <= saved.keys():
            raise ValueError(f"state of {len(saved)} parameters, expected {len(needed)}")
        for parameter, count in zip(params, self._counts, strict=True):
            key = keys.get(parameter, -1)
            count.copy_(updates.max() if self.hat else updates[key] if parameter in keys else torch.zeros(()))
            for name, tensor in self._moments(parameter).items() if key in saved or parameter in self.state else ():
                tensor.copy_(saved[key][name] if key in saved else torch.zeros(()))


def _correction(beta: float, t: Tensor) -> Tensor:
    """1 - beta^t, without cancellation in float32 in the first steps."""
    return -torch.expm1(t * math.log(beta)) if beta else torch.ones_like(t)


def make_adam(params: Iterable[Tensor], lr: float, config: TrainConfig, *, fused: bool = True) -> DeviceAdam:
    """The optimizer of a configuration, for `params`."""
    return DeviceAdam(params, lr, (config.beta1, config.beta2), config.adam_eps, hat=config.adam_eps_hat, fused=fused)
