"""The precisions of a step. Parameters, statistics, losses and Adam are float32 in all of them.

    fp32    IEEE float32
    tf32    float32, with products rounded to 10 bits of mantissa on tensor cores (NVIDIA, sm_80 and newer)
    bf16    convolutions in bfloat16
    fp16    convolutions in float16; losses are scaled to avoid underflow of gradients
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from fastgan.errors import FastganError
from fastgan.ops.numerics import HALF, PRECISIONS


def choose(name: str, device: torch.device) -> str:
    """The precision for `name` on a device: "auto" is bf16 on GPUs with sm_80 or newer, otherwise fp32.

    Raises `FastganError` if the device does not support it.
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
    """An autocast context for forward passes, without a cache, because a captured step must contain its own casts."""
    half = HALF.get(precision)
    return nullcontext() if half is None else torch.autocast(device.type, half, cache_enabled=False)
