"""The interface of steps that can be captured, and context managers for a capture: no synchronization, no garbage
collection."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor


class Capturable(Protocol):
    """A training step whose work on the device and on the host is separate. `args` are its input tensors."""

    def allocate(self, *args: Any, **kwargs: Any) -> None:
        """Allocate, once, all persistent tensors for such inputs."""

    def phase(self) -> Hashable:
        """The kind of the next call; there is one graph for each kind."""

    def is_ready(self, phase: Any) -> bool:
        """Whether all state that `run` changes exists. If not, the next call runs eagerly and creates it."""

    def run(self, phase: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The work of one call on the device. It must not change host state that a later call reads."""

    def advance(self, phase: Any, *args: Any, **kwargs: Any) -> None:
        """Update the state on the host after a call."""

    def state(self) -> list[Tensor]:
        """All tensors that `run` changes in place and a later call reads, except the random state."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Call `phase`, `run` and `advance`."""


@contextmanager
def waiting_is_an_error(cuda: Any) -> Iterator[None]:
    """A context manager in which a synchronization with the device raises an error, to find it before a capture, where
    it would leave the generator and the allocator in a capturing state.

    cuda: torch.cuda, or a substitute for it.
    """
    if not hasattr(cuda, "set_sync_debug_mode"):
        yield
        return
    mode = cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns that this mode is a prototype
        cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        cuda.set_sync_debug_mode(mode)


@contextmanager
def collector_stopped() -> Iterator[None]:
    """A context manager without garbage collection, which could free a graph or an event during a capture. CUDA does
    not allow this."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
