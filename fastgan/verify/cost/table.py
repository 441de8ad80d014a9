"""The model as text: each kernel of a step, the totals side by side, and what fastgan spends beyond bare products."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from fastgan.verify.cost.counted import Count
from fastgan.verify.cost.devices import Device
from fastgan.verify.cost.kernel import Kernel
from fastgan.verify.cost.model import OLDEST, Model
from fastgan.verify.cost.roofline import bound

_TITLES = {"eager": "eager: the textbook step, counted as PyTorch dispatches it",
           "compiled": "compiled: eager's kernels fused by a simple rule; MODELLED, no compiler was asked",
           "fastgan": "fastgan: the step that is trained, its launches recorded; one CUDA graph"}


class Line(NamedTuple):
    """Launches of one kind: how many, what they are, and together flops, bytes and seconds at the limit."""

    times: int
    kernel: Kernel
    flops: int
    bytes: int
    seconds: float
    by: str


def grouped(count: Count, device: Device) -> list[Line]:
    """A line for each kernel, layer and shape; what takes longest at the limit first."""
    kinds: dict[tuple[str, str, str, int], list[Kernel]] = {}
    for kernel in count.kernels:
        kinds.setdefault((kernel.owner, kernel.name, kernel.what, kernel.bytes), []).append(kernel)
    found = []
    for same in kinds.values():
        one = bound(same[0], device, count.launches == 1)
        times = len(same)
        found.append(Line(times, same[0], times * same[0].flops, times * same[0].bytes, times * one.seconds, one.by))
    return sorted(found, key=lambda line: -line.seconds)


def lines(model: Model, measured: dict[str, float] | None = None) -> Iterator[str]:
    """Everything; measured: seconds of steps on this machine, by name, to stand beside the model's limit."""
    yield from heading(model)
    for name, count in model.counts.items():
        yield from ["", _TITLES[name]]
        yield (f"{'':3} {'layer':11}{'kernel':42}{'shape':62}{'GFLOP':>9}{'MB':>10}{'FLOP/B':>8}{'us':>9}  bound")
        yield from (_line(line) for line in grouped(count, model.device))
    yield ""
    yield from summary(model)
    if measured:
        yield from ["", *beside(model, measured)]


def heading(model: Model) -> Iterator[str]:
    device, what = model.device, model.what
    peaks = ", ".join(f"{name} {value:,.4g}" for name, value in device.tflops.items())
    yield f"A model, not a measurement: {model.preset}, batch {what.batch}, {what.precision}, on {device.name}"
    yield f"TFLOP/s {peaks}; memory {device.bandwidth:,.4g} GB/s; {device.source}"
    if device.arch:
        yield (f"launch {device.stream_us} us from the host, {device.graph_us} us in a graph (assumed); each input "
               "read once, each output written once; GFLOP are of matrix products")
    if 0 < device.arch < OLDEST:
        yield f"sm_{device.arch} has no Triton kernels of fastgan: these are counted as if it were sm_{OLDEST}"


def _line(line: Line) -> str:
    kernel, intensity = line.kernel, line.flops / line.bytes if line.bytes else 0
    return (f"{line.times:3} {kernel.owner:11}{kernel.name:42}{kernel.what:62}{line.flops / 1e9:9.2f}"
            f"{line.bytes / 1e6:10.2f}{intensity:8.1f}{line.seconds * 1e6:9.1f}  {line.by}")


def summary(model: Model) -> Iterator[str]:
    """The totals, and their ratio to eager's."""
    totals = model.totals()
    eager = totals["eager"]
    yield (f"{'at the limit':14}{'kernels':>9}{'launches':>10}{'GFLOP':>10}{'MB':>11}{'of eager':>10}{'ms':>9}"
           f"{'of eager':>10}{'GEMMs ms':>10}{'of GEMMs':>10}{'products ms':>13}")
    for name, one in totals.items():
        yield (f"{name:14}{one.kernels:9}{one.launches:10}{one.flops / 1e9:10.1f}{one.bytes / 1e6:11.1f}"
               f"{one.bytes / eager.bytes:10.3f}{one.seconds * 1e3:9.3f}{one.seconds / eager.seconds:10.3f}"
               f"{one.gemms * 1e3:10.3f}{one.seconds / one.gemms:10.2f}{one.products * 1e3:13.3f}")
    yield ("GEMMs: the products alone, each as a bare kernel that reads two operands and writes its result; "
           "products: their arithmetic alone")


def beside(model: Model, measured: dict[str, float]) -> Iterator[str]:
    """Measured steps beside the model's limits: of eager's count for eager, of fastgan's for its engines."""
    totals = model.totals()
    yield f"{'MEASURED here':24}{'ms':>9}{'limit ms (model)':>18}{'% of limit':>12}"
    for name, seconds in measured.items():
        limit = totals["eager" if name.startswith("eager") else "fastgan"].seconds
        yield f"{name:24}{seconds * 1e3:9.1f}{limit * 1e3:18.1f}{100 * limit / seconds:12.1f}"
    yield "fastgan's limit is that of its fused kernels, which move less than the CPU's engines do"


def excess(model: Model, most: int = 12) -> list[Line]:
    """Where fastgan's bytes are beyond its bare products' operands and results: the largest first."""
    found = [line._replace(bytes=line.bytes - line.times * line.kernel.bare)
             for line in grouped(model.counts["fastgan"], model.device)]
    return sorted(found, key=lambda line: -line.bytes)[:most]
