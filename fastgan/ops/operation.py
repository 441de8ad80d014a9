"""a = act(batch_norm(conv(x, weight) + bias)) for autograd: x and a are the tensors between eager PyTorch's layers.

Saved for backward are the inputs and y, mean and rstd, which the functions return beside a, marked non-differentiable.
Where a gradient of a gradient is asked for (create_graph=True), backward computes y, mean and rstd again from the
inputs, without updating running statistics, and runs the same passes on them: the saved ones are constants to autograd.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.ops import passes, synchronised
from fastgan.ops.casts import cast
from fastgan.ops.layers import Block
from fastgan.ops.passes import RunningStats
from fastgan.ops.reference import measure, statistics_dtype
from fastgan.ops.specs import BlockSpec, ConvSpec, NormSpec


def conv_bn_act(x: Tensor, block: Block, groups: int = 1) -> Tensor:
    """a (N, Co, Ho, Wo) of x (N, Ci, H, W), in x's dtype and eager PyTorch's memory format."""
    convolution, norm, activation, _ = block
    weight, bias = convolution[:2]
    conv = ConvSpec(convolution.stride, convolution.padding, convolution.output_padding, convolution.transposed)
    if norm is None:
        return _ConvAct.apply(x, weight, bias, BlockSpec(conv, None, activation))[0]
    height, width = convolution.size(x)
    if norm.batch_statistics and x.shape[0] // groups * height * width * max(synchronised.processes(), 1) == 1:
        raise FastganError(f"Expected more than 1 value per channel when training, got an output of {x.shape[0]}x"
                           f"{convolution.channels()[1]}x1x1 in {groups} group(s)")
    spec = BlockSpec(conv, NormSpec(norm.batch_statistics, norm.momentum, norm.eps, groups), activation)
    return _ConvBNAct.apply(x, weight, bias, norm.gamma, norm.beta, norm.running_mean, norm.running_var,
                            norm.num_batches_tracked, spec)[0]


class _ConvBNAct(torch.autograd.Function):
    """(x, weight, bias, gamma, beta, running statistics) -> a, y, mean, rstd."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, gamma: Tensor | None, beta: Tensor | None,
                running_mean: Tensor | None, running_var: Tensor | None, num_batches_tracked: Tensor | None,
                spec: BlockSpec) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        running = RunningStats(running_mean, running_var, num_batches_tracked)
        y, statistics, count = _convolved(x, weight, bias, spec)
        a, mean, rstd = passes.bn_act_forward(y, statistics, gamma, beta, running, count, spec)
        return a, y, mean, rstd

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, _, _, _, spec = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *output[1:])
        ctx.spec = spec

    @staticmethod
    def backward(ctx: Any, ga: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if ga is None:
            return (None,) * 9
        x, weight, bias, gamma, beta, y, mean, rstd = ctx.saved_tensors
        spec: BlockSpec = ctx.spec
        needs_x, needs_weight, needs_bias, needs_gamma, needs_beta = ctx.needs_input_grad[:5]
        if torch.is_grad_enabled():
            y, mean, rstd = _again(x, weight, bias, mean, rstd, spec)
        given = ga, y, mean, rstd, gamma, beta
        trains, sums = spec.trains, None
        gx = gweight = gbias = ggamma = gbeta = None
        if trains or needs_bias or needs_gamma or needs_beta:
            sums = passes.bn_backward_sums(*given, spec)
            gbeta, ggamma = sums.sum(1)
            # the mean takes a constant away again: with statistics of the batch, bias has no gradient
            gbias = torch.zeros_like(gbeta) if trains else gbeta * rstd[0] * (1 if gamma is None else gamma)
        if needs_x or needs_weight:
            g = passes.bn_backward_apply(*given, *_over_processes(sums, y.numel() // mean.numel()), spec)
            gx, gweight = _conv_backward(g, x, weight, spec.conv, needs_x, needs_weight)
        return (gx, gweight, _like(gbias, bias, needs_bias), _like(ggamma, gamma, needs_gamma),
                _like(gbeta, beta, needs_beta), None, None, None, None)


class _ConvAct(torch.autograd.Function):
    """(x, weight, bias) -> a, and of leaky_relu the mask z > 0 unless its layer is in-place, else (0,).

    The mask serves negative slopes, and leaves a free to be overwritten, as eager PyTorch does; what relu, tanh and an
    in-place leaky_relu need is a itself, there too.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, spec: BlockSpec) -> tuple[Tensor, Tensor]:
        return passes.conv_act_forward(x, *_narrow(x, weight, bias), spec)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, weight, bias, spec = inputs
        a, mask = output
        ctx.mark_non_differentiable(mask)
        ctx.set_materialize_grads(False)
        keeps_a = mask.numel() == 0 and spec.activation.name != "none"
        ctx.save_for_backward(x, weight, bias, a if keeps_a else mask)
        ctx.spec = spec

    @staticmethod
    def backward(ctx: Any, ga: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if ga is None:
            return (None,) * 4
        x, weight, bias, kept = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        spec: BlockSpec = ctx.spec
        if torch.is_grad_enabled():
            a, mask = passes.conv_act_forward(x, *_narrow(x, weight, bias), spec)
            kept = mask if mask.numel() else a
        g = passes.act_backward(ga, kept, spec.activation)
        gx, gweight = _conv_backward(g, x, weight, spec.conv, needs_x, needs_weight)
        gbias = g.sum((0, 2, 3), dtype=statistics_dtype(g.dtype)) if needs_bias else None
        return gx, gweight, _like(gbias, bias, needs_bias), None


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, spec: BlockSpec) -> tuple[Tensor, Tensor | None, int]:
    """y; its statistics [2, G, C], of all processes where they are synchronized, or None where no pass has taken them;
    the number of elements of each."""
    assert spec.norm is not None
    y, statistics = passes.conv_forward(x, *_narrow(x, weight, bias), spec.conv)
    count, processes = y.numel() // (y.shape[1] * spec.norm.groups), synchronised.processes()
    if spec.trains and processes:
        if statistics is None:
            statistics = torch.stack(measure(y, spec.norm.groups))
        statistics, count = synchronised.merged(statistics), count * processes
    return y, statistics, count


def _again(x: Tensor, weight: Tensor, bias: Tensor | None, mean: Tensor, rstd: Tensor,
           spec: BlockSpec) -> tuple[Tensor, Tensor, Tensor]:
    """y, mean and rstd as functions of the inputs."""
    assert spec.norm is not None
    y, statistics, _ = _convolved(x, weight, bias, spec)
    if not spec.trains:
        return y, mean, rstd
    mean, var = measure(y, spec.norm.groups) if statistics is None else statistics.unbind()
    return y, mean, torch.rsqrt(var + spec.norm.eps)


def _over_processes(sums: Tensor | None, count: int) -> tuple[Tensor | None, int]:
    """Sums, and the number of elements that they are over, of all processes where statistics are synchronized."""
    processes = synchronised.processes()
    return (sums, count) if sums is None or not processes else (synchronised.total(sums), count * processes)


def _like(gradient: Tensor | None, parameter: Tensor | None, needed: bool) -> Tensor | None:
    return gradient.to(parameter.dtype) if needed and gradient is not None and parameter is not None else None


def _narrow(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias in x's dtype. Lent copies of weights have no history, so they are not for differentiation."""
    narrow = weight.to(x.dtype) if torch.is_grad_enabled() else cast(weight, x.dtype)
    return narrow, None if bias is None else bias.to(x.dtype)


def _conv_backward(g: Tensor, x: Tensor, weight: Tensor, conv: ConvSpec, needs_x: bool,
                   needs_weight: bool) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x and of weight, the latter in weight's dtype and strides."""
    narrow, _ = _narrow(x, weight, None)
    gx = passes.dgrad(g, x, narrow, conv) if needs_x else None
    gweight = passes.wgrad(g, x, narrow, conv).to(weight.dtype) if needs_weight else None
    if gweight is not None and gweight.stride() != weight.stride():
        # a fused optimizer walks through memory and takes equal strides for granted
        gweight = torch.empty_like(weight).copy_(gweight)
    return gx, gweight
