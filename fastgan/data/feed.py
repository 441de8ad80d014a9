"""How batches reach a training step that has no host decision in it.

    feed.prepare()           host: the next batch is there
    real, labels = fetch()   device: eagerly, or captured in a CUDA graph and replayed
    feed.done()              host: the position moves on

Data that fits lies on the device, where `fetch` gathers it (`Resident`); other data travels there batch by batch while
the step before computes (`Streamed`). Both hand out the batches of `Loader`, in its order.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fastgan.config import DataConfig
from fastgan.data.dataset import Dataset, MemoryDataset
from fastgan.data.loader import LoaderState
from fastgan.data.part import WHOLE, Part
from fastgan.data.resident import Resident
from fastgan.data.streamed import Streamed


class Feed(Protocol):
    """An endless source of batches; `prepare`, `fetch` and a replay of `fetch` belong on the same stream."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one epoch."""

    def prepare(self) -> int:
        """See to it that the next batch is there; returns how many images it has.

        That is the batch size, or fewer for the short last batch of `last_batch="keep"`, which no graph of a full batch
        can replay. Once more before `done` it changes nothing. Raises `FastganError` for an image that cannot be used.
        """

    def fetch(self) -> tuple[Tensor, Tensor | None]:
        """The prepared batch: images float32 (B, C, H, W) as the networks see them, channels_last, or points (B, 2);
        labels int64 (B,) or None.

        Device work alone, on tensors that keep their addresses. Good until the next `prepare`, which may write into it.
        """

    def done(self) -> None:
        """The step with the prepared batch has been started: the position moves behind it."""

    def state(self) -> list[Tensor]:
        """Device tensors that `fetch` changes and a later one reads; save them after `prepare`, restore in place."""

    def state_dict(self) -> LoaderState:
        """The position behind the last `done`, as plain numbers."""

    def load_state_dict(self, state: LoaderState) -> None:
        """Continue exactly there; raises `FastganError` for a position beyond the data."""

    def close(self) -> None:
        """End the worker processes, if there are any."""


def make_feed(dataset: Dataset, config: DataConfig, seed: int, device: torch.device, part: Part = WHOLE) -> Feed:
    """The feed of a part of each batch that suits the data; raises `FastganError` for a batch larger than the data."""
    if isinstance(dataset, MemoryDataset) and fits(dataset, config, device):
        return Resident(dataset, config, seed, device, part)
    return Streamed(dataset, config, seed, device, part)


def fits(dataset: MemoryDataset, config: DataConfig, device: torch.device) -> bool:
    """Whether the data may stay on the device; on the CPU it is there already."""
    return device.type == "cpu" or dataset.bytes_in_memory / 1e9 <= config.gpu_data_gb
