"""The engine that `impl` selects for a tensor, and blocks computed by it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from fastgan.errors import FastganError, first_line
from fastgan.ops import autograd, synchronised, torch_ops
from fastgan.ops import tuning as plan
from fastgan.ops.arguments import as_operand
from fastgan.ops.specs import BlockSpec, BlockTensors

OLDEST = (8, 0)  # compute capability from which Triton's dot products run on tensor cores


def chain(x: Tensor, blocks: Sequence[tuple[BlockTensors, BlockSpec]], impl: str = "auto") -> Tensor:
    """Blocks, convolution -> [batch normalization] -> [activation], each applied to the result of the previous one.

    Args:
        x: (N, C, H, W), the input of the first block.
        blocks: tensors and specification of each, as in `fastgan.ops.specs`.
        impl: the engine.

    Returns the result (N, C, H, W) of the last block. Raises `FastganError` for dtypes that the engine does not
    support, and for shapes that do not fit.
    """
    engine = resolve(impl, x)
    # as layers of PyTorch, which compilers and all transforms support; only passes synchronize statistics
    eager = engine == "reference" and not synchronised.processes()
    for tensors, spec in blocks:
        if eager:
            x = torch_ops.conv_bn_act(x, tensors, spec)
        else:
            function, arguments = autograd.bind(x, tensors, spec, engine)
            x = function.apply(*arguments)[0]
    return x


_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def resolve(impl: str, x: Tensor) -> str:
    """The name of the engine for x, the input of a convolution.

    "auto" follows the plan in use (`fastgan.ops.tuning`); without one it is the device's default: native on a CPU if it
    was compiled, else the reference.

    If an engine cannot run on the device (GPU too old, nothing compiled, no Triton), one warning names the reason, and
    the reference is used. Raises `FastganError` for dtypes that an engine does not support.
    """
    return resolve_for(impl, "x", x, as_operand(x[:0]).dtype)


def resolve_for(impl: str, name: str, x: Tensor, dtype: torch.dtype) -> str:
    """Same as `resolve`, for a tensor of that name which is computed in `dtype`."""
    impl = named(impl, x.device, dtype)
    if impl == "reference" or x.numel() == 0:
        return "reference"
    if dtype not in _DTYPES:
        raise FastganError(f"{name} of dtype {dtype}: impl {impl!r} computes in torch.float32, torch.float16 and "
                           "torch.bfloat16")
    reason = why_not(impl, x.device)
    if reason:
        _warn(f"{reason}; impl {impl!r} falls back to the reference engine")
        return "reference"
    if check_device(impl, x.device) and dtype == torch.bfloat16:
        raise FastganError(f"{name} of dtype torch.bfloat16: Triton's interpreter computes it wrongly, expected "
                           "torch.float32 or torch.float16")
    return impl


def named(impl: str, device: torch.device, dtype: torch.dtype) -> str:
    """The name of the engine, which may be "plan", for tensors of that device and dtype."""
    if impl != "auto":
        return impl
    return plan.engine_of(device) if dtype in _DTYPES else "reference"


def check_device(impl: str, device: torch.device) -> bool:
    """Whether kernels would be interpreted on the device. Raises `FastganError` if Triton can neither compile nor
    interpret them."""
    if impl != "triton" or why_not(impl, device):
        return False
    from fastgan.ops.triton import launch

    if launch.diverted() or device.type == "cuda":
        return False
    if not launch.INTERPRETED:
        raise FastganError(f"impl 'triton' on {device}: expected a CUDA device, or Triton's interpreter "
                           "(TRITON_INTERPRET=1 before Python starts)")
    return True


def has_triton(engine: str, device: torch.device) -> bool:
    """Whether Triton computes what has no other kernels, beside the passes of an engine."""
    chosen = engine == "triton" or (engine == "plan" and device.type == "cuda")
    return chosen and not why_not("triton", device)


def why_not(impl: str, device: torch.device) -> str:
    """The reason why an engine cannot run on a device; "" if it can."""
    if impl == "native":
        from fastgan.ops.native import extension

        return extension.why_not(device)
    if impl != "triton":
        return ""
    try:
        import triton  # noqa: F401
    except Exception as error:  # a broken installation raises anything
        return f"Triton cannot be imported: {first_line(error)}"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < OLDEST:
        major, minor = torch.cuda.get_device_capability(device)
        return f"{torch.cuda.get_device_name(device)} is sm_{major}{minor}, Triton's kernels need sm_80"
    return ""


@cache
def _warn(message: str) -> None:
    warnings.warn(f"fastgan: {message}", stacklevel=2)
