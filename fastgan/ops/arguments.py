"""Checks of the arguments of public operations.

They raise `FastganError` (a ValueError) for wrong values and TypeError for wrong types. The messages name the argument,
its value, and what is accepted.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.ops.dispatch import ENGINES
from fastgan.ops.specs import ACTIVATIONS, GAN_LOSSES, Activation, BlockSpec, BlockTensors, ConvSpec, NormSpec

LARGEST_KERNEL, LARGEST_STRIDE = 7, 4
# evaluated at import, because torch.compile of PyTorch 2.9 to 2.11 cannot trace is_autocast_available
_AUTOCAST = frozenset(kind for kind in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(kind))
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_impl(impl: str) -> None:
    """Raise `FastganError` unless `impl` is "auto" or the name of an engine."""
    if impl not in ("auto", *ENGINES):
        raise FastganError(f"impl {impl!r}: expected 'auto', {', '.join(map(repr, ENGINES))}")


def check_activation(activation: str, negative_slope: float) -> Activation:
    """The activation of that name. Raises `FastganError` for an unknown name."""
    if activation not in ACTIVATIONS:
        raise FastganError(f"activation {activation!r}: expected one of {', '.join(map(repr, ACTIVATIONS))}")
    return Activation(activation, _number("negative_slope", negative_slope))


def as_conv_spec(stride: int | tuple[int, int], padding: int | tuple[int, int],
                 output_padding: int | tuple[int, int], transposed: bool) -> ConvSpec:
    """The specification of a convolution, from the arguments of a function; layers allow a larger output_padding."""
    spec = ConvSpec(_pair("stride", stride, 1, LARGEST_STRIDE), _pair("padding", padding, 0, None),
                    _pair("output_padding", output_padding, 0, None), transposed)
    if any(extra >= step for extra, step in zip(spec.output_padding, spec.stride, strict=True)) and any(
            spec.output_padding):
        raise FastganError(f"output_padding {output_padding!r}: expected less than the stride, {stride!r}")
    return spec


def check_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, conv: ConvSpec) -> tuple[int, int]:
    """(Ho, Wo) of the result for x (N, Ci, H, W)."""
    _tensor("x", x, 4, "(N, Ci, H, W)")
    names = "(Ci, Co, kh, kw)" if conv.transposed else "(Co, Ci, kh, kw)"
    _tensor("weight", weight, 4, names)
    if x.dtype not in DTYPES:
        raise FastganError(f"x of dtype {x.dtype}: expected one of {', '.join(map(str, DTYPES))}")
    ci, co = conv.channels(weight)
    if ci != x.shape[1] or not ci or not co:
        raise FastganError(f"weight of shape {tuple(weight.shape)}: expected {names} with Ci = {x.shape[1]} as in x, "
                           "and at least one channel each")
    kernel = weight.shape[2:]
    if not all(1 <= k <= LARGEST_KERNEL for k in kernel):
        raise FastganError(f"weight with a kernel of {kernel[0]}x{kernel[1]}: expected sides of 1 to {LARGEST_KERNEL}")
    # autocast casts the operands of a convolution to one dtype
    if weight.dtype != x.dtype and not (autocast(x) and weight.dtype in DTYPES):
        raise FastganError(f"weight of dtype {weight.dtype}: expected x's, {x.dtype}")
    _device("weight", weight, x)
    if bias is not None:
        _vector("bias", bias, co, x)
        if bias.dtype != weight.dtype:
            raise FastganError(f"bias of dtype {bias.dtype}: expected the weight's, {weight.dtype}")
    size = conv.output_size(x, weight)
    if min(x.shape[2:]) < 1 or min(size) < 1:
        raise FastganError(f"x of {x.shape[2]}x{x.shape[3]} pixels: too small for a kernel of {kernel[0]}x{kernel[1]} "
                           f"with stride {conv.stride} and padding {conv.padding}, which would make "
                           f"{size[0]}x{size[1]}")
    return size


def check_groups(x: Tensor, stat_groups: int) -> int:
    """G. Raises `FastganError` unless it divides the batch size of x."""
    groups = check_int("stat_groups", stat_groups)
    if groups < 1 or x.shape[0] % groups:
        raise FastganError(f"stat_groups {groups}: expected a positive number that divides the batch of {x.shape[0]}")
    return groups


def check_int(name: str, value: Any) -> int:
    """The value as an int; NumPy's integers are accepted."""
    if not _is_int(value):
        raise TypeError(f"{name} is {_kind(value)}, expected an int")
    return operator.index(value)


