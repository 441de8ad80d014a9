"""The least time that a kernel can take on a device: that of its products, of its memory, or of being launched.

    time = max(flops / peak of its arithmetic, bytes / bandwidth, launch)

Kernels of a step run one after the other, so their times add up. No kernel reaches this; none can be faster, unless
data stays in a cache from one kernel to the next, which a step of a small batch may do.
"""

from __future__ import annotations

from typing import NamedTuple

from fastgan.verify.cost.counted import Count
from fastgan.verify.cost.devices import Device
from fastgan.verify.cost.kernel import Kernel

_CORES = {"fp32": "cores", "": ""}


class Bound(NamedTuple):
    """Seconds, and what they are spent on: "tensor cores", "cores", "memory" or "launch"."""

    seconds: float
    by: str


class Totals(NamedTuple):
    """Of a step. launches: by the host. seconds: at the limit. gemms: of its matrix products alone, each reading two
    operands and writing one result, without launches or anything fused. products: of their arithmetic alone."""

    kernels: int
    launches: int
    flops: int
    bytes: int
    seconds: float
    gemms: float
    products: float


def bound(kernel: Kernel, device: Device, graphed: bool) -> Bound:
    """On a device, in a CUDA graph or started by the host."""
    launch = (device.graph_us if graphed else device.stream_us) / 1e6
    return max(Bound(_multiplying(kernel, device), _CORES.get(kernel.arithmetic, "tensor cores")),
               Bound(kernel.bytes / device.bandwidth / 1e9, "memory"), Bound(launch, "launch"))


def totals(count: Count, device: Device) -> Totals:
    kernels, graphed = count.kernels, count.launches == 1
    products = [_multiplying(kernel, device) for kernel in kernels]
    gemms = [max(seconds, kernel.bare / device.bandwidth / 1e9)
             for seconds, kernel in zip(products, kernels, strict=True)]
    return Totals(len(kernels), count.launches, sum(kernel.flops for kernel in kernels),
                  sum(kernel.bytes for kernel in kernels),
                  sum(bound(kernel, device, graphed).seconds for kernel in kernels), sum(gemms), sum(products))


def _multiplying(kernel: Kernel, device: Device) -> float:
    """Seconds; float32 stands in for an arithmetic that the device has no peak of."""
    if not kernel.flops:
        return 0.0
    return kernel.flops / device.tflops.get(kernel.arithmetic, device.tflops["fp32"]) / 1e12
