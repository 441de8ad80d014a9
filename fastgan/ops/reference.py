"""The passes of an operation a = act(batch_norm(conv(x, weight) + bias)), defined in PyTorch operators.

    conv_forward       y = conv(x, weight) + bias, and if requested its mean and variance
    conv_act_forward   a = act(y), without batch normalization
    bn_act_forward     a = act(z),  z = gamma * xhat + beta,  xhat = (y - mean) * rstd
    bn_backward_sums   sum gz and sum gz * xhat [2, G, C],  gz = ga * act'(z); over all groups [2, C], or (0,) of one
    bn_backward_apply  g = gamma * rstd * (gz - (sum gz + xhat * sum gz * xhat) / M)
    act_backward       g = ga * act'(z), without batch normalization
    dgrad, wgrad       gradients of x and of weight from g
    gan_loss           a loss of parts of a batch of logits, with its gradient
    spectral_norm      weights divided by their largest singular values; spectral_norm_backward, their gradients

with mean = E[y] and rstd = 1 / sqrt(E[(y - mean)^2] + eps) over the M elements of a channel in each of G equal parts of
the batch. Statistics are computed from y in the dtype of x. Statistics and everything between y and a are float32, or
float64 for float64. Every pass is differentiable with respect to each of its tensors.

x, y, a, g, ga (N, C, H, W); gamma, beta (C,) or None; stats [2, G, C], mean and rstd; G = 1 for running statistics.
The module of an engine, such as `fastgan/ops/native/passes.py`, has the same passes under the same names.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastgan.ops import torch_ops
from fastgan.ops.casts import cast
from fastgan.ops.specs import IDENTITY, Activation, ConvSpec, NormSpec, RunningStats
from fastgan.ops.torch_ops import (
    activate,
    convolve,
    convolve_backward,
    measure,
    pack_bits,
    power_iteration,
    statistics_dtype,
    unpack_bits,
    update_running_statistics,
    without_autocast,
)


def conv_forward(x: Tensor, weight: Tensor, bias: Tensor | None, conv: ConvSpec, groups: int) -> tuple[Tensor, Tensor]:
    """y, never a view, and its mean and biased variance [2, G, C]; (0,) if G, `groups`, is 0."""
    y = convolve(x, weight, bias, conv)
    if min(conv.output_padding) < 0:
        y = y.clone()  # `convolve` has returned a view
    return y, torch.stack(measure(y, groups)) if groups else y.new_empty(0, dtype=statistics_dtype(y.dtype))


def conv_act_forward(x: Tensor, weight: Tensor, bias: Tensor | None, conv: ConvSpec,
                     activation: Activation) -> tuple[Tensor, Tensor]:
    """a, and `mask_of` y for `act_backward`."""
    y, _ = conv_forward(x, weight, bias, conv, 0)
    mask = mask_of(y, activation)
    return activate(y, activation._replace(inplace=not torch.is_grad_enabled())), mask


def mask_of(z: Tensor, activation: Activation) -> Tensor:
    """The mask z > 0 of a leaky_relu that is not in-place, as `pack_bits` returns it, else (0,)."""
    return pack_bits(z > 0) if activation.keeps_mask() else z.new_empty(0, dtype=torch.uint8)


def bn_act_forward(y: Tensor, statistics: Tensor | None, gamma: Tensor | None, beta: Tensor | None,
                   running: RunningStats, count: int, norm: NormSpec, activation: Activation) -> tuple[Tensor, Tensor]:
    """a and stats; the running statistics are updated.

    statistics: mean and biased variance [2, G, C] of the batch, None to compute them. count: M, over all processes.
    """
    stats = batch_stats(y, statistics, running, count, norm)
    scale, shift = _affine(stats, gamma, beta)
    z = scale * _normalized(y, stats) + shift
    return activate(z, activation._replace(inplace=not torch.is_grad_enabled())).to(y.dtype), stats


def batch_stats(y: Tensor, statistics: Tensor | None, running: RunningStats, count: int, norm: NormSpec) -> Tensor:
    """stats of a forward pass; arguments as in `bn_act_forward`."""
    if not norm.batch_statistics:
        assert running.mean is not None and running.var is not None
        mean, var = (part.to(statistics_dtype(y.dtype))[None] for part in (running.mean, running.var))
        return torch.stack([mean, torch.rsqrt(var + norm.eps)])
    mean, var = measure(y, norm.groups) if statistics is None else statistics.unbind()
    if running.mean is not None and running.var is not None:
        update_running_statistics(running.mean, running.var, running.num_batches_tracked, mean.detach(), var.detach(),
                                  count, norm.momentum)
    elif running.num_batches_tracked is not None:
        running.num_batches_tracked.add_(norm.groups)
    return torch.stack([mean, torch.rsqrt(var + norm.eps)])


def bn_backward_sums(ga: Tensor, y: Tensor, stats: Tensor, gamma: Tensor | None, beta: Tensor | None,
                     activation: Activation) -> tuple[Tensor, Tensor]:
    """Sums [2, G, C] over the elements of each group, and [2, C] over all groups, or (0,) if there is only one."""
    gz, xhat = _gz_and_xhat(ga, y, stats, gamma, beta, activation)
    sums = torch.stack([part.unflatten(0, (stats.shape[1], -1)).sum((1, 3, 4)) for part in (gz, gz * xhat)])
    return sums, over_groups(sums)


def over_groups(sums: Tensor) -> Tensor:
    """The sum [2, C] over the groups of sums [2, G, C]; (0,) if there is only one."""
    return sums.sum(1) if sums.shape[1] > 1 else sums.new_empty(0)


def bn_backward_apply(ga: Tensor, y: Tensor, stats: Tensor, gamma: Tensor | None, beta: Tensor | None,
                      sums: Tensor | None, count: int, activation: Activation) -> Tensor:
    """g. sums and count (M) are over all processes; sums is None with running statistics."""
    gz, xhat = _gz_and_xhat(ga, y, stats, gamma, beta, activation)
    if sums is not None:
        gbeta, ggamma = (_of_images(part, len(y)) for part in sums)
        gz = gz - (gbeta + xhat * ggamma) / count
    return (gz * (_affine(stats, gamma, None)[0] * _of_images(stats[1], len(y)))).to(ga.dtype)


def act_backward(ga: Tensor, saved: Tensor, activation: Activation) -> Tensor:
    """g. saved: a itself, or for leaky_relu the mask z > 0 as `pack_bits` returns it."""
    name, slope, _ = activation
    if name == "relu":
        return torch.where(saved <= 0, 0, ga)
    if name == "leaky_relu":
        return torch.where(unpack_bits(saved, ga) if saved.dtype == torch.uint8 else saved > 0, ga, ga * slope)
    return torch.ops.aten.tanh_backward(ga, saved) if name == "tanh" else ga


def dgrad(g: Tensor, x: Tensor, weight: Tensor, conv: ConvSpec) -> Tensor:
    """Gradient of x, of which only shape, dtype and layout are read."""
    return convolve_backward(g, x, weight, conv, needs_x=True)[0]


def wgrad(g: Tensor, x: Tensor, weight: Tensor, conv: ConvSpec, saved: Tensor | None = None,
          activation: Activation = IDENTITY) -> Tensor:
    """Gradient of weight, of which only shape, dtype and layout are read, in its dtype. saved: g is ga, to which
    `act_backward` is applied first."""
    g = g if saved is None else act_backward(g, saved, activation)
    return convolve_backward(g, x, cast(weight, x.dtype), conv, needs_weight=True)[1].to(weight.dtype)


def gan_loss(logits: Tensor, targets: Sequence[float], kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and score (G,) of equal parts of logits (N,), and the gradient (N,) of each part's loss."""
    loss, score = torch_ops.gan_loss(logits, targets, kind)
    return loss, score, torch_ops.gan_loss_backward(torch.ones_like(loss), logits, targets, kind)


