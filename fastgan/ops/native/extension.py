"""The compiled parts of the engine, built from csrc/ when the package is installed: `fastgan._cpu`, `fastgan._cuda`.

Both have the same functions with the same arguments; the last one, the queue, is the number of threads on a CPU and the
handle of the current stream on CUDA.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

import torch

from fastgan.errors import KernelError, first_line, from_signal_handler


def _load(module: str, compiler: str) -> tuple[ModuleType | None, str]:
    """A compiled module; or why there is none."""
    try:
        return import_module(module), ""
    except ModuleNotFoundError as error:
        return None, (f"the native engine was not built ({first_line(error)}): install {compiler}, then fastgan again, "
                      "and look for its warnings (pip install -v)")
    except Exception as error:  # built for another interpreter, another processor, a library that is not there
        return None, f"the native engine cannot be loaded: {first_line(error)}"


# once, when this is imported: torch.compile traces what asks for them
_found = {"cpu": _load("fastgan._cpu", "a C++17 compiler"), "cuda": _load("fastgan._cuda", "nvcc")}


def why_not(device: torch.device) -> str:
    """Why there is nothing compiled for a device, in words; "" when there is."""
    return _found[device.type][1] if device.type in _found else f"the native engine has nothing for {device.type}"


def of(device: torch.device) -> ModuleType:
    """The compiled module for a device; `KernelError` where there is none."""
    module = _found[device.type][0] if device.type in _found else None
    if module is None:
        raise KernelError(why_not(device))
    return module


def queue(device: torch.device) -> int:
    """What a kernel is given last."""
    return torch.get_num_threads() if device.type == "cpu" else torch.cuda.current_stream(device).cuda_stream


def call(device: torch.device, name: str, *arguments: Any) -> None:
    """Run a kernel on a device, whichever is the current one: a launch there on another's stream is refused.

    `KernelError` where it cannot be started.
    """
    kernel = getattr(of(device), name)
    try:
        if device.type == "cpu":
            kernel(*arguments, queue(device))
        else:
            with torch.cuda.device(device):
                kernel(*arguments, queue(device))
    except RuntimeError as error:  # wrong arguments are ValueErrors
        if from_signal_handler(error):
            raise
        raise KernelError(first_line(error)) from error
