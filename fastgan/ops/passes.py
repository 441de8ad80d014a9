"""The passes of an operation a = act(batch_norm(conv(x, weight) + bias)), defined in PyTorch operators.

    conv_forward       y = conv(x, weight) + bias
    conv_act_forward   a = act(y), without batch normalization
    bn_act_forward     a = act(z),  z = gamma * xhat + beta,  xhat = (y - mean) * rstd
    bn_backward_sums   sum gz and sum gz * xhat [2, G, C],  gz = ga * act'(z)
    bn_backward_apply  g = gamma * rstd * (gz - (sum gz + xhat * sum (gz * xhat)) / M), and gradients of gamma and beta
    act_backward       g = ga * act'(z), without batch normalization
    dgrad, wgrad       gradients of x and of weight from g

with mean = E[y] and rstd = 1 / sqrt(E[(y - mean)^2] + eps) over the M elements of a channel in each of G equal parts of
the batch. y is rounded to the dtype of x before its statistics are taken. Statistics and everything between y and a are
float32, or float64 for float64. Every pass is differentiable with respect to each of its tensors.

x, y, a, g, ga (N, C, H, W); gamma, beta (C,) or None; mean, rstd (G, C), or (1, C) where running statistics are used.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastgan.ops.layers import Activation, Convolution
from fastgan.ops.reference import (
    activate,
    convolve,
    convolve_backward,
    measure,
    statistics_dtype,
    update_running_statistics,
)
from fastgan.ops.specs import BlockSpec, ConvSpec, NormSpec


class RunningStats(NamedTuple):
    """Buffers of a batch normalization, updated in place: mean and var (C,) or None, num_batches_tracked () or None."""

    mean: Tensor | None = None
    var: Tensor | None = None
    num_batches_tracked: Tensor | None = None


def conv_forward(x: Tensor, weight: Tensor, bias: Tensor | None, conv: ConvSpec) -> tuple[Tensor, Tensor | None]:
    """y, never a view, and its statistics [2, G, C], or None where the convolution takes none, as here."""
    y = convolve(x, Convolution(weight, bias, *conv))
    return y.clone() if min(conv.output_padding) < 0 else y, None  # which `convolve` has cut off: a view


def conv_act_forward(x: Tensor, weight: Tensor, bias: Tensor | None, spec: BlockSpec) -> tuple[Tensor, Tensor]:
    """a, and what `act_backward` needs beside it: the mask z > 0 of a leaky_relu that is not in-place, else (0,)."""
    y, _ = conv_forward(x, weight, bias, spec.conv)
    masked = spec.activation.name == "leaky_relu" and not spec.activation.inplace
    mask = y > 0 if masked else y.new_empty(0, dtype=torch.bool)
    return activate(y, spec.activation._replace(inplace=not torch.is_grad_enabled())), mask


def bn_act_forward(y: Tensor, statistics: Tensor | None, gamma: Tensor | None, beta: Tensor | None,
                   running: RunningStats, count: int, spec: BlockSpec) -> tuple[Tensor, Tensor, Tensor]:
    """a, mean and rstd; the running statistics are updated.

    statistics: mean and biased variance [2, G, C] of the batch, None to take them from y. count: M, over all processes.
    """
    norm = _norm_of(spec)
    if norm.batch_statistics:
        mean, var = measure(y, norm.groups) if statistics is None else statistics.unbind()
        _update(running, mean.detach(), var.detach(), count, norm)
    else:
        assert running.mean is not None and running.var is not None
        mean, var = (part.to(statistics_dtype(y.dtype), copy=True)[None] for part in (running.mean, running.var))
    rstd = torch.rsqrt(var + norm.eps)
    scale, shift = _affine(mean, gamma, beta)
    z = scale * _normalized(y, mean, rstd) + shift
    return activate(z, spec.activation._replace(inplace=not torch.is_grad_enabled())).to(y.dtype), mean, rstd


def bn_backward_sums(ga: Tensor, y: Tensor, mean: Tensor, rstd: Tensor, gamma: Tensor | None, beta: Tensor | None,
                     spec: BlockSpec) -> Tensor:
    """[2, G, C], or [2, 1, C] where running statistics are used."""
    gz, xhat = _gz_and_xhat(ga, y, mean, rstd, gamma, beta, spec)
    return torch.stack([part.unflatten(0, (len(mean), -1)).sum((1, 3, 4)) for part in (gz, gz * xhat)])


def bn_backward_apply(ga: Tensor, y: Tensor, mean: Tensor, rstd: Tensor, gamma: Tensor | None, beta: Tensor | None,
                      sums: Tensor | None, count: int, spec: BlockSpec) -> Tensor:
    """g. sums and count, M, are those of all processes; sums are not used with running statistics."""
    gz, xhat = _gz_and_xhat(ga, y, mean, rstd, gamma, beta, spec)
    if spec.trains:
        assert sums is not None
        gbeta, ggamma = (_of_images(part, len(y)) for part in sums)
        gz = gz - (gbeta + xhat * ggamma) / count
    return (gz * (_affine(mean, gamma, None)[0] * _of_images(rstd, len(y)))).to(ga.dtype)


def act_backward(ga: Tensor, kept: Tensor, activation: Activation) -> Tensor:
    """g. kept: a itself, or for leaky_relu the mask z > 0."""
    name, slope, _ = activation
    if name == "relu":
        return torch.where(kept <= 0, 0, ga)
    if name == "leaky_relu":
        return torch.where(kept if kept.dtype == torch.bool else kept > 0, ga, ga * slope)
    return ga * (1 - kept * kept) if name == "tanh" else ga


def dgrad(g: Tensor, x: Tensor, weight: Tensor, conv: ConvSpec) -> Tensor:
    """Gradient of x; only its shape, dtype and layout are read."""
    return convolve_backward(g, x, Convolution(weight, None, *conv), (True, False, False))[0]


def wgrad(g: Tensor, x: Tensor, weight: Tensor, conv: ConvSpec) -> Tensor:
    """Gradient of weight; only its shape, dtype and layout are read."""
    return convolve_backward(g, x, Convolution(weight, None, *conv), (False, True, False))[1]


def _norm_of(spec: BlockSpec) -> NormSpec:
    assert spec.norm is not None
    return spec.norm


def _of_images(part: Tensor, count: int) -> Tensor:
    """(G, C) of groups of a batch as (N, C, 1, 1) of its images, or (1, C, 1, 1)."""
    return (part if len(part) == 1 else part.repeat_interleave(count // len(part), 0))[:, :, None, None]


def _affine(mean: Tensor, gamma: Tensor | None, beta: Tensor | None) -> tuple[Tensor, Tensor]:
    """(C, 1, 1) in the dtype of the statistics."""
    gamma = torch.ones_like(mean[0]) if gamma is None else gamma.to(mean.dtype)
    beta = torch.zeros_like(mean[0]) if beta is None else beta.to(mean.dtype)
    return gamma[:, None, None], beta[:, None, None]


def _normalized(y: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    """xhat."""
    return (y.to(mean.dtype) - _of_images(mean, len(y))) * _of_images(rstd, len(y))


def _gz_and_xhat(ga: Tensor, y: Tensor, mean: Tensor, rstd: Tensor, gamma: Tensor | None, beta: Tensor | None,
                 spec: BlockSpec) -> tuple[Tensor, Tensor]:
    xhat, (scale, shift) = _normalized(y, mean, rstd), _affine(mean, gamma, beta)
    z = scale * xhat + shift
    kept = z > 0 if spec.activation.name == "leaky_relu" else activate(z, spec.activation._replace(inplace=False))
    return act_backward(ga.to(mean.dtype), kept, spec.activation), xhat


def _update(running: RunningStats, mean: Tensor, var: Tensor, count: int, norm: NormSpec) -> None:
    if running.mean is not None and running.var is not None:
        update_running_statistics(running.mean, running.var, running.num_batches_tracked, mean, var, count,
                                  norm.momentum)
    elif running.num_batches_tracked is not None:
        running.num_batches_tracked.add_(norm.groups)
