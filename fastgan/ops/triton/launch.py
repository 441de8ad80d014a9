"""The one place where a kernel starts: on a GPU, in Triton's interpreter, or in the hands of whoever asked for it.

    with launch.through(handler, arch=90):      # a recorder, a compiler, a simulator
        network(x)                              # handler(kernel, grid, arguments, options) instead of a start
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton

from fastgan.errors import KernelError, first_line, from_signal_handler
from fastgan.ops.triton.tiles import Tile

INTERPRETED = bool(triton.knobs.runtime.interpret)  # decides when a kernel is decorated, which is at import


def _read_scalars_by_item() -> None:
    """Triton's interpreter before 3.7 takes int() of an array of one element, for a loop's bound: NumPy 2.4 refuses."""
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


@contextmanager
def through(handler: Handler, arch: int = 80) -> Iterator[None]:
    """Within the block, kernels for `arch` go to `handler`, and tensors may be anywhere."""
    _through.append((handler, arch))
    try:
        yield
    finally:
        _through.pop()


def diverted() -> bool:
    return bool(_through)


def architecture(device: torch.device) -> int:
    """90 for compute capability 9.0, 0 for the interpreter."""
    if _through:
        return _through[-1][1]
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def launch(kernel: Any, grid: tuple[int, ...], tile: Tile, **arguments: Any) -> None:
    """Start `kernel` on `grid` programs; `KernelError` where it does not compile or does not fit the device."""
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    if tile.registers:
        options["maxnreg"] = tile.registers
    if _through:
        _through[-1][0](kernel, grid, arguments, options)
        return
    tensor = next(value for value in arguments.values() if isinstance(value, torch.Tensor))
    try:
        with torch.cuda.device_of(tensor):  # Triton starts kernels on the current device, wherever tensors are
            kernel[grid](**arguments, **options)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if from_signal_handler(error):
            raise
        raise KernelError(f"{kernel.fn.__name__}: {first_line(error)}") from error
