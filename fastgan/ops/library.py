"""The passes of `reference.py` as operators of `torch.library`, which compilers and fake tensors do not look into.

The first argument of each is the name of the engine, "native", "triton" or "plan"; specifications are passed field by
field. Autograd is outside of them (`autograd.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fastgan.ops import dispatch, reference, tuning
from fastgan.ops.layout import empty
from fastgan.ops.register import register
from fastgan.ops.specs import FEW_CHANNELS, IDENTITY, Activation, ConvSpec, NormSpec, RunningStats
from fastgan.ops.torch_ops import statistics_dtype
from fastgan.ops.tuning import problem

_CONV = "int[2] stride, int[2] padding, int[2] output_padding, bool transposed"
_ACT = "str activation, float negative_slope, bool inplace"
_NORM = "bool batch_statistics, float? momentum, float eps, int groups"
_OF_BN = "Tensor ga, Tensor y, Tensor stats, Tensor? gamma, Tensor? beta"
SCHEMAS = {
    "conv_forward": f"(str engine, Tensor x, Tensor weight, Tensor? bias, {_CONV}, int groups) -> (Tensor, Tensor)",
    "conv_act_forward": f"(str engine, Tensor x, Tensor weight, Tensor? bias, {_CONV}, {_ACT}) -> (Tensor, Tensor)",
    "bn_act_forward": "(str engine, Tensor y, Tensor? statistics, Tensor? gamma, Tensor? beta, Tensor(a!)? "
                      "running_mean, Tensor(b!)? running_var, Tensor(c!)? num_batches_tracked, SymInt count, "
                      f"{_NORM}, {_ACT}) -> (Tensor, Tensor)",
    "bn_backward_sums": f"(str engine, {_OF_BN}, {_ACT}) -> (Tensor, Tensor)",
    "bn_backward_apply": f"(str engine, {_OF_BN}, Tensor? sums, SymInt count, {_ACT}) -> Tensor",
    "act_backward": f"(str engine, Tensor ga, Tensor saved, {_ACT}) -> Tensor",
    "dgrad": f"(str engine, Tensor g, Tensor x, Tensor weight, {_CONV}) -> Tensor",
    "wgrad": f"(str engine, Tensor g, Tensor x, Tensor weight, {_CONV}, Tensor? saved, {_ACT}) -> Tensor",
    "gan_loss": "(str engine, Tensor logits, float[] targets, str kind) -> (Tensor, Tensor, Tensor)",
}


class Operators:
    """An engine's passes as operators, with the names, arguments and results of `fastgan.ops.reference`."""

    def __init__(self, engine: str) -> None:
        self.engine = engine

    def conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, conv: ConvSpec,
                     groups: int) -> tuple[Tensor, Tensor]:
        return _ops.conv_forward(self.engine, x, weight, bias, *conv, groups)

    def conv_act_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, conv: ConvSpec,
                         activation: Activation) -> tuple[Tensor, Tensor]:
        return _ops.conv_act_forward(self.engine, x, weight, bias, *conv, *activation)

    def bn_act_forward(self, y: Tensor, statistics: Tensor | None, gamma: Tensor | None, beta: Tensor | None,
                       running: RunningStats, count: int, norm: NormSpec,
                       activation: Activation) -> tuple[Tensor, Tensor]:
        return _ops.bn_act_forward(self.engine, y, statistics, gamma, beta, *running, count, *norm, *activation)

    def bn_backward_sums(self, ga: Tensor, y: Tensor, stats: Tensor, gamma: Tensor | None, beta: Tensor | None,
                         activation: Activation) -> tuple[Tensor, Tensor]:
        return _ops.bn_backward_sums(self.engine, ga, y, stats, gamma, beta, *activation)

    def bn_backward_apply(self, ga: Tensor, y: Tensor, stats: Tensor, gamma: Tensor | None, beta: Tensor | None,
                          sums: Tensor | None, count: int, activation: Activation) -> Tensor:
        return _ops.bn_backward_apply(self.engine, ga, y, stats, gamma, beta, sums, count, *activation)

    def act_backward(self, ga: Tensor, saved: Tensor, activation: Activation) -> Tensor:
        return _ops.act_backward(self.engine, ga, saved, *activation)

    def dgrad(self, g: Tensor, x: Tensor, weight: Tensor, conv: ConvSpec) -> Tensor:
        return _ops.dgrad(self.engine, g, x, weight, *conv)

    def wgrad(self, g: Tensor, x: Tensor, weight: Tensor, conv: ConvSpec, saved: Tensor | None = None,
              activation: Activation = IDENTITY) -> Tensor:
        return _ops.wgrad(self.engine, g, x, weight, *conv, saved, *activation)

    def gan_loss(self, logits: Tensor, targets: Sequence[float], kind: str) -> tuple[Tensor, Tensor, Tensor]:
        return _ops.gan_loss(self.engine, logits, targets, kind)


_ENGINES = ("native", "triton", "plan")
OPERATORS = {name: Operators(name) for name in _ENGINES}
_DIRECT = {engine: SimpleNamespace(**{name: dispatch.pass_of(engine, name) for name in SCHEMAS}) for engine in _ENGINES}
_PLAIN = (Tensor, torch.nn.Parameter)


def passes_of(engine: str, x: Tensor, weight: Tensor) -> Any:
    """An engine's passes for these tensors.

    Operators are needed under a compiler, a dispatch mode, a functorch transform, the tracer or the profiler, and for
    tensor subclasses. Otherwise the functions are called directly, which saves about 20 us per call. The reference
    consists of PyTorch's operators, so its functions are used in both cases.
    """
    if engine == "reference":
        return reference
    if (torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or type(x) not in _PLAIN
            or type(weight) not in _PLAIN or torch._C._functorch.peek_interpreter_stack() is not None
            or torch._C._get_tracing_state() is not None or torch.autograd._profiler_enabled()):
        return OPERATORS[engine]
    return _DIRECT[engine]


