"""The compiled parts of the engine, built from csrc/ when the package is installed: `fastgan._cpu`, `fastgan._cuda`.

Both have the same functions with the same arguments; the last one, the queue, is the number of threads on a CPU and the
handle of the current stream on CUDA.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType

import torch

from fastgan.errors import KernelError, first_line

_MODULES = {"cpu": "fastgan._cpu", "cuda": "fastgan._cuda"}


@cache
def _load(kind: str) -> tuple[ModuleType | None, str]:
    """The module for a kind of device; or why there is none."""
    if kind not in _MODULES:
        return None, f"the native engine has nothing for {kind}"
    try:
        return import_module(_MODULES[kind]), ""
    except ModuleNotFoundError as error:
        return None, (f"the native engine was not built ({first_line(error)}): install a C++17 compiler"
                      f"{' and nvcc' if kind == 'cuda' else ''}, then fastgan again")
    except Exception as error:  # built for another interpreter, another processor, a library that is not there
        return None, f"the native engine cannot be loaded: {first_line(error)}"


def why_not(device: torch.device) -> str:
    """Why there is nothing compiled for a device, in words; "" when there is."""
    return _load(device.type)[1]


def of(device: torch.device) -> ModuleType:
    """The compiled module for a device; `KernelError` where there is none."""
    module, reason = _load(device.type)
    if module is None:
        raise KernelError(reason)
    return module


def queue(device: torch.device) -> int:
    """What a kernel is given last."""
    return torch.get_num_threads() if device.type == "cpu" else torch.cuda.current_stream(device).cuda_stream
