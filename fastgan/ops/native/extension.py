"""The compiled parts of the engine, built from csrc/ when the package is installed: `fastgan._cpu_*`, `fastgan._cuda`.

They have the same functions with the same arguments. The last argument is the number of threads on a CPU, and the
handle of the current stream on CUDA.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

import torch

from fastgan.errors import KernelError, first_line, from_signal_handler

# the instruction set that PyTorch uses; the environment variable ATEN_CPU_CAPABILITY can limit it
ISA = {"AVX2": "avx2", "AVX512": "avx512"}.get(torch.backends.cpu.get_cpu_capability(), "portable")


def _load(compiler: str, *modules: str) -> tuple[ModuleType | None, str]:
    """The first module that was built, and the reason why there is none, or ""."""
    reason = ""
    for module in modules:
        try:
            return import_module(module), ""
        except ModuleNotFoundError as error:
            reason = (f"the native engine was not built ({first_line(error)}): install {compiler}, then reinstall "
                      "fastgan with pip install --no-cache-dir -v, which prints what is missing")
        except Exception as error:  # built for another interpreter or processor, or a missing library
            return None, f"the native engine cannot be loaded: {first_line(error)}"
    return None, reason


# loaded at import, because torch.compile traces the functions below
_modules = {"cpu": _load("a C++17 compiler", f"fastgan._cpu_{ISA}", "fastgan._cpu_portable"),
            "cuda": _load("nvcc", "fastgan._cuda")}


def why_not(device: torch.device) -> str:
    """The reason why there is no compiled module for a device; "" if there is one."""
    return _modules[device.type][1] if device.type in _modules else f"the native engine does not support {device.type}"


def of(device: torch.device) -> ModuleType:
    """The compiled module for a device. Raises `KernelError` if there is none."""
    module = _modules[device.type][0] if device.type in _modules else None
    if module is None:
        raise KernelError(why_not(device))
    return module


def call(device: torch.device, name: str, *arguments: Any) -> None:
    """Run a kernel with `device` as the current device: CUDA rejects launches on a stream of another device.

    arguments: numbers, and tensors, whose addresses the kernel gets. Raises `KernelError` if the launch fails.
    """
    kernel = getattr(of(device), name)
    try:
        if device.type == "cpu":
            kernel(*arguments, torch.get_num_threads())
        else:
            with torch.cuda.device(device):
                kernel(*arguments, torch.cuda.current_stream(device).cuda_stream)
    except RuntimeError as error:  # wrong arguments are ValueErrors
        if from_signal_handler(error):
            raise
        raise KernelError(first_line(error)) from error
