"""Batches without end, on the host: gathered from a set in memory, or decoded ahead by worker processes."""

from __future__ import annotations

import os
import re
import signal
import threading
import warnings
from collections.abc import Iterator
from typing import TypedDict

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fastgan.config import DataConfig
from fastgan.data.dataset import Dataset, MemoryDataset, StreamedDataset
from fastgan.data.decode import Decoded, Failures, unusable
from fastgan.data.order import Order, Position
from fastgan.data.part import WHOLE, Part
from fastgan.errors import FastganError


class LoaderState(TypedDict):
    """All that a checkpoint needs: `cursor` images of epoch `epoch` have been handed out."""

    epoch: int
    cursor: int


class Loader:
    """An endless source of batches; raises `FastganError` for a batch larger than the data.

    Of each batch of `config.batch` images it hands out `part`. A streamed set is decoded by `config.workers` processes,
    or in this one when that is 0; what they decode ahead does not count in `state_dict`.
    """

    def __init__(self, dataset: Dataset, config: DataConfig, seed: int, part: Part = WHOLE) -> None:
        self.dataset = dataset
        self.config = config
        self._order = Order(len(dataset), config.batch, config.last_batch, seed, part)
        self._position = Position(0, 0)
        self._data = dataset.data if isinstance(dataset, MemoryDataset) else None
        self._decoded: Iterator[Decoded | FastganError] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Calls of `next_batch` that make one epoch."""
        return self._order.batches_per_epoch

    def next_batch(self) -> tuple[Tensor, Tensor | None]:
        """Images uint8 (B, C, H, W), or points float32 (B, 2), and labels int64 (B,) or None, as the source has them.

        Raises `FastganError` for an unreadable image of a streamed set with `strict`, else replaces it by the next
        readable one and warns once.
        """
        if self._data is not None:
            chosen = self._order.indices(self._position)
            images = self._data.index_select(0, chosen)
        else:
            images, chosen = self._next_decoded()
        self._position = self._order.after(self._position)
        return images, None if self.dataset.labels is None else self.dataset.labels[chosen]

    def state_dict(self) -> LoaderState:
        """The position as plain numbers; the order follows from the seed."""
        return {"epoch": self._position.epoch, "cursor": self._position.cursor}

    def load_state_dict(self, state: LoaderState) -> None:
        """Continue exactly where another loader of the same data, batch and seed stood."""
        self._position = self._order.resume(**state, name=self.dataset.name)
        self.close()

    def close(self) -> None:
        """End the worker processes; a later `next_batch` starts new ones."""
        self._decoded = None  # the iterator joins its workers when it is released

    def _next_decoded(self) -> tuple[Tensor, Tensor]:
        if self._decoded is None:
            self._decoded = self._decode_ahead()
        decoded = next(self._decoded)
        if isinstance(decoded, FastganError):
            raise decoded
        images, chosen, failures = decoded
        self._report(failures)
        return images, chosen

    def _decode_ahead(self) -> Iterator[Decoded | FastganError]:
        assert isinstance(self.dataset, StreamedDataset)
        return iter(DataLoader(
            self.dataset.files,
            sampler=self._order.walk(self._position),
            batch_size=None,  # each index of the sampler is already a whole batch
            num_workers=self.config.workers,
            worker_init_fn=_leave_signals,
            generator=torch.Generator(),  # else DataLoader would draw its workers' seed from the global generator
        ))

    def _report(self, failures: Failures) -> None:
        for path, reason in failures:
            if self.config.strict:
                raise unusable(path, reason)
            if (path, reason) not in self.dataset.skipped:
                self.dataset.skipped.append((path, reason))
                warnings.warn(f"{path}: {reason}; the next readable image takes its place", stacklevel=4)


def lost_worker(error: Exception) -> str | None:
    """Words for the end of a worker process that was killed; None for other errors.

    PyTorch raises it by a signal's handler, in whichever line the program then is; where it was just fetching a batch,
    the connection breaks first.
    """
    found = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: ([^.]*))?", str(error))
    if found is not None:
        return f"process {found[1]}, which decodes images, was ended{f' by signal {found[2]}' if found[2] else ''}"
    if isinstance(error, ConnectionResetError | EOFError):
        return "a process that decodes images was ended"
    return None


def _leave_signals(_: int) -> None:
    """In a worker: what tells a whole process group to stop is the trainer's to answer, which needs one more batch.

    SIGTERM from the trainer itself must end it, as at the trainer's exit PyTorch and Python wait for workers. Where a
    system cannot tell who sent it (macOS, Windows) it ends the worker whoever that was.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_by_parent, daemon=True).start()


def _end_by_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
