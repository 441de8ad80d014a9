"""The interface between a step and the processes that share its batches, implemented for a single process."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.data.order import WHOLE, Shard

Gradients = list[Tensor | None]  # one per parameter; None if the loss does not depend on it


class SingleProcess:
    """A single process with whole batches. The subclass for several processes is in `fastgan.trainer.grad_allreduce`.

    Attributes:
        shard: which part of each batch this process computes.
    """

    shard: Shard = WHOLE

    @property
    def sync_bn_processes(self) -> int:
        """The number of processes over which batch statistics are merged; 0: statistics are not synchronized."""
        return 0

    def gradients(self, loss: Tensor, one: Tensor, params: list[Tensor],
                  scalars: list[Tensor]) -> tuple[Gradients, list[Tensor]]:
        """Gradients of `loss` (), added to the `.grad` of an earlier pass if there is one, and `scalars`, both averaged
        over processes. one: the gradient of the loss ().
        """
        grads: Gradients = list(torch.autograd.grad(loss, params, one, allow_unused=True))
        both = [(p.grad, g) for p, g in zip(params, grads, strict=True) if p.grad is not None and g is not None]
        if both:  # a launch for all parameters together
            torch._foreach_add_(*map(list, zip(*both, strict=True)))
        return [grad if p.grad is None else p.grad for p, grad in zip(params, grads, strict=True)], scalars

    def gather(self, text: str) -> list[str]:
        """The `text` of each process, in rank order."""
        return [text]
