"""Convolutions, normalizations, activations and the loss in PyTorch operators, for any dtype and device.

They are differentiable any number of times, and the passes of `reference.py` consist of them. `conv_bn_act` is the
reference engine of a single process: it equals eager layers bit for bit, and on a CPU `torch.batch_norm` is several
times faster than the same arithmetic in separate operators.

The loss of each of G equal parts of the logits l, with target t and sigma = sigmoid, is the mean over the part of
t f(l) + (1 - t) f(-l), and its gradient is (t f'(l) - (1 - t) f'(-l)) / (number of logits in the part), with

    kind        f(l)                                f'(l)               score
    logistic    softplus(-l) = -log sigma(l)        -sigma(-l)          mean of sigma(l)
    hinge       max(0, 1 - l)                       -1 where l < 1      mean of sigma(l)
    wgan        -l                                  -1                  mean of l
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastgan.errors import FastganError
from fastgan.ops import convolutions
from fastgan.ops.specs import Activation, BlockSpec, BlockTensors, ConvSpec, NormSpec


def conv_bn_act(x: Tensor, tensors: BlockTensors, spec: BlockSpec) -> Tensor:
    """act(batch_norm(conv(x))) of x (N, C, H, W), as the eager layers compute it."""
    y = convolve(x, tensors.weight, tensors.bias, spec.conv)
    return activate(y if spec.norm is None else batch_norm(y, tensors, spec.norm), spec.activation)


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of statistics of tensors in `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def activate(x: Tensor, activation: Activation) -> Tensor:
    """act(x); in x if the activation is in-place."""
    name, negative_slope, inplace = activation
    if name == "relu":
        return F.relu(x, inplace)
    if name == "leaky_relu":
        return F.leaky_relu(x, negative_slope, inplace)
    return torch.tanh(x) if name == "tanh" else x


def pack_bits(condition: Tensor) -> Tensor:
    """The elements of a bool tensor (N, C, H, W) in the order of channels_last memory, 8 in each byte, the first in the
    lowest bit: uint8 (ceil(N C H W / 8),)."""
    flat = condition.permute(0, 2, 3, 1).flatten()
    bits = F.pad(flat, (0, -flat.numel() % 8)).view(-1, 8).to(torch.uint8)
    return (bits << torch.arange(8, dtype=torch.uint8, device=bits.device)).sum(1, dtype=torch.uint8)


def unpack_bits(bits: Tensor, like: Tensor) -> Tensor:
    """The bool tensor of the shape of `like` (N, C, H, W) of which `pack_bits` has returned `bits`."""
    n, c, h, w = like.shape
    flat = (bits[:, None] >> torch.arange(8, dtype=torch.uint8, device=bits.device)) & 1
    return flat.flatten()[: like.numel()].view(n, h, w, c).permute(0, 3, 1, 2).to(torch.bool)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, conv: ConvSpec) -> Tensor:
    """conv(x, weight) + bias (N, Co, Ho, Wo); a view if output_padding is negative."""
    stride, padding, output_padding, transposed = conv
    if transposed:
        y = convolutions.conv_transpose2d(x, weight, bias, stride, padding, _natural(output_padding))
        h, w = conv.output_size(x, weight)
        return y[..., :h, :w] if min(output_padding) < 0 else y
    return convolutions.conv2d(_lengthened(x, weight, conv), weight, bias, stride, padding)


def _natural(output_padding: tuple[int, int]) -> tuple[int, int]:
    return max(0, output_padding[0]), max(0, output_padding[1])


def _lengthened(x: Tensor, weight: Tensor, conv: ConvSpec) -> Tensor:
    """x, padded at its end with the zeros that a convolution of positive `output_padding` reads."""
    if conv.output_padding == (0, 0):
        return x
    more = [max(0, (out - 1) * step + k - 2 * pad - side) for out, step, k, pad, side in zip(
        conv.output_size(x, weight), conv.stride, weight.shape[2:], conv.padding, x.shape[2:], strict=True)]
    return F.pad(x, (0, more[1], 0, more[0]))


def convolve_backward(g: Tensor, x: Tensor, weight: Tensor, conv: ConvSpec, *, needs_x: bool = False,
                      needs_weight: bool = False) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight from g, that of the result of `convolve`; None if not needed."""
    stride, padding, output_padding, transposed = conv
    height, width = x.shape[2:]
    if transposed:
        natural = _natural(output_padding)
        if natural != output_padding:
            g = F.pad(g, (0, natural[1] - output_padding[1], 0, natural[0] - output_padding[0]))
    else:
        x, natural = _lengthened(x, weight, conv), (0, 0)
    gx, gweight = convolutions.backward(g, x, weight, stride, padding, natural, transposed, (needs_x, needs_weight))
    return gx[..., :height, :width] if needs_x else gx, gweight


