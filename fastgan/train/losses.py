"""What the two networks minimise, on logits; r = D(x) and f = D(G(z)), sigma = sigmoid, E = mean over the batch.

    bce             D: E[-log sigma(r)] + E[-log(1 - sigma(f))]     G: E[-log sigma(f)]     Goodfellow et al. 2014
    minimax         D: as bce                                       G: E[log(1 - sigma(f))] Goodfellow et al. 2014
    softmax         cross-entropy of two classes, fake 0 and real 1; logits (N, 2)          G: fakes as class 1
    least-squares   D: (E[(r - 1)^2] + E[f^2]) / 2                  G: E[(f - 1)^2] / 2     Mao et al. 2017
    hinge           D: E[max(0, 1 - r)] + E[max(0, 1 + f)]          G: -E[f]                Lim and Ye 2017
    wgan-gp         D: E[f] - E[r] + gradient penalty               G: -E[f]                Gulrajani et al. 2017

One-sided label smoothing s (Salimans et al. 2016) of bce and minimax: reals count as real with probability 1 - s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastgan import ops


class Loss(NamedTuple):
    """The two objectives, on logits; a discriminator's also tells how real each half looked to it, D(x) and D(G(z))."""

    discriminator: Callable[..., tuple[Tensor, Tensor, Tensor]]  # (real, fake, smoothing=0, impl="auto") -> 3 scalars
    generator: Callable[..., Tensor]  # (fake, impl="auto") -> ()
    score: Callable[[Tensor], Tensor] = lambda logits: logits  # logits -> (N,), what R1 holds flat


def _logistic(real: Tensor, fake: Tensor, smoothing: float = 0.0, impl: str = "auto") -> tuple[Tensor, Tensor, Tensor]:
    on_real, d_real = ops.logistic_loss(real, (1 - smoothing,), impl=impl)
    on_fake, d_fake = ops.logistic_loss(fake, (0.0,), impl=impl)
    return (on_real + on_fake)[0], d_real[0], d_fake[0]


def _told(loss: Callable[[Tensor, Tensor], Tensor], probability: Callable[[Tensor], Tensor]) -> Callable[..., tuple[
        Tensor, Tensor, Tensor]]:
    """A discriminator's loss with the mean of what `probability` makes of its logits."""
    def discriminator(real: Tensor, fake: Tensor, smoothing: float = 0.0, impl: str = "auto") -> tuple[
            Tensor, Tensor, Tensor]:
        return loss(real, fake), *(probability(logits.detach()).mean() for logits in (real, fake))  # type: ignore[return-value]

    return discriminator


def _same(logits: Tensor) -> Tensor:
    return logits


def _class(logits: Tensor, label: int) -> Tensor:
    return F.cross_entropy(logits, torch.full_like(logits[:, 0], label, dtype=torch.long))


LOSSES = {
    "bce": Loss(_logistic, lambda fake, impl="auto": ops.logistic_loss(fake, (1.0,), impl=impl)[0][0]),
    "minimax": Loss(_logistic, lambda fake, impl="auto": -ops.logistic_loss(fake, (0.0,), impl=impl)[0][0]),
    "softmax": Loss(_told(lambda real, fake: _class(real, 1) + _class(fake, 0), lambda logits: logits.softmax(1)[:, 1]),
                    lambda fake, impl="auto": _class(fake, 1), lambda logits: logits[:, 1] - logits[:, 0]),
    "least-squares": Loss(_told(lambda real, fake: ((real - 1).square().mean() + fake.square().mean()) / 2, _same),
                          lambda fake, impl="auto": (fake - 1).square().mean() / 2),
    "hinge": Loss(_told(lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(), torch.sigmoid),
                  lambda fake, impl="auto": -fake.mean()),
    "wgan-gp": Loss(_told(lambda real, fake: fake.mean() - real.mean(), _same),
                    lambda fake, impl="auto": -fake.mean()),
}


def gradient_penalty(discriminator: Callable[..., Tensor], real: Tensor, fake: Tensor,
                     labels: tuple[Tensor, ...]) -> Tensor:
    """E[(|grad D(x)| - 1)^2] at points drawn uniformly between real (N, ...) and fake (N, ...); a scalar."""
    mix = torch.rand(len(real), *[1] * (real.dim() - 1), device=real.device, dtype=real.dtype)
    between = torch.lerp(real, fake, mix).requires_grad_()
    (slope,) = torch.autograd.grad(discriminator(between, *labels).sum(), between, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()


def r1_penalty(scores: Tensor, real: Tensor) -> Tensor:
    """E[|grad D(x)|^2] / 2 at real images with scores D(x) (N,) (Mescheder et al. 2018); `real` requires gradients."""
    (slope,) = torch.autograd.grad(scores.sum(), real, create_graph=True)
    return slope.flatten(1).square().sum(1).mean() / 2
