"""Gradients averaged over processes, overlapping with the backward pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastgan.data.order import Shard
from fastgan.train.processes import Gradients, SingleProcess
from fastgan.trainer import distributed


class GradAllreduce(SingleProcess):
    """Averages gradients over the process group. Each process has its part of every batch; the loss is their mean.

    The all-reduce of a gradient starts as soon as the gradient is complete. The scalars of a step (losses,
    probabilities) are averaged too, so that all processes read the same numbers and skip the same non-finite step.
    """

    def __init__(self, shard: Shard) -> None:
        self.shard = shard

    @property
    def sync_bn_processes(self) -> int:
        return self.shard.of if distributed.active() else 1

    def gradients(self, loss: Tensor, one: Tensor, params: list[Tensor],
                  scalars: list[Tensor]) -> tuple[Gradients, list[Tensor]]:
        """As in `SingleProcess`. The same parameters must have gradients in all processes."""
        if not distributed.active():
            return super().gradients(loss, one, params, scalars)
        means = torch.stack(scalars).div_(self.shard.of)
        works: list[Any] = [dist.all_reduce(means, async_op=True)]
        averaged: set[Tensor] = set()

        def average(parameter: Tensor) -> None:
            assert parameter.grad is not None
            averaged.add(parameter)
            works.append(dist.all_reduce(parameter.grad.div_(self.shard.of), async_op=True))

        hooks = [p.register_post_accumulate_grad_hook(average) for p in params]
        try:
            loss.backward(one, inputs=params)
        finally:
            for hook in hooks:
                hook.remove()
        for parameter in params:
            if parameter.grad is not None and parameter not in averaged:  # received a gradient only in the earlier pass
                average(parameter)
        for work in works:
            work.wait()
        return [p.grad for p in params], list(means.unbind())

    def gather(self, text: str) -> list[str]:
        return distributed.all_gather(text)