def as_norm_spec(x: Tensor, tensors: BlockTensors, conv: ConvSpec, size: tuple[int, int], *, training: bool,
                 momentum: float, eps: float, stat_groups: int) -> NormSpec | None:
    """The specification of a batch normalization, from the arguments of a function; None without gamma and beta.

    size: height and width of the convolution's output.
    """
    if not isinstance(training, bool):
        raise TypeError(f"training is {_kind(training)}, expected a bool")
    if momentum is None:
        raise FastganError("momentum None: a cumulative average needs num_batches_tracked; expected a number "
                           "(fastgan.nn supports momentum=None)")
    momentum, eps = _number("momentum", momentum), _number("eps", eps)
    weight, _, gamma, beta, running_mean, running_var, _ = tensors
    for name, one, other_name, other in (("gamma", gamma, "beta", beta),
                                         ("running_mean", running_mean, "running_var", running_var)):
        if (one is None) != (other is None):
            missing, given = (name, other_name) if one is None else (other_name, name)
            raise FastganError(f"{missing} is None but {given} is not: expected both or neither")
    if gamma is None:
        if running_mean is not None:
            raise FastganError("running_mean and running_var without gamma and beta: expected gamma (Co,) and "
                               "beta (Co,) too, or none of the four for no batch normalization")
        return None
    co = conv.channels(weight)[1]
    half = x.dtype in (torch.float16, torch.bfloat16) or autocast(x)
    accepted = {x.dtype, torch.float32} if half else {x.dtype}
    for name, value in (("gamma", gamma), ("beta", beta), ("running_mean", running_mean), ("running_var", running_var)):
        if value is None:
            continue
        _vector(name, value, co, x)
        if value.dtype not in accepted or value.dtype != gamma.dtype:
            wanted = " or ".join(sorted(map(str, accepted))) if name == "gamma" else f"gamma's, {gamma.dtype}"
            raise FastganError(f"{name} of dtype {value.dtype}: expected {wanted}")
    measures = training or running_mean is None
    if eps < 0 or (measures and eps == 0):
        raise FastganError(f"eps {eps}: expected a positive number")
    count = x.shape[0] // stat_groups * size[0] * size[1]
    if measures and count == 1:
        raise FastganError(f"Expected more than 1 value per channel when training, got x of shape {tuple(x.shape)}, "
                           f"which gives an output of {x.shape[0]}x{co}x{size[0]}x{size[1]} in {stat_groups} group(s)")
    return NormSpec(measures, momentum, eps, stat_groups)


def check_block(x: Tensor, tensors: BlockTensors, spec: BlockSpec, processes: int) -> BlockSpec:
    """The specification with NumPy's integers as ints; `FastganError` unless x (N, Ci, H, W) and the tensors fit it.

    processes: the number of processes that batch statistics are over.
    """
    stride, padding, output_padding, transposed = spec.conv
    conv = ConvSpec(_pair("stride", stride, 1, LARGEST_STRIDE), _pair("padding", padding, 0, None),
                    _pair("output_padding", output_padding, None, None), transposed)
    size, norm = check_convolution(x, tensors.weight, tensors.bias, conv), spec.norm
    spec = spec._replace(conv=conv)
    if norm is None:
        return spec
    channels = conv.channels(tensors.weight)[1]
    for vector in tensors[2:6]:
        if vector is not None and vector.shape != (channels,):
            raise FastganError(f"batch normalization of {len(vector)} channels after a convolution with {channels} "
                               "output channels: expected the same number")
    if norm.batch_statistics and x.shape[0] // norm.groups * size[0] * size[1] * processes == 1:
        raise FastganError("Expected more than 1 value per channel when training, got an output of "
                           f"{x.shape[0]}x{channels}x{size[0]}x{size[1]} in {norm.groups} group(s)")
    return spec


