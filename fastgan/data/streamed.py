"""Batches from the host, copied to the device while the previous step computes.

    loader -> pinned memory -> staging buffer, on a copy stream -> static buffers, on the step's stream -> fetch

The static buffers keep their addresses, so that a captured `fetch` can be replayed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.config import DataConfig
from fastgan.data.dataset import Dataset, MemoryDataset
from fastgan.data.loader import Loader, LoaderState
from fastgan.data.order import WHOLE, Shard
from fastgan.data.pixels import to_model_range
from fastgan.errors import FastganError

cuda = torch.cuda  # tests replace it by simulated streams


class Streamed:
    """The `Feed` of image files that are decoded for each batch, and of data in host memory that is too large for the
    device.

    A short last batch uses the first rows of the buffers.
    """

    def __init__(self, dataset: Dataset, config: DataConfig, seed: int, device: torch.device,
                 shard: Shard = WHOLE) -> None:
        self.config, self._shard = config, shard
        self._loader = Loader(dataset, config, seed, shard)
        self._size = config.batch // shard.of  # of the batch in the static buffers
        self._position = self._loader.state_dict()
        images = dataset.data.dtype if isinstance(dataset, MemoryDataset) else torch.uint8
        self._static = [torch.empty(self._size, *dataset.shape, dtype=images, device=device)]
        if dataset.labels is not None:
            self._static.append(torch.empty(self._size, dtype=torch.int64, device=device))
        self._staging = Staging(self._static, device) if device.type == "cuda" else None
        self._next: list[Tensor] = []  # the next batch on the host, [images, labels] or [images]; empty if not loaded
        self._ready = False  # whether the next batch is in the static buffers

    @property
    def steps_per_epoch(self) -> int:
        return self._loader.steps_per_epoch

    def prepare(self) -> int:
        if not self._ready:
            if not self._next:
                self._load()
            self._take()
        return self._size

    def fetch(self) -> tuple[Tensor, Tensor | None]:
        images, *labels = (buffer[: self._size] for buffer in self._static)
        images = to_model_range(images, flip=self.config.flip, unit_range=self.config.unit_range, dtype=torch.float32,
                                shard=self._shard)
        return images, labels[0] if labels else None

    def done(self) -> None:
        """Also loads the next batch and starts its copy, while the device computes."""
        self._position = self._loader.state_dict()
        self._ready = False
        try:
            self._load()
        except FastganError:
            # ignored here, because this may have been the last step; `prepare` raises it again if the batch is needed
            self.load_state_dict(self._position)

    def state(self) -> list[Tensor]:
        return []

    def state_dict(self) -> LoaderState:
        return self._position

    def load_state_dict(self, state: LoaderState) -> None:
        self._loader.load_state_dict(state)
        self._position = self._loader.state_dict()
        self._next, self._ready = [], False

    def close(self) -> None:
        self._loader.close()

    def _load(self) -> None:
        self._next = [tensor for tensor in self._loader.next_batch() if tensor is not None]
        if self._staging is not None:
            self._staging.send(self._next)

    def _take(self) -> None:
        self._size = len(self._next[0])
        static = [buffer[: self._size] for buffer in self._static]
        if self._staging is not None:
            self._staging.take(static)
        else:
            copy(self._next, static)
        self._next, self._ready = [], True


class Staging:
    """A buffer on the device for one batch, filled on a separate copy stream.

    Two events order the copies: a batch is taken from the buffer after it has arrived, and the next batch is sent after
    the previous one was taken.
    """

    def __init__(self, like: list[Tensor], device: torch.device) -> None:
        self._device = device
        self._stream = cuda.Stream(device)
        self._arrived, self._taken = cuda.Event(), cuda.Event()
        # allocated on the copy stream, so that no other stream can still use this memory
        with cuda.stream(self._stream):
            self._buffers = [torch.empty_like(tensor) for tensor in like]

    def send(self, batch: list[Tensor]) -> None:
        """Start copying a batch from pageable host memory."""
        pinned = [tensor.pin_memory() for tensor in batch]  # new each time: the previous copy may not have begun
        self._stream.wait_event(self._taken)
        with cuda.stream(self._stream):
            copy(pinned, [buffer[: len(batch[0])] for buffer in self._buffers], non_blocking=True)
        self._arrived.record(self._stream)

    def take(self, targets: list[Tensor]) -> None:
        """Copy the batch that was sent into `targets`, on the current stream."""
        current = cuda.current_stream(self._device)
        current.wait_event(self._arrived)
        copy([buffer[: len(targets[0])] for buffer in self._buffers], targets)
        self._taken.record(current)


def copy(sources: list[Tensor], targets: list[Tensor], non_blocking: bool = False) -> None:
    """Copy each source to its target. With `non_blocking`, returns before pinned memory has been read."""
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source, non_blocking=non_blocking)