def spectral_norm(weights: Sequence[Tensor], u: Sequence[Tensor], v: Sequence[Tensor], iterate: bool,
                  dtype: torch.dtype) -> tuple[tuple[Tensor, ...], ...]:
    """W / sigma of each weight W (R, ...) in `dtype`, and what its gradient needs: copies of u (R,), copies of v in the
    shape and strides of W[0], and sigma () = u' W v, of W as a matrix (R, K).

    iterate: change u (R,) and v (K,) in place by a power iteration before.
    """
    us, vs, sigmas = [], [], []
    with without_autocast(weights[0].device):
        for weight, one, other in zip(weights, u, v, strict=True):
            matrix = weight.flatten(1)
            if iterate:
                power_iteration(matrix, one, other)
            us.append(one.clone())
            vs.append(torch.empty_like(weight[0]).copy_(other.view_as(weight[0])))
            sigmas.append(torch.dot(one, torch.mv(matrix, other)))
    normalized = (weight / sigma for weight, sigma in zip(weights, sigmas, strict=True))
    return tuple(one.to(dtype) for one in normalized), tuple(us), tuple(vs), tuple(sigmas)


def spectral_norm_backward(grads: Sequence[Tensor], weights: Sequence[Tensor], us: Sequence[Tensor],
                           vs: Sequence[Tensor], sigmas: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients (g - sum(g * W) / sigma * u v') / sigma of weights W, from those of W / sigma."""
    def gradient(g: Tensor, weight: Tensor, u: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
        g = g.to(weight.dtype)
        return (g - (g * weight).sum() / sigma * outer(u, v)) / sigma

    return tuple(map(gradient, grads, weights, us, vs, sigmas))


def outer(u: Tensor, v: Tensor) -> Tensor:
    """u v' (R, ...) of u (R,) and v (...)."""
    return u.view(-1, *[1] * v.dim()) * v


def _of_images(part: Tensor, count: int) -> Tensor:
    """(G, C) of groups, repeated as (N, C, 1, 1) for the images of a batch; (1, C, 1, 1) if G is 1."""
    return (part if len(part) == 1 else part.repeat_interleave(count // len(part), 0))[:, :, None, None]


def _affine(stats: Tensor, gamma: Tensor | None, beta: Tensor | None) -> tuple[Tensor, Tensor]:
    """gamma and beta (C, 1, 1) in the dtype of the statistics; 1 and 0 if they are None."""
    mean = stats[0, 0]
    gamma = torch.ones_like(mean) if gamma is None else gamma.to(mean.dtype)
    beta = torch.zeros_like(mean) if beta is None else beta.to(mean.dtype)
    return gamma[:, None, None], beta[:, None, None]


def _normalized(y: Tensor, stats: Tensor) -> Tensor:
    """xhat."""
    mean, rstd = (_of_images(part, len(y)) for part in stats)
    return (y.to(stats.dtype) - mean) * rstd


def _gz_and_xhat(ga: Tensor, y: Tensor, stats: Tensor, gamma: Tensor | None, beta: Tensor | None,
                 activation: Activation) -> tuple[Tensor, Tensor]:
    xhat, (scale, shift) = _normalized(y, stats), _affine(stats, gamma, beta)
    z = scale * xhat + shift
    saved = z if activation.name == "leaky_relu" else activate(z, activation._replace(inplace=False))
    return act_backward(ga.to(stats.dtype), saved, activation), xhat
