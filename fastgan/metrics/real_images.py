"""The real images for metrics: each image once, not mirrored, in a fixed random order."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator

from torch import Tensor
from tqdm import tqdm

from fastgan.config import DataConfig
from fastgan.data import Dataset, Loader
from fastgan.data.dataset import StreamedDataset

BATCH = 32  # InceptionV3 needs 10 MB for each image, and up to a second on a slow CPU
SAMPLED_FILES = 256  # files whose content, with the times of all files, identifies a streamed data set


class RealImages:
    """A data set in batches of at most `BATCH`; the first images are a random sample of it."""

    def __init__(self, dataset: Dataset, config: DataConfig) -> None:
        self.dataset = dataset
        self._config = dataclasses.replace(config, batch=min(BATCH, len(dataset)), last_batch="keep", balanced=False)

    def batches(self, count: int, description: str) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Batches of images uint8 (B, C, H, W) and labels (B,), at most `count` images, with a progress bar."""
        loader, left = Loader(self.dataset, self._config, seed=0), min(count, len(self.dataset))
        with tqdm(total=left, unit="image", desc=description, leave=False, dynamic_ncols=True) as bar:
            while left:
                images, labels = loader.next_batch()
                images, labels = images[:left], labels if labels is None else labels[:left]
                yield images, labels
                left -= len(images)
                bar.update(len(images))
        loader.close()

    def key(self, *details: str) -> str:
        """A cache key for results that depend on these images, as they are decoded, and on `details`."""
        facts = (self.dataset.fingerprint, _content(self.dataset), str(self.dataset.shape), self._config.fit, *details)
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:24]


def _content(dataset: Dataset) -> str:
    """A digest that distinguishes streamed data sets with equal file names and sizes, which have equal fingerprints."""
    if not isinstance(dataset, StreamedDataset):
        return ""
    digest = hashlib.sha256("\n".join(str(path.stat().st_mtime_ns) for path in dataset.paths).encode())
    for path in dataset.paths[:: math.ceil(len(dataset.paths) / SAMPLED_FILES)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()
