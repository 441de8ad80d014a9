"""Gradients averaged over processes while the backward pass still computes others.

Parameters share buckets, those of the last layers, whose gradients come first, in the first one. A gradient that is
complete is put into its bucket, divided by the number of processes; a bucket that is full is on its way while others
are computed. What a step tells (losses, probabilities) travels beside them, so that all processes read the same
numbers and decide alike about a step that is not finite.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastgan.train import distributed

BYTES = 2**23  # of a bucket: a choice that nobody has measured on a network


class _Bucket:
    """Room for the gradients of `params`, one after the other, each in the strides of its parameter."""

    def __init__(self, params: list[Tensor]) -> None:
        self.params, self.missing = params, set(params)
        self.flat = params[0].new_zeros(sum(p.numel() for p in params))
        self.views = [part.as_strided(p.shape, p.stride()) for part, p in zip(
            self.flat.split([p.numel() for p in params]), params, strict=True)]


class Average:
    """The backward pass to `params` of a loss that is the mean of the losses of `processes` processes."""

    def __init__(self, params: list[Tensor], processes: int) -> None:
        self.params, self.processes = params, processes
        self._buckets = _buckets(params)
        self._place = {p: (bucket, view) for bucket in self._buckets
                       for p, view in zip(bucket.params, bucket.views, strict=True)}
        self._sent = 0  # buckets, always in the same order
        self._armed = False
        self._works: list[Any] = []
        self._hooks = [parameter.register_post_accumulate_grad_hook(self._take) for parameter in params]

    def close(self) -> None:
        """Let go of the parameters."""
        for hook in self._hooks:
            hook.remove()

    def backward(self, loss: Tensor, one: Tensor,
                 told: list[Tensor]) -> tuple[list[Tensor | None], list[Tensor]]:
        """Gradients of `params`, those of this pass added to what is in `.grad` from passes before it, and `told`,
        scalars of this process; both averaged. one: gradient of the loss (). The gradient of a parameter that no pass
        has used is None; it is the same parameter in all processes.
        """
        if not distributed.active():
            loss.backward(one, inputs=self.params)
            return [p.grad for p in self.params], told
        means = torch.stack(told).div_(self.processes)
        self._works = [dist.all_reduce(means, async_op=True)]
        self._sent = 0
        for bucket in self._buckets:
            bucket.missing = set(bucket.params)
        self._armed = True
        try:
            loss.backward(one, inputs=self.params)
            for parameter in [p for bucket in self._buckets for p in bucket.missing]:  # not used in this pass
                self._take(parameter)
        finally:
            self._armed = False
        for work in self._works:
            work.wait()
        self._works = []  # which keep the group's connections
        return [None if p.grad is None else self._place[p][1] for p in self.params], list(means.unbind())

    def _take(self, parameter: Tensor) -> None:
        if not self._armed:
            return
        bucket, view = self._place[parameter]
        if parameter.grad is None:
            view.zero_()
        else:
            torch.mul(parameter.grad, 1 / self.processes, out=view)
        bucket.missing.discard(parameter)
        # in their order: every process must send the same ones at the same time
        while self._sent < len(self._buckets) and not self._buckets[self._sent].missing:
            self._works.append(dist.all_reduce(self._buckets[self._sent].flat, async_op=True))
            self._sent += 1


def _buckets(params: list[Tensor]) -> list[_Bucket]:
    """Of about `BYTES`, one dtype each, from the last parameter to the first."""
    groups: list[list[Tensor]] = []
    room = 0
    for parameter in reversed(params):
        needs = parameter.numel() * parameter.element_size()
        if not groups or room < needs or groups[-1][0].dtype != parameter.dtype:
            groups.append([])
            room = max(BYTES, needs)
        groups[-1].append(parameter)
        room -= needs
    return [_Bucket(group) for group in groups]
