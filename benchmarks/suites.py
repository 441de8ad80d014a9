"""The registry: every suite with its workloads and implementations, for a device.

Names of our implementations begin with "fastgan". The first implementation of a suite is the baseline of the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.implementation import SAVINGS, Implementation
from benchmarks.networks import NETWORKS
from benchmarks.workload import Workload
from fastgan.config import nearest
from fastgan.errors import FastganError
from fastgan.ops.tuning import candidates
from fastgan.presets import PRESETS

NHWC = "PyTorch, channels_last"
# the first batch is that of dcgan-64, the second that of torchbench
BATCHES = {"cpu": (64, 32, 128), "cuda": (128, 32, 64, 256, 1024)}
PRECISIONS = ("fp32", "tf32", "bf16")  # float16 skips its first steps until it has found a loss scale
LARGE, FEW = 128, (NHWC, "fastgan, native", "fastgan, auto")  # from this batch on, a CPU measures only these
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")
ADDS = "+ "  # prefix of all names of an ablation except the first


@dataclass(frozen=True)
class Suite:
    """what: a description. implementations: (device, precision) -> all implementations. networks: a workload for each.
    checked: whether the results are compared with float64."""

    what: str
    implementations: Callable[[torch.device, str], list[Implementation]]
    networks: tuple[str, ...] = ("",)
    checked: bool = True


def step(device: torch.device, precision: str) -> list[Implementation]:
    """PyTorch, PyTorch without the work that fastgan saves, and fastgan on each engine."""
    plain, careful = _pytorch(device, precision)
    saving = careful.but(f"{careful.name}, same work saved", savings=("frozen", "fused_adam"))
    all_of_them = [plain, careful, saving, *(
        saving.but(f"torch.compile {mode}, same work saved", compiled=mode,
                   usual=mode == "default" or device.type == "cuda") for mode in COMPILE_MODES)]
    if device.type == "cuda":
        all_of_them.append(careful.but(f"{careful.name}, CUDA graph", graph=True, together=False))
    return all_of_them + _fastgan(device, precision)


def ablation(device: torch.device, precision: str) -> list[Implementation]:
    """From PyTorch's loop to fastgan: each implementation adds the change in its name to the previous one."""
    gpu, names = device.type == "cuda", candidates.engines(device)
    plain, careful = _pytorch(device, precision)
    chain = [plain, plain.but(f"{ADDS}channels_last", nchw=False)]
    if gpu:
        chain.append(careful.but(f"{ADDS}{careful.precision}, cudnn.benchmark, losses not read"))
    chain.append(chain[-1].but(f"{ADDS}no gradients of D in G's update", savings=("frozen",)))
    chain.append(chain[-1].but(f"{ADDS}fused Adam", savings=("frozen", "fused_adam")))
    chain.append(Implementation(f"{ADDS}fastgan's step", "reference", precision, savings=SAVINGS, cudnn_benchmark=gpu))
    if gpu:
        chain.append(chain[-1].but(f"{ADDS}fastgan's CUDA graph", graph=True))
    elif "native" in names:
        chain.append(chain[-1].but(f"{ADDS}fastgan's native engine", engine="native"))
    if len(names) > 1:
        chain.append(chain[-1].but(f"{ADDS}fastgan's tuning", engine="auto"))
    return chain


def networks(device: torch.device, precision: str) -> list[Implementation]:
    """Eager layers, compiled ones, and ours."""
    gpu = device.type == "cuda"
    nchw, nhwc = (Implementation(f"eager, {layout}", precision=precision, nchw=layout == "NCHW", cudnn_benchmark=gpu)
                  for layout in ("NCHW", "channels_last"))
    return [nchw, nhwc, *(nhwc.but(f"torch.compile {mode}", compiled=mode, usual=mode == "default" or gpu)
                          for mode in COMPILE_MODES),
            *(Implementation(f"fastgan, {engine}", engine, precision, cudnn_benchmark=gpu)
              for engine in candidates.engines(device))]


def training(device: torch.device, precision: str) -> list[Implementation]:
    """PyTorch's loop and fastgan, each with its own way to load data."""
    return [*_pytorch(device, precision), *_fastgan(device, precision)]


SUITES = {
    "step": Suite("whole steps, D and G", step),
    "ablation": Suite("contribution of each change from PyTorch's loop to fastgan", ablation),
    "training": Suite("images per second, including data loading", training, checked=False),
    "networks": Suite("generator and discriminator, forward and backward", networks, networks=NETWORKS),
}


def implementations(workload: Workload, device: torch.device, precision: str, match: str = "") -> list[Implementation]:
    """The implementations whose name contains `match`; the usual ones if it is empty."""
    all_of_them = SUITES[workload.suite].implementations(device, precision)
    if match:
        return [one for one in all_of_them if match.lower() in one.name.lower()]
    few = device.type == "cpu" and workload.batch >= LARGE
    return [one for one in all_of_them if one.usual and (not few or one.name.startswith(FEW))]


def check_names(suites: list[str], preset: str) -> None:
    """Raises `FastganError` for a suite that does not exist, and for a preset without convolutions."""
    for name in suites:
        if name not in SUITES:
            raise FastganError(f"unknown suite {name!r}; {nearest(name, list(SUITES))}")
    known = [name for name in PRESETS if "gaussian" not in name]
    if preset not in known:
        raise FastganError(f"--preset {preset}: no preset with convolutions; {nearest(preset, known)}")


def _pytorch(device: torch.device, precision: str) -> tuple[Implementation, Implementation]:
    """PyTorch's example, unchanged and optimized: channels_last, no loss read in a step, and on a GPU cudnn.benchmark
    and the requested precision."""
    if device.type != "cuda":
        plain = Implementation("PyTorch, NCHW", precision=precision, nchw=True, reads_losses=True)
        return plain, plain.but(NHWC, nchw=False, reads_losses=False)
    plain = Implementation("PyTorch, NCHW", precision="fp32" if precision == "fp32" else "tf32", nchw=True,
                           reads_losses=True)
    return plain, plain.but(f"{NHWC}, autocast" if precision == "bf16" else NHWC, nchw=False, reads_losses=False,
                            cudnn_benchmark=True, precision=precision)


def _fastgan(device: torch.device, precision: str) -> list[Implementation]:
    """Each engine, and "auto"; on a GPU with and without a graph."""
    names, gpu = candidates.engines(device), device.type == "cuda"
    ours = [Implementation(f"fastgan, {name}", name, precision, savings=SAVINGS, cudnn_benchmark=gpu)
            for name in [*names, *(["auto"] if len(names) > 1 else [])]]
    if not gpu:
        return ours
    return [each for one in ours for each in (one.but(f"{one.name}, no graph"), one.but(one.name, graph=True))]
