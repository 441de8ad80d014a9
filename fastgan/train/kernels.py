"""The parts of a step outside of its networks as Triton kernels: one launch gathers the batch, one fills the buffers,
two update a network, and one ends the step.

`GANStep` uses them if Triton computes its networks. If they do not support a case (float64, another optimizer, many
parameters), or fail, PyTorch operators compute the same.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgan.errors import KernelError
from fastgan.ops import dispatch, engines, updates
from fastgan.ops.casts import Casts
from fastgan.train.ema import EMA
from fastgan.train.metrics_buffer import FIELDS, MetricsBuffer
from fastgan.train.optim import DeviceAdam
from fastgan.train.static_buffers import StaticBuffers

MOST = 64  # maximum number of parameters: their tensors are arguments of a launch, which are limited to 4 KB


class Update(NamedTuple):
    """Scalars on the device: the norm of all gradients, and 1.0 if the update was skipped."""

    norm: Tensor
    skip: Tensor


class StepKernels:
    """impl: the engine of the networks, on `device`."""

    def __init__(self, impl: str, device: torch.device) -> None:
        self._impl, self._device, self._failed = impl, device, False

    @property
    def available(self) -> bool:
        """Whether Triton computes the networks, and no kernel has failed."""
        engine = engines.named(self._impl, self._device, torch.float32)
        return not self._failed and engines.has_triton(engine, self._device)

    def gather(self, *arguments: Any) -> bool:
        """Gather a batch (`fastgan.ops.triton.inputs.gather`). Returns False if nothing was gathered."""
        if self.available:
            try:
                updates.gather(*arguments)
                return True
            except KernelError as error:
                self._give_up(error)
        return False

    def copy_unless(self, halted: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """Copy each source to its target, in the target's dtype, unless `halted` () is 1."""
        if self.available and halted.dtype == torch.float32:
            sources = [source if source.stride() == target.stride()
                       else torch.empty_like(target, dtype=source.dtype).copy_(source) for source, target in pairs]
            try:
                return updates.copy_unless(halted, sources, [target for _, target in pairs])
            except KernelError as error:
                self._give_up(error)
        stays = halted > 0
        for source, target in pairs:
            torch.where(stays, target, source.to(target.dtype), out=target)

    def update(self, loss: Tensor, params: list[Tensor], optimizer: Any, skip: Tensor, clip: float,
               casts: Casts | None, ema: EMA | None) -> Update | None:
        """Update the `params` that have a gradient, and their 16-bit copies and moving average, if any.

        clip: the maximum gradient norm, 0 for no limit. Other arguments as in `GANUpdates._descend`.
        """
        used = [p for p in params if p.grad is not None]
        if not (used and isinstance(optimizer, DeviceAdam) and not optimizer.definition and self.available):
            return None
        if len(used) > MOST or any(t.dtype != torch.float32 for t in (*used, loss)):
            return None
        group = optimizer.param_groups[0]
        averages = None if ema is None else ema.averages_of(used)
        copies = {} if casts is None else {i: copy for i, p in enumerate(used)
                                           if (copy := casts.copy_of(p)) is not None}
        grads = [p.grad for p in used if p.grad is not None]
        beside = [*copies.items(), *enumerate(averages or [])]
        if any(tensor.stride() != used[i].stride() for i, tensor in beside):  # the network's memory format was changed
            return None
        try:
            norm = updates.gradient_norm(grads, loss.detach(), skip, clip)
            updates.adam(used, grads, *optimizer.moments(), norm, group["betas"], group["eps"], optimizer.hat,
                         0.0 if ema is None else ema.decay, list(copies.values()), list(copies), averages or [],
                         None if ema is None else ema.updates)
        except KernelError as error:
            self._give_up(error)
            return None
        if ema is not None and averages is None:
            ema.update(norm[1])
        return Update(norm[0], norm[1])

    def finish(self, buffers: StaticBuffers, metrics: dict[str, Tensor], log: MetricsBuffer,
               state: tuple[Tensor, Tensor, Tensor], scaled: bool) -> dict[str, Tensor] | None:
        """Complete the metrics of a step with "diversity" and "finite", and write them to `log`. Returns None for
        conditional models, whose diversity is measured within classes.

        state: skip, halted and t. scaled: whether there is a loss scale.
        """
        if buffers.labels is not None or not self.available:
            return None
        if any(value.dtype != torch.float32 for value in metrics.values()):
            return None
        losses = [name for name in ("loss_d", "loss_g") if name in metrics]
        try:
            out = updates.finish_step(buffers.images, [metrics.get(name, log.nan) for name in FIELDS[:-2]], *state,
                                      log.rows, len(losses), scaled, buffers.real_first)
        except KernelError as error:
            self._give_up(error)
            return None
        return {**metrics, "diversity": out[0], "finite": out[1]}

    def _give_up(self, error: KernelError) -> None:
        dispatch.raise_if_lost()
        self._failed = True
        warnings.warn(f"fastgan: {error}; the step continues with PyTorch operators", stacklevel=2)
