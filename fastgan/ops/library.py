"""The stage and the loss as operators of `torch.library`, and what happens when a kernel cannot run.

Each takes the name of the engine that computes it, "native" or "triton", before everything else; or "plan", which asks
the plan in use (`fastgan.ops.plan`).

    fastgan::stage                 y (N, Co, Ho, Wo), channels_last, and statistics [2, G, Co] or (0,)
    fastgan::stage_backward        gradients of x, weight, bias and of what is owed [4, G, Ci]; (0,) where not needed
    fastgan::normalise_activate, fastgan::normalise_activate_backward
    fastgan::logistic_loss         loss and probability (G,), and the gradient (N,) of each part's loss; all float32

Autograd stands one floor up (`autograd.py`). A kernel that does not compile, or does not fit the device, is named once
in a warning; from then on its operator is computed by the reference. A device that an earlier kernel has made unusable
is an error.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from fastgan.errors import KernelError
from fastgan.ops import definition, dispatch
from fastgan.ops.definition import nothing
from fastgan.ops.dispatch import empty, failed, raise_if_lost
from fastgan.ops.layers import Activation, Convolution, Measurement, Owed

_OWED = "Tensor? owed, Tensor? gamma, Tensor? beta, str activation, float negative_slope"
_CONVOLUTION = ("Tensor weight, Tensor? bias, int[2] stride, int[2] padding, int[2] output_padding, bool transposed, "
                "bool fuse")
_SCHEMAS = {
    "stage": f"(str engine, Tensor x, {_OWED}, {_CONVOLUTION}, int groups, bool measures, float? eps, "
             "Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor(c!)? num_batches_tracked, float? momentum) "
             "-> (Tensor, Tensor)",
    "stage_backward": f"(str engine, Tensor gy, Tensor? gstatistics, Tensor y, Tensor statistics, Tensor x, {_OWED}, "
                      f"{_CONVOLUTION}, str spread, bool[4] needs) -> (Tensor, Tensor, Tensor, Tensor)",
    "normalise_activate": f"(str engine, Tensor x, {_OWED}) -> Tensor",
    "normalise_activate_backward": f"(str engine, Tensor gout, Tensor x, {_OWED}) -> (Tensor, Tensor)",
    "logistic_loss": "(str engine, Tensor logits, float[] targets) -> (Tensor, Tensor, Tensor)",
}
_library = torch.library.Library("fastgan", "DEF")


def run(engine: str, name: str, *arguments: Any, **choice: Any) -> Any:
    """What the engine's function of that name computes, or the definition where its kernels cannot."""
    if engine != "reference" and name not in failed(engine):
        try:
            return getattr(import_module(f"fastgan.ops.{engine}.engine"), name)(*arguments, **choice)
        except KernelError as error:
            raise_if_lost()
            dispatch._failed.add((engine, name))
            warnings.warn(f"fastgan: {error}; fastgan::{name} goes on with the reference engine", stacklevel=2)
    return getattr(definition, name)(*arguments)


def _owed(statistics: Tensor | None, gamma: Tensor | None, beta: Tensor | None, activation: str,
          negative_slope: float) -> Owed:
    return Owed(statistics, gamma, beta, Activation(activation, negative_slope))


def _convolution(weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int], output_padding: list[int],
                 transposed: bool) -> Convolution:
    return Convolution(weight, bias, (stride[0], stride[1]), (padding[0], padding[1]),
                       (output_padding[0], output_padding[1]), transposed)


def _stage(engine: str, x: Tensor, *arguments: Any) -> Any:
    owed, convolution = _owed(*arguments[:5]), _convolution(*arguments[5:11])
    fuse, groups, measures, *rest = arguments[11:]
    return run(engine, "stage", x, owed, convolution, groups, Measurement(*rest) if measures else None, fuse)


