"""A workload with a batch size, as plain data, and the base class of its jobs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgan import presets
from fastgan.config import Config


@dataclass(frozen=True)
class Workload:
    """suite: name in `suites.SUITES`. preset: name of a preset, modified by `changes`. network: "generator" or
    "discriminator" in the suite "networks"."""

    suite: str
    preset: str
    batch: int
    network: str = ""
    changes: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        """A name such as "step/dcgan-64" or "networks/dcgan-64/generator"."""
        return "/".join(filter(None, (self.suite, self.preset, self.network)))

    @property
    def config(self) -> Config:
        return presets.get(self.preset, **self.changes).replace(preset=self.preset, batch=self.batch)

    def __str__(self) -> str:
        return f"{self.name}, batch {self.batch}"


class Expected(NamedTuple):
    """exact: results in float64 by name. runs: for each precision, results of runs that differ only by rounding, eager
    PyTorch's first. flops: of a call, None if not counted."""

    exact: dict[str, Tensor]
    runs: dict[str, list[dict[str, Tensor]]]
    flops: float | None = None


class Job(ABC):
    """A workload in one implementation: calls with several sets of inputs in turn. images: number per call."""

    images = 0

    @abstractmethod
    def __call__(self, index: int) -> Any:
        """One call with input set `index` (any number). The result is an argument of `failure`."""

    def prepare(self) -> None:  # noqa: B027
        """Work that is done once: libraries try their algorithms, with more memory than a call needs."""

    def check(self, expected: Expected) -> tuple[float, str]:
        """The largest error relative to the allowed one, at most 1 if correct, and the name of the result."""
        return 0.0, ""

    def failure(self, outcome: Any) -> str:
        """The reason why a call with this result is invalid; "" if it is valid."""
        return ""


def random_images(workload: Workload, shape: tuple[int, ...], count: int) -> list[Tensor]:
    """`count` tensors [N, *shape] in [-1, 1] on the CPU, the same in each process."""
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(workload.batch, *shape, generator=generator) * 2 - 1 for _ in range(count)]
