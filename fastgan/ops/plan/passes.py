"""The passes of `fastgan/ops/passes.py` where a plan is in use: convolutions by the candidates that it names, the rest
by the native engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastgan.ops import dispatch
from fastgan.ops.layers import Activation, Convolution, Owed
from fastgan.ops.native.passes import act_backward, bn_act_forward, bn_backward_apply, bn_backward_sums
from fastgan.ops.plan import candidates, current, problem
from fastgan.ops.specs import ConvSpec

__all__ = ["act_backward", "bn_act_forward", "bn_backward_apply", "bn_backward_sums", "conv_act_forward",
           "conv_forward", "dgrad", "logistic_loss", "wgrad"]


def conv_forward(x: Tensor, weight: Tensor, bias: Tensor | None, conv: ConvSpec, groups: int) -> tuple[Tensor, Tensor]:
    out: tuple[Tensor, Tensor] = _run("conv_forward", _asked("forward", x, weight, bias, conv), x, weight, bias, conv,
                                      groups)
    return out


def conv_act_forward(x: Tensor, weight: Tensor, bias: Tensor | None, conv: ConvSpec,
                     activation: Activation) -> tuple[Tensor, Tensor]:
    out: tuple[Tensor, Tensor] = _run("conv_act_forward", _asked("forward", x, weight, bias, conv), x, weight, bias,
                                      conv, activation)
    return out


def dgrad(g: Tensor, x: Tensor, weight: Tensor, conv: ConvSpec) -> Tensor:
    out: Tensor = _run("dgrad", _asked("dgrad", x, weight, None, conv), g, x, weight, conv)
    return out


def wgrad(g: Tensor, x: Tensor, weight: Tensor, conv: ConvSpec) -> Tensor:
    out: Tensor = _run("wgrad", _asked("wgrad", x, weight, None, conv), g, x, weight, conv)
    return out


def logistic_loss(logits: Tensor, targets: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
    candidate = current().choose(problem.of_loss(logits, targets))
    out: tuple[Tensor, Tensor, Tensor] = _run("logistic_loss", candidate, logits, targets)
    return out


def _asked(kind: str, x: Tensor, weight: Tensor, bias: Tensor | None, conv: ConvSpec) -> str:
    """The candidate for a convolution of x as it is."""
    return current().choose(problem.of_stage(kind, x, Owed(), Convolution(weight, bias, *conv), "", 1))


def _run(name: str, candidate: str, *arguments: Any) -> Any:
    return candidates.called(dispatch.run, candidate, name, *arguments)
