"""The passes of `fastgan/ops/reference.py` by the candidates of the plan in use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastgan.ops import dispatch
from fastgan.ops.tuning import candidates, current, problem

__all__ = ["act_backward", "bn_act_forward", "bn_backward_apply", "bn_backward_sums", "conv_act_forward",
           "conv_forward", "dgrad", "gan_loss", "wgrad"]


def _planned(name: str) -> Callable[..., Any]:
    of = problem.OF[name]
    return lambda *arguments: candidates.called(dispatch.run, current().choose(of(*arguments)), name, *arguments)


conv_forward, conv_act_forward = _planned("conv_forward"), _planned("conv_act_forward")
bn_act_forward = _planned("bn_act_forward")
bn_backward_sums, bn_backward_apply = _planned("bn_backward_sums"), _planned("bn_backward_apply")
act_backward = _planned("act_backward")
dgrad, wgrad = _planned("dgrad"), _planned("wgrad")
gan_loss = _planned("gan_loss")
