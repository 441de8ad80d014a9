"""A problem: one pass with every property that determines which engine is fastest for it.

`OF` has a function for each pass of `fastgan/ops/reference.py`, which makes the problem from the pass's own arguments.
They run in every call of a pass, and take a few microseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgan import validation
from fastgan.ops.specs import Activation, ConvSpec, NormSpec, RunningStats


class Problem(NamedTuple):
    """A pass with its shapes, dtypes and options: hashable, and JSON except for its tuples.

    Attributes:
        kind: the name of the pass.
        device: the type of the device. threads: number of CPU threads, else 0. dtype: of x. tf32: whether products are
            rounded to TF32.
        x: the shape of x; of y or ga in passes without a weight; of the logits of the loss. x_last, weight_last:
            whether x and weight are channels_last.
        inplace: for a leaky_relu without batch normalization, whether a is saved instead of the mask z > 0.
        groups: number of statistic groups, 0 without statistics; number of parts of a loss.
        statistics: in `bn_act_forward`, "batch" if the pass computes them from y, "given" if they are arguments, or
            "running". In `bn_backward_apply`: "given" or "running".
        loss: the kind of `gan_loss`.
    """

    kind: str
    device: str
    threads: int
    dtype: str
    tf32: bool
    x: tuple[int, ...]
    x_last: bool = True
    weight: tuple[int, ...] = ()
    weight_dtype: str = ""
    weight_last: bool = True
    bias: bool = False
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    transposed: bool = False
    activation: str = "none"
    negative_slope: float = 0.0
    inplace: bool = False
    groups: int = 0
    statistics: str = ""
    loss: str = ""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Problem:
        """Raises TypeError for invalid values."""
        plain: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value
                                 for name, value in values.items()}
        made, trouble = cls(**plain), validation.first_error(plain, cls)
        if trouble or (made.weight and (len(made.weight) < 2 or not made.stride)):
            raise TypeError(trouble or "a convolution without channels or a stride")
        return made

    def words(self) -> str:
        """One line of text."""
        made = "x".join(map(str, self.x))
        if self.weight:
            to = self.weight[1] if self.transposed else self.weight[0]
            name, kernel = "conv_transpose" if self.transposed else "conv", "x".join(map(str, self.weight[2:]))
            made = f"{name} {kernel}/{self.stride[0]} {made} -> {to}"
        if self.activation != "none":
            made += f" {self.activation}" + " in-place" * self.inplace
        if self.loss:
            made += f" {self.loss}"
        if self.statistics:
            made += f", {self.statistics} statistics"
        return f"{self.kind:18}{made}{f', {self.groups} groups' * (self.groups > 1)}, {self.dtype}"


def _conv_forward(x: Tensor, weight: Tensor, bias: Tensor | None, conv: ConvSpec, groups: int) -> Problem:
    return _of_conv("conv_forward", x, weight, bias is not None, conv, "none", 0.0, False, groups)


def _conv_act_forward(x: Tensor, weight: Tensor, bias: Tensor | None, conv: ConvSpec,
                      activation: Activation) -> Problem:
    name, slope, inplace = activation
    leaky = name == "leaky_relu"  # an unused slope or an in-place relu does not make another problem
    return _of_conv("conv_act_forward", x, weight, bias is not None, conv, name, float(slope) if leaky else 0.0,
                    leaky and inplace, 0)


def _dgrad(g: Tensor, x: Tensor, weight: Tensor, conv: ConvSpec) -> Problem:
    return _of_conv("dgrad", x, weight, False, conv, "none", 0.0, False, 0)


def _wgrad(g: Tensor, x: Tensor, weight: Tensor, conv: ConvSpec, *_: Any) -> Problem:
    return _of_conv("wgrad", x, weight, False, conv, "none", 0.0, False, 0)


def _bn_act_forward(y: Tensor, statistics: Tensor | None, gamma: Tensor | None, beta: Tensor | None,
                    running: RunningStats, count: int, norm: NormSpec, activation: Activation) -> Problem:
    if not norm.batch_statistics:
        return _of_images("bn_act_forward", y, activation, False, 1, "running")
    return _of_images("bn_act_forward", y, activation, False, norm.groups, "batch" if statistics is None else "given")


def _bn_backward_sums(ga: Tensor, y: Tensor, stats: Tensor, gamma: Tensor | None, beta: Tensor | None,
                      activation: Activation) -> Problem:
    return _of_images("bn_backward_sums", ga, activation, False, stats.shape[1], "")


def _bn_backward_apply(ga: Tensor, y: Tensor, stats: Tensor, gamma: Tensor | None, beta: Tensor | None,
                       sums: Tensor | None, count: int, activation: Activation) -> Problem:
    return _of_images("bn_backward_apply", ga, activation, False, stats.shape[1],
                      "running" if sums is None else "given")


def _act_backward(ga: Tensor, saved: Tensor, activation: Activation) -> Problem:
    inplace = activation.name == "leaky_relu" and saved.dtype != torch.uint8
    return _of_images("act_backward", ga, activation, inplace, 0, "")


def _gan_loss(logits: Tensor, targets: Sequence[float], kind: str) -> Problem:
    return Problem("gan_loss", *_device(logits), _NAMES[logits.dtype], False, tuple(logits.shape),
                   groups=len(targets), loss=kind)


OF: dict[str, Callable[..., Problem]] = {
    "conv_forward": _conv_forward, "conv_act_forward": _conv_act_forward, "bn_act_forward": _bn_act_forward,
    "bn_backward_sums": _bn_backward_sums, "bn_backward_apply": _bn_backward_apply, "act_backward": _act_backward,
    "dgrad": _dgrad, "wgrad": _wgrad, "gan_loss": _gan_loss}
_NAMES = {getattr(torch, name): name for name in ("float32", "float16", "bfloat16", "float64")}


def _of_conv(kind: str, x: Tensor, weight: Tensor, bias: bool, conv: ConvSpec, activation: str, slope: float,
             inplace: bool, groups: int) -> Problem:
    device, threads = _device(x)
    return Problem(kind, device, threads, _NAMES[x.dtype], device == "cuda" and _tf32(x), tuple(x.shape), _is_last(x),
                   tuple(weight.shape), _NAMES[weight.dtype], _is_last(weight), bias, *conv, activation, slope, inplace,
                   groups)


def _of_images(kind: str, x: Tensor, activation: Activation, inplace: bool, groups: int, statistics: str) -> Problem:
    name, slope, _ = activation
    return Problem(kind, *_device(x), _NAMES[x.dtype], False, tuple(x.shape), _is_last(x), (), "", True, False, (), (),
                   (), False, name, float(slope) if name == "leaky_relu" else 0.0, inplace, groups, statistics)


def _device(x: Tensor) -> tuple[str, int]:
    return ("cpu", torch.get_num_threads()) if x.is_cpu else (x.device.type, 0)


def _tf32(x: Tensor) -> bool:
    conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    return bool(x.dtype == torch.float32 and conv.fp32_precision == "tf32")


def _is_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)
