"""Batches on the host: gathered from a data set in memory, or decoded ahead by threads."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypedDict

import torch
from torch import Tensor

from fastgan.config import DataConfig
from fastgan.data.dataset import Dataset, MemoryDataset, StreamedDataset
from fastgan.data.decode import Failures, unusable
from fastgan.data.order import WHOLE, Order, Position, Shard
from fastgan.errors import FastganError

BATCHES_AHEAD = 3  # batches decoded in advance


class LoaderState(TypedDict):
    """The state of a loader in a checkpoint: the loader has returned `cursor` images of epoch `epoch`."""

    epoch: int
    cursor: int


def make_order(dataset: Dataset, config: DataConfig, seed: int, shard: Shard = WHOLE) -> Order:
    """The order of a data set. Raises `FastganError` for a batch larger than the data, and for `balanced` without
    labels."""
    if config.balanced and dataset.labels is None:
        raise FastganError(f"--balanced: {dataset.name} has no labels; expected class subfolders or labeled data")
    labels = dataset.labels if config.balanced else None
    return Order(len(dataset), config.batch, config.last_batch, seed, shard, labels)


class Loader:
    """An endless source of batches on the host.

    A streamed data set is decoded by `config.workers` threads; `state_dict` does not count images decoded in advance.

    Args:
        dataset: the images.
        config: batch size, last batch, order and workers.
        seed: seed of the order.
        shard: the part of each batch that `next_batch` returns; by default all of it.

    Raises:
        FastganError: for a batch larger than the data, and for `balanced` without labels.
    """

    def __init__(self, dataset: Dataset, config: DataConfig, seed: int, shard: Shard = WHOLE) -> None:
        self.dataset = dataset
        self.config = config
        self._order = make_order(dataset, config, seed, shard)
        self._position = Position(0, 0)
        self._pool: ThreadPoolExecutor | None = None
        self._walk: Iterator[list[int]] = iter(())
        self._ahead: deque[list[Future[tuple[Tensor, int, Failures]]]] = deque()

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches of one epoch."""
        return self._order.batches_per_epoch

    def next_batch(self) -> tuple[Tensor, Tensor | None]:
        """Images uint8 (B, C, H, W), or points float32 (B, 2), and labels int64 (B,) or None, as in the source.

        An unreadable image of a streamed data set is replaced by the next readable one, with one warning per image.

        Raises:
            FastganError: for an unreadable image, with `strict`.
        """
        if isinstance(self.dataset, MemoryDataset):
            indices = self._order.indices(self._position)
            images = self.dataset.data.index_select(0, indices)
        else:
            assert isinstance(self.dataset, StreamedDataset)
            images, indices = self._next_decoded(self.dataset)
        self._position = self._order.after(self._position)
        return images, None if self.dataset.labels is None else self.dataset.labels[indices]

    def state_dict(self) -> LoaderState:
        """The position as plain numbers. The order is not stored, because it is determined by the seed."""
        return {"epoch": self._position.epoch, "cursor": self._position.cursor}

    def load_state_dict(self, state: LoaderState) -> None:
        """Continue at the position of another loader of the same data, batch and seed."""
        self._position = self._order.resume(**state, name=self.dataset.name)
        self.close()

    def close(self) -> None:
        """Stop the threads; a later `next_batch` starts new ones."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
            self._ahead.clear()

    def _next_decoded(self, dataset: StreamedDataset) -> tuple[Tensor, Tensor]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(max(1, self.config.workers), "fastgan-decode")
            self._walk = self._order.walk(self._position)
        while len(self._ahead) < BATCHES_AHEAD:
            self._ahead.append([self._pool.submit(dataset.read, index) for index in next(self._walk)])
        images, indices, failures = zip(*(future.result() for future in self._ahead[0]), strict=True)
        for path, reason in (failure for each in failures for failure in each):
            if self.config.strict:
                raise unusable(path, reason)
            if (path, reason) not in dataset.skipped:
                dataset.skipped.append((path, reason))
                warnings.warn(f"{path}: {reason}; the next readable image is used instead", stacklevel=3)
        self._ahead.popleft()
        return torch.stack(images), torch.tensor(indices)
