"""In which arithmetic a step is computed. Parameters, statistics, losses and Adam are float32 in all of them.

    fp32    float32 as IEEE defines it
    tf32    float32, products rounded to 10 bits of mantissa on tensor cores (NVIDIA, sm_80 and newer)
    bf16    convolutions in bfloat16
    fp16    convolutions in float16; the loss is scaled so that small gradients survive
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from fastgan.errors import FastganError

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose(name: str, device: torch.device) -> str:
    """The precision that `name` means on a device: auto is bf16 on GPUs from sm_80 on, else fp32.

    Raises `FastganError` where the device cannot.
    """
    tensor_cores = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    if name == "auto":
        return "bf16" if tensor_cores else "fp32"
    if name not in PRECISIONS:
        raise FastganError(f"--precision {name}: expected auto, {', '.join(PRECISIONS)}")
    if name == "tf32" and not tensor_cores:
        raise FastganError(f"--precision tf32 on {device}: expected an NVIDIA GPU, sm_80 or newer; or fp32")
    return name


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Within the block, products of float32 are rounded as `precision` says, forward and backward.

    PyTorch keeps the older flag of cuDNN beside the newer ones of each kind of operation, and refuses to read it (as
    torch.compile does) where they differ: so all of them are set. The flag alone would leave the kinds to
    `torch.backends.fp32_precision`, which a user may have set.
    """
    cudnn, tf32 = torch.backends.cudnn, precision == "tf32"
    kinds: tuple[Any, ...] = cudnn.conv, cudnn.rnn  # type: ignore[attr-defined]
    before, matmul = [kind.fp32_precision for kind in kinds], torch.get_float32_matmul_precision()
    try:
        cudnn.allow_tf32 = tf32
        for kind in kinds:
            kind.fp32_precision = "tf32" if tf32 else "ieee"
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        cudnn.allow_tf32 = before[0] == "tf32"
        for kind, value in zip(kinds, before, strict=True):
            kind.fp32_precision = value


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """A context for forward passes. It caches no casts: a captured step must hold its own."""
    half = HALF.get(precision)
    return nullcontext() if half is None else torch.autocast(device.type, half, cache_enabled=False)
