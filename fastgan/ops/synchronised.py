"""Batch statistics over several processes, as if their parts were one batch: each process computes those of its part,
and all are merged.

For P parts of equal size with means m_p and biased variances v_p (Chan, Golub and LeVeque 1979; no difference of large
squares):

    mean = E_p[m_p],  var = E_p[v_p + (m_p - mean)^2]

Each convolution needs one exchange: [2, G, C] of every process is gathered by every process and merged in the same
order, so the result is bit for bit the same in all processes. The gradient of the exchange is a sum over processes,
whose gradient is again an exchange, so second derivatives are correct.

The setting applies to the process, not to a thread, because autograd calls backward passes from its own threads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_processes = 0


class over:
    """Within the block, batch statistics are over `processes` processes: all of the default group, or 1 without an
    exchange. With 0, engines compute statistics as usual."""

    def __init__(self, processes: int) -> None:
        self.processes = processes

    def __enter__(self) -> None:
        global _processes
        self.before, _processes = _processes, self.processes

    def __exit__(self, *_: object) -> None:
        global _processes
        _processes = self.before


def processes() -> int:
    """The number of processes that statistics are over; 0 if statistics are not merged."""
    return _processes


def merged(statistics: Tensor) -> Tensor:
    """Mean and biased variance [2, G, C] over all processes, from those of this one."""
    means, variances = _of_all(statistics).unbind(1)  # [P, G, C]
    mean = means.mean(0)
    return torch.stack([mean, (variances + (means - mean).square()).mean(0)])


def total(sums: Tensor) -> Tensor:
    """The sum of `sums` over all processes."""
    return _of_all(sums).sum(0)


def _of_all(mine: Tensor) -> Tensor:
    return mine[None] if _processes <= 1 else _Exchange.apply(mine)


class _Exchange(torch.autograd.Function):
    """A tensor of this process -> the tensors of all processes (P, ...), in the order of their ranks."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        everyone = mine.new_empty((dist.get_world_size(), *mine.shape))
        dist.all_gather(list(everyone.unbind()), mine.contiguous())
        return everyone

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> Any:
        return _Return.apply(gradients)


class _Return(torch.autograd.Function):
    """(P, ...) of each process -> the sum over processes of the element for this one."""

    @staticmethod
    def forward(ctx: Any, gradients: Tensor) -> Tensor:
        total = gradients.contiguous().clone()
        dist.all_reduce(total)
        return total[dist.get_rank()].clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _Exchange.apply(gradient)