def check_logits(logits: Tensor, targets: Sequence[float], kind: str) -> tuple[float, ...]:
    """The targets as floats, one for each equal part of logits (N,), of a loss in `GAN_LOSSES`."""
    if kind not in GAN_LOSSES:
        raise FastganError(f"kind {kind!r}: expected {', '.join(map(repr, GAN_LOSSES))}")
    _tensor("logits", logits, 1, "(N,)")
    if logits.dtype not in DTYPES:
        raise FastganError(f"logits of dtype {logits.dtype}: expected one of {', '.join(map(str, DTYPES))}")
    if not isinstance(targets, Sequence):
        raise TypeError(f"targets is {_kind(targets)}, expected a sequence of numbers, one for each part of the batch")
    numbers = tuple(_number(f"targets[{i}]", target) for i, target in enumerate(targets))
    for i, number in enumerate(numbers):
        if not 0 <= number <= 1:
            raise FastganError(f"targets[{i}] {number}: expected a probability, 0 to 1")
    if not numbers:
        raise FastganError("targets (): expected at least one number")
    if not logits.shape[0] or logits.shape[0] % len(numbers):
        raise FastganError(f"logits of shape {tuple(logits.shape)}: expected ({len(numbers)} * n,) with n > 0 for "
                           f"{len(numbers)} target(s)")
    return numbers


def as_operand(x: Tensor) -> Tensor:
    """x in the dtype of convolutions under autocast, if that is enabled."""
    if x.dtype == torch.float64 or not autocast(x):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


def autocast(x: Tensor) -> bool:
    """Whether autocast is enabled for x's device."""
    kind = x.device.type
    return kind in _AUTOCAST and torch.is_autocast_enabled(kind)


def _kind(value: object) -> str:
    return f"{value!r} ({type(value).__name__})" if not isinstance(value, Tensor) else "a Tensor"


def _is_int(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _number(name: str, value: Any) -> float:
    if not (isinstance(value, float) or _is_int(value)):
        raise TypeError(f"{name} is {_kind(value)}, expected a number")
    if not -math.inf < value < math.inf:  # not math.isfinite, which torch.compile cannot trace
        raise FastganError(f"{name} {value}: expected a finite number")
    return float(value)


def _pair(name: str, value: Any, low: int | None, high: int | None) -> tuple[int, int]:
    pair = (value, value) if _is_int(value) else value
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(_is_int(side) for side in pair):
        raise TypeError(f"{name} is {_kind(value)}, expected an int or a pair of ints")
    if not all((low is None or low <= side) and (high is None or side <= high) for side in pair):
        raise FastganError(f"{name} {value!r}: expected {f'{low} to {high}' if high else f'at least {low}'}")
    return operator.index(pair[0]), operator.index(pair[1])


def _tensor(name: str, value: Any, dims: int, shape: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is {_kind(value)}, expected a Tensor {shape}")
    if value.layout != torch.strided:
        raise FastganError(f"{name} of layout {value.layout}: expected {torch.strided}")
    if value.dim() != dims:
        raise FastganError(f"{name} of shape {tuple(value.shape)}: expected {shape}")


def _vector(name: str, value: Any, length: int, x: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is {_kind(value)}, expected a Tensor ({length},) or None")
    if value.shape != (length,):
        raise FastganError(f"{name} of shape {tuple(value.shape)}: expected ({length},)")
    _device(name, value, x)


def _device(name: str, value: Tensor, x: Tensor) -> None:
    if value.device != x.device:
        raise FastganError(f"{name} on {value.device}: expected x's device, {x.device}")
