"""Training as a user has it: steps with the data that they need, decoded images in the memory of the host.

The textbook's data come from torch.utils.data.DataLoader with two processes, which normalise image by image, as
torchvision's transforms do; ours from `fastgan.data.make_feed`. Steps themselves are judged in the suite "step".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from fastgan.bench.contender import Contender
from fastgan.bench.entry import Entry
from fastgan.bench.job import Job
from fastgan.bench.steps import make, networks, trouble
from fastgan.data import make_feed
from fastgan.data.dataset import MemoryDataset
from fastgan.train.graph import GraphedStep
from fastgan.train.step import GANStep
from fastgan.trainer.fetch_step import FetchStep
from fastgan.verify.checks import shape_of

WORKERS = 2
BATCHES = 4  # of an epoch


class Fed(Job):
    """Steps on shuffled images of one data set, epoch after epoch."""

    def __init__(self, entry: Entry, contender: Contender, device: torch.device) -> None:
        super().__init__(1)
        self.images, config = entry.batch, entry.config
        layout = torch.contiguous_format if contender.nchw else torch.channels_last
        data = pixels(entry)
        like = torch.empty(entry.batch, *data.shape[1:], device=device).contiguous(memory_format=layout)
        made = make(networks(config, device, layout), config, replace(contender, graph=False), like)
        if isinstance(made, GANStep):
            feed = make_feed(MemoryDataset(name="random", data=data), config.data, 0, device)
            fed = FetchStep(feed, made, tuple(data.shape[1:]), [entry.batch], False)
            play: Any = GraphedStep(fed) if contender.graph else fed

            def call() -> Any:
                fed.prepare()
                return play()
        else:
            play, loaded = made, batches(data, entry.batch, device.type == "cuda")

            def call() -> Any:
                return made(next(loaded).to(device, non_blocking=True).contiguous(memory_format=layout))
        self.step, self.call = play, call

    def __call__(self, index: int) -> Any:
        return self.call()

    def trouble(self, outcome: Any) -> str:
        return trouble(self.step, outcome)


def pixels(entry: Entry) -> Tensor:
    """uint8 [BATCHES * N, C, H, W]"""
    size = BATCHES * entry.batch, *shape_of(entry.config)
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
    """float32 [N, C, H, W], without end."""
    loader = DataLoader(_Normalised(data), batch, shuffle=True, num_workers=WORKERS, drop_last=True, pin_memory=pinned,
                        persistent_workers=True)
    while True:
        yield from loader
