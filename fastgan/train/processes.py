"""The interface between a step and the processes that share its batches, for one process, without communication."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.data.order import WHOLE, Shard

Gradients = list[Tensor | None]  # of parameters; None for one that the loss does not depend on


class SingleProcess:
    """One process, which sees whole batches. `fastgan.trainer.grad_allreduce` has the subclass for several.

    Attributes:
        shard: which part of each batch this process computes.
    """

    shard: Shard = WHOLE

    @property
    def sync_bn_processes(self) -> int:
        """Over how many processes synchronised batch statistics are merged; 0: engines compute them as usual."""
        return 0

    def gradients(self, loss: Tensor, one: Tensor, params: list[Tensor],
                  scalars: list[Tensor]) -> tuple[Gradients, list[Tensor]]:
        """Gradients of `loss` (), added to the `.grad` of an earlier pass where there are any, and `scalars`; both
        averaged over processes. one: the gradient of the loss ().
        """
        if any(p.grad is not None for p in params):
            loss.backward(one, inputs=params)
            return [p.grad for p in params], scalars
        return list(torch.autograd.grad(loss, params, one, allow_unused=True)), scalars

    def gather(self, text: str) -> list[str]:
        """The `text` of each process, in the order of their ranks."""
        return [text]
