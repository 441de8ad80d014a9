"""In which arithmetic a step is computed. Parameters, statistics, losses and Adam are float32 in all of them.

    fp32    float32 as IEEE defines it
    tf32    float32, products rounded to 10 bits of mantissa on tensor cores (NVIDIA, sm_80 and newer)
    bf16    convolutions in bfloat16
    fp16    convolutions in float16; the loss is scaled so that small gradients survive
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from fastgan.errors import FastganError
from fastgan.ops.numerics import HALF, PRECISIONS


def choose(name: str, device: torch.device) -> str:
    """The precision that `name` means on a device: auto is bf16 on GPUs from sm_80 on, else fp32.

    Raises `FastganError` where the device cannot.
    """
    tensor_cores = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    if name == "auto":
        return "bf16" if tensor_cores else "fp32"
    if name not in PRECISIONS:
        raise FastganError(f"precision {name}: expected auto, {', '.join(PRECISIONS)}")
    if name == "tf32" and not tensor_cores:
        raise FastganError(f"precision tf32 on {device}: expected an NVIDIA GPU, sm_80 or newer; or fp32")
    return name


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """A context for forward passes. It caches no casts: a captured step must hold its own."""
    half = HALF.get(precision)
    return nullcontext() if half is None else torch.autocast(device.type, half, cache_enabled=False)
