"""A data set on the device. Batches are gathered on the device by a queue of indices, which the host refills.

    queue   int64 (R, B)   indices of the next R batches
    cursor  int64 (1,)     the row that the next fetch reads; each fetch advances it
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastgan.config import DataConfig
from fastgan.data.dataset import MemoryDataset
from fastgan.data.loader import LoaderState, make_order
from fastgan.data.order import WHOLE, Position, Shard
from fastgan.data.pixels import draws_of_flips, to_model_range

MAX_QUEUED = 2**22  # indices, 32 MiB
Gather = Callable[..., bool]  # with the arguments of `fastgan.ops.triton.inputs.gather`


class Resident:
    """The `Feed` of images uint8 (N, C, H, W), or points float32 (N, 2), and labels that are kept on the device.

    A short last batch uses only the first elements of its row.
    """

    def __init__(self, dataset: MemoryDataset, config: DataConfig, seed: int, device: torch.device,
                 shard: Shard = WHOLE, gather: Gather | None = None) -> None:
        self.config = config
        self._name = dataset.name
        self._order = make_order(dataset, config, seed, shard)
        self._position = Position(0, 0)
        self._pin = device.type == "cuda"
        self._data = dataset.data.to(device)
        self._labels = None if dataset.labels is None else dataset.labels.to(device)
        self._size = config.batch // shard.of
        rows = min(self._order.batches_per_epoch, max(1, MAX_QUEUED // self._size))
        self._queue = torch.zeros(rows, self._size, dtype=torch.int64, device=device)
        self._cursor = torch.zeros(1, dtype=torch.int64, device=device)
        self._ahead = 0  # queued rows that no step has used yet
        self._gather = gather

    @property
    def steps_per_epoch(self) -> int:
        return self._order.batches_per_epoch

    def prepare(self) -> int:
        if self._ahead == 0:
            self._refill()
        self._size = self._order.size(self._position)
        return self._size

    def fetch(self) -> tuple[Tensor, Tensor | None]:
        # a warm-up may fetch more batches than are queued: it then reads old rows, never beyond the queue
        if self._gather is not None and self._data.dtype == torch.uint8:
            images = torch.empty(self._size, *self._data.shape[1:], dtype=torch.float32, device=self._data.device,
                                 memory_format=torch.channels_last)
            labels = None if self._labels is None else self._labels.new_empty(self._size)
            draws = draws_of_flips(images, self._order.shard) if self.config.flip else None
            if self._gather(self._data, self._labels, self._queue, self._cursor, draws, self.config.unit_range, images,
                            labels):
                return images, labels
        chosen = self._queue.index_select(0, self._cursor)[0, : self._size]
        self._cursor.add_(1).remainder_(len(self._queue))
        images = to_model_range(self._data.index_select(0, chosen), flip=self.config.flip,
                                unit_range=self.config.unit_range, dtype=torch.float32, shard=self._order.shard)
        return images, None if self._labels is None else self._labels.index_select(0, chosen)

    def done(self) -> None:
        self._position = self._order.after(self._position)
        self._ahead -= 1

    def state(self) -> list[Tensor]:
        return [self._cursor]

    def state_dict(self) -> LoaderState:
        return {"epoch": self._position.epoch, "cursor": self._position.cursor}

    def load_state_dict(self, state: LoaderState) -> None:
        self._position = self._order.resume(**state, name=self._name)
        self._ahead = 0

    def close(self) -> None:
        """There are no threads to stop."""

    def _refill(self) -> None:
        """Fill the queue, in place, with the batches from the position on, at most one epoch."""
        rows = torch.zeros(self._queue.shape, dtype=torch.int64)
        position = self._position
        for row in rows:
            chosen = self._order.indices(position)
            row[: len(chosen)] = chosen
            position = self._order.after(position)
        if self._pin:
            rows = rows.pin_memory()  # a new buffer each time: the previous copy may still be reading the last one
        self._queue.copy_(rows, non_blocking=self._pin)
        self._cursor.zero_()
        self._ahead = len(rows)