def has_epilogue(engine: str, device: torch.device) -> bool:
    """Whether an engine's convolutions also compute the statistics of their results, or the mask of an activation, at
    almost no cost."""
    return engine == "triton" or (engine == "plan" and device.type == "cuda")


def loads_activation(engine: str, x: Tensor, weight: Tensor, conv: ConvSpec) -> bool:
    """Whether an engine's `wgrad` multiplies by act' as it loads ga. Triton's does for the convolution of an image,
    where it loads each element once."""
    if conv.transposed or weight.shape[1] >= FEW_CHANNELS:
        return False
    if engine == "plan" and x.is_cuda and type(x) in _PLAIN and not torch.compiler.is_compiling():
        engine = tuning.current().choose(problem.OF["wgrad"](x, x, weight, conv)).partition("/")[0]
    return engine == "triton"


def _conv(stride: list[int], padding: list[int], output_padding: list[int], transposed: bool) -> ConvSpec:
    return ConvSpec((stride[0], stride[1]), (padding[0], padding[1]), (output_padding[0], output_padding[1]),
                    transposed)


def _conv_forward(engine: str, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Any:
    return dispatch.run(engine, "conv_forward", x, weight, bias, _conv(*rest[:4]), rest[4])


def _conv_act_forward(engine: str, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Any:
    return dispatch.run(engine, "conv_act_forward", x, weight, bias, _conv(*rest[:4]), Activation(*rest[4:]))


def _bn_act_forward(engine: str, y: Tensor, statistics: Tensor | None, gamma: Tensor | None, beta: Tensor | None,
                    *rest: Any) -> Any:
    return dispatch.run(engine, "bn_act_forward", y, statistics, gamma, beta, RunningStats(*rest[:3]), rest[3],
                        NormSpec(*rest[4:8]), Activation(*rest[8:]))


def _of_bn(name: str) -> Callable[..., Any]:
    return lambda engine, *given: dispatch.run(engine, name, *given[:-3], Activation(*given[-3:]))


def _dgrad(engine: str, g: Tensor, x: Tensor, weight: Tensor, *conv: Any) -> Any:
    return dispatch.run(engine, "dgrad", g, x, weight, _conv(*conv))


def _wgrad(engine: str, g: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> Any:
    loaded = () if rest[4] is None else (rest[4], Activation(*rest[5:]))
    return dispatch.run(engine, "wgrad", g, x, weight, _conv(*rest[:4]), *loaded)


def _gan_loss(engine: str, logits: Tensor, targets: list[float], kind: str) -> Any:
    return dispatch.run(engine, "gan_loss", logits, targets, kind)


def _y_like(x: Tensor, weight: Tensor, conv: tuple[Any, ...]) -> Tensor:
    spec = _conv(*conv)
    return empty(x, x.shape[0], spec.channels(weight)[1], *spec.output_size(x, weight))


def _conv_forward_fake(engine: str, x: Tensor, weight: Tensor, bias: Tensor | None,
                       *rest: Any) -> tuple[Tensor, Tensor]:
    y, groups = _y_like(x, weight, rest[:4]), rest[4]
    shape = (2, groups, y.shape[1]) if groups else (0,)
    return y, y.new_empty(shape, dtype=statistics_dtype(y.dtype))


def _conv_act_forward_fake(engine: str, x: Tensor, weight: Tensor, bias: Tensor | None,
                           *rest: Any) -> tuple[Tensor, Tensor]:
    y = _y_like(x, weight, rest[:4])
    masked = Activation(*rest[4:]).keeps_mask()
    return y, y.new_empty((y.numel() + 7) // 8 if masked else 0, dtype=torch.uint8)


def _gan_loss_fake(engine: str, logits: Tensor, targets: list[float], kind: str) -> tuple[Tensor, Tensor, Tensor]:
    loss, score, gradient = (
        logits.new_empty(shape, dtype=torch.float32) for shape in ((len(targets),), (len(targets),), logits.shape))
    return loss, score, gradient


def _bn_act_forward_fake(engine: str, y: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    batch_statistics, _, _, groups = rest[7:11]
    shape = (2, groups if batch_statistics else 1, y.shape[1])
    return empty(y, *y.shape), y.new_empty(shape, dtype=statistics_dtype(y.dtype))


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {  # `benchmarks.counters` calls these to count inside operators
    "conv_forward": _conv_forward, "conv_act_forward": _conv_act_forward, "bn_act_forward": _bn_act_forward,
    "bn_backward_sums": _of_bn("bn_backward_sums"), "bn_backward_apply": _of_bn("bn_backward_apply"),
    "act_backward": _of_bn("act_backward"), "dgrad": _dgrad, "wgrad": _wgrad,
    "gan_loss": _gan_loss}
_FAKES: dict[str, Callable[..., Any]] = {
    "conv_forward": _conv_forward_fake, "conv_act_forward": _conv_act_forward_fake,
    "bn_act_forward": _bn_act_forward_fake,
    "bn_backward_sums": lambda engine, ga, y, stats, *_: (torch.empty_like(stats), reference.over_groups(stats)),
    "bn_backward_apply": lambda engine, ga, *_: empty(ga, *ga.shape),
    "act_backward": lambda engine, ga, *_: empty(ga, *ga.shape),
    "dgrad": lambda engine, g, x, *_: empty(x, *x.shape),
    "wgrad": lambda engine, g, x, weight, *_: empty(weight, *weight.shape),
    "gan_loss": _gan_loss_fake}

register(SCHEMAS, IMPLEMENTATIONS, _FAKES)
_ops: Any = torch.ops.fastgan
