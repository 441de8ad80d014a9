"""Part one, the batch: the kernel that gathers it from a data set, on each architecture, under every schedule.

Images with 1, 3 and 4 channels, of sizes that fill a program and of odd sizes; with and without labels and mirroring;
three batches from a queue of two rows, the last of which is short. Pixels are compared with float64; labels and the
cursor must be equal.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgan.config import DataConfig
from fastgan.data.dataset import MemoryDataset
from fastgan.data.pixels import to_uint8
from fastgan.data.resident import Gather, Resident
from fastgan.ops import updates
from proofs.ptx import kernels, rule
from proofs.ptx.operations import ARCHITECTURES

CPU = torch.device("cpu")
BATCH, BATCHES = 6, 3
SHAPES = [(3, 64, 64), (1, 28, 28), (4, 5, 7), (3, 33, 31)]


class Run(NamedTuple):
    arch: int
    shape: tuple[int, int, int]
    flip: bool
    labels: bool
    unit_range: bool

    def __str__(self) -> str:
        return f"sm_{self.arch} {self.words}"

    @property
    def words(self) -> str:
        """The run without the architecture."""
        return (f"batch of {'x'.join(map(str, self.shape))}{' mirrored' * self.flip}{' with labels' * self.labels}"
                f"{' in [0, 1]' * self.unit_range}")


def runs(quick: bool) -> Iterator[Run]:
    """Quick: each shape once, and each architecture with and without each option."""
    options = [(True, True, False), (True, False, True), (False, False, True), (False, True, False)]
    if quick:
        yield from (Run(ARCHITECTURES[i % 2], shape, *options[i]) for i, shape in enumerate(SHAPES))
    else:
        yield from (Run(arch, shape, *each) for arch, shape, each in itertools.product(ARCHITECTURES, SHAPES, options))


def gathered(run: Run, gather: Gather | None, device: torch.device = CPU) -> kernels.Results:
    """Images and labels of each batch, and the cursor after it, on the host."""
    torch.manual_seed(0)
    data = torch.randint(256, (2 * BATCH, *run.shape), dtype=torch.uint8)
    labels = torch.arange(2 * BATCH) if run.labels else None
    feed = Resident(MemoryDataset(name="random", data=data, labels=labels),
                    DataConfig(batch=BATCH, flip=run.flip, unit_range=run.unit_range), 0, device, gather=gather)
    results: kernels.Results = {}
    for i in range(BATCHES):
        feed.prepare()
        if i == BATCHES - 1:
            feed._size = BATCH - 1  # as in a short last batch
        images, chosen = feed.fetch()
        results |= {f"images {i}": images, f"cursor {i}": feed._cursor.clone()}
        if chosen is not None:
            results[f"labels {i}"] = chosen
        feed.done()
    return {key: value.cpu() for key, value in results.items()}


def by_kernel(*arguments: Any) -> bool:
    updates.gather(*arguments)
    return True


def execute(ptxsim: Any, run: Run) -> tuple[float, list[str]]:
    """The largest error of a pixel relative to the allowed one, and messages for what failed."""
    ours = kernels.every_schedule(ptxsim, run.arch, lambda: gathered(run, by_kernel), BATCHES * ["gather_kernel"])
    return compare(ours, gathered(run, None), run.unit_range)


def compare(ours: kernels.Results, eager: kernels.Results, unit_range: bool) -> tuple[float, list[str]]:
    """Same as `execute`, for the results of the kernel and of PyTorch's operators."""
    wrong = [f"{key}: not that of PyTorch's operators" for key in eager
             if not key.startswith("images") and not torch.equal(ours[key], eager[key])]
    exact = {key: exact_pixels(value, unit_range) for key, value in eager.items() if key.startswith("images")}
    used, inaccurate = kernels.judge(ours, eager, exact, lambda _: rule.FLOAT32)
    return used, wrong + inaccurate


def exact_pixels(images: Tensor, unit_range: bool) -> Tensor:
    """The float64 values of the bytes that `images` were computed from."""
    levels = to_uint8(images, unit_range).double()
    return levels / 255 if unit_range else levels / 127.5 - 1


def prove(ptxsim: Any, quick: bool, match: str = "") -> list[str]:
    """Execute all runs, print a line for each, and return the failures."""
    return kernels.prove(runs(quick), partial(execute, ptxsim), match)
