"""The losses of both networks, on logits; r = D(x) and f = D(G(z)), sigma = sigmoid, E = mean over the batch.

    bce             D: E[-log sigma(r)] + E[-log(1 - sigma(f))]     G: E[-log sigma(f)]     Goodfellow et al. 2014
    minimax         D: as bce                                       G: E[log(1 - sigma(f))] Goodfellow et al. 2014
    softmax         cross-entropy of two classes, fake 0 and real 1; logits (N, 2)          G: fakes as class 1
    least-squares   D: (E[(r - 1)^2] + E[f^2]) / 2                  G: E[(f - 1)^2] / 2     Mao et al. 2017
    hinge           D: E[max(0, 1 - r)] + E[max(0, 1 + f)]          G: -E[f]                Lim and Ye 2017
    wgan            D: E[f] - E[r], with clipped weights            G: -E[f]                Arjovsky et al. 2017
    wgan-gp         D: E[f] - E[r] + gradient penalty               G: -E[f]                Gulrajani et al. 2017

One-sided label smoothing s (Salimans et al. 2016) of bce and minimax: the target of real images is 1 - s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastgan import ops
from fastgan.data.order import WHOLE, Shard
from fastgan.errors import FastganError

Criterion = Callable[[Tensor, Tensor], Tensor]  # (x, targets) -> ()
LossAndScore = tuple[Tensor, Tensor]  # scalars: a loss, and the mean probability, or logit, of images being real


class Loss(NamedTuple):
    """The objectives. The discriminator's loss is `real` + `fake`, unless `both` is given."""

    real: Callable[..., LossAndScore]  # (logits, smoothing=0, impl="auto")
    fake: Callable[..., LossAndScore]  # (logits, impl="auto")
    generator: Callable[..., Tensor]  # (logits of fakes, impl="auto") -> ()
    score: Callable[[Tensor], Tensor] = lambda logits: logits  # logits -> (N,), whose gradient R1 penalizes
    both: Callable[[Tensor, Tensor], Tensor] | None = None  # (logits of reals, logits of fakes) -> ()
    kind: str = ""  # of `ops.gan_loss`, if that is what `real` and `fake` are: one kernel computes both halves


def _towards(logits: Tensor, target: float, kind: str, impl: str) -> LossAndScore:
    loss, score = ops.gan_loss(logits, (target,), kind, impl=impl)
    return loss.view(()), score.view(())  # not [0], whose backward needs additional kernels


def _as_real(kind: str) -> Callable[..., Tensor]:
    """The generator's loss: that of real images."""
    return lambda x, impl="auto": _towards(x, 1.0, kind, impl)[0]


def _of_kind(kind: str, generator: Callable[..., Tensor]) -> Loss:
    return Loss(lambda x, smoothing=0.0, impl="auto": _towards(x, 1 - smoothing, kind, impl),
                lambda x, impl="auto": _towards(x, 0.0, kind, impl), generator, kind=kind)


def _class(logits: Tensor, label: int) -> LossAndScore:
    target = torch.full_like(logits[:, 0], label, dtype=torch.long)
    return F.cross_entropy(logits, target), logits.detach().softmax(1)[:, 1].mean()


def _mean(logits: Tensor, *_: Any) -> LossAndScore:
    mean = logits.mean()
    return mean, mean.detach()


def _score(loss: Tensor, logits: Tensor) -> LossAndScore:
    return loss, logits.detach().mean()


_WGAN = _of_kind("wgan", _as_real("wgan"))
# only those of `ops.gan_loss` use `smoothing` and `impl`
LOSSES = {
    "bce": _of_kind("logistic", _as_real("logistic")),
    "minimax": _of_kind("logistic", lambda x, impl="auto": -_towards(x, 0.0, "logistic", impl)[0]),
    "softmax": Loss(lambda x, *_: _class(x, 1), lambda x, *_: _class(x, 0), lambda x, *_: _class(x, 1)[0],
                    lambda x: x[:, 1] - x[:, 0]),
    "least-squares": Loss(lambda x, *_: _score((x - 1).square().mean() / 2, x),
                          lambda x, *_: _score(x.square().mean() / 2, x), lambda x, *_: (x - 1).square().mean() / 2),
    "hinge": _of_kind("hinge", _as_real("wgan")),
    "wgan": _WGAN,
    "wgan-gp": _WGAN,
}


def _of_criterion(criterion: Criterion) -> Loss:
    def towards(x: Tensor, target: float) -> Tensor:
        return criterion(x, torch.full_like(x, target))

    return Loss(lambda x, smoothing=0.0, *_: _score(towards(x, 1 - smoothing), x),
                lambda x, *_: _score(towards(x, 0.0), x), lambda x, *_: towards(x, 1.0))


# losses on probabilities, for a discriminator that ends in a sigmoid
_BCE = _of_criterion(F.binary_cross_entropy)
PROBABILITY_LOSSES = {"bce": _BCE, "minimax": _BCE._replace(generator=lambda x, *_: -_BCE.fake(x)[0])}


def as_loss(given: str | Criterion | tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]) -> Loss:
    """The objectives given by a name in `LOSSES` or by functions of the user.

    A single function, such as `nn.MSELoss()`, takes logits and their targets, 1 for real and 0 for fake. A pair of
    functions is the discriminator's loss, which takes the logits of reals and of fakes, and the generator's loss, which
    takes the logits of fakes. Raises `FastganError` for anything else.
    """
    if isinstance(given, str) and given in LOSSES:
        return LOSSES[given]
    if isinstance(given, tuple) and len(given) == 2 and all(map(callable, given)):
        discriminator, generator = given
        return Loss(_mean, _mean, lambda x, *_: generator(x), both=discriminator)
    if callable(given):
        return _of_criterion(given)
    raise FastganError(f"loss {given!r}: expected {', '.join(LOSSES)}, a function of logits and targets, or a pair of "
                       "functions: of the logits of reals and fakes, and of the logits of fakes")


def ends_in_sigmoid(logits: Tensor) -> bool:
    """Whether a differentiable tensor is the result of a sigmoid, possibly reshaped."""
    node: Any = logits.grad_fn
    while node is not None and node.name().startswith(_OF_SHAPE):
        node = node.next_functions[0][0]
    return node is not None and node.name() == "SigmoidBackward0"


# operations that do not change values
_OF_SHAPE = ("View", "UnsafeView", "Reshape", "Squeeze", "Unsqueeze", "Select", "Flatten", "Alias", "ToCopy", "Clone",
             "Permute", "Transpose", "Expand", "AsStrided")


def gradient_penalty(discriminator: Callable[..., Tensor], real: Tensor, fake: Tensor,
                     labels: tuple[Tensor, ...], shard: Shard = WHOLE) -> Tensor:
    """E[(|grad D(x)| - 1)^2] at points drawn uniformly between real (N, ...) and fake (N, ...), a scalar. shard: which
    part of the batch the images are."""
    count = len(real) * shard.of
    mix = shard.take(torch.rand(count, *[1] * (real.dim() - 1), device=real.device, dtype=real.dtype))
    between = torch.lerp(real, fake, mix).requires_grad_()
    (slope,) = torch.autograd.grad(discriminator(between, *labels).sum(), between, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()


def r1_penalty(scores: Tensor, real: Tensor) -> Tensor:
    """E[|grad D(x)|^2] / 2 at real images with scores D(x) (N,) (Mescheder et al. 2018); `real` requires gradients."""
    (slope,) = torch.autograd.grad(scores.sum(), real, create_graph=True)
    return slope.flatten(1).square().sum(1).mean() / 2
