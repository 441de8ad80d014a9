"""The allowed error of a kernel relative to float64: the rule of `fastgan.ops.numerics` for small tensors.

The rule allows 1.5 x eager's error (4 x for the worst element), plus a rounding error of

    units * EPS[dtype of x] * scale

scale is the largest element of the exact tensor. Vectors of channels are sums that may cancel, so their scale is the
largest element of all gradients that are vectors, and for means that of the output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastgan.ops import numerics

EPS = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}  # half a unit in the last place
UNITS = 4.0  # a few roundings; or if it is more,
SUM_UNITS = 1.0  # x sqrt(terms): all results depend on sums over a channel, which eager layers on a CPU compute in
# float64, and the interpreter in float32, row by row (a GPU adds in a tree)
KINK = 2**-6  # x the largest z: closer to zero, the rounding of y determines on which side of relu's kink z is

WIDE = {"gamma", "beta", "mean", "rstd", "running_mean", "running_var"}  # float32, also with 16-bit tensors
Function = Callable[..., Sequence[Tensor]]
Layout = Callable[[Tensor], Tensor]


def cast(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Copies in `dtype`; parameters of batch normalization in at least float32."""
    wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    made = {}
    for name, tensor in tensors.items():
        to = wide if name in WIDE else dtype
        made[name] = tensor.detach().to(to, copy=True)
    return made


def run(function: Function, tensors: dict[str, Tensor], impl: str, mask: Tensor | None = None,
        layout: Layout | None = None) -> dict[str, Tensor]:
    """Outputs, the gradients of all tensors through all outputs, and the updated running statistics."""
    if layout is not None:
        tensors = {**tensors, "x": layout(tensors["x"]).detach()}
    inputs = {name: t.requires_grad_() for name, t in tensors.items() if not name.startswith("running")}
    outputs = function(impl=impl, **tensors)
    generator = torch.Generator().manual_seed(2)
    gradients = []
    for i, out in enumerate(outputs):
        g = torch.randn(out.shape, dtype=torch.float64, generator=generator).to(torch.float16).to(out.dtype)
        if i == 0 and mask is not None:
            g = g * mask
        gradients.append(g if layout is None else g.transpose(0, -1).contiguous().transpose(0, -1))
    grads = torch.autograd.grad(outputs, list(inputs.values()), gradients)
    return {**{f"out{i}": out.detach() for i, out in enumerate(outputs)},
            **{f"grad {name}": g for name, g in zip(inputs, grads, strict=True)},
            **{name: t.detach() for name, t in tensors.items() if name.startswith("running")}}


def judge(function: Function, impl: str, tensors: dict[str, Tensor], dtype: torch.dtype, *, terms: int,
          mask: Tensor | None = None, layout: Layout | None = None) -> dict[str, Tensor]:
    """Check a kernel engine on `tensors` (float64), rounded to `dtype`, by the rule. Returns its results.

    terms: elements of x or y per channel. mask: 0 where there is no incoming gradient. layout: of x and of the incoming
    gradient.
    """
    rounded = cast(tensors, dtype)
    ours = run(function, cast(rounded, dtype), impl, mask, layout)
    theirs = cast(rounded, dtype)
    if impl == "native" and theirs["x"].dim() == 4:
        # oneDNN sums in another order in that layout, with up to twice the error; the native engine uses that layout
        theirs["x"] = theirs["x"].contiguous(memory_format=torch.channels_last)
    eager = run(function, theirs, "reference", mask, layout)
    exact = run(function, {name: t.double() for name, t in rounded.items()}, "reference", mask, layout)
    for name, value in ours.items():
        if name == "out0":
            assert value.dim() != 4 or value.is_contiguous(memory_format=torch.channels_last)
        assert value.shape == exact[name].shape and value.dtype == eager[name].dtype, name
    assert_near(ours, eager, exact, terms)
    return ours


def used(ours: Tensor, eager: Tensor, exact: Tensor, roundings: float) -> float:
    """The error of a result relative to the allowed one, at most 1 if correct. roundings: added to eager's error."""
    return numerics.used(ours, eager, exact, 0.0, cancelled=roundings)


def assert_near(ours: dict[str, Tensor], eager: dict[str, Tensor], exact: dict[str, Tensor], terms: int) -> None:
    units = max(UNITS, SUM_UNITS * math.sqrt(terms))
    eps, largest = EPS[ours["out0"].dtype], {name: t.abs().max().item() if t.numel() else 0.0
                                             for name, t in exact.items()}
    vectors = [name for name in exact if name.startswith("grad") and exact[name].dim() < 4]
    for name, value in exact.items():
        if not value.numel():
            continue
        scale = max(largest[other] for other in vectors) if name in vectors else largest[name]
        if name in ("out1", "running_mean"):
            scale = max(scale, largest["out0"])
        share = used(ours[name], eager[name], value, units * eps * scale)
        assert share <= 1, f"{name}: {share:.3g} of the allowed error"
