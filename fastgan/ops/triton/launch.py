"""Launches every kernel: on a GPU, in Triton's interpreter, or by a handler.

    with launch.through(handler, arch=90):      # a recorder, a compiler, a simulator
        network(x)                              # handler(kernel, grid, arguments, options) instead of each launch
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton
import triton.language as tl
from torch.utils._python_dispatch import _disable_current_modes
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from fastgan.errors import KernelError, first_line, from_signal_handler
from fastgan.ops.tickets import tickets as shared
from fastgan.ops.triton import fence
from fastgan.ops.triton.tiles import Tile

INTERPRETED = bool(triton.knobs.runtime.interpret)  # read when a kernel is decorated, at import


def _read_scalars_by_item() -> None:
    """Triton's interpreter before 3.7 calls int() on one-element arrays for loop bounds, which NumPy 2.4 rejects."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_and_mend(tensor: Any, *scope: Any) -> None:
        patch(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = patch_and_mend


if INTERPRETED:
    _read_scalars_by_item()

Handler = Callable[[Any, tuple[int, ...], dict[str, Any], dict[str, int]], None]
_through: list[tuple[Handler, int]] = []
_dependent = os.environ.get("FASTGAN_PDL") == "1"


@triton.jit
def begin(PDL: tl.constexpr):
    """The first statement of every kernel, before it accesses memory.

    With programmatic dependent launch a kernel starts while the previous one is still running. Here it waits until the
    previous kernel has ended, which has itself waited for its predecessor, and then allows the next one to start.
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()


@contextmanager
def dependent_launch(on: bool = True) -> Iterator[None]:
    """Context manager that turns programmatic dependent launch on or off, on sm_90 and newer. FASTGAN_PDL=1 turns it on
    by default.

    The latency of a launch then overlaps with the previous kernel. A captured graph keeps the setting of its capture.
    """
    global _dependent
    before, _dependent = _dependent, on
    try:
        yield
    finally:
        _dependent = before


@contextmanager
def through(handler: Handler, arch: int = 80) -> Iterator[None]:
    """Within the block, launches for `arch` are passed to `handler`, with tensors on any device."""
    _through.append((handler, arch))
    try:
        yield
    finally:
        _through.pop()


def diverted() -> bool:
    """Whether launches are recorded or executed elsewhere, not on a device."""
    return bool(_through)


def architecture(device: torch.device) -> int:
    """90 for compute capability 9.0, 0 for the interpreter."""
    if _through:
        return _through[-1][1]
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def tickets(device: torch.device, count: int) -> torch.Tensor:
    """At least `count` int32 zeros, which a launch uses and resets to zero (`reduce.py`, `../tickets.py`)."""
    if _through:
        with _disable_current_modes():  # real memory, hidden from recorders
            return torch.zeros(count, dtype=torch.int32)
    return shared(device, count)


def by_name(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a launch, with the fields of each NamedTuple and the items of each tuple ("grads0") added, and each
    tensor descriptor replaced by its tensor."""
    named: dict[str, Any] = {}
    for name, value in arguments.items():
        named[name] = getattr(value, "base", value)
        if hasattr(value, "_asdict"):
            named |= value._asdict()
        elif isinstance(value, tuple):
            named |= {f"{name}{index}": item for index, item in enumerate(value)}
    return named


def launch(kernel: Any, grid: tuple[int, ...], tile: Tile, **arguments: Any) -> None:
    """Launch `kernel` on `grid`; raises `KernelError` if it cannot be compiled or does not fit the device."""
    tensor = next(value for value in by_name(arguments).values() if isinstance(value, torch.Tensor))
    arch = architecture(tensor.device)
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    if tile.registers:
        options["maxnreg"] = tile.registers
    arguments["PDL"] = _dependent and arch >= 90
    if arguments["PDL"]:
        options["launch_pdl"] = True
    if _through:
        _through[-1][0](kernel, grid, arguments, options)
        return
    if fence.missing(arch):
        fence.warn(arch)
    try:
        with torch.cuda.device_of(tensor):  # Triton launches on the current device, whatever that of the tensors
            kernel[grid](**arguments, **options)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if from_signal_handler(error):
            raise
        raise KernelError(f"{kernel.fn.__name__}: {first_line(error)}") from error
