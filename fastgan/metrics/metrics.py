"""All requested metrics, computed on the same fakes with fixed seeds.

    fid, kid, is    metrics of torch-fidelity, on features of InceptionV3 (`inception.py`)
    score           metrics of a small classifier that is trained on the labeled real images (`classifier.py`)
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
from fastgan.metrics.classifier import ClassifierScore
from fastgan.metrics.inception import Inception
from fastgan.metrics.real_images import BATCH, RealImages
from fastgan.models.pretrained import Pretrained

MIN_REAL_IMAGES = 100
CHUNK = 256


class Metric(Protocol):
    """Learns from the real images once, extracts features of fakes batch by batch, then computes its values."""

    def learn(self, reals: RealImages) -> None: ...

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Tensors (N, ...) on the CPU for images uint8 (N, C, H, W)."""

    def compute(self, features: dict[str, Tensor]) -> dict[str, float]:
        """The values of the metric, from the features of all images."""

    def of_reals(self) -> dict[str, float]:
        """The values for real images that `learn` did not use, if they are meaningful."""

    def doubts(self, images: int) -> list[str]:
        """Reasons why the values for this number of fakes are unreliable. Call it after `learn`."""


class Metrics:
    """Metrics of generators relative to one data set.

    Args:
        names: as in --metrics, such as "fid,kid".
        dataset: the real images.
        config: the configuration of the data, which identifies cached statistics.
        images: the number of fakes.
        weights: a file with the weights of InceptionV3, as in --metrics-weights.
        device: the device on which features are computed.

    Raises:
        FastganError: for a metric that cannot be computed, before any long computation.
    """

    def __init__(self, names: str, dataset: Dataset, config: DataConfig, *, images: int, weights: StrPath | None,
                 device: torch.device) -> None:
        requested = metric_names(names)
        if len(dataset.shape) == 1:
            raise FastganError(f"--metrics {names}: {dataset.name} has points; expected images, or no --metrics")
        if len(dataset) < MIN_REAL_IMAGES:
            raise FastganError(f"--metrics {names}: {dataset.name} has {len(dataset)} images, too few to compare with; "
                               f"expected at least {MIN_REAL_IMAGES}")
        self.images, self.labels, self.reals = images, dataset.labels, RealImages(dataset, config)
        self.device, self.metrics = device, list[Metric]()
        with _seeded(device):
            if "score" in requested:
                self.metrics.append(ClassifierScore(dataset, device))
            if of_inception := [name for name in requested if name != "score"]:
                self.metrics.append(Inception(of_inception, weights, device))

    def learn(self) -> None:
        """Compute the statistics of the real images, or read them from the cache. Call it once, before `of`."""
        for metric in self.metrics:
            with _seeded(self.device):
                metric.learn(self.reals)

    def of(self, source: Pretrained) -> dict[str, float]:
        """The metrics of fakes with seeds 0, 1, 2, ..., such as {"fid": ..., "kid": ..., "kid_std": ...}.

        The global random generators are not used. Labels of a conditional generator are drawn from the data.
        """
        batches: list[list[dict[str, Tensor]]] = [[] for _ in self.metrics]
        for images in self._fakes(source):
            for metric, features in zip(self.metrics, batches, strict=True):
                features.append(metric.features(images))
        values: dict[str, float] = {}
        for metric, features in zip(self.metrics, batches, strict=True):
            values |= metric.compute({name: torch.cat([batch[name] for batch in features]) for name in features[0]})
        return values

    def of_reals(self) -> dict[str, float]:
        """The values for real images that `learn` did not use, for metrics whose best value is not obvious."""
        return {name: value for metric in self.metrics for name, value in metric.of_reals().items()}

    def doubts(self) -> list[str]:
        """Reasons why these metrics are unreliable, one line each."""
        return [line for metric in self.metrics for line in metric.doubts(self.images)]

    def _fakes(self, source: Pretrained) -> Iterator[Tensor]:
        """Batches uint8 (n, C, H, W), n <= BATCH, generated in larger chunks, because batch statistics need many
        images."""
        labels = self._labels() if source.classes else None
        chunks = torch.arange(self.images).tensor_split(math.ceil(self.images / CHUNK))
        with tqdm(total=self.images, unit="image", desc="measuring fakes", leave=False, dynamic_ncols=True) as bar:
            for seeds in chunks:
                fakes = source.draw(source.noise.from_seeds(seeds.tolist()), None if labels is None else labels[seeds])
                for images in to_uint8(fakes, source.unit_range).split(BATCH):
                    yield images
                    bar.update(len(images))

    def _labels(self) -> Tensor:
        assert self.labels is not None, "a conditional generator was trained with labels"
        chosen = torch.randint(len(self.labels), (self.images,), generator=torch.Generator().manual_seed(0))
        return self.labels[chosen]


@contextmanager
def _seeded(device: torch.device) -> Iterator[None]:
    """A context manager with a fixed random state; the previous state is restored at the end."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield
