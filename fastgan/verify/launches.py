"""Every kernel launch of a training step, written down instead of started: for a compiler, a cost model, a simulator.

Nothing is computed and no GPU is asked: outputs are memory that was reserved and never touched, so a step of any batch
size fits into a small machine. What a step launches depends on shapes alone, and shapes are all that is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastgan.config import Config, parse_size
from fastgan.errors import FastganError
from fastgan.models import build
from fastgan.nn import Chain, frozen, stat_groups, use
from fastgan.ops import logistic_loss
from fastgan.ops.numerics import HALF, products

PRECISIONS = ("bf16", "fp16", "tf32", "fp32")


@dataclass(frozen=True)
class Pointer:
    """What a compiler and a cost model know of a tensor. `misalignment`: bytes beyond a multiple of 16."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    misalignment: int = 0

    def data_ptr(self) -> int:
        """An address of the same alignment, so that Triton specialises on a `Pointer` as it would on the tensor."""
        return self.misalignment

    @property
    def nbytes(self) -> int:
        size = self.dtype.itemsize
        for length in self.shape:
            size *= length
        return size


class Launch(NamedTuple):
    """One start of `kernel` on `grid` programs; arguments by name, tensors as `Pointer`; warps and other options."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, int]

    @property
    def name(self) -> str:
        return str(self.kernel.fn.__name__)


def record(step: Callable[[], object], arch: int) -> list[Launch]:
    """The launches of `step()` on a device of architecture `arch` (90 for sm_90), in order."""
    from fastgan.ops.triton import launch

    launches: list[Launch] = []

    def keep(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], options: dict[str, int]) -> None:
        described = {name: _pointer(value) if isinstance(value, Tensor) else value for name, value in arguments.items()}
        launches.append(Launch(kernel, tuple(grid), described, dict(options)))

    with launch.through(keep, arch):
        step()
    return launches


def _pointer(tensor: Tensor) -> Pointer:
    # a device's allocator aligns storages to more than 16 bytes, so the offset into the storage decides
    return Pointer(tensor.dtype, tuple(tensor.shape), int(tensor.storage_offset()) * tensor.itemsize % 16)


def training_step(config: Config, batch: int, precision: str, *, together: bool = True) -> Callable[[], None]:
    """D's and G's forward and backward passes of an experiment as a function to `record`, without optimizers.

    Args:
        precision: "bf16" or "fp16" (autocast), "tf32" or "fp32" (float32, with or without tensor cores).
        together: D sees [real; fake] in one call with two statistic groups; else in two calls.

    Raises `FastganError` for an architecture that has no chains, or layers outside of them that groups cannot divide.
    """
    if precision not in PRECISIONS:
        raise FastganError(f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
    shape: tuple[int, ...] = (config.data.channels or 3, *parse_size(config.data.image_size))
    if config.model.architecture == "gaussian":
        shape = (2,)
    with torch.device("meta"):  # an initialisation that nobody reads would take longer than all the rest
        generator, discriminator = build(config.model, shape)
    if not any(isinstance(module, Chain) for module in generator.modules()):
        raise FastganError(f"architecture {config.model.architecture}: its networks have no chains, nothing to record")
    generator, discriminator = (use(network.to_empty(device="cpu"), "triton") for network in (generator, discriminator))

    def step() -> None:
        with _precision(precision):
            fake = generator(torch.zeros(batch, config.model.nz))
            _discriminator_gradients(discriminator, torch.empty(batch, *shape), fake.detach(), together)
            with frozen(discriminator):
                loss = _loss(discriminator(fake), 1)
            torch.autograd.grad(loss, [p for p in generator.parameters() if p.requires_grad])

    return step


def _discriminator_gradients(discriminator: nn.Module, real: Tensor, fake: Tensor, together: bool) -> None:
    if together:
        with stat_groups(discriminator, 2):
            loss = _loss(discriminator(torch.cat([real, fake])), 1, 0)
    else:
        loss = _loss(discriminator(real), 1) + _loss(discriminator(fake), 0)
    torch.autograd.grad(loss, [p for p in discriminator.parameters() if p.requires_grad])


def _loss(logits: Tensor, *targets: float) -> Tensor:
    """Of every experiment, whatever its own: (N, 2), two classes, is as many logits again."""
    return logistic_loss(logits.flatten(), targets, impl="triton")[0].sum()


@contextmanager
def _precision(name: str) -> Iterator[None]:
    with (products("tf32" if name == "tf32" else "fp32"),
          torch.autocast("cpu", HALF.get(name, torch.bfloat16), enabled=name in HALF)):
        yield
