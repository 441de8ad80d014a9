"""The definition: a stage of a DCGAN in plain PyTorch operators, for any dtype and device.

    a    = act(gamma * (x - mean) * rstd + beta)       (N, Ci, H, W), in x's dtype; zero outside the image
    y    = conv(a, weight) + bias                      (N, Co, Ho, Wo), or the transposed convolution
    mean = E[y],  var = E[(y - mean)^2]                (G, Co), over n in group g, h, w, of y as it is stored

and its gradient, for M elements per channel and group, given those of y and of its statistics,

    g  = gy + (gmean + 2 * gvar * (y - mean)) / M      or with -rstd^3 * grstd for 2 * gvar
    ga, gw, gbias = the convolution's gradients of g
    gz = ga * act'(z),  z = gamma * (x - mean) * rstd + beta
    gx = gz * gamma * rstd,  gbeta = sum gz,  ggamma = sum gz * (x - mean) * rstd
    gmean = -gamma * rstd * gbeta,  grstd = gamma * ggamma / rstd

Differentiable by autograd any number of times. `stage_backward` spells the gradient out, for engines of kernels: it is
what theirs are checked against, what stands in for one that fails, and what is differentiated where a gradient of a
gradient is asked for. 16-bit inputs are normalised and activated in float32 and rounded once; statistics are float32,
or float64 of float64.

The loss on logits l of which G equal parts shall say t, with sigma = sigmoid, is the mean over a part of

    t softplus(-l) + (1 - t) softplus(l) = -t log sigma(l) - (1 - t) log(1 - sigma(l))

and its gradient ((1 - t) sigma(l) - t sigma(-l)) / (logits in a part).

The normalisation may come as a `Norm`, with statistics that the stage before has measured, or as a `BatchNorm`, whose
statistics are then taken from x on the way in, by `torch.batch_norm`: on a CPU that is several times faster than the
same arithmetic spelt out, and bit for bit what the eager layers compute.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fastgan.errors import FastganError
from fastgan.ops import convolutions
from fastgan.ops.layers import Activation, BatchNorm, Convolution, Measurement, Norm, Owed


def stage(x: Tensor, norm: Norm | BatchNorm | None, activation: Activation, convolution: Convolution, *,
          groups: int = 1) -> Tensor:
    """y, raw; `measure` takes its statistics."""
    return convolve(normalise_activate(x, norm, activation, groups), convolution)


def normalise_activate(x: Tensor, norm: Norm | BatchNorm | None, activation: Activation, groups: int = 1) -> Tensor:
    """What is owed to a raw output x (N, C, H, W), in x's dtype; `groups` are those of a `BatchNorm`."""
    if isinstance(norm, Norm):
        wide = x.to(statistics_dtype(x.dtype))
        return activate(normalise(wide, norm), activation).to(x.dtype)
    return activate(x if norm is None else batch_norm(x, norm, groups), activation)


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def normalise(x: Tensor, norm: Norm) -> Tensor:
    """gamma * (x - mean) * rstd + beta for x (N, C, H, W), each (C,), or (G, C) for G equal parts of the batch."""
    groups = max(len(part) if part.dim() == 2 else 1 for part in norm)
    mean, rstd, gamma, beta = (part.view(-1, 1, part.shape[-1], 1, 1) for part in norm)  # [G or 1, 1, C, 1, 1]
    parts = x.unflatten(0, (groups, x.shape[0] // groups))  # [G, N / G, C, H, W]
    return (gamma * ((parts - mean) * rstd) + beta).flatten(0, 1)


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


def known(owed: Owed) -> Norm | None:
    """The normalisation of `owed`."""
    if owed.statistics is None:
        return None
    assert owed.gamma is not None and owed.beta is not None
    return Norm(owed.statistics[0], owed.statistics[1], owed.gamma, owed.beta)


@torch.no_grad()
def measured(y: Tensor, groups: int, measurement: Measurement) -> Tensor:
    """The statistics [2, G, C] of y, raw, that a measurement asks for; the running ones updated."""
    mean, var = measure(y, groups)
    if measurement.running_mean is not None and measurement.running_var is not None:
        update_running_statistics(measurement.running_mean, measurement.running_var, measurement.num_batches_tracked,
                                  mean, var, y.numel() // mean.numel(), measurement.momentum)
    elif measurement.num_batches_tracked is not None:
        measurement.num_batches_tracked.add_(groups)
    return torch.stack([mean, var if measurement.eps is None else torch.rsqrt(var + measurement.eps)])


def stage_backward(gy: Tensor, gstatistics: Tensor | None, y: Tensor, statistics: Tensor, x: Tensor, owed: Owed,
                   convolution: Convolution, spread: str,
                   needs: tuple[bool, bool, bool, bool]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias and of `owed` [4, G, C]: mean, rstd, gamma, beta; empty where not needed.

    gy, y: (N, Co, Ho, Wo). gstatistics, statistics: [2, G, Co] of mean and `spread`, "var" or "rstd".
    """
    needs_x, needs_weight, needs_bias, needs_norm = needs
    g, wide = gy, statistics_dtype(x.dtype)
    if gstatistics is not None:
        (gmean, gspread), (mean, deviation) = gstatistics, statistics
        steep = 2 * gspread if spread == "var" else -(deviation**3) * gspread
        parts = y.to(wide).unflatten(0, (len(mean), -1))  # [G, N / G, Co, Ho, Wo]
        gmean, steep, mean = (part[:, None, :, None, None] for part in (gmean, steep, mean))
        through = (gmean + steep * (parts - mean)) * (mean.numel() / y.numel())
        g = (gy.to(wide) + through.flatten(0, 1)).to(gy.dtype)
    weight, bias = convolution.weight, convolution.bias
    a = normalise_activate(x, known(owed), owed.activation._replace(inplace=False))  # x is another's
    ga, gweight, gbias = convolve_backward(g, a, convolution._replace(weight=weight.to(x.dtype)),
                                           (needs_x or needs_norm, needs_weight, needs_bias and bias is not None))
    gx, gnorm = (normalise_activate_backward(ga, x, owed) if needs_x or needs_norm
                 else (x.new_empty((0,)), x.new_empty((0,))))
    return (gx, gweight.to(weight.dtype) if needs_weight else x.new_empty((0,)),
            gbias.to(bias.dtype) if needs_bias and bias is not None else x.new_empty((0,)), gnorm)


def bias_gradient(gy: Tensor, gstatistics: Tensor | None) -> Tensor:
    """Of a convolution's bias (Co,), float32, from those of y and of its statistics [2, G, Co], without g itself."""
    gbias = gy.sum((0, 2, 3), dtype=torch.float32)
    # what flows through the variance sums to zero
    return gbias if gstatistics is None else gbias + gstatistics[0].sum(0)


def normalise_activate_backward(ga: Tensor, x: Tensor, owed: Owed) -> tuple[Tensor, Tensor]:
    """Gradients of x (N, C, H, W) and of `owed` [4, G, C], empty without a normalisation, from that of the result."""
    wide = statistics_dtype(x.dtype)
    norm = known(owed)
    z = x.to(wide) if norm is None else normalise(x.to(wide), norm)
    gz = _through_activation(ga.to(wide), z, owed.activation)
    if norm is None:
        return gz.to(x.dtype), x.new_empty((0,))
    groups = owed.groups()
    mean, rstd, gamma, _ = (part.view(-1, 1, part.shape[-1], 1, 1) for part in norm)  # [G or 1, 1, C, 1, 1]
    parts, gz = x.to(wide).unflatten(0, (groups, -1)), gz.unflatten(0, (groups, -1))
    gx = (gz * (gamma * rstd)).flatten(0, 1).to(x.dtype)
    gbeta, ggamma = gz.sum((1, 3, 4)), (gz * ((parts - mean) * rstd)).sum((1, 3, 4))  # [G, C]
    gamma, rstd = gamma[:, 0, :, 0, 0], rstd[:, 0, :, 0, 0]
    return gx, torch.stack([-gamma * rstd * gbeta, gamma * ggamma / rstd, ggamma, gbeta])


def _through_activation(g: Tensor, z: Tensor, activation: Activation) -> Tensor:
    """g * act'(z)."""
    if activation.name == "relu":
        return torch.where(z <= 0, 0, g)
    if activation.name == "leaky_relu":
        return torch.where(z > 0, g, g * activation.negative_slope)
    return g * (1 - torch.tanh(z) ** 2) if activation.name == "tanh" else g


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
