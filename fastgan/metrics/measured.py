"""The fakes of fixed seeds, drawn once, before all measures that were asked for.

    fid, kid, is    torch-fidelity's, on features of InceptionV3 (`inception.py`)
    score           those of a small classifier that has learnt the labelled reals (`judge.py`)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from fastgan.config import DataConfig, metric_names
from fastgan.data import Dataset, to_uint8
from fastgan.errors import FastganError
from fastgan.files import StrPath
from fastgan.metrics.inception import Inception
from fastgan.metrics.judge import Judge
from fastgan.metrics.reals import AT_ONCE, Reals
from fastgan.models.pretrained import Pretrained

FEWEST = 100  # reals
CHUNK = 256


class Measure(Protocol):
    """What learns the reals once, sees fakes chunk by chunk, and then tells."""

    def learn(self, reals: Reals) -> None: ...

    def see(self, images: Tensor) -> dict[str, Tensor]:
        """Of images uint8 (N, C, H, W), what is to be known of each: tensors (N, ...) on the CPU."""

    def tell(self, seen: dict[str, Tensor]) -> dict[str, float]:
        """The numbers, of all that was seen."""

    def of_reals(self) -> dict[str, float]:
        """What `tell` says of real images that were not learnt, where that says something."""

    def doubts(self, images: int) -> list[str]:
        """Why the numbers of so many fakes say little, a line each; after `learn`."""


class Metrics:
    """Measures of generators against one data set; `names` as --metrics has them, such as "fid,kid".

    Raises `FastganError` where one of them cannot be computed, before anything long has begun.
    """

    def __init__(self, names: str, dataset: Dataset, config: DataConfig, *, images: int, weights: StrPath | None,
                 device: torch.device) -> None:
        wanted = metric_names(names)
        if len(dataset.shape) == 1:
            raise FastganError(f"--metrics {names}: {dataset.name} has points; expected images, or no --metrics")
        if len(dataset) < FEWEST:
            raise FastganError(f"--metrics {names}: {dataset.name} has {len(dataset)} images, too few to compare with; "
                               f"expected at least {FEWEST}")
        self.images, self.labels, self.reals = images, dataset.labels, Reals(dataset, config)
        self.device, self.measures = device, list[Measure]()
        with _own_random_state(device):
            if "score" in wanted:
                self.measures.append(Judge(dataset, device))
            if of_inception := [name for name in wanted if name != "score"]:
                self.measures.append(Inception(of_inception, weights, device))

    def learn(self) -> None:
        """Everything that is to be known of the reals: from the cache, or minutes. Once, before `of`."""
        for measure in self.measures:
            with _own_random_state(self.device):
                measure.learn(self.reals)

    def of(self, source: Pretrained) -> dict[str, float]:
        """The numbers of `images` fakes, those of seeds 0, 1, 2, ...: such as {"fid": ..., "kid": ..., "kid_std": ...}.

        Nothing here draws from the global random state. A conditional generator gets labels as frequent as the reals'.
        """
        found: list[list[dict[str, Tensor]]] = [[] for _ in self.measures]
        for images in self._fakes(source):
            for measure, parts in zip(self.measures, found, strict=True):
                parts.append(measure.see(images))
        told: dict[str, float] = {}
        for measure, parts in zip(self.measures, found, strict=True):
            told |= measure.tell({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
        return told

    def of_reals(self) -> dict[str, float]:
        """What real images reach, for the numbers of which that is not plain."""
        return {name: value for measure in self.measures for name, value in measure.of_reals().items()}

    def doubts(self) -> list[str]:
        """Why these numbers say little, a line each."""
        return [words for measure in self.measures for words in measure.doubts(self.images)]

    def _fakes(self, source: Pretrained) -> Iterator[Tensor]:
        """uint8 (n, C, H, W), `AT_ONCE` at most, drawn in parts of about one size: batch statistics need more than a
        remainder."""
        labels = self._labels() if source.classes else None
        parts = torch.arange(self.images).tensor_split(math.ceil(self.images / CHUNK))
        with tqdm(total=self.images, unit="image", desc="measuring fakes", leave=False, dynamic_ncols=True) as bar:
            for part in parts:
                drawn = source.draw(source.noise.from_seeds(part.tolist()), None if labels is None else labels[part])
                for images in to_uint8(drawn, source.unit_range).split(AT_ONCE):
                    yield images
                    bar.update(len(images))

    def _labels(self) -> Tensor:
        assert self.labels is not None, "a conditional generator has learnt from labels"
        chosen = torch.randint(len(self.labels), (self.images,), generator=torch.Generator().manual_seed(0))
        return self.labels[chosen]


@contextmanager
def _own_random_state(device: torch.device) -> Iterator[None]:
    """One that is always the same within the block; after it, the one before."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield
