"""Spectral normalization (Miyato et al. 2018, arXiv:1802.05957): weights divided by their largest singular value.

    W, out x (in * kh * kw):   u = normalize(W v),  v = normalize(W' u)   once in each call in training mode
                               sigma = u' W v,  the convolution's weight is W / sigma

What `torch.nn.utils.parametrizations.spectral_norm` computes, but in float32 under autocast, too. Where Triton computes
a chain, a few launches normalize all weights of its blocks together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from fastgan.nn.blocks import why_not
from fastgan.ops import engines, spectral, torch_ops
from fastgan.ops.arguments import as_operand, autocast

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
        with torch_ops.without_autocast(weight.device):
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
    """The weights of those convolutions that have spectral normalization, this one or PyTorch's, in the dtype in which
    a chain computes x. {} if each has to be computed by itself.
    """
    found = {one: found for one in convolutions if (found := _normalization(one)) is not None}
    if not 0 < len(found) <= spectral.MOST or len(set(convolutions)) < len(convolutions) or parametrize._cache_enabled:
        return {}
    engine = engines.resolve(impl, x)
    weights, us, vs, training = zip(*found.values(), strict=True)
    if len(set(training)) > 1 or not engines.has_triton(engine, x.device) or not all(map(_is_supported, weights, us)):
        return {}
    # without autocast, operands of different dtypes are an error, as in eager layers
    dtype = as_operand(x[:0]).dtype if autocast(x) else torch.float32
    return dict(zip(found, spectral.spectral_norm(weights, us, vs, training[0], dtype), strict=True))


def _normalization(convolution: nn.Module) -> tuple[Tensor, Tensor, Tensor, bool] | None:
    """The weight, u, v and whether they are iterated, of a layer in which spectral normalization alone is parametrized,
    with PyTorch's default options; else None."""
    parametrized: Any = convolution._modules.get("parametrizations")
    if parametrized is None or list(parametrized) != ["weight"] or len(parametrized["weight"]) != 1:
        return None
    of_weight, norm = parametrized["weight"], parametrized["weight"][0]
    if why_not(of_weight) or why_not(norm):
        return None
    if type(norm) is SpectralNorm:
        return of_weight.original, norm.u, norm.v, norm.training
    options = ("dim", "n_power_iterations", "eps")
    if type(norm) is parametrizations._SpectralNorm and [getattr(norm, key) for key in options] == [0, 1, 1e-12]:
        return of_weight.original, norm._u, norm._v, norm.training
    return None


def _is_supported(weight: Tensor, u: Tensor) -> bool:
    dense = weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)
    return dense and weight.dtype == u.dtype == torch.float32
