"""Spectral normalization of several weights together, as an autograd function over operators of `torch.library`.

Only Triton has kernels for it; if they fail, the reference is used (`dispatch.py`). `reference.py` describes arguments
and results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastgan.ops import dispatch, reference
from fastgan.ops.register import register

MOST = 64  # weights: their tensors are arguments of a launch, 4 KB in all
SCHEMAS = {
    "spectral_norm": "(Tensor[] weights, Tensor(a!)[] u, Tensor(b!)[] v, bool iterate, ScalarType dtype) -> "
                     "(Tensor[], Tensor[], Tensor[], Tensor[])",
    "spectral_norm_backward": "(Tensor[] grads, Tensor[] weights, Tensor[] us, Tensor[] vs, Tensor[] sigmas) -> "
                              "Tensor[]",
}


class _SpectralNorm(torch.autograd.Function):
    """(weights) -> normalized, us, vs, sigmas; of each as many as there are weights."""

    @staticmethod
    def forward(u: Sequence[Tensor], v: Sequence[Tensor], iterate: bool, dtype: torch.dtype,
                *weights: Tensor) -> tuple[Tensor, ...]:
        normalized, us, vs, sigmas = _ops.spectral_norm(weights, u, v, iterate, dtype)
        return *normalized, *us, *vs, *sigmas

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        weights = inputs[4:]
        constants = output[len(weights):]
        ctx.mark_non_differentiable(*constants)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*weights, *constants)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        count = len(ctx.saved_tensors) // 4
        needed = [i for i in range(count) if grads[i] is not None and ctx.needs_input_grad[4 + i]]
        of_needed = [[ctx.saved_tensors[start + i] for i in needed] for start in range(0, 4 * count, count)]
        found: dict[int, Tensor] = {}
        if needed:
            weights, us, vs, sigmas = of_needed
            compute = _ops.spectral_norm_backward
            if torch.is_grad_enabled():  # create_graph: sigma as a function of the weight
                compute = reference.spectral_norm_backward
                sigmas = [(reference.outer(u, v) * weight).sum() for u, v, weight in zip(us, vs, weights, strict=True)]
            found = dict(zip(needed, compute([grads[i] for i in needed], weights, us, vs, sigmas), strict=True))
        return (None,) * 4 + tuple(found.get(i) for i in range(count))


def spectral_norm(weights: Sequence[Tensor], u: Sequence[Tensor], v: Sequence[Tensor], iterate: bool,
                  dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The weights, float32, contiguous or channels_last, divided by their largest singular values, in `dtype`.

    u, v: float32 vectors of each, (R,) and (K,). iterate: change them by a power iteration before.
    """
    results: tuple[Tensor, ...] = _SpectralNorm.apply(tuple(u), tuple(v), iterate, dtype, *weights)
    return results[:len(weights)]


def _fake(weights: list[Tensor], u: list[Tensor], v: list[Tensor], iterate: bool,
          dtype: torch.dtype) -> tuple[list[Tensor], ...]:
    return ([torch.empty_like(weight, dtype=dtype) for weight in weights], list(map(torch.empty_like, u)),
            [torch.empty_like(weight[0]) for weight in weights], [one.new_empty(()) for one in u])


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {  # `benchmarks.counters` opens operators with these
    "spectral_norm": lambda *given: tuple(map(list, dispatch.run("triton", "spectral_norm", *given))),
    "spectral_norm_backward": lambda *given: list(dispatch.run("triton", "spectral_norm_backward", *given))}
_FAKES: dict[str, Callable[..., Any]] = {
    "spectral_norm": _fake,
    "spectral_norm_backward": lambda grads, weights, *_: list(map(torch.empty_like, weights))}

register(SCHEMAS, IMPLEMENTATIONS, _FAKES)
_ops: Any = torch.ops.fastgan
