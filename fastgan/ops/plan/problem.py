"""What is asked of an engine: one pass of one stage, by everything that decides which engine is fastest there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgan import typed
from fastgan.ops.layers import Convolution, Measurement, Owed


class Problem(NamedTuple):
    """Hashable, and JSON but for its tuples.

    kind: "forward", "dgrad", "wgrad", "apply" (what is owed after the last stage), "apply_backward" or "loss".
    device: its type. threads: of a CPU, else 0. dtype: of x. x: its shape; x_last, weight_last: channels_last?
    normalised: groups of the normalisation owed to x, 0 for none. spread: what is measured beside the mean, "" for no
    measurement; in a backward pass, through what gradients come. groups: of that measurement; parts of a loss.
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
    normalised: int = 0
    spread: str = ""
    groups: int = 1

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Problem:
        """Raises TypeError for what is none."""
        plain: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value
                                 for name, value in values.items()}
        made, trouble = cls(**plain), typed.wrong(plain, cls)
        if trouble or (made.weight and (len(made.weight) < 2 or not made.stride)):
            raise TypeError(trouble or "a convolution without channels or a stride")
        return made

    def words(self) -> str:
        """One line for people."""
        x = "x".join(map(str, self.x))
        x = f"bn({x})" if self.normalised else x
        x = f"{self.activation}({x})" if self.activation != "none" else x
        if not self.weight:
            return f"{self.kind:16}{x}{f' in {self.groups} parts' * (self.groups > 1)}, {self.dtype}"
        to: object = self.weight[1] if self.transposed else self.weight[0]
        name, kernel = "conv_transpose" if self.transposed else "conv", "x".join(map(str, self.weight[2:]))
        to = f"{to} bn" if self.spread else f"{to}"
        to = f"{to} x{self.groups}" if self.groups > 1 else to
        return f"{self.kind:16}{name} {kernel}/{self.stride[0]} {x} -> {to}, {self.dtype}"


def of_stage(kind: str, x: Tensor, owed: Owed, convolution: Convolution, spread: str, groups: int) -> Problem:
    """One pass of a stage: "forward", "dgrad" or "wgrad"."""
    weight, bias, stride, padding, output_padding, transposed = convolution
    return _of(kind, x, owed)._replace(
        weight=tuple(weight.shape), weight_dtype=_name(weight.dtype), weight_last=_is_last(weight),
        bias=bias is not None, stride=tuple(stride), padding=tuple(padding), output_padding=tuple(output_padding),
        transposed=transposed, spread=spread, groups=groups)


def of_forward(x: Tensor, owed: Owed, convolution: Convolution, groups: int,
               measurement: Measurement | None) -> Problem:
    spread = "" if measurement is None else measurement.spread
    return of_stage("forward", x, owed, convolution, spread, groups)


def of_backward(kind: str, gstatistics: Tensor | None, x: Tensor, owed: Owed, convolution: Convolution,
                spread: str) -> Problem:
    spread, groups = ("", 1) if gstatistics is None else (spread, gstatistics.shape[1])
    return of_stage(kind, x, owed, convolution, spread, groups)


def of_apply(kind: str, x: Tensor, owed: Owed) -> Problem:
    """"apply" or "apply_backward"."""
    return _of(kind, x, owed)


def of_loss(logits: Tensor, targets: Sequence[float]) -> Problem:
    return _of("loss", logits, Owed())._replace(groups=len(targets))


def _of(kind: str, x: Tensor, owed: Owed) -> Problem:
    activation = owed.activation
    threads = torch.get_num_threads() if x.device.type == "cpu" else 0
    return Problem(kind, x.device.type, threads, _name(x.dtype), _tf32(x), tuple(x.shape), _is_last(x),
                   activation=activation.name, negative_slope=activation.negative_slope,
                   normalised=0 if owed.statistics is None else owed.groups())


def _tf32(x: Tensor) -> bool:
    """Whether products of x are rounded to TF32."""
    conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    return bool(x.device.type == "cuda" and x.dtype == torch.float32 and conv.fp32_precision == "tf32")


def _is_last(x: Tensor) -> bool:
    return x.dim() != 4 or x.is_contiguous(memory_format=torch.channels_last)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
