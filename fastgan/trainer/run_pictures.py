"""The pictures in a run folder: real images, and images generated from the same latents at each snapshot."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from fastgan import pictures
from fastgan.config import Config
from fastgan.data import Dataset, Loader, to_uint8
from fastgan.models.pretrained import Pretrained
from fastgan.train.static_buffers import StaticBuffers


class RunPictures:
    """Draws `config.run.grid` images or points."""

    def __init__(self, config: Config, dataset: Dataset) -> None:
        self.config, self.dataset = config, dataset

    @cached_property
    def examples(self) -> Tensor:
        """Real images uint8 (grid, C, H, W), or points (grid, 2), from a separate loader."""
        loader = Loader(self.dataset, self.config.data, self.config.run.seed)
        count = min(self.config.run.grid, len(self.dataset))
        batches = [loader.next_batch()[0] for _ in range(math.ceil(count / self.config.data.batch))]
        loader.close()
        return torch.cat(batches)[:count]

    def save_real(self, path: Path) -> None:
        if self.dataset.shape == (2,):
            pictures.scatter(path, real=self.examples)
        else:
            pictures.save(pictures.grid(self.examples), path)

    def save_generated(self, path: Path, source: Pretrained, buffers: StaticBuffers | None) -> None:
        """Save images of seeds 0, 1, 2, ...; or, with `--pictures side-by-side`, the fakes and real images in
        `buffers`, if given."""
        count, unit = self.config.run.grid, self.config.data.unit_range
        if self.config.run.pictures == "side-by-side" and buffers is not None:
            halves = (to_uint8(half[:count].float().cpu(), unit) for half in (buffers.fake, buffers.real))
            pictures.save(pictures.side_by_side(*halves), path)
            return
        columns = pictures.class_columns(count, len(source.classes))
        count -= count % (columns or 1)  # only whole rows, with all classes
        labels = source.labels_in_turn(count)
        images = source.draw(source.noise.from_seeds(range(count)), labels)
        if self.dataset.shape == (2,):
            pictures.scatter(path, real=self.examples, generated=images)
        else:
            pictures.save(pictures.grid(to_uint8(images, unit), columns, source.names(labels)), path)