def measure(y: Tensor, groups: int = 1) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (G, C) of `groups` equal parts of the batch y (N, C, H, W)."""
    parts = y.to(statistics_dtype(y.dtype)).unflatten(0, (groups, y.shape[0] // groups))  # [G, N / G, C, H, W]
    var, mean = torch.var_mean(parts, (1, 3, 4), correction=0)
    return mean, var


@torch.no_grad()
def update_running_statistics(running_mean: Tensor, running_var: Tensor, num_batches_tracked: Tensor | None,
                              mean: Tensor, var: Tensor, count: int, momentum: float | None) -> None:
    """Update running statistics (C,) in place by mean and biased var (G, C) of `count` elements each, group by group.

    The result is that of G calls of `nn.BatchNorm2d`, with the unbiased variance; momentum None averages all batches.
    """
    if count < 2:
        raise FastganError(f"count {count}: expected more than 1 value per channel, or there is no unbiased variance")
    if momentum is None and num_batches_tracked is None:
        raise FastganError("momentum None: a cumulative average needs num_batches_tracked")
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


def batch_norm(x: Tensor, tensors: BlockTensors, norm: NormSpec) -> Tensor:
    """`nn.BatchNorm2d` of x (N, C, H, W); with batch statistics, of each group of images in order."""
    if norm.groups == 1 or not norm.batch_statistics:
        return _batch_norm(x, tensors, norm)
    # not unbind: torch.batch_norm's backward on the CPU (2.14) is wrong for one image of a channels_last batch whose
    # stride over the batch is not its size
    size = x.shape[0] // norm.groups
    return torch.cat([_batch_norm(part, tensors, norm) for part in x.split([size] * norm.groups)])


def _batch_norm(x: Tensor, tensors: BlockTensors, norm: NormSpec) -> Tensor:
    _, _, gamma, beta, running_mean, running_var, num_batches_tracked = tensors
    factor = norm.momentum
    if num_batches_tracked is not None:
        num_batches_tracked.add_(1)
        if factor is None:
            factor = 1.0 / float(num_batches_tracked)
    return F.batch_norm(x, running_mean, running_var, gamma, beta, norm.batch_statistics,
                        0.0 if factor is None else factor, norm.eps)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which no operation on `device` is computed in the dtype of autocast."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


@torch.no_grad()
def power_iteration(matrix: Tensor, u: Tensor, v: Tensor) -> None:
    """u = normalize(W v), then v = normalize(W' u), in place, for a matrix W (R, K) with vectors u (R,) and v (K,)."""
    u.copy_(F.normalize(torch.mv(matrix, v), dim=0))
    v.copy_(F.normalize(torch.mv(matrix.t(), u), dim=0))


_LOSS: dict[str, Callable[[Tensor], Tensor]] = {
    "logistic": lambda x: F.softplus(-x), "hinge": lambda x: F.relu(1 - x), "wgan": torch.neg}
_SLOPE: dict[str, Callable[[Tensor], Tensor]] = {
    "logistic": lambda x: -(-x).sigmoid(), "hinge": lambda x: (1 - x <= 0).to(x.dtype) - 1,
    "wgan": lambda x: torch.full_like(x, -1)}


def gan_loss(logits: Tensor, targets: Sequence[float], kind: str) -> tuple[Tensor, Tensor]:
    """Loss and score (G,) of equal parts of logits (N,), each with its target; the score is detached."""
    parts, f = logits.to(statistics_dtype(logits.dtype)).chunk(len(targets)), _LOSS[kind]
    loss = torch.stack([_towards(f, part, target).mean() for part, target in zip(parts, targets, strict=True)])
    scores = [part.detach() if kind == "wgan" else part.detach().sigmoid() for part in parts]
    return loss, torch.stack([score.mean() for score in scores])


def _towards(loss: Callable[[Tensor], Tensor], logits: Tensor, target: float) -> Tensor:
    if target in (0, 1):  # not 0 * inf, for an infinite logit of the right sign
        return loss(logits if target else -logits)
    return target * loss(logits) + (1 - target) * loss(-logits)


def gan_loss_backward(gloss: Tensor, logits: Tensor, targets: Sequence[float], kind: str) -> Tensor:
    """Gradient of logits (N,), in the loss's dtype, from that of the loss (G,)."""
    parts, slope = logits.to(statistics_dtype(logits.dtype)).chunk(len(targets)), _SLOPE[kind]
    return torch.cat([(target * slope(part) - (1 - target) * slope(-part)) * (g / part.shape[0])
                      for part, target, g in zip(parts, targets, gloss, strict=True)])
