"""Batches from the host, each on its way to the device while the step before it computes.

    loader -> pinned memory -> staging, by a stream of its own -> static buffers, by the step's stream -> fetch

The static buffers keep their addresses, so that a captured `fetch` can be replayed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.config import DataConfig
from fastgan.data.dataset import Dataset, MemoryDataset
from fastgan.data.loader import Loader, LoaderState
from fastgan.data.part import WHOLE, Part
from fastgan.data.pixels import to_model_range
from fastgan.errors import FastganError

cuda = torch.cuda  # the tests put another in its place, whose streams run as late, or as early, as waits allow


class Streamed:
    """The `Feed` of image files that are decoded again and again, and of a set in memory that the device cannot hold.

    A short last batch fills the front of the buffers.
    """

    def __init__(self, dataset: Dataset, config: DataConfig, seed: int, device: torch.device,
                 part: Part = WHOLE) -> None:
        self.config, self._part = config, part
        self._loader = Loader(dataset, config, seed, part)
        self._size = config.batch // part.of  # of the batch in the static buffers
        self._position = self._loader.state_dict()
        images = dataset.data.dtype if isinstance(dataset, MemoryDataset) else torch.uint8
        self._static = [torch.empty(self._size, *dataset.shape, dtype=images, device=device)]
        if dataset.labels is not None:
            self._static.append(torch.empty(self._size, dtype=torch.int64, device=device))
        self._staging = Staging(self._static, device) if device.type == "cuda" else None
        self._coming: list[Tensor] = []  # the next batch on the host, empty while there is none
        self._ready = False  # whether the next batch is in the static buffers

    @property
    def steps_per_epoch(self) -> int:
        return self._loader.steps_per_epoch

    def prepare(self) -> int:
        if not self._ready:
            if not self._coming:
                self._load()
            self._take()
        return self._size

    def fetch(self) -> tuple[Tensor, Tensor | None]:
        images, *labels = (part[: self._size] for part in self._static)
        images = to_model_range(images, flip=self.config.flip, unit_range=self.config.unit_range, dtype=torch.float32,
                                part=self._part)
        return images, labels[0] if labels else None

    def done(self) -> None:
        """Also starts the next batch on its way, now that the device has work."""
        self._position = self._loader.state_dict()
        self._ready = False
        try:
            self._load()
        except FastganError:
            # the steps so far are good, and this may have been the last: let it be said when the batch is needed
            self.load_state_dict(self._position)

    def state(self) -> list[Tensor]:
        return []

    def state_dict(self) -> LoaderState:
        return self._position

    def load_state_dict(self, state: LoaderState) -> None:
        self._loader.load_state_dict(state)
        self._position = self._loader.state_dict()
        self._coming, self._ready = [], False

    def close(self) -> None:
        self._loader.close()

    def _load(self) -> None:
        self._coming = [part for part in self._loader.next_batch() if part is not None]
        if self._staging is not None:
            self._staging.send(self._coming)

    def _take(self) -> None:
        self._size = len(self._coming[0])
        static = [part[: self._size] for part in self._static]
        if self._staging is not None:
            self._staging.take(static)
        else:
            copy(self._coming, static)
        self._coming, self._ready = [], True


class Staging:
    """Room for one batch on the device, filled by a stream of its own.

    Two waits keep the batch whole: it is taken only when it has arrived, and the next one is let in only when it has
    been taken.
    """

    def __init__(self, like: list[Tensor], device: torch.device) -> None:
        self._device = device
        self._stream = cuda.Stream(device)
        self._arrived, self._taken = cuda.Event(), cuda.Event()
        # memory of the copy stream's own pool: no other stream can still be using it, or be given it too early
        with cuda.stream(self._stream):
            self._room = [torch.empty_like(part) for part in like]

    def send(self, batch: list[Tensor]) -> None:
        """Start a batch in pageable host memory on its way."""
        pinned = [part.pin_memory() for part in batch]  # new each time: the last copy may not have begun
        self._stream.wait_event(self._taken)
        with cuda.stream(self._stream):
            copy(pinned, [part[: len(batch[0])] for part in self._room], non_blocking=True)
        self._arrived.record(self._stream)

    def take(self, targets: list[Tensor]) -> None:
        """Copy the batch that was sent into `targets`, on the current stream."""
        current = cuda.current_stream(self._device)
        current.wait_event(self._arrived)
        copy([part[: len(targets[0])] for part in self._room], targets)
        self._taken.record(current)


def copy(sources: list[Tensor], targets: list[Tensor], non_blocking: bool = False) -> None:
    """Each source into its target; `non_blocking` returns before pinned memory has been read."""
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source, non_blocking=non_blocking)
