"""Spectral normalization (Miyato et al. 2018, arXiv:1802.05957): weights divided by their largest singular value.

    W, out x (in * kh * kw):   u = normalize(W v),  v = normalize(W' u)   once in each call in training mode
                               sigma = u' W v,  the convolution's weight is W / sigma

What `torch.nn.utils.parametrizations.spectral_norm` computes, but in float32 under autocast, too.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

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
            self._iterate(matrix)

    def forward(self, weight: Tensor) -> Tensor:
        kind = weight.device.type
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            matrix = weight.flatten(1)
            if self.training:
                self._iterate(matrix.detach())
            u, v = self.u.clone(), self.v.clone()  # the next call changes them before this one is differentiated
            return weight / torch.dot(u, torch.mv(matrix, v))

    @torch.no_grad()
    def _iterate(self, matrix: Tensor) -> None:
        self.u.copy_(F.normalize(torch.mv(matrix, self.v), dim=0))
        self.v.copy_(F.normalize(torch.mv(matrix.t(), self.u), dim=0))


def spectral_norm(convolution: nn.Conv2d) -> nn.Conv2d:
    """Normalize the weight of a convolution from now on."""
    parametrize.register_parametrization(convolution, "weight", SpectralNorm(convolution.weight))
    return convolution
