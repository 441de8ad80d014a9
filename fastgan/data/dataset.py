"""Opened data sets: all images in memory, or image files that are decoded for every batch."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor

from fastgan.data.decode import Decoder, Failures, nothing_readable


@dataclass(eq=False, kw_only=True)
class Dataset(ABC):
    """The interface of all data sets.

    `labels` is int64 (N,), indices into `classes`, or None if there are no classes. `skipped` lists (path, reason) for
    images that were left out; a streamed data set appends to it while it is read.
    """

    name: str
    labels: Tensor | None = None
    classes: list[str] = field(default_factory=list)
    skipped: Failures = field(default_factory=list)

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image; (2,) of one gaussian point."""

    @property
    def bytes_in_memory(self) -> int:
        """Size of the decoded pixels in bytes; 0 if the images are streamed."""
        return 0

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of the pixels and labels in memory, or of names and sizes of streamed files."""

    @property
    def is_streamed(self) -> bool:
        return self.bytes_in_memory == 0

    def summary(self) -> str:
        """One line of facts: count, size, classes, skipped, cached or streamed."""
        facts = [f"{len(self)} images, {'x'.join(map(str, self.shape))}" if len(self.shape) == 3
                 else f"{len(self)} points of {self.shape[0]} coordinates"]
        if self.classes:
            facts.append(f"{len(self.classes)} class{'es' * (len(self.classes) > 1)}")
        if self.skipped:
            facts.append(f"{len(self.skipped)} skipped")
        facts.append("streamed" if self.is_streamed else f"cached in {self.bytes_in_memory / 1e6:.1f} MB")
        return f"{self.name}: {', '.join(facts)}"


@dataclass(eq=False, kw_only=True)
class MemoryDataset(Dataset):
    """One tensor on the host: uint8 (N, C, H, W), or float32 (N, 2) for gaussian points."""

    data: Tensor

    def __len__(self) -> int:
        return len(self.data)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape[1:])

    @property
    def bytes_in_memory(self) -> int:
        return self.data.nbytes

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.data.dtype} {tuple(self.data.shape)}".encode())
        for tensor in (self.data, self.labels):
            if tensor is not None:
                digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(eq=False, kw_only=True)
class StreamedDataset(Dataset):
    """Image files that are decoded for each batch. The fingerprint uses names relative to `root`."""

    paths: list[Path]
    decoder: Decoder
    root: Path

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.decoder.shape

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for path in self.paths:
            # a file name that is not UTF-8 contains surrogates
            facts = f"{path.relative_to(self.root).as_posix()} {path.stat().st_size}\n"
            digest.update(facts.encode(errors="surrogatepass"))
        return digest.hexdigest()

    def read(self, start: int) -> tuple[Tensor, int, Failures]:
        """The first readable image from index `start` on, its index, and the failures before it.

        The search wraps around at the end. Raises `FastganError` if no image is readable.
        """
        failures: Failures = []
        for offset in range(len(self)):
            index = (start + offset) % len(self)
            image = self.decoder.attempt(self.paths[index])
            if isinstance(image, Tensor):
                return image, index, failures
            failures.append((str(self.paths[index]), str(image)))
        raise nothing_readable(failures)
