"""Spectral normalization (Miyato et al. 2018, arXiv:1802.05957): weights divided by their largest singular value.

    W, out x (in * kh * kw):   u = normalize(W v),  v = normalize(W' u)   once in each call in training mode
                               sigma = u' W v,  the convolution's weight is W / sigma

What `torch.nn.utils.parametrizations.spectral_norm` computes, but in float32 under autocast, too. Where Triton computes
a chain, a few launches normalize all weights of its blocks together.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from fastgan.nn.blocks import why_not
from fastgan.ops import engines, spectral, torch_ops
from fastgan.ops.arguments import as_operand

_FIRST_ITERATIONS = 15  # as in PyTorch


class SpectralNorm(nn.Module):
    """The parametrization of a weight of shape (out, ...). Buffers u (out,) and v (the rest,) are changed in place."""

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        matrix = weight.detach().flatten(1)
        self.register_buffer("u", F.normalize(torch.randn_like(matrix[:, 0]), dim=0))
        self.register_buffer("v", F.normalize(torch.randn_like(matrix[0]), dim=0))
        for _ in range(_FIRST_ITERATIONS):
            torch_ops.power_iteration(matrix, self.u, self.v)

    def forward(self, weight: Tensor) -> Tensor:
        kind = weight.device.type
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            matrix = weight.flatten(1)
            if self.training:
                torch_ops.power_iteration(matrix, self.u, self.v)
            u, v = self.u.clone(), self.v.clone()  # the next call changes them before this one is differentiated
            return weight / torch.dot(u, torch.mv(matrix, v))


def spectral_norm(convolution: nn.Conv2d) -> nn.Conv2d:
    """Normalize the weight of a convolution from now on."""
    parametrize.register_parametrization(convolution, "weight", SpectralNorm(convolution.weight))
    return convolution


def computed_together(convolutions: Sequence[nn.Module], x: Tensor, impl: str) -> dict[nn.Module, Tensor]:
    """The weights of those convolutions that have `SpectralNorm`, in the dtype in which a chain computes x; {} where
    each is to be computed by itself.
    """
    lists: dict[nn.Module, Any] = {one: one._modules["parametrizations"] for one in convolutions
                                   if "parametrizations" in one._modules}
    lists = {one: parametrized["weight"] for one, parametrized in lists.items() if _is_ours(parametrized)}
    if not 0 < len(lists) <= spectral.MOST or len(set(convolutions)) < len(convolutions) or parametrize._cache_enabled:
        return {}
    engine = engines.resolve(impl, x)
    originals, norms = [one.original for one in lists.values()], [one[0] for one in lists.values()]
    training = {norm.training for norm in norms}
    if len(training) > 1 or not engines.has_triton(engine, x.device) or not all(map(_is_supported, originals, norms)):
        return {}
    weights = spectral.spectral_norm(originals, [norm.u for norm in norms], [norm.v for norm in norms],
                                     training.pop(), as_operand(x[:0]).dtype)
    return dict(zip(lists, weights, strict=True))


def _is_ours(parametrizations: Any) -> bool:
    """Whether `SpectralNorm` alone computes the weight, and nothing else of the layer is parametrized."""
    if list(parametrizations) != ["weight"]:
        return False
    of_weight = parametrizations["weight"]
    return len(of_weight) == 1 and type(of_weight[0]) is SpectralNorm and not (why_not(of_weight) or
                                                                                why_not(of_weight[0]))


def _is_supported(weight: Tensor, norm: SpectralNorm) -> bool:
    dense = weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)
    return dense and all(tensor.dtype == torch.float32 for tensor in (weight, norm.u, norm.v))
