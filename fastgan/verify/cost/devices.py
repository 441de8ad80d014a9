"""What devices could do at most, from their makers' data sheets: dense products, no sparsity; and what this CPU does.

`stream_us` and `graph_us`, the least time from one kernel's start to the next one's, are ASSUMPTIONS of the right
order, the same for every GPU, and no vendor's figures: 2.5 us when the host starts each kernel, 1 us within a CUDA
graph. What PyTorch's own Python and C++ take on the host for each operator, which is more, is left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from fastgan.errors import FastganError


class Device(NamedTuple):
    """Peaks in TFLOP/s by arithmetic, of which "fp32" runs on ordinary cores; memory in GB/s and in GB.

    arch: compute capability, 90 for 9.0; 0 for a CPU.
    """

    name: str
    arch: int
    tflops: dict[str, float]
    bandwidth: float
    memory: float
    source: str
    stream_us: float = 2.5
    graph_us: float = 1.0


_HOPPER = {"bf16": 989.4, "fp16": 989.4, "tf32": 494.7, "fp32": 66.9}
DEVICES = {
    "t4": Device("Tesla T4", 75, {"fp16": 65, "fp32": 8.1}, 320, 16, "NVIDIA T4 data sheet"),
    "v100": Device("Tesla V100 SXM2 32 GB", 70, {"fp16": 125, "fp32": 15.7}, 900, 32, "NVIDIA V100 data sheet"),
    "a100": Device("A100 SXM 80 GB", 80, {"bf16": 312, "fp16": 312, "tf32": 156, "fp32": 19.5}, 2039, 80,
                   "NVIDIA A100 data sheet"),
    "l4": Device("L4", 89, {"bf16": 121, "fp16": 121, "tf32": 60, "fp32": 30.3}, 300, 24,
                 "NVIDIA L4 data sheet, whose figures with sparsity are halved here"),
    "4090": Device("GeForce RTX 4090", 89, {"bf16": 165.2, "fp16": 165.2, "tf32": 82.6, "fp32": 82.6}, 1008, 24,
                   "NVIDIA Ada GPU architecture whitepaper, FP32 accumulate"),
    "h100": Device("H100 SXM", 90, _HOPPER, 3352, 80, "NVIDIA H100 architecture whitepaper and data sheet"),
    "h200": Device("H200 SXM", 90, _HOPPER, 4800, 141, "NVIDIA H200 data sheet"),
    "b200": Device("B200", 100, {"bf16": 2250, "fp16": 2250, "tf32": 1125, "fp32": 75}, 8000, 180,
                   "NVIDIA HGX B200 and DGX B200 data sheets, whose figures with sparsity are halved here"),
}


def find(name: str) -> Device:
    """The device of this name; "cpu" is this machine, measured now, which takes a second or two.

    Raises `FastganError` that names those accepted.
    """
    if name == "cpu":
        return this_cpu()
    if name not in DEVICES:
        raise FastganError(f"--gpu {name}: expected one of {', '.join([*DEVICES, 'cpu'])}")
    return DEVICES[name]


def precision_of(name: str, device: Device) -> str:
    """The precision that is meant: auto is bf16 where tensor cores have it, else fp16, on a CPU fp32.

    Raises `FastganError` for one that the device's table lacks.
    """
    if name == "auto":
        return "fp32" if device.arch == 0 else "bf16" if "bf16" in device.tflops else "fp16"
    if name not in device.tflops:
        raise FastganError(f"--precision {name} on {device.name}: expected auto, {', '.join(device.tflops)}")
    return name


def this_cpu(size: int = 1024) -> Device:
    """The ceilings of the machine at hand with the threads that PyTorch has: products of matrices of `size`, and a copy
    of 128 MiB, which is read and written. The best of several."""
    tflops = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        matrix = torch.ones(size, size, dtype=dtype)
        tflops[precision] = 2 * size**3 / _best(partial(torch.mm, matrix, matrix)) / 1e12
    source, target = torch.ones(2**25), torch.zeros(2**25)
    bandwidth = 2 * source.nbytes / _best(partial(target.copy_, source)) / 1e9
    threads = f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    return Device(f"this CPU, {threads}", 0, tflops, bandwidth, 0, "measured now by torch.mm and a copy", 0, 0)


def _best(function: Callable[[], object], seconds: float = 0.4) -> float:
    """Seconds of the fastest call among those that fit into `seconds`; the first, a warm-up, does not count."""
    function()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return min(times)
