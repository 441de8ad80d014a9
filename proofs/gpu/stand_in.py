"""Replaces the GPU in a rehearsal of `proofs.gpu`: FASTGAN_STAND_IN=proofs.gpu.stand_in.

The device is the CPU with simulated graphs, and networks are tiny. Triton's kernels run in the PTX simulator, if PTXSIM
is its folder. Environment variables:

    FASTGAN_FAULT                    "crash native, hang reference", "wrong triton", "lose native" (in an engine's third
                                     pass), "no nvcc", "no pybind11", "full disk"
    FASTGAN_PARTS, FASTGAN_ENGINES   names of the parts and engines to rehearse (default: all)
    FASTGAN_CC                       the compiler of bindings
    FASTGAN_REHEARSAL=full           every pass and precision, not one pass of each kind in bf16
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from proofs.gpu import jobs

DEVICE = "A stand-in 9000"
TINY = {"image_size": "16", "ngf": 16, "ndf": 16, "nz": 8, "source": "digits", "channels": 1}
FULL = os.environ.get("FASTGAN_REHEARSAL") == "full"
PARTS, ENGINES = (os.environ.get(f"FASTGAN_{name}", "").split() for name in ("PARTS", "ENGINES"))
FAULTS = {engine: fault for fault, engine in (
    pair.split() for pair in os.environ.get("FASTGAN_FAULT", "").split(",") if pair)}


def install() -> None:
    """Install the replacement, in the command and in each of its jobs."""
    if FAULTS.get("disk") == "full":
        _fill_the_disk()
    jobs.BATCHES, jobs.CHECKED = ("4",), "4"
    if not FULL:
        jobs.PRECISIONS, jobs.MODES = ("bf16",), ("default",)
    jobs.plan = partial(_plan, jobs.plan)
    if sys.argv[0].endswith("child.py"):
        _install_device(sys.argv[1])


def _plan(plan: Callable[..., Any], *given: Any) -> Any:
    """Parts with long timeouts for a slow machine, except for a job that hangs."""
    parts = [part._replace(jobs=part.jobs if FULL or part.name != "others" else part.jobs[-1:])
             for part in plan(*given) if part.name in PARTS or not PARTS]
    return [part._replace(limit=1000.0, jobs=[
        job._replace(patience=6.0 if FAULTS.get(job.options.get("engine", "")) == "hang" else 400.0,
                     options=job.options if FULL else _fewer_kernels(job.options))
        for job in part.jobs if job.options.get("engine") in ENGINES or not ENGINES]) for part in parts]


def _fewer_kernels(options: dict[str, str]) -> dict[str, str]:
    """All kernels of a step, but only a few of those for tuning and of other variants."""
    few = "gemms" in options or options.get("variant", "triton") != "triton"
    return {**options, "slice": "0/12"} if few and "slice" in options else options


def _install_device(kind: str) -> None:
    import torch

    from fastgan.ops import dispatch
    from fastgan.train import graph
    from fastgan.train.step import GANStep
    from proofs.gpu import correctness, gemms, kernels, library, prepare, speed, tools

    torch.set_num_threads(1)
    cuda = _cuda()
    graph.cuda = dispatch.cuda = library.cuda = cuda
    library.DEVICE, library.ARCH, library.REPEATS, library.PRESET = torch.device("cpu"), 90, 2, ("digits", TINY)
    if not FULL:
        library.passes = partial(_one_of_each_kind, library.passes)
    graph.RUNS = 1
    GANStep.together = property(lambda step: step._divisible)  # type: ignore[assignment]  # as on a GPU
    tools.BATCH = tools.CHECKED = speed.TUNED = speed.CHECKED = 4
    correctness.STEPS = 2
    speed.ROUNDS, speed.TURN, speed.TRAINED = 2, 0.0, 8
    kernels.BATCHES, kernels.CALLS, kernels.FLUSH = (8,), 1, 1
    gemms.gemms = _gemms
    gemms.tile_candidates = partial(_two_of, gemms.tile_candidates)
    torch.compile = partial(_eagerly, torch.compile)
    if kind == "nvcc" and "FASTGAN_CC" in os.environ:
        os.environ["CC"] = os.environ["CXX"] = os.environ["FASTGAN_CC"]
    prepare.PACKAGE = Path(os.environ["FASTGAN_CACHE"])
    prepare.PACKAGE.mkdir(parents=True, exist_ok=True)
    _remove("nvcc", prepare.shutil, "which")
    _remove("pybind11", prepare.importlib.util, "find_spec")
    from proofs.ptx import simulator

    ptxsim = simulator.find(os.environ.get("PTXSIM"))
    library.missing = partial(_missing, library.missing, ptxsim is not None)
    if ptxsim is not None and kind not in ("facts", "nvcc", "kernels"):
        executing = simulator.executing(ptxsim, 90, unwritten=False)
        executing.__enter__()
        cuda.executing = executing  # to the end of the process
    library.Pass.__call__ = _faulty(library.Pass.__call__, cuda)  # type: ignore[method-assign]


def _missing(missing: Callable[[str], str], simulated: bool, engine: str) -> str:
    return "no PTX simulator here" if engine == "triton" and not simulated else missing(engine)


def _remove(name: str, place: Any, function: str) -> None:
    """Make `function` return None for this name, if `FAULTS` requests it."""
    if FAULTS.get(name) == "no":
        find = getattr(place, function)
        setattr(place, function, lambda wanted, *more: None if wanted == name else find(wanted, *more))


def _one_of_each_kind(passes: Callable[..., Any], *given: Any) -> Any:
    found = passes(*given)
    last = {(problem.kind, problem.transposed): name for name, problem in found.items()}
    return {name: found[name] for name in last.values()}


def _gemms(batch: int) -> dict[str, Any]:
    from proofs.gpu.gemms import Gemm

    kinds = "conv_forward", "dgrad", "wgrad"
    return {**{f"{kind} conv": Gemm(kind, (batch, 64, 16, 16), 64, False) for kind in kinds},
            "conv_forward convT": Gemm("conv_forward", (batch, 64, 8, 8), 64, True)}


def _two_of(candidates: Callable[[], list[Any]]) -> list[Any]:
    return candidates()[::9]


def _eagerly(compiler: Callable[..., Any], network: Any, **_: Any) -> Any:
    return compiler(network, backend="eager")


def _faulty(run: Callable[..., Any], cuda: Any) -> Callable[..., Any]:
    def call(given: Any, engine: str) -> Any:
        outputs, fault = run(given, engine), FAULTS.get(engine)
        if fault == "wrong":
            return tuple(output * 1.5 for output in outputs)
        cuda.calls += 1
        if fault and cuda.calls == 7:  # each pass is called three times: once, and for two repeats
            if fault == "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            if fault == "hang":
                time.sleep(1000)
            if fault == "lose":
                cuda.lost = "CUDA error: an illegal memory access was encountered"
                cuda.synchronize()
        return outputs
    return call


def _cuda() -> Any:
    """The part of torch.cuda that `proofs.gpu` uses."""
    from proofs.simulated import SimulatedCuda

    class StandIn(SimulatedCuda):
        calls, lost = 0, ""
        profiler = SimpleNamespace(start=lambda: None, stop=lambda: None)

        def get_device_name(self, device: Any) -> str:
            return DEVICE

        def get_device_properties(self, device: Any) -> Any:
            return SimpleNamespace(total_memory=2**37)

        def synchronize(self, device: Any = None) -> None:
            if self.lost:
                raise RuntimeError(self.lost)

        def empty_cache(self) -> None:
            pass

        def _sleep(self, cycles: int) -> None:
            pass

        def Event(self, enable_timing: bool = False) -> Any:
            return _Event()

    return StandIn()


class _Event:
    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, other: _Event) -> float:
        return 1000 * (other.at - self.at)


def _fill_the_disk() -> None:
    """From the fifth line on, the disk is full until the reserve is deleted."""
    from proofs.gpu import folder, rows

    def full(function: Callable[..., Any], path: Any, *arguments: Any) -> Any:
        csv = path.parent / folder.CSV
        lines = len(csv.read_text().splitlines()) if csv.exists() else 0
        if lines >= 5 and (path.parent / rows.RESERVE).exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return function(path, *arguments)

    rows._write, folder._pack = partial(full, rows._write), partial(full, folder._pack)
