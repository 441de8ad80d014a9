"""A piece of work as one contender does it, made once and then repeated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

CACHE = 64 * 2**20  # bytes of inputs that no cache of a CPU holds


class Judged(NamedTuple):
    """What a call should give, and what one costs.

    exact: by name, in float64. floor: by precision and name, how far rounding takes eager PyTorch from it, relative to
    its size. flops, moved: floating-point operations and the fewest bytes of a call, None where they are not known.
    """

    exact: dict[str, Tensor]
    floor: dict[str, dict[str, float]]
    flops: float | None = None
    moved: float | None = None


class Job(ABC):
    """Calls on input sets that were made before; call number i sees set i % `sets`.

    images: of a call; 0 where work is not counted in images. alone: on a GPU, a call is timed by itself, with nothing
    of it in the cache.
    """

    images = 0
    alone = False

    def __init__(self, sets: int) -> None:
        self.sets = sets

    @abstractmethod
    def __call__(self, index: int) -> Any:
        """One call; what comes out is for `trouble`."""

    def settle(self) -> None:  # noqa: B027
        """What happens once and leaves no trace: libraries try their algorithms, with more memory than they need."""

    def used(self, judged: Judged | None) -> tuple[float, str]:
        """How much of what is allowed the worst result has used, right up to 1; and its name."""
        return 0.0, ""

    def trouble(self, outcome: Any) -> str:
        """Why a call that gave this does not count, in words; "" where it does."""
        return ""


def sets_for(size: int, most: int = 8) -> int:
    """How many input sets of `size` bytes are more than a cache holds."""
    return max(2, min(most, -(-CACHE // max(size, 1))))


def normal(shape: Sequence[int], seed: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random numbers that are the same in each process; four dimensions are channels_last."""
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)
    return made.contiguous(memory_format=torch.channels_last) if made.dim() == 4 else made
