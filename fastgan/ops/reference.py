"""Convolutions, batch normalisations, activations and the loss in plain PyTorch operators, for any dtype and device.

Differentiable by autograd any number of times. `passes.py` is made of these, and the engine "reference" where nothing
else is asked for: `torch.batch_norm` is on a CPU several times faster than the same arithmetic spelled out, and bit for
bit what the eager layers compute.

The loss of logits l of which G equal parts have targets t, with sigma = sigmoid, is the mean over a part of

    t softplus(-l) + (1 - t) softplus(l) = -t log sigma(l) - (1 - t) log(1 - sigma(l))

and its gradient ((1 - t) sigma(l) - t sigma(-l)) / (logits in a part).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fastgan.errors import FastganError
from fastgan.ops import convolutions
from fastgan.ops.layers import Activation, BatchNorm, Block, Convolution


def block(x: Tensor, block: Block, groups: int = 1) -> Tensor:
    """act(batch_norm(conv(x))) of x (N, C, H, W), as the eager layers compute it."""
    y = convolve(x, block.convolution)
    return activate(y if block.norm is None else batch_norm(y, block.norm, groups), block.activation)


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def activate(x: Tensor, activation: Activation) -> Tensor:
    name, negative_slope, inplace = activation
    if name == "relu":
        return F.relu(x, inplace)
    if name == "leaky_relu":
        return F.leaky_relu(x, negative_slope, inplace)
    return torch.tanh(x) if name == "tanh" else x


def convolve(x: Tensor, convolution: Convolution) -> Tensor:
    weight, bias, stride, padding, output_padding, transposed = convolution
    if transposed:
        y = convolutions.conv_transpose2d(x, weight, bias, stride, padding, _natural(output_padding))
        h, w = convolution.size(x)
        return y[..., :h, :w] if min(output_padding) < 0 else y
    return convolutions.conv2d(_lengthened(x, convolution), weight, bias, stride, padding)


def _natural(output_padding: tuple[int, int]) -> tuple[int, int]:
    return max(0, output_padding[0]), max(0, output_padding[1])


def _lengthened(x: Tensor, convolution: Convolution) -> Tensor:
    """x with the zeros at its end that a convolution of positive `output_padding` reads there."""
    if convolution.output_padding == (0, 0):
        return x
    more = [max(0, (out - 1) * step + k - 2 * pad - side) for out, step, k, pad, side in zip(
        convolution.size(x), convolution.stride, convolution.weight.shape[2:], convolution.padding, x.shape[2:],
        strict=True)]
    return F.pad(x, (0, more[1], 0, more[0]))


def convolve_backward(g: Tensor, a: Tensor, convolution: Convolution,
                      needs: tuple[bool, bool, bool]) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, weight and bias from that of `convolve`'s result; None where not needed."""
    weight, bias, stride, padding, output_padding, transposed = convolution
    height, width = a.shape[2:]
    if transposed:
        natural = _natural(output_padding)
        if natural != output_padding:
            g = F.pad(g, (0, natural[1] - output_padding[1], 0, natural[0] - output_padding[0]))
    else:
        a, natural = _lengthened(a, convolution), (0, 0)
    ga, gweight, gbias = convolutions.backward(g, a, weight, bias, stride, padding, natural, transposed, needs)
    return ga[..., :height, :width] if needs[0] else ga, gweight, gbias


def measure(y: Tensor, groups: int = 1) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (G, C) of `groups` equal parts of the batch y (N, C, H, W)."""
    parts = y.to(statistics_dtype(y.dtype)).unflatten(0, (groups, y.shape[0] // groups))  # [G, N / G, C, H, W]
    var, mean = torch.var_mean(parts, (1, 3, 4), correction=0)
    return mean, var


@torch.no_grad()
def update_running_statistics(running_mean: Tensor, running_var: Tensor, num_batches_tracked: Tensor | None,
                              mean: Tensor, var: Tensor, count: int, momentum: float | None) -> None:
    """Update running statistics (C,) in place by mean and biased var (G, C) of `count` elements each, group by group.

    As `nn.BatchNorm2d` does in G calls: with the unbiased variance; `momentum` None averages all batches so far.
    """
    if count < 2:
        raise FastganError(f"count {count}: expected more than 1 value per channel, or there is no unbiased variance")
    if momentum is None and num_batches_tracked is None:
        raise FastganError("momentum None without num_batches_tracked: a plain average counts its batches")
    for group_mean, group_var in zip(mean, var * count / (count - 1), strict=True):
        if num_batches_tracked is not None:
            num_batches_tracked.add_(1)
        if momentum is not None:
            factor: float | Tensor = momentum
        else:
            assert num_batches_tracked is not None
            factor = num_batches_tracked.to(group_mean.dtype).reciprocal()
        running_mean.copy_((1 - factor) * running_mean + factor * group_mean)
        running_var.copy_((1 - factor) * running_var + factor * group_var)


def batch_norm(x: Tensor, norm: BatchNorm, groups: int = 1) -> Tensor:
    """`nn.BatchNorm2d` on x (N, C, H, W); on each of `groups` equal parts in order where it takes their statistics."""
    if groups == 1 or not norm.batch_statistics:
        return _batch_norm(x, norm)
    # not unbind: torch.batch_norm's backward on the CPU (2.14) is wrong for one image of a channels_last batch whose
    # stride over the batch is not its size
    return torch.cat([_batch_norm(part, norm) for part in x.split([x.shape[0] // groups] * groups)])


def _batch_norm(x: Tensor, norm: BatchNorm) -> Tensor:
    factor = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if factor is None:
            factor = 1.0 / float(norm.num_batches_tracked)
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.gamma, norm.beta, norm.batch_statistics,
                        0.0 if factor is None else factor, norm.eps)


def logistic_loss(logits: Tensor, targets: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Loss and probability (G,) of equal parts of logits (N,), each with its target; the second is detached."""
    parts = logits.to(statistics_dtype(logits.dtype)).chunk(len(targets))
    loss = torch.stack([_logistic(part, target).mean() for part, target in zip(parts, targets, strict=True)])
    return loss, torch.stack([part.detach().sigmoid().mean() for part in parts])


def _logistic(logits: Tensor, target: float) -> Tensor:
    if target in (0, 1):  # not 0 * inf for a logit that is sure of what is true
        return F.softplus(-logits if target else logits)
    return target * F.softplus(-logits) + (1 - target) * F.softplus(logits)


def logistic_loss_backward(gloss: Tensor, logits: Tensor, targets: Sequence[float]) -> Tensor:
    """Gradient of logits (N,), in the loss's dtype, from that of the loss (G,)."""
    parts = logits.to(statistics_dtype(logits.dtype)).chunk(len(targets))
    return torch.cat([((1 - target) * part.sigmoid() - target * (-part).sigmoid()) * (g / part.shape[0])
                      for part, target, g in zip(parts, targets, gloss, strict=True)])
