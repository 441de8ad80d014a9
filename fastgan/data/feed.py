"""Batches on the device for a training step, without decisions on the host.

    feed.prepare()           host: provide the next batch
    real, labels = fetch()   device: eager, or captured in a CUDA graph and replayed
    feed.done()              host: advance the position

A data set that fits stays on the device, where `fetch` gathers from it (`Resident`). Other batches are copied to the
device while the previous step computes (`Streamed`). Both return the batches of `Loader`, in its order.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fastgan.config import DataConfig
from fastgan.data.dataset import Dataset, MemoryDataset
from fastgan.data.loader import LoaderState
from fastgan.data.order import WHOLE, Shard
from fastgan.data.resident import Gather, Resident
from fastgan.data.streamed import Streamed


class Feed(Protocol):
    """An endless source of batches; call `prepare`, `fetch` and replays of `fetch` on the same stream."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one epoch."""

    def prepare(self) -> int:
        """Provide the next batch; returns how many images it has.

        That is the batch size, or less for the short last batch of `last_batch="keep"`, for which a graph of a full
        batch cannot be replayed. A second call before `done` has no effect. Raises `FastganError` for an unusable
        image.
        """

    def fetch(self) -> tuple[Tensor, Tensor | None]:
        """The prepared batch: images float32 (B, C, H, W) in the networks' range, channels_last, or points (B, 2);
        labels int64 (B,) or None.

        Runs on the device only and reads tensors whose addresses do not change. The result is valid until the next
        `prepare`.
        """

    def done(self) -> None:
        """Advance the position. Call it after the step on the prepared batch has been launched."""

    def state(self) -> list[Tensor]:
        """Device tensors that `fetch` changes and later calls read. Save them after `prepare` and restore them in
        place."""

    def state_dict(self) -> LoaderState:
        """The position after the last `done`, as plain numbers."""

    def load_state_dict(self, state: LoaderState) -> None:
        """Continue at this position. Raises `FastganError` if it is beyond the end of the data."""

    def close(self) -> None:
        """Stop the threads, if there are any."""


def make_feed(dataset: Dataset, config: DataConfig, seed: int, device: torch.device, shard: Shard = WHOLE,
              gather: Gather | None = None) -> Feed:
    """A source of batches on the device, for a captured step.

    Data in memory that needs no more than `config.gpu_data_gb` is kept on the device as a whole; other batches are
    copied to it while the previous step computes.

    Args:
        dataset: the images.
        config: batch size, last batch, order, workers and range of the pixels.
        seed: seed of the order.
        device: the device of the batches.
        shard: the part of each batch that the feed provides; by default all of it.
        gather: gathers a batch of images on the device in one launch (`StepKernels.gather`). Where it is None or
            returns False, PyTorch's operators do.

    Raises:
        FastganError: for a batch larger than the data, and for `balanced` without labels.
    """
    if isinstance(dataset, MemoryDataset) and (
            device.type == "cpu" or dataset.bytes_in_memory / 1e9 <= config.gpu_data_gb):
        return Resident(dataset, config, seed, device, shard, gather)
    return Streamed(dataset, config, seed, device, shard)
