"""The definition as an engine: what `reference.py` says, in the form in which `library.py` asks engines for it.

Results have the strides that kernels write, channels_last; `fuse` changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.ops import reference
from fastgan.ops.casts import cast
from fastgan.ops.dispatch import empty
from fastgan.ops.layers import Convolution, Measurement, Owed


def stage(x: Tensor, owed: Owed, convolution: Convolution, groups: int, measurement: Measurement | None,
          fuse: bool) -> tuple[Tensor, Tensor]:
    weight, bias = cast(convolution.weight, x.dtype), convolution.bias
    narrow = convolution._replace(weight=weight, bias=None if bias is None else bias.to(x.dtype))
    y = reference.stage(x, reference.known(owed), owed.activation, narrow)
    statistics = nothing(x) if measurement is None else reference.measured(y, groups, measurement)
    return _channels_last(y), statistics


def stage_backward(gy: Tensor, gstatistics: Tensor | None, y: Tensor, statistics: Tensor, x: Tensor, owed: Owed,
                   convolution: Convolution, spread: str, fuse: bool, needs: tuple[bool, bool, bool, bool],
                   ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gx, gweight, gbias, gnorm = reference.stage_backward(gy, gstatistics, y, statistics, x, owed, convolution, spread,
                                                         needs)
    return _channels_last(gx), _channels_last(gweight), gbias, gnorm


def normalise_activate(x: Tensor, owed: Owed) -> Tensor:
    return _channels_last(reference.normalise_activate(x, reference.known(owed), owed.activation))


def normalise_activate_backward(gout: Tensor, x: Tensor, owed: Owed) -> tuple[Tensor, Tensor]:
    gx, gnorm = reference.normalise_activate_backward(gout, x, owed)
    return _channels_last(gx), gnorm


def nothing(like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return like.new_empty((0,), dtype=dtype)


def _channels_last(x: Tensor) -> Tensor:
    return x if x.dim() != 4 else empty(x, *x.shape).copy_(x)
