"""The stage and the loss for autograd, around the operators of `library.py`.

A gradient of a gradient (create_graph=True: gradient penalties) is taken through the same formulas in PyTorch's own
operators, `reference.stage_backward` and its like, which differentiate any number of times.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastgan.ops import library, reference
from fastgan.ops.layers import Activation, Convolution, Measurement, Owed


class _Stage(torch.autograd.Function):
    """(x, statistics, gamma, beta, weight, bias) -> y, statistics of y."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, statistics: Tensor | None, gamma: Tensor | None, beta: Tensor | None,
                weight: Tensor, bias: Tensor | None, engine: str, activation: Activation, geometry: tuple[Any, ...],
                fuse: bool, groups: int, measurement: Measurement | None) -> tuple[Tensor, Tensor]:
        measured = measurement is not None
        y, out = library.stage(engine, x, statistics, gamma, beta, activation.name, activation.negative_slope, weight,
                               bias, *geometry, fuse, groups, measured, *(measurement or Measurement()))
        ctx.save_for_backward(x, statistics, gamma, beta, weight, bias, y, out)
        ctx.static = engine, activation, geometry, fuse, None if measurement is None else measurement.spread
        ctx.set_materialize_grads(False)
        if not measured:
            ctx.mark_non_differentiable(out)
        return y, out

    @staticmethod
    def backward(ctx: Any, gy: Tensor | None, gout: Tensor | None) -> tuple[Tensor | None, ...]:
        x, statistics, gamma, beta, weight, bias, y, out = ctx.saved_tensors
        engine, activation, geometry, fuse, spread = ctx.static
        if spread is None:
            gout, spread = None, "var"  # nothing measured; a compiler may still send zeros
        if gy is None and gout is None:
            return (None,) * 12
        gy = torch.zeros_like(y) if gy is None else gy
        wants = ctx.needs_input_grad
        needs = (wants[0], wants[4], wants[5], any(wants[1:4]))
        if torch.is_grad_enabled():
            gx, gweight, gbias, gnorm = reference.stage_backward(
                gy, gout, y, out, x, Owed(statistics, gamma, beta, activation), Convolution(weight, bias, *geometry),
                spread, needs)
        else:
            gx, gweight, gbias, gnorm = library.stage_backward(
                engine, gy, gout, y, out, x, statistics, gamma, beta, activation.name, activation.negative_slope,
                weight, bias, *geometry, fuse, spread, needs)
            if wants[4] and gweight.stride() != weight.stride():
                # an optimizer that goes through memory (Adam, fused) takes strides for granted, on a CPU in silence
                gweight = torch.empty_like(weight).copy_(gweight)
        return (gx if wants[0] else None, *_of_norm(gnorm, statistics, gamma, beta, wants[1:4]),
                gweight if wants[4] else None, gbias if wants[5] else None, *(None,) * 6)


class _NormaliseActivate(torch.autograd.Function):
    """(x, statistics, gamma, beta) -> a."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, statistics: Tensor | None, gamma: Tensor | None, beta: Tensor | None,
                engine: str, activation: Activation) -> Tensor:
        ctx.save_for_backward(x, statistics, gamma, beta)
        ctx.static = engine, activation
        return library.normalise_activate(engine, x, statistics, gamma, beta, activation.name,
                                          activation.negative_slope)

    @staticmethod
    def backward(ctx: Any, gout: Tensor) -> tuple[Tensor | None, ...]:
        x, statistics, gamma, beta = ctx.saved_tensors
        (engine, activation), wants = ctx.static, ctx.needs_input_grad
        if torch.is_grad_enabled():
            gx, gnorm = reference.normalise_activate_backward(gout, x, Owed(statistics, gamma, beta, activation))
        else:
            gx, gnorm = library.normalise_activate_backward(engine, gout, x, statistics, gamma, beta,
                                                            activation.name, activation.negative_slope)
        return gx if wants[0] else None, *_of_norm(gnorm, statistics, gamma, beta, wants[1:4]), None, None


class _LogisticLoss(torch.autograd.Function):
    """logits -> loss, probability."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, engine: str, targets: tuple[float, ...]) -> tuple[Tensor, Tensor]:
        loss, probability, gradient = library.logistic_loss(engine, logits, targets)
        ctx.save_for_backward(logits, gradient)
        ctx.targets = targets
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(probability)
        return loss, probability

    @staticmethod
    def backward(ctx: Any, gloss: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, None, None]:
        if gloss is None:
            return None, None, None
        logits, gradient = ctx.saved_tensors
        if torch.is_grad_enabled():
            glogits = reference.logistic_loss_backward(gloss, logits, ctx.targets)
        else:
            glogits = (gradient.view(len(gloss), -1) * gloss[:, None]).flatten()  # [G, N / G]
        return glogits.to(logits.dtype), None, None


def stage(engine: str, x: Tensor, owed: Owed, convolution: Convolution, groups: int, measurement: Measurement | None,
          fuse: bool) -> tuple[Tensor, Tensor]:
    """y (N, Co, Ho, Wo), channels_last, and its statistics [2, G, Co], (0,) without a measurement."""
    weight, bias, *geometry = convolution
    return _Stage.apply(x, *owed[:3], weight, bias, engine, owed.activation, tuple(geometry), fuse, groups, measurement)


def normalise_activate(engine: str, x: Tensor, owed: Owed) -> Tensor:
    if owed.statistics is None and owed.activation.name == "none":
        return x
    return _NormaliseActivate.apply(x, *owed[:3], engine, owed.activation)


def logistic_loss(engine: str, logits: Tensor, targets: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Loss and probability (G,)."""
    loss, probability = _LogisticLoss.apply(logits, engine, targets)
    return loss, probability


def _of_norm(gnorm: Tensor, statistics: Tensor | None, gamma: Tensor | None, beta: Tensor | None,
             wants: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Gradients of statistics, gamma and beta, in their shapes, from [4, G, C]."""
    if statistics is None or gamma is None or beta is None or not any(wants):
        return None, None, None
    gstatistics = gnorm[:2] if statistics.shape[1] == gnorm.shape[1] else gnorm[:2].sum(1, keepdim=True)
    affine = gnorm[2:]
    if gamma.numel() == beta.numel() == gnorm.shape[2] < affine[0].numel():
        affine = affine.sum(1)
    ggamma, gbeta = (g.view(part.shape) if g.numel() == part.numel() else g.sum(0).view(part.shape)
                     for g, part in zip(affine, (gamma, beta), strict=True))
    return tuple(g if wanted else None for g, wanted in zip((gstatistics, ggamma, gbeta), wants, strict=True))
