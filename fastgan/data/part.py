"""Which part of a whole batch is whose, where several processes share it: contiguous, equal, in their order."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Part(NamedTuple):
    """That of process `rank` of `of`, one of as many equal ones.

    Whatever is drawn for images is drawn for the whole batch, and each takes its part: the random state is the same in
    all processes, and what an image is given does not hang on how many there are.
    """

    rank: int = 0
    of: int = 1

    def take(self, whole: Tensor) -> Tensor:
        """Its rows of `whole` (N, ...), whose N is a multiple of `of`."""
        return whole if self.of == 1 else whole.chunk(self.of)[self.rank]


WHOLE = Part()
