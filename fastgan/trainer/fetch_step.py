"""A feed and a step combined into one call without arguments, which one CUDA graph can capture."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.data.feed import Feed
from fastgan.train.step import GANStep, Phase


class FetchStep:
    """Fetches a batch and trains on it. Call `prepare` before each call.

    Args:
        shape: (C, H, W) of an image, or (2,).
        sizes: all batch sizes that can occur.
        conditional: whether the networks take labels.
    """

    def __init__(self, feed: Feed, step: GANStep, shape: tuple[int, ...], sizes: list[int], conditional: bool) -> None:
        self.feed, self.step, self.conditional = feed, step, conditional
        self.size = 0  # size of the prepared batch
        for size in sizes:
            images = torch.empty(size, *shape, dtype=torch.float32, device=step.device)
            step.allocate(images, torch.zeros(size, dtype=torch.long, device=step.device) if conditional else None)

    def allocate(self) -> None:
        """All buffers were allocated in `__init__`."""

    def prepare(self) -> int:
        """Provide the next batch; returns its size."""
        self.size = self.feed.prepare()
        return self.size

    def phase(self) -> Phase:
        return self.step.phase()

    def is_ready(self, phase: Phase) -> bool:
        return self.step.is_ready(phase)

    def run(self, phase: Phase) -> dict[str, Tensor]:
        images, labels = self.feed.fetch()
        return self.step.run(phase, images, labels if self.conditional else None)

    def advance(self, phase: Phase) -> None:
        self.feed.done()
        self.step.count(self.size)

    def state(self) -> list[Tensor]:
        return [*self.step.state(), *self.feed.state()]

    def __call__(self) -> dict[str, Tensor]:
        phase = self.phase()
        record = self.run(phase)
        self.advance(phase)
        return record
