"""The compiled parts of the engine, built from csrc/ when the package is installed: `fastgan._cpu_*`, `fastgan._cuda`.

They have the same functions with the same arguments. The last one is the number of threads on a CPU and the handle of
the current stream on CUDA.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

import torch

from fastgan.errors import KernelError, first_line, from_signal_handler

# PyTorch's instruction set, which ATEN_CPU_CAPABILITY in the environment limits
ISA = {"AVX2": "avx2", "AVX512": "avx512"}.get(torch.backends.cpu.get_cpu_capability(), "portable")


def _load(compiler: str, *modules: str) -> tuple[ModuleType | None, str]:
    """The first of the modules that was built; or why there is none."""
    reason = ""
    for module in modules:
        try:
            return import_module(module), ""
        except ModuleNotFoundError as error:
            reason = (f"the native engine was not built ({first_line(error)}): install {compiler}, then fastgan again "
                      "by pip install --no-cache-dir -v, which prints what is missing")
        except Exception as error:  # built for another interpreter, another processor, a library that is not there
            return None, f"the native engine cannot be loaded: {first_line(error)}"
    return None, reason


# once, when this is imported: torch.compile traces the functions below
_modules = {"cpu": _load("a C++17 compiler", f"fastgan._cpu_{ISA}", "fastgan._cpu_portable"),
            "cuda": _load("nvcc", "fastgan._cuda")}


def why_not(device: torch.device) -> str:
    """Why there is nothing compiled for a device, in words; "" when there is."""
    return _modules[device.type][1] if device.type in _modules else f"the native engine has nothing for {device.type}"


def of(device: torch.device) -> ModuleType:
    """The compiled module for a device; `KernelError` where there is none."""
    module = _modules[device.type][0] if device.type in _modules else None
    if module is None:
        raise KernelError(why_not(device))
    return module


def call(device: torch.device, name: str, *arguments: Any) -> None:
    """Run a kernel on a device, whichever is the current one: a launch there on another's stream is refused.

    arguments: numbers, and the tensors whose addresses the kernel is given. `KernelError` where it cannot be started.
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
