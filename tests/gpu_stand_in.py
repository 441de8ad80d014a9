"""Stands in for a GPU in a rehearsal of `proofs.gpu`: FASTGAN_STAND_IN=tests.gpu_stand_in.

The device is the CPU with simulated graphs, Triton's kernels run in the PTX simulator where PTXSIM names it, networks
are tiny. FASTGAN_FAULT injects a fault, for the engine that it names: "crash native", "hang triton", "wrong native",
"lose native"; or "full disk".
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch

from proofs.gpu import jobs

DEVICE = "A stand-in 9000"
TINY = {"image_size": "16", "ngf": 16, "ndf": 16, "nz": 8, "source": "digits"}
PATIENCE = 12.0  # seconds, for what hangs
FAULT, _, ENGINE = os.environ.get("FASTGAN_FAULT", "").partition(" ")


def install() -> None:
    """In the command, and in each of its jobs."""
    if FAULT == "full":
        _fill_the_disk()
    jobs.BATCHES = ("4",)
    if FAULT == "hang":
        jobs.supervise = partial(_impatient, jobs.supervise)  # type: ignore[assignment]
    if sys.argv[0].endswith("child.py"):
        _install_device(sys.argv[1])


def _impatient(supervise: Callable[..., None], job: Any, *arguments: Any) -> None:
    supervise(job._replace(patience=PATIENCE), *arguments)


def _install_device(kind: str) -> None:
    from fastgan.train import graph
    from proofs.gpu import correctness, kernels, library, speed, tools

    torch.set_num_threads(1)
    cuda = _cuda()
    graph.cuda = library.cuda = cuda
    library.DEVICE, library.ARCH, library.REPEATS, library.PRESET = torch.device("cpu"), 90, 2, ("digits", TINY)
    correctness.BATCH = tools.BATCH = speed.TUNED = 4
    correctness.STEPS, speed.ROUNDS, speed.TURN, speed.TRAINED, speed.GATED = 2, 2, 0.0, 8, 4
    kernels.BATCHES, kernels.CALLS, kernels.FLUSH = (8,), 1, 1
    library.gemms = lambda batch: {  # type: ignore[assignment]
        f"{kind} 64x8x8": library.Gemm(kind, (batch, 64, 16, 16), 64, False) for kind in ("forward", "dgrad", "wgrad")}
    candidates = library.tile_candidates()
    library.tile_candidates = lambda: [candidates[0], candidates[-2]]  # type: ignore[assignment]
    torch.compile = partial(_eagerly, torch.compile)  # type: ignore[assignment]
    simulator = _simulator() if kind not in ("facts", "nvcc") else None
    missing = library.missing
    library.missing = lambda engine: (  # type: ignore[assignment]
        "no PTX simulator here" if engine == "triton" and simulator is None else missing(engine))
    if simulator is not None and kind != "kernels":
        from proofs.ptx.simulator import executing

        global _executing
        _executing = executing(simulator, 90, unwritten=False)
        _executing.__enter__()
    run = library.Pass.__call__
    library.Pass.__call__ = (  # type: ignore[method-assign]
        lambda given, engine: _faulty(run, cuda, given, engine))


def _simulator() -> Any:
    from proofs.ptx import simulator

    return simulator.find(os.environ.get("PTXSIM"))


def _eagerly(compiler: Callable[..., Any], network: Any, **_: Any) -> Any:
    return compiler(network, backend="eager")


def _faulty(run: Callable[..., Any], cuda: Any, given: Any, engine: str) -> Any:
    """A pass of the engine with the fault: in its third one, but for what is wrong, which all are."""
    outputs = run(given, engine)
    if engine != ENGINE:
        return outputs
    if FAULT == "wrong":
        return tuple(output * 1.5 for output in outputs)
    cuda.passes += 1
    if cuda.passes == 3:
        if FAULT == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if FAULT == "hang":
            time.sleep(1000)
        if FAULT == "lose":
            cuda.lost = "CUDA error: an illegal memory access was encountered"
            cuda.synchronize()
    return outputs


def _cuda() -> Any:
    """torch.cuda as far as `proofs.gpu` asks for it."""
    from tests.simulated import SimulatedCuda

    class StandIn(SimulatedCuda):
        passes, lost = 0, ""
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
    """No byte is free from now on but those of the reserve."""
    from proofs.gpu import folder, rows

    write, pack = rows._write, folder._pack

    def full(function: Callable[..., Any], path: Any, *arguments: Any) -> Any:
        if (path.parent / rows.RESERVE).exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return function(path, *arguments)

    rows._write, folder._pack = partial(full, write), partial(full, pack)
