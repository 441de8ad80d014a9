"""The passes of `fastgan/ops/reference.py` in Triton kernels, for float32, float16 and bfloat16.

Arguments and results are (N, C, H, W) tensors in channels_last memory format, as are weights and their gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.ops.layout import nchw, nhwc
from fastgan.ops.reference import mask_of
from fastgan.ops.specs import IDENTITY, Activation, ConvSpec, NormSpec, RunningStats
from fastgan.ops.torch_ops import activate
from fastgan.ops.triton import gemm_descriptor, gemm_pointer, normalize, wgrad_pointer
from fastgan.ops.triton.gan_loss import gan_loss
from fastgan.ops.triton.spectral import spectral_norm, spectral_norm_backward

__all__ = ["act_backward", "bn_act_forward", "bn_backward_apply", "bn_backward_sums", "conv_act_forward",
           "conv_forward", "dgrad", "gan_loss", "spectral_norm", "spectral_norm_backward", "wgrad"]


def conv_forward(x: Tensor, weight: Tensor, bias: Tensor | None, conv: ConvSpec, groups: int) -> tuple[Tensor, Tensor]:
    given, precision = (nhwc(x), nhwc(weight), bias, conv, conv.output_size(x, weight)), _precision(x)
    out = (gemm_descriptor.convolve(*given, groups=groups, precision=precision)
           or gemm_pointer.convolve(*given, groups=groups, precision=precision))
    return nchw(out.y), x.new_empty(0, dtype=torch.float32) if out.statistics is None else out.statistics


def conv_act_forward(x: Tensor, weight: Tensor, bias: Tensor | None, conv: ConvSpec,
                     activation: Activation) -> tuple[Tensor, Tensor]:
    masked = activation.keeps_mask()
    if masked and conv.channels(weight)[1] % 8:  # kernels pack 8 channels
        z, _ = conv_forward(x, weight, bias, conv, 0)
        return activate(z, activation), mask_of(z, activation)
    given, precision = (nhwc(x), nhwc(weight), bias, conv, conv.output_size(x, weight)), _precision(x)
    out = (gemm_descriptor.convolve(*given, activation=activation, masked=masked, precision=precision)
           or gemm_pointer.convolve(*given, activation=activation, masked=masked, precision=precision))
    return nchw(out.y), x.new_empty(0, dtype=torch.uint8) if out.mask is None else out.mask


def bn_act_forward(y: Tensor, statistics: Tensor | None, gamma: Tensor | None, beta: Tensor | None,
                   running: RunningStats, count: int, norm: NormSpec, activation: Activation) -> tuple[Tensor, Tensor]:
    a, stats = normalize.bn_act_forward(nhwc(y), statistics, gamma, beta, running, count, norm, activation)
    return nchw(a), stats


def bn_backward_sums(ga: Tensor, y: Tensor, stats: Tensor, gamma: Tensor | None, beta: Tensor | None,
                     activation: Activation) -> tuple[Tensor, Tensor]:
    return normalize.bn_backward_sums(nhwc(ga), nhwc(y), stats, gamma, beta, activation)


def bn_backward_apply(ga: Tensor, y: Tensor, stats: Tensor, gamma: Tensor | None, beta: Tensor | None,
                      sums: Tensor | None, count: int, activation: Activation) -> Tensor:
    return nchw(normalize.bn_backward_apply(nhwc(ga), nhwc(y), stats, gamma, beta, sums, count, activation))


def act_backward(ga: Tensor, saved: Tensor, activation: Activation) -> Tensor:
    return nchw(normalize.act_backward(nhwc(ga), _kept(saved), activation))


def dgrad(g: Tensor, x: Tensor, weight: Tensor, conv: ConvSpec) -> Tensor:
    twin = conv._replace(transposed=not conv.transposed)
    given, precision = (nhwc(g), nhwc(weight), None, twin, (x.shape[2], x.shape[3])), _precision(x)
    out = (gemm_descriptor.convolve(*given, precision=precision)
           or gemm_pointer.convolve(*given, precision=precision))
    return nchw(out.y)


def wgrad(g: Tensor, x: Tensor, weight: Tensor, conv: ConvSpec, saved: Tensor | None = None,
          activation: Activation = IDENTITY) -> Tensor:
    if saved is not None and saved.dim() == 1 and g.shape[1] % 8:  # the bits of a pixel begin within a byte
        g, saved = act_backward(g, saved, activation), None
    coarse, fine = (nhwc(x), nhwc(g)) if conv.transposed else (nhwc(g), nhwc(x))
    given = coarse, fine, (weight.shape[2], weight.shape[3]), conv.stride, conv.padding, weight.dtype
    gw = gemm_descriptor.wgrad(*given, precision=_precision(x)) if saved is None else None
    if gw is None:
        saved = None if saved is None else _kept(saved)
        gw = wgrad_pointer.wgrad(*given, precision=_precision(x), saved=saved, activation=activation)
    return nchw(gw)


def _kept(saved: Tensor) -> Tensor:
    """a as [N, H, W, C]; the bits of a mask as they are."""
    return saved if saved.dim() == 1 else nhwc(saved)


def _precision(x: Tensor) -> str:
    """Precision of products of x: for float32 PyTorch's setting for convolutions; one value, so one build, for others.
    """
    allowed = torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
    return "tf32" if allowed and x.dtype == torch.float32 else "ieee"
