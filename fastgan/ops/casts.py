"""16-bit copies of convolution weights, which are cast once per step for all operations.

Without copies, an operation with a float32 weight that computes in 16 bits casts the weight in the forward pass and
again for dgrad. Each cast is a launch and moves three times the bytes of its result. But weights change only in
optimizer steps, all together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_lending: Casts | None = None  # not a context variable, because backward passes run in other threads


class Casts:
    """Copies in `dtype` of the parameters that are weights of convolutions, at fixed addresses.

    dtype: None makes no copies. originals: parameters from which parametrizations compute weights, which have no copy.
    """

    def __init__(self, parameters: Iterable[Tensor], dtype: torch.dtype | None,
                 originals: Iterable[Tensor] = ()) -> None:
        others = set(map(id, originals))
        self._weights = {id(one): one for one in parameters
                         if one.dim() == 4 and dtype is not None and id(one) not in others}
        self._copies = {key: weight.detach().to(dtype, copy=True) for key, weight in self._weights.items()}

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Within the block, operations use the copies."""
        global _lending
        before, _lending = _lending, self
        try:
            yield
        finally:
            _lending = before

    @torch.no_grad()
    def refresh(self, weights: Iterable[Tensor] | None = None) -> None:
        """Update the copies of those `weights` that have one; by default all copies."""
        weights = self._weights.values() if weights is None else weights
        known = [weight for weight in weights if id(weight) in self._copies]
        if known:
            torch._foreach_copy_([self._copies[id(weight)] for weight in known], known)

    def take(self, weight: Tensor, dtype: torch.dtype) -> Tensor | None:
        """The copy of a weight; None for other tensors and other dtypes."""
        copy = self.copy_of(weight)
        return None if copy is None or copy.dtype != dtype else copy

    def copy_of(self, weight: Tensor) -> Tensor | None:
        """The copy of a weight; None for other tensors."""
        return self._copies.get(id(weight))

    def tensors(self) -> list[Tensor]:
        """The copies."""
        return list(self._copies.values())


def cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight in `dtype`: the copy in use if there is one. The result must not be modified."""
    if weight.dtype == dtype:
        return weight
    copy = None if _lending is None else _lending.take(weight, dtype)
    return weight.to(dtype) if copy is None else copy
