"""`conv_bn_act`, `conv_transpose_bn_act` and `gan_loss`: arguments are checked, then an engine is called."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastgan.ops import autograd, engines, torch_ops
from fastgan.ops.arguments import (
    as_conv_spec,
    as_norm_spec,
    check_activation,
    check_convolution,
    check_groups,
    check_impl,
    check_logits,
)
from fastgan.ops.specs import Activation, BlockSpec, BlockTensors, ConvSpec


def conv_bn_act(x: Tensor, weight: Tensor, bias: Tensor | None = None, gamma: Tensor | None = None,
                beta: Tensor | None = None, running_mean: Tensor | None = None, running_var: Tensor | None = None, *,
                stride: int | tuple[int, int] = 2, padding: int | tuple[int, int] = 1,
                activation: str = "leaky_relu", negative_slope: float = 0.2, training: bool = True,
                momentum: float = 0.1, eps: float = 1e-5, stat_groups: int = 1, impl: str = "auto") -> Tensor:
    """act(batch_norm(conv2d(x, weight) + bias)), as the eager layers compute it.

    Args:
        x: (N, Ci, H, W), float32, float64, float16 or bfloat16.
        weight: (Co, Ci, kh, kw), in the dtype of x, with kh and kw from 1 to 7.
        bias: (Co,), or None.
        gamma: (Co,), the scale of the batch normalization, in float32 or the dtype of x. None, together with beta,
            disables batch normalization.
        beta: (Co,), its shift, in the dtype of gamma.
        running_mean: (Co,), updated in place in training, in the dtype of gamma. None, together with running_var,
            disables running statistics; evaluation then normalizes with the statistics of the batch, too.
        running_var: (Co,), in the dtype of gamma.
        stride: 1 to 4, an int or a pair.
        padding: rows and columns of zeros on each side, an int or a pair.
        activation: "none", "relu", "leaky_relu" or "tanh".
        negative_slope: of "leaky_relu".
        training: whether batch statistics normalize, as in `torch.nn.functional.batch_norm`.
        momentum: weight of the new value in the running statistics.
        eps: added to the variance.
        stat_groups: G. Each of G equal parts of the batch has separate statistics, and the running statistics are
            updated G times in order, as in G calls.
        impl: the engine: "auto", "reference", "native" or "triton".

    Returns:
        (N, Co, Ho, Wo), channels_last.

    Raises:
        FastganError: for a value that is not supported; the message names the argument.
        TypeError: for an argument of another type.
    """
    tensors = BlockTensors(weight, bias, gamma, beta, running_mean, running_var)
    return _conv_bn_act(x, tensors, as_conv_spec(stride, padding, 0, False),
                        check_activation(activation, negative_slope), training, momentum, eps, stat_groups, impl)


def conv_transpose_bn_act(x: Tensor, weight: Tensor, bias: Tensor | None = None, gamma: Tensor | None = None,
                          beta: Tensor | None = None, running_mean: Tensor | None = None,
                          running_var: Tensor | None = None, *, stride: int | tuple[int, int] = 2,
                          padding: int | tuple[int, int] = 1, output_padding: int | tuple[int, int] = 0,
                          activation: str = "relu", negative_slope: float = 0.2, training: bool = True,
                          momentum: float = 0.1, eps: float = 1e-5, stat_groups: int = 1,
                          impl: str = "auto") -> Tensor:
    """act(batch_norm(conv_transpose2d(x, weight) + bias)), as the eager layers compute it.

    The other arguments are those of `conv_bn_act`.

    Args:
        weight: (Ci, Co, kh, kw).
        output_padding: rows and columns that are added at one side of the output, less than the stride.
    """
    tensors = BlockTensors(weight, bias, gamma, beta, running_mean, running_var)
    return _conv_bn_act(x, tensors, as_conv_spec(stride, padding, output_padding, True),
                        check_activation(activation, negative_slope), training, momentum, eps, stat_groups, impl)


def gan_loss(logits: Tensor, targets: Sequence[float], kind: str = "logistic", *,
             impl: str = "auto") -> tuple[Tensor, Tensor]:
    """The loss of G equal parts of a batch of logits, and their mean score.

    Args:
        logits: (N,), float32, float64, float16 or bfloat16; N > 0 is divisible by G.
        targets: G numbers in [0, 1], one for each part in order: (1, 0) for D on [real; fake], (1,) for G, (0.9, 0)
            with one-sided label smoothing (Salimans et al. 2016).
        kind: "logistic" (binary cross-entropy), "hinge" (Lim and Ye 2017; its G has "wgan") or "wgan" (Arjovsky et al.
            2017).
        impl: the engine: "auto", "reference", "native" or "triton".

    Returns:
        loss (G,): the mean over each part of t f(l) + (1 - t) f(-l), where f(l) is -log sigmoid(l) for "logistic",
            max(0, 1 - l) for "hinge" and -l for "wgan". It is infinite or 0 for an infinite logit, and NaN if a logit
            of the part is NaN.
        score (G,): the mean over each part of sigmoid(l), or of l for "wgan", without gradients. Both results are
            float32, also under autocast, and float64 for float64.

    Raises:
        FastganError: for a value that is not supported; the message names the argument.
        TypeError: for an argument of another type.
    """
    check_impl(impl)
    numbers = check_logits(logits, targets, kind)
    engine = engines.resolve_for(impl, "logits", logits, logits.dtype)
    if engine != "reference":
        return autograd.gan_loss(logits, numbers, kind, engine)
    return torch_ops.gan_loss(logits, numbers, kind)


def _conv_bn_act(x: Tensor, tensors: BlockTensors, conv: ConvSpec, activation: Activation, training: bool,
                 momentum: float, eps: float, stat_groups: int, impl: str) -> Tensor:
    check_impl(impl)
    size = check_convolution(x, tensors.weight, tensors.bias, conv)
    norm = as_norm_spec(x, tensors, conv, size, training=training, momentum=momentum, eps=eps,
                        stat_groups=check_groups(x, stat_groups))
    a = engines.chain(x, [(tensors, BlockSpec(conv, norm, activation))], impl)
    return a.contiguous(memory_format=torch.channels_last)
