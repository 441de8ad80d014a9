"""How near a result must be to float64: the rule for kernels, and its tolerances, in one place.

The error of a tensor is its root mean square over all elements. A maximum over the few elements of a tiny tensor is
decided by chance, in eager PyTorch as in kernels: the ratio of two maxima says little about either.

    rms(ours - exact) <= MARGIN * rms(eager - exact) + units * EPS[dtype] * scale

scale is the largest element of the exact tensor, but for gradients that are zero in exact arithmetic, where it is that
of the terms which cancel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

MARGIN = 1.5
EPS = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}  # half a unit in the last place
UNITS = 1.0  # the last rounding
GRADIENT_UNITS = 4.0  # a gradient passes through sums of a channel, which eager layers on a CPU take in float64
VECTOR_UNITS = 0.4  # x sqrt(terms): these sums in float32, row by row, as the interpreter takes them
KINK = 2**-6  # x the largest z: nearer to zero than that, the rounding of y decides on which side of relu's kink z is

WIDE = {"gamma", "beta", "mean", "rstd", "running_mean", "running_var"}  # float32 beside 16-bit tensors
Function = Callable[..., Sequence[Tensor]]


def rms(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item() if x.numel() else 0.0


def cast(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Copies in `dtype`, of the same layout; parameters of a normalisation no narrower than float32."""
    wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    made = {}
    for name, tensor in tensors.items():
        to = wide if name in WIDE else dtype
        made[name] = tensor.detach() if tensor.dtype == to and name == "x" else tensor.detach().to(to, copy=True)
    return made


def run(function: Function, tensors: dict[str, Tensor], impl: str, mask: Tensor | None = None,
        contiguous: bool = True) -> dict[str, Tensor]:
    """Outputs, the gradients of all tensors through all outputs, and the running statistics afterwards."""
    inputs = {name: t.requires_grad_() for name, t in tensors.items() if not name.startswith("running")}
    outputs = function(impl=impl, **tensors)
    generator = torch.Generator().manual_seed(2)
    gradients = []
    for i, out in enumerate(outputs):
        g = torch.randn(out.shape, dtype=torch.float64, generator=generator).to(torch.float16).to(out.dtype)
        if i == 0 and mask is not None:
            g = g * mask
        gradients.append(g if contiguous else g.transpose(0, -1).contiguous().transpose(0, -1))
    grads = torch.autograd.grad(outputs, list(inputs.values()), gradients)
    return {**{f"out{i}": out.detach() for i, out in enumerate(outputs)},
            **{f"grad {name}": g for name, g in zip(inputs, grads, strict=True)},
            **{name: t.detach() for name, t in tensors.items() if name.startswith("running")}}


def judge(function: Function, tensors: dict[str, Tensor], dtype: torch.dtype, *, terms: int,
          mask: Tensor | None = None, contiguous: bool = True, cancels: bool = False) -> dict[str, Tensor]:
    """Check impl "triton" on `tensors` (float64), rounded to `dtype`, by the rule; returns its results.

    terms: elements of y per channel. mask: 0 where no gradient comes in. cancels: a bias before its own statistics.
    """
    rounded = cast(tensors, dtype)
    ours = run(function, cast(rounded, dtype), "triton", mask, contiguous)
    eager = run(function, cast(rounded, dtype), "reference", mask, contiguous)
    exact = run(function, {name: t.double() for name, t in rounded.items()}, "reference", mask, contiguous)
    for name, value in ours.items():
        if name == "out0":
            assert value.dim() != 4 or value.is_contiguous(memory_format=torch.channels_last)
        assert value.shape == exact[name].shape and value.dtype == eager[name].dtype, name
    assert_near(ours, eager, exact, terms, cancels)
    return ours


def assert_near(ours: dict[str, Tensor], eager: dict[str, Tensor], exact: dict[str, Tensor], terms: int,
                cancels: bool = False) -> None:
    for name, value in exact.items():
        units, scale = UNITS, value.abs().max().item() if value.numel() else 0.0
        if name.startswith("grad"):
            units = GRADIENT_UNITS if value.dim() == 4 else max(GRADIENT_UNITS, VECTOR_UNITS * math.sqrt(terms))
        if name == "grad bias" and cancels:
            scale = max(scale, math.sqrt(terms) * exact["grad beta"].abs().max().item())
        error, allowed = rms(ours[name] - value), MARGIN * rms(eager[name] - value)
        unit = EPS[ours[name].dtype] * scale
        assert error <= allowed + units * unit, (
            f"{name}: {error:.3g} from float64, eager {rms(eager[name] - value):.3g}, unit {unit:.3g}")
