"""Weights in 16 bits, cast together and lent to the operators of a step.

An operator that is given a float32 weight and computes in 16 bits casts it, once for the forward pass and once for
dgrad: a launch each, and three times the bytes of what comes out. But weights change when an optimizer says so, and
then all at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_lending: Casts | None = None  # no context variable: backward passes run in threads of their own


class Casts:
    """Copies in `dtype` of those of some parameters that are weights of convolutions, at addresses that never change.

    dtype: None for no copies.
    """

    def __init__(self, parameters: Iterable[Tensor], dtype: torch.dtype | None) -> None:
        self._weights = {id(one): one for one in parameters if one.dim() == 4 and dtype is not None}
        self._copies = {key: weight.detach().to(dtype, copy=True) for key, weight in self._weights.items()}

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Within the block operators take the copies, which are made anew first."""
        global _lending
        before, _lending = _lending, self
        try:
            self.refresh(self._weights.values())
            yield
        finally:
            _lending = before

    @torch.no_grad()
    def refresh(self, weights: Iterable[Tensor]) -> None:
        """Copy those of `weights` again of which there are copies."""
        known = [weight for weight in weights if id(weight) in self._copies]
        if known:
            torch._foreach_copy_([self._copies[id(weight)] for weight in known], known)

    def take(self, weight: Tensor, dtype: torch.dtype) -> Tensor | None:
        """The copy of one of the weights; None for a tensor that is none of them, or in another dtype."""
        copy = self._copies.get(id(weight))
        return None if copy is None or copy.dtype != dtype else copy

    def tensors(self) -> list[Tensor]:
        """The copies."""
        return list(self._copies.values())


def cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight in `dtype`, from the copies that are lent where it is among them. Not to be written to."""
    if weight.dtype == dtype:
        return weight
    copy = None if _lending is None else _lending.take(weight, dtype)
    return weight.to(dtype) if copy is None else copy
