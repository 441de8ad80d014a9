"""What must hold around the capture of a CUDA graph: no waits for the device, no garbage collection."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


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
