"""The suite "training": steps including data loading, from decoded images in host memory.

PyTorch's loop uses torch.utils.data.DataLoader with two processes, which normalize one image at a time, like
torchvision's transforms; fastgan uses `fastgan.data.make_feed`. The suite "step" compares the steps with float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from benchmarks.implementation import Implementation
from benchmarks.steps import failure, make_step, networks
from benchmarks.workload import Job, Workload
from fastgan.config import data_shape
from fastgan.data import make_feed
from fastgan.data.dataset import MemoryDataset
from fastgan.train.graph import GraphedStep
from fastgan.train.step import GANStep
from fastgan.trainer.fetch_step import FetchStep

WORKERS = 2
BATCHES = 4  # of an epoch


class StepsWithData(Job):
    """Steps with shuffled images of one data set, for any number of epochs."""

    def __init__(self, workload: Workload, implementation: Implementation, device: torch.device) -> None:
        self.images, config = workload.batch, workload.config
        layout = torch.contiguous_format if implementation.nchw else torch.channels_last
        data = pixels(workload)
        like = torch.empty(workload.batch, *data.shape[1:], device=device).contiguous(memory_format=layout)
        step: Any = make_step(networks(config, device, layout), config, replace(implementation, graph=False), like)
        if isinstance(step, GANStep):
            feed = make_feed(MemoryDataset(name="random", data=data), config.data, 0, device,
                             gather=step.kernels.gather)
            fetch_step = FetchStep(feed, step, tuple(data.shape[1:]), [workload.batch], False)
            self.step: Any = GraphedStep(fetch_step) if implementation.graph else fetch_step

            def call() -> Any:
                fetch_step.prepare()
                return self.step()
        else:
            self.step, loaded = step, batches(data, workload.batch, device.type == "cuda")

            def call() -> Any:
                return step(next(loaded).to(device, non_blocking=True).contiguous(memory_format=layout))
        self.call = call

    def __call__(self, index: int) -> Any:
        return self.call()

    def failure(self, outcome: Any) -> str:
        return failure(self.step, outcome)


def pixels(workload: Workload) -> Tensor:
    """uint8 [BATCHES * N, C, H, W]"""
    size = BATCHES * workload.batch, *data_shape(workload.config)
    return torch.randint(256, size, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


class _Normalised(TorchDataset[Tensor]):
    """One image at a time: ToTensor, then Normalize(0.5, 0.5)."""

    def __init__(self, data: Tensor) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Tensor:
        return (self.data[index].float() / 255 - 0.5) / 0.5


def batches(data: Tensor, batch: int, pinned: bool) -> Iterator[Tensor]:
    """Endless batches, float32 [N, C, H, W]."""
    loader = DataLoader(_Normalised(data), batch, shuffle=True, num_workers=WORKERS, drop_last=True, pin_memory=pinned,
                        persistent_workers=True)
    while True:
        yield from loader
