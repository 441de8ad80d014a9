"""The operation a = act(batch_norm(conv(x, weight) + bias)) and the loss as autograd functions.

An engine computes their passes (`reference.py`). The functions save their inputs, and y with its mean and rstd, which
they also return, marked non-differentiable. With create_graph=True, backward recomputes y and its statistics from the
inputs, without updating running statistics, and runs the reference's passes on them, because the saved ones are
constants for autograd.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fastgan.ops import library, reference, synchronised, torch_ops
from fastgan.ops.arguments import as_operand, autocast, check_block
from fastgan.ops.casts import cast
from fastgan.ops.specs import Activation, BlockSpec, BlockTensors, ConvSpec, NormSpec, RunningStats
from fastgan.ops.torch_ops import statistics_dtype


def bind(x: Tensor, tensors: BlockTensors, spec: BlockSpec,
         engine: str) -> tuple[type[torch.autograd.Function], tuple[Any, ...]]:
    """The autograd function that computes a block of x (N, Ci, H, W), and its arguments.

    The first result is a (N, Co, Ho, Wo), in the dtype of x or of autocast. Its memory format is that of eager PyTorch
    with the reference, otherwise channels_last.

    engine: "reference", "native", "triton" or "plan". Raises `FastganError` for shapes that do not fit.
    """
    x = as_operand(x)
    spec = _checked(x, tensors, spec)
    if spec.norm is None:
        activation = spec.activation
        if library.has_epilogue(engine, x.device):  # which writes the mask, of which backward reads less than of a
            activation = activation._replace(inplace=False)
        return _ConvAct, (x, *tensors[:2], spec.conv, activation, engine)
    return _ConvBNAct, (x, *tensors, *spec, engine)


_specs: dict[tuple[Any, ...], BlockSpec] = {}
_SIZE = 4096  # maximum number of entries


def _checked(x: Tensor, tensors: BlockTensors, spec: BlockSpec) -> BlockSpec:
    """The result of `check_block`, cached by shapes and specification."""
    processes = synchronised.processes()
    if torch.compiler.is_compiling():
        return check_block(x, tensors, spec, max(processes, 1))
    key = (_facts(x), *map(_facts, tensors[:6]), spec, autocast(x), processes)
    try:
        known = _specs.get(key)
    except TypeError:  # symbolic sizes of a compiler are not hashable
        return check_block(x, tensors, spec, max(processes, 1))
    if known is None:
        known = check_block(x, tensors, spec, max(processes, 1))
        if len(_specs) >= _SIZE:
            _specs.clear()
        _specs[key] = known
    return known


def _facts(x: Tensor | None) -> tuple[Any, ...] | None:
    return None if x is None else (x.shape, x.dtype, x.device, x.layout)


class _ConvBNAct(torch.autograd.Function):
    """(x, weight, bias, gamma, beta, running statistics) -> a, y, stats."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, gamma: Tensor | None, beta: Tensor | None,
                running_mean: Tensor | None, running_var: Tensor | None, num_batches_tracked: Tensor | None,
                conv: ConvSpec, norm: NormSpec, activation: Activation,
                engine: str) -> tuple[Tensor, Tensor, Tensor]:
        kernels = library.passes_of(engine, x, weight)
        y, statistics = kernels.conv_forward(x, *_narrow(x, weight, bias), conv, _groups(norm, engine, x.device))
        of_batch, count = _of_batch(y, statistics, norm)
        running = RunningStats(running_mean, running_var, num_batches_tracked)
        a, stats = kernels.bn_act_forward(y, of_batch, gamma, beta, running, count, norm, activation)
        return a, y, stats

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, _, _, _, conv, norm, activation, engine = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *output[1:])
        ctx.static = conv, norm, activation, engine

    @staticmethod
    def backward(ctx: Any, ga: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if ga is None:
            return (None,) * 12
        x, weight, bias, gamma, beta, y, stats = ctx.saved_tensors
        conv, norm, activation, engine = ctx.static
        needs_x, needs_weight, needs_bias, needs_gamma, needs_beta = ctx.needs_input_grad[:5]
        if torch.is_grad_enabled():
            engine, (y, stats) = "reference", _again(x, weight, bias, stats, conv, norm)
        kernels, trains, sums = library.passes_of(engine, ga, weight), norm.batch_statistics, None
        gx = gweight = gbias = ggamma = gbeta = None
        if trains or needs_bias or needs_gamma or needs_beta:
            sums, of_all = kernels.bn_backward_sums(ga, y, stats, gamma, beta, activation)
            gbeta, ggamma = of_all if of_all.numel() else sums[:, 0]
            if needs_bias:  # the mean of the batch cancels the bias, so the gradient is zero
                gbias = torch.zeros_like(gbeta) if trains else gbeta * stats[1, 0] * (1 if gamma is None else gamma)
        if needs_x or needs_weight:
            all_sums, count = _over_processes(sums if trains else None, y.numel() // (y.shape[1] * norm.groups))
            g = kernels.bn_backward_apply(ga, y, stats, gamma, beta, all_sums, count, activation)
            gx, gweight = _conv_backward(g, x, weight, conv, needs_x, needs_weight, kernels)
        return (gx, gweight, _like(gbias, bias, needs_bias), _like(ggamma, gamma, needs_gamma),
                _like(gbeta, beta, needs_beta), *(None,) * 7)


class _ConvAct(torch.autograd.Function):
    """(x, weight, bias) -> a, and the mask z > 0, a bit for each element, for a leaky_relu that is not in-place, or
    whose convolution has an epilogue, else (0,).

    With the mask, the slope may be negative and a may be overwritten, as in eager PyTorch. Otherwise a is saved, as in
    eager PyTorch.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, conv: ConvSpec, activation: Activation,
                engine: str) -> tuple[Tensor, Tensor]:
        kernels = library.passes_of(engine, x, weight)
        return kernels.conv_act_forward(x, *_narrow(x, weight, bias), conv, activation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, weight, bias, conv, activation, engine = inputs
        a, mask = output
        ctx.mark_non_differentiable(mask)
        ctx.set_materialize_grads(False)
        saves_a = mask.numel() == 0 and activation.name != "none"
        ctx.save_for_backward(x, weight, bias, a if saves_a else mask)
        ctx.static = conv, activation, engine

    @staticmethod
    def backward(ctx: Any, ga: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if ga is None:
            return (None,) * 6
        x, weight, bias, saved = ctx.saved_tensors
        conv, activation, engine = ctx.static
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():
            engine = "reference"
            a, mask = reference.conv_act_forward(x, *_narrow(x, weight, bias), conv, activation)
            saved = mask if mask.numel() else a
        kernels = library.passes_of(engine, ga, weight)
        loads = (activation.name != "none" and not needs_x and not needs_bias
                 and library.loads_activation(engine, x, weight, conv))
        g = ga if loads or activation.name == "none" else kernels.act_backward(ga, saved, activation)
        loaded = (saved, activation) if loads else ()
        gx, gweight = _conv_backward(g, x, weight, conv, needs_x, needs_weight, kernels, *loaded)
        gbias = g.sum((0, 2, 3), dtype=statistics_dtype(g.dtype)) if needs_bias else None
        return gx, gweight, _like(gbias, bias, needs_bias), None, None, None


class _GANLoss(torch.autograd.Function):
    """logits -> loss, score, the gradient of each part's loss."""

    @staticmethod
    def forward(logits: Tensor, targets: tuple[float, ...], kind: str, engine: str) -> tuple[Tensor, Tensor, Tensor]:
        return library.passes_of(engine, logits, logits).gan_loss(logits, targets, kind)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        logits, *ctx.static, _ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, output[2])

    @staticmethod
    def backward(ctx: Any, gloss: Tensor | None, *_: Any) -> tuple[Tensor | None, None, None, None]:
        if gloss is None:
            return None, None, None, None
        logits, gradient = ctx.saved_tensors
        if torch.is_grad_enabled():
            return torch_ops.gan_loss_backward(gloss, logits, *ctx.static).to(logits.dtype), None, None, None
        glogits = torch.empty_like(logits)
        torch.mul(gradient.view(len(gloss), -1), gloss[:, None], out=glogits.view(len(gloss), -1))  # [G, N / G]
        return glogits, None, None, None


def gan_loss(logits: Tensor, targets: Sequence[float], kind: str, engine: str) -> tuple[Tensor, Tensor]:
    """Loss and score (G,) of G equal parts of logits (N,); engine: as in `bind`."""
    loss, score, _ = _GANLoss.apply(logits, tuple(targets), kind, engine)
    return loss, score


class _Positional(inspect.Signature):
    """The signature of a function that is always called with all arguments by position. `Function.apply` binds the
    arguments in each call to fill in defaults, which takes 20 us, and creating a signature takes another 60 us."""

    def bind(self, *arguments: Any) -> Any:
        return SimpleNamespace(args=arguments, kwargs={}, apply_defaults=lambda: None)


for _function in (_ConvBNAct, _ConvAct, _GANLoss):
    vars(_function.forward)["__signature__"] = _Positional()


def _groups(norm: NormSpec, engine: str, device: torch.device) -> int:
    """The number of groups of the statistics that the convolution computes; 0 if it computes none."""
    takes = norm.batch_statistics and (synchronised.processes() > 0 or library.has_epilogue(engine, device))
    return norm.groups if takes else 0


def _of_batch(y: Tensor, statistics: Tensor, norm: NormSpec) -> tuple[Tensor | None, int]:
    """Statistics [2, G, C] of the batch, None if the convolution has computed none, and the number of elements of each.
    Both are over all processes if statistics are synchronized."""
    processes = synchronised.processes() if norm.batch_statistics else 0
    count = y.numel() // (y.shape[1] * norm.groups)
    if processes:
        return synchronised.merged(statistics), count * processes
    return statistics if statistics.numel() else None, count


def _again(x: Tensor, weight: Tensor, bias: Tensor | None, stats: Tensor, conv: ConvSpec,
           norm: NormSpec) -> tuple[Tensor, Tensor]:
    """y and stats, recomputed from the inputs."""
    y, statistics = reference.conv_forward(x, *_narrow(x, weight, bias), conv, _groups(norm, "reference", x.device))
    if not norm.batch_statistics:
        return y, stats
    of_batch, count = _of_batch(y, statistics, norm)
    return y, reference.batch_stats(y, of_batch, RunningStats(), count, norm)


def _over_processes(sums: Tensor | None, count: int) -> tuple[Tensor | None, int]:
    """Sums and the number of their elements, over all processes if statistics are synchronized."""
    processes = synchronised.processes()
    return (sums, count) if sums is None or not processes else (synchronised.total(sums), count * processes)


def _like(gradient: Tensor | None, parameter: Tensor | None, needed: bool) -> Tensor | None:
    return gradient.to(parameter.dtype) if needed and gradient is not None and parameter is not None else None


def _narrow(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias in x's dtype. Copies of weights (`casts.py`) have no gradient, so they are not used in backward
    with create_graph=True."""
    narrow = weight.to(x.dtype) if torch.is_grad_enabled() else cast(weight, x.dtype)
    return narrow, None if bias is None else bias.to(x.dtype)


def _conv_backward(g: Tensor, x: Tensor, weight: Tensor, conv: ConvSpec, needs_x: bool, needs_weight: bool,
                   kernels: Any, *loaded: Any) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x and of weight, the latter in weight's dtype and strides. loaded: saved and the activation, if
    `wgrad` is to multiply g by act'."""
    gx = kernels.dgrad(g, x, _narrow(x, weight, None)[0], conv) if needs_x else None
    gweight = kernels.wgrad(g, x, weight, conv, *loaded) if needs_weight else None
    if gweight is not None and gweight.stride() != weight.stride():
        # fused optimizers assume that a gradient has the strides of its parameter
        gweight = torch.empty_like(weight).copy_(gweight)
    return gx, gweight
