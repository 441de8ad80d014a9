"""Launches of kernels: the handler, the device and the precision."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgan import ops
from fastgan.ops.triton import launch


def convolve() -> Tensor:
    return ops.conv_bn_act(torch.ones(2, 3, 8, 8), torch.ones(8, 3, 4, 4), impl="triton")


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_float32_is_as_precise_as_convolutions_are_told_to_be(precision):
    seen = []
    before = torch.backends.cudnn.conv.fp32_precision
    try:
        torch.backends.cudnn.conv.fp32_precision = precision
        with launch.through(lambda kernel, grid, arguments, options: seen.append(arguments["PRECISION"])
                            if "PRECISION" in arguments else None):
            convolve()
    finally:
        torch.backends.cudnn.conv.fp32_precision = before
    assert seen == [precision]


def test_handlers_nest_and_end():
    seen: list[str] = []

    def handler(name: str) -> launch.Handler:
        def handle(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], options: dict[str, int]) -> None:
            seen.append(f"{name} {launch.architecture(torch.device('cpu'))}")
            assert {"num_warps", "num_stages"} <= options.keys() and all(side > 0 for side in grid)
        return handle

    with launch.through(handler("outer"), arch=80):
        with pytest.raises(ZeroDivisionError), launch.through(handler("inner"), arch=90):
            convolve()
            raise ZeroDivisionError
        convolve()
    assert set(seen) == {"inner 90", "outer 80"}
    assert not launch.diverted() and launch.architecture(torch.device("cpu")) == 0


def test_on_the_device_of_its_tensors(monkeypatch):
    """Triton launches on the current device, not on that of the tensors."""
    seen: list[Tensor] = []
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: seen.append(tensor) or nullcontext())
    convolve()
    assert seen and all(isinstance(tensor, Tensor) for tensor in seen)
