"""What the two networks minimise, on logits; r = D(x) and f = D(G(z)), sigma = sigmoid, E = mean over the batch.

    bce             D: E[-log sigma(r)] + E[-log(1 - sigma(f))]     G: E[-log sigma(f)]     Goodfellow et al. 2014
    minimax         D: as bce                                       G: E[log(1 - sigma(f))] Goodfellow et al. 2014
    softmax         cross-entropy of two classes, fake 0 and real 1; logits (N, 2)          G: fakes as class 1
    least-squares   D: (E[(r - 1)^2] + E[f^2]) / 2                  G: E[(f - 1)^2] / 2     Mao et al. 2017
    hinge           D: E[max(0, 1 - r)] + E[max(0, 1 + f)]          G: -E[f]                Lim and Ye 2017
    wgan-gp         D: E[f] - E[r] + gradient penalty               G: -E[f]                Gulrajani et al. 2017
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Loss(NamedTuple):
    """The two objectives, and what a discriminator's output says of one image."""

    discriminator: Callable[[Tensor, Tensor], Tensor]  # (real logits, fake logits) -> ()
    generator: Callable[[Tensor], Tensor]  # (fake logits) -> ()
    probability: Callable[[Tensor], Tensor] = torch.sigmoid  # logits -> (N,), shown as D(x)
    score: Callable[[Tensor], Tensor] = lambda logits: logits  # logits -> (N,), what R1 holds flat


def _class(logits: Tensor, label: int) -> Tensor:
    return F.cross_entropy(logits, torch.full_like(logits[:, 0], label, dtype=torch.long))


def _bce_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(-real).mean() + F.softplus(fake).mean()


LOSSES = {
    "bce": Loss(_bce_discriminator, lambda fake: F.softplus(-fake).mean()),
    "minimax": Loss(_bce_discriminator, lambda fake: -F.softplus(fake).mean()),
    "softmax": Loss(lambda real, fake: _class(real, 1) + _class(fake, 0), lambda fake: _class(fake, 1),
                    lambda logits: logits.softmax(1)[:, 1], lambda logits: logits[:, 1] - logits[:, 0]),
    "least-squares": Loss(lambda real, fake: ((real - 1).square().mean() + fake.square().mean()) / 2,
                          lambda fake: (fake - 1).square().mean() / 2, lambda logits: logits),
    "hinge": Loss(lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(), lambda fake: -fake.mean()),
    "wgan-gp": Loss(lambda real, fake: fake.mean() - real.mean(), lambda fake: -fake.mean(), lambda logits: logits),
}


def gradient_penalty(discriminator: nn.Module, real: Tensor, fake: Tensor, labels: tuple[Tensor, ...]) -> Tensor:
    """E[(|grad D(x)| - 1)^2] at points drawn uniformly between real (N, ...) and fake (N, ...); a scalar."""
    mix = torch.rand(len(real), *[1] * (real.dim() - 1), device=real.device, dtype=real.dtype)
    between = torch.lerp(real, fake, mix).requires_grad_()
    (slope,) = torch.autograd.grad(discriminator(between, *labels).sum(), between, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()


def r1_penalty(scores: Tensor, real: Tensor) -> Tensor:
    """E[|grad D(x)|^2] / 2 at real images with scores D(x) (N,) (Mescheder et al. 2018); `real` requires gradients."""
    (slope,) = torch.autograd.grad(scores.sum(), real, create_graph=True)
    return slope.flatten(1).square().sum(1).mean() / 2
