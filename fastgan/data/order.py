"""The order in which images are used: a pure function of the seed and the position.

The order of epoch e depends only on (seed, e): it is a random permutation, or with class balance the same number of
indices drawn with replacement. Training can therefore continue from any (epoch, cursor) without a saved generator
state, and the global random generators are never used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastgan.errors import FastganError


class Shard(NamedTuple):
    """The rows of a batch that process `rank` of `of` processes computes: contiguous, of equal size, in rank order.

    Random numbers for images are drawn for the whole batch, and each process uses its shard of them. The random state
    is therefore the same in all processes, and results do not depend on the number of processes.
    """

    rank: int = 0
    of: int = 1

    def take(self, whole: Tensor) -> Tensor:
        """This shard's rows of `whole` (N, ...), where N is a multiple of `of`."""
        return whole if self.of == 1 else whole.chunk(self.of)[self.rank]


WHOLE = Shard()


class Position(NamedTuple):
    """The position of the next image: `cursor` images of epoch `epoch` were used before it."""

    epoch: int
    cursor: int


class Order:
    """Batches of indices into `length` images.

    `last_batch` determines what happens to the r < batch images that remain at the end of an epoch: "drop" skips them,
    "keep" returns a short batch, "pad" fills the batch from the start of the same epoch's order, and "rollover" fills
    it from the start of the next epoch's order, which then continues after these images, like TensorFlow's next_batch.
    Indices are int64 tensors. Positions count images of whole batches; `indices` returns the rows of `shard`.

    With `labels`, int64 (length,), each class that has images is drawn with the same probability, and so is each image
    within a class, as with `torch.utils.data.WeightedRandomSampler` and weights 1 / (images of the class).
    """

    def __init__(self, length: int, batch: int, last_batch: str, seed: int, shard: Shard = WHOLE,
                 labels: Tensor | None = None) -> None:
        if batch > length:
            raise FastganError(f"--batch {batch}: larger than the data; expected at most its {length} images")
        self.length = length
        self.batch = batch
        self.last_batch = last_batch
        self.seed = seed
        self.shard = shard
        self._weights = None if labels is None else 1 / labels.bincount()[labels].double()
        self._latest: tuple[int, Tensor] | None = None

    @property
    def batches_per_epoch(self) -> int:
        """The number of batches, including an incomplete last batch if it is kept or padded."""
        whole, rest = divmod(self.length, self.batch)
        return whole + (rest > 0 and self.last_batch in ("keep", "pad"))

    def indices(self, position: Position) -> Tensor:
        """The shard's indices of the batch at a position: int64 (B,)."""
        return self.shard.take(self._whole(position))

    def _whole(self, position: Position) -> Tensor:
        order = self._epoch(position.epoch)
        chosen = order[position.cursor : position.cursor + self.batch]
        missing = self.batch - len(chosen)
        if missing and self.last_batch == "pad":
            return torch.cat([chosen, order[:missing]])
        if missing and self.last_batch == "rollover":
            return torch.cat([chosen, self._epoch(position.epoch + 1)[:missing]])
        return chosen

    def after(self, position: Position) -> Position:
        """The position of the batch after the one at `position`."""
        epoch, cursor = position.epoch, position.cursor + self.batch
        if self.last_batch == "rollover" and cursor > self.length:
            return Position(epoch + 1, cursor - self.length)
        return self._valid(Position(epoch, cursor))

    def _valid(self, position: Position) -> Position:
        """`position`, or the start of the next epoch if this epoch has no batch left."""
        needed = self.batch if self.last_batch == "drop" else 1
        return position if position.cursor + needed <= self.length else Position(position.epoch + 1, 0)

    def size(self, position: Position) -> int:
        """Number of images in the shard of the batch at a position; smaller only for a short last batch."""
        whole = min(self.batch, self.length - position.cursor) if self.last_batch == "keep" else self.batch
        return whole // self.shard.of

    def resume(self, epoch: int, cursor: int, name: str) -> Position:
        """A stored position. Raises `FastganError`, which names the data `name`, if there is no such image."""
        if epoch < 0 or not 0 <= cursor < self.length:
            raise FastganError(f"cannot resume at image {cursor} of epoch {epoch}; expected an index "
                               f"below {self.length}, the number of images in {name}")
        return self._valid(Position(epoch, cursor))

    def walk(self, position: Position) -> Iterator[list[int]]:
        """An endless iterator over the batches from a position on."""
        while True:
            yield self.indices(position).tolist()
            position = self.after(position)

    def _epoch(self, epoch: int) -> Tensor:
        """The order of one epoch: int64 (length,)."""
        if self._latest is None or self._latest[0] != epoch:
            mixed = np.random.SeedSequence([self.seed, epoch]).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(mixed[0]))
            if self._weights is None:
                order = torch.randperm(self.length, generator=generator)
            else:
                order = torch.multinomial(self._weights, self.length, replacement=True, generator=generator)
            self._latest = epoch, order
        return self._latest[1]