def _stage_fake(engine: str, x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    convolution, (_, groups, measures) = _convolution(*arguments[5:11]), arguments[11:14]
    channels = convolution.channels()[1]
    y = empty(x, x.shape[0], channels, *convolution.size(x))
    return y, x.new_empty((2, groups, channels), dtype=torch.float32) if measures else nothing(x)


def _stage_backward(engine: str, gy: Tensor, gstatistics: Tensor | None, y: Tensor, statistics: Tensor, x: Tensor,
                    *arguments: Any) -> Any:
    owed, convolution = _owed(*arguments[:5]), _convolution(*arguments[5:11])
    fuse, spread, needs = arguments[11:]
    return run(engine, "stage_backward", gy, gstatistics, y, statistics, x, owed, convolution, spread, fuse, needs)


def _stage_backward_fake(engine: str, gy: Tensor, gstatistics: Tensor | None, y: Tensor, statistics: Tensor,
                         x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    owed, (weight, bias), (needs_x, needs_weight, needs_bias, needs_norm) = (
        _owed(*arguments[:5]), arguments[5:7], arguments[13])
    return (empty(x, *x.shape) if needs_x or needs_norm else nothing(x, x.dtype),
            empty(weight, *weight.shape) if needs_weight else nothing(x, x.dtype),
            torch.empty_like(bias) if needs_bias and bias is not None else nothing(x, x.dtype),
            _norm_gradient_like(x, owed) if needs_x or needs_norm else nothing(x, x.dtype))


def _normalise_activate(engine: str, x: Tensor, *arguments: Any) -> Any:
    return run(engine, "normalise_activate", x, _owed(*arguments))


def _normalise_activate_backward(engine: str, gout: Tensor, x: Tensor, *arguments: Any) -> Any:
    return run(engine, "normalise_activate_backward", gout, x, _owed(*arguments))


def _normalise_activate_backward_fake(engine: str, gout: Tensor, x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    return empty(x, *x.shape), _norm_gradient_like(x, _owed(*arguments))


def _logistic_loss(engine: str, logits: Tensor, targets: list[float]) -> Any:
    return dispatch.run(engine, "logistic_loss", logits, targets)


def _logistic_loss_fake(engine: str, logits: Tensor, targets: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    loss, probability, gradient = (
        logits.new_empty(shape, dtype=torch.float32) for shape in ((len(targets),), (len(targets),), logits.shape))
    return loss, probability, gradient


def _norm_gradient_like(x: Tensor, owed: Owed) -> Tensor:
    if owed.statistics is None:
        return nothing(x, x.dtype)
    return x.new_empty((4, owed.groups(), x.shape[1]), dtype=torch.float32)


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {  # for those who look inside an operator (`fastgan.verify.cost`)
    "stage": _stage, "stage_backward": _stage_backward, "normalise_activate": _normalise_activate,
    "normalise_activate_backward": _normalise_activate_backward, "logistic_loss": _logistic_loss}
_FAKES: dict[str, Callable[..., Any]] = {"stage": _stage_fake, "stage_backward": _stage_backward_fake,
          "normalise_activate": lambda engine, x, *_: empty(x, *x.shape),
          "normalise_activate_backward": _normalise_activate_backward_fake, "logistic_loss": _logistic_loss_fake}


def define(schemas: dict[str, str], implementations: dict[str, Callable[..., Any]],
           fakes: dict[str, Callable[..., Any]]) -> None:
    """Make operators of functions, and of what their results look like."""
    for name, schema in schemas.items():
        _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(name, implementations[name], "CompositeExplicitAutograd")
        torch.library.register_fake(f"fastgan::{name}", fakes[name], lib=_library)


define(_SCHEMAS, IMPLEMENTATIONS, _FAKES)

stage = torch.ops.fastgan.stage.default
stage_backward = torch.ops.fastgan.stage_backward.default
normalise_activate = torch.ops.fastgan.normalise_activate.default
normalise_activate_backward = torch.ops.fastgan.normalise_activate_backward.default
logistic_loss = torch.ops.fastgan.logistic_loss.default
