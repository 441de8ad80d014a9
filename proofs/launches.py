"""The launches of Triton kernels in a training step, recorded for the compiler instead of executed.

No GPU is needed. The launches of a step depend only on shapes, so memory is allocated but never initialized.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from fastgan.config import Config, data_shape
from fastgan.data.dataset import MemoryDataset
from fastgan.data.resident import Resident
from fastgan.errors import FastganError
from fastgan.models import build
from fastgan.nn import Chain, use
from fastgan.ops import dispatch
from fastgan.ops.numerics import PRECISIONS
from fastgan.train.kernels import StepKernels
from fastgan.train.step import GANStep, Savings


@dataclass(frozen=True)
class Pointer:
    """The properties of a tensor that a compiler uses. `misalignment`: bytes beyond a multiple of 16."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    misalignment: int = 0

    def data_ptr(self) -> int:
        """An address of the same alignment, so that Triton specializes for a `Pointer` as for the tensor."""
        return self.misalignment

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Launch(NamedTuple):
    """One launch of `kernel` on `grid`. arguments: by name, with a `Pointer` for each tensor. options: warps, stages.
    pass_name: the pass (`fastgan/ops/reference.py`) of the launch."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, int]
    pass_name: str = ""

    @property
    def name(self) -> str:
        return str(self.kernel.fn.__name__)


def record(step: Callable[[], object], arch: int) -> list[Launch]:
    """The launches of `step()` on a device of architecture `arch` (90 for sm_90), in order."""
    from fastgan.ops.triton import launch

    launches: list[Launch] = []
    bound, current = dispatch.bound, ""

    def note(engine: str, name: str) -> Callable[..., Any]:
        nonlocal current
        current = name
        return bound(engine, name)

    def keep(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], options: dict[str, int]) -> None:
        described = {name: _described(value) for name, value in arguments.items()}
        launches.append(Launch(kernel, tuple(grid), described, dict(options), current))

    with launch.through(keep, arch), patch.object(dispatch, "bound", note):
        step()
    return launches


def _described(value: Any) -> Any:
    """An argument with a `Pointer` for each tensor, also in a tuple or a tensor descriptor."""
    if isinstance(value, Tensor):
        return _pointer(value)
    if hasattr(value, "_fields"):
        return type(value)(*map(_described, value))
    if isinstance(value, tuple):
        return tuple(map(_described, value))
    return replace(value, base=_pointer(value.base)) if hasattr(value, "block_shape") else value


def _pointer(tensor: Tensor) -> Pointer:
    # device allocators align storages to more than 16 bytes, so only the offset into the storage matters
    return Pointer(tensor.dtype, tuple(tensor.shape), int(tensor.storage_offset()) * tensor.itemsize % 16)


def training_step(config: Config, batch: int, precision: str, *, together: bool = True) -> Callable[[], object]:
    """fastgan's step, D and G, as a function to `record`.

    Args:
        precision: "bf16", "fp16", "tf32" or "fp32".
        together: D gets [real; fake] in one call with two statistic groups if its layers allow it, otherwise in two.

    Raises `FastganError` for another precision, and for an architecture without chains.
    """
    if precision not in PRECISIONS:
        raise FastganError(f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
    with torch.device("meta"):  # initialization would take longer than everything else
        networks = build(config.model, data_shape(config))
    if not any(isinstance(module, Chain) for module in networks[0].modules()):
        raise FastganError(f"architecture {config.model.architecture}: its networks have no chains, nothing to record")
    generator, discriminator = (
        use(network, "triton").to_empty(device="cpu").to(memory_format=torch.channels_last)
        for network in networks)
    step = GANStep(generator, discriminator, config.model, config.train, precision=precision,
                   savings=Savings(together=together, keep_casts=True))
    real = torch.empty(batch, *data_shape(config)).to(memory_format=torch.channels_last)
    return lambda: step(real)


def fetch(config: Config, batch: int) -> Callable[[], object]:
    """A batch from a data set on the device, mirrored and with labels, as a function to `record`."""
    data = torch.empty(2 * batch, *data_shape(config), dtype=torch.uint8)
    dataset = MemoryDataset(name="", data=data, labels=torch.zeros(len(data), dtype=torch.int64))
    device = torch.device("cpu")
    feed = Resident(dataset, replace(config.data, batch=batch, flip=True), 0, device,
                    gather=StepKernels("triton", device).gather)
    return feed.fetch
