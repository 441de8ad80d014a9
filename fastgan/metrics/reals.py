"""The real images as measures take them: each once, never mirrored, in a shuffled order that is always the same."""

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

AT_ONCE = 32  # images that a measure sees together: InceptionV3 needs 10 MB for each, and a second on a slow CPU
SAMPLED = 256  # files whose content tells streamed sets apart, beside every file's time


class Reals:
    """A data set in batches of at most `AT_ONCE`; the beginning of its order is a fair sample of it."""

    def __init__(self, dataset: Dataset, config: DataConfig) -> None:
        self.dataset = dataset
        self._config = dataclasses.replace(config, batch=min(AT_ONCE, len(dataset)), last_batch="keep")

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
        facts = (self.dataset.fingerprint, _content(self.dataset), str(self.dataset.shape), self._config.fit, *more)
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:24]


def _content(dataset: Dataset) -> str:
    """What tells a streamed set from another of the same names and sizes, which is all that its fingerprint knows."""
    if not isinstance(dataset, StreamedDataset):
        return ""
    paths = dataset.files.paths
    digest = hashlib.sha256("\n".join(str(path.stat().st_mtime_ns) for path in paths).encode())
    for path in paths[:: math.ceil(len(paths) / SAMPLED)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()
