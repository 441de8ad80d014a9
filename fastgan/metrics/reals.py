"""The real images as measures take them: each once, never mirrored, in a shuffled order that is always the same."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator

from torch import Tensor
from tqdm import tqdm

from fastgan.config import DataConfig
from fastgan.data import Dataset, Loader


class Reals:
    """A data set in batches of at most 256; the beginning of its order is a fair sample of it."""

    def __init__(self, dataset: Dataset, config: DataConfig) -> None:
        self.dataset = dataset
        self._config = dataclasses.replace(config, batch=min(256, len(dataset)), last_batch="keep")

    def batches(self, most: int, words: str) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Images uint8 (B, C, H, W) and labels (B,), `most` images or all, under a progress bar with these words."""
        loader, left = Loader(self.dataset, self._config, seed=0), min(most, len(self.dataset))
        with tqdm(total=left, unit="image", desc=words, leave=False, dynamic_ncols=True) as bar:
            while left:
                images, labels = loader.next_batch()
                images, labels = images[:left], labels if labels is None else labels[:left]
                yield images, labels
                left -= len(images)
                bar.update(len(images))
        loader.close()

    def key(self, *more: str) -> str:
        """A name for what is found out about these images, as they are decoded, by what `more` says."""
        facts = (self.dataset.fingerprint, str(self.dataset.shape), self._config.fit, *more)
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:24]
