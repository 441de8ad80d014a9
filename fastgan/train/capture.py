"""The interface of steps that can be captured, and the conditions of a capture: no waits, no garbage collection."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor


class Capturable(Protocol):
    """A training step of which the device's work and the host's are apart; `args` are its inputs, tensors."""

    def allocate(self, *args: Any, **kwargs: Any) -> None:
        """Make, once, all tensors that runs on such inputs keep."""

    def phase(self) -> Hashable:
        """Which shape of work the next call is; there is a graph for each."""

    def is_ready(self, phase: Any) -> bool:
        """Whether all state exists that `run` changes. If not, the next call runs eagerly, to make it."""

    def run(self, phase: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The device's work of one call, on tensors only; changes nothing on the host that a later call reads."""

    def advance(self, phase: Any, *args: Any, **kwargs: Any) -> None:
        """The host's bookkeeping after a call."""

    def state(self) -> list[Tensor]:
        """Every tensor that `run` changes and a later one reads, always changed in place; random state apart."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """phase, run and advance."""


@contextmanager
def waiting_is_an_error(cuda: Any) -> Iterator[None]:
    """Find a wait for the device while it is harmless: in a capture it would leave generator and allocator behind.

    `cuda` is torch.cuda, or a substitute for it.
    """
    if not hasattr(cuda, "set_sync_debug_mode"):
        yield
        return
    mode = cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch calls this mode a prototype
        cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        cuda.set_sync_debug_mode(mode)


@contextmanager
def collector_stopped() -> Iterator[None]:
    """Python's collector could free a graph or an event in the middle of a capture, which CUDA does not allow."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
