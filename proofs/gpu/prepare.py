"""Facts about the machine, and compilation before the measurements."""

from __future__ import annotations

import datetime
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from proofs.gpu.child import Worker
from proofs.gpu.folder import ROOT
from proofs.gpu.rows import Row, append

COMPILERS = ("c++", "g++", "clang++")
PACKAGE = ROOT / "fastgan"  # the folder for compiled modules
LOAD = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("fastgan._cuda", sys.argv[1])
spec.loader.exec_module(importlib.util.module_from_spec(spec))
"""


def facts(worker: Worker) -> None:
    """Write rows that describe the machine; a fact that cannot be determined does not prevent the others."""
    import torch

    from proofs.gpu import library

    def device() -> str:
        return str(library.cuda.get_device_name(library.DEVICE))

    def memory() -> str:
        return f"{library.cuda.get_device_properties(library.DEVICE).total_memory / 2**30:.1f} GiB"

    def distribution(name: str) -> str:
        from importlib import metadata

        return metadata.version(name)

    def said(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        return next((line.strip() for line in reversed(done.stdout.splitlines()) if line.strip()), "")

    def commit() -> str:
        from fastgan.verify import machine

        return worker.options.get("commit") or machine.commit() or "unknown"

    found: dict[str, Callable[[], str]] = {
        "date": lambda: datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"), "device": device,
        "architecture": lambda: f"sm_{library.architecture()}", "memory": memory,
        "driver": partial(said, "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "commit": commit, "platform": platform.platform, "cores": lambda: str(os.cpu_count()),
        "python": platform.python_version, "torch": lambda: torch.__version__,
        "CUDA of torch": lambda: str(torch.version.cuda), "cuDNN": lambda: str(torch.backends.cudnn.version()),
        **{name: partial(distribution, name) for name in ("triton", "numpy", "setuptools", "pybind11")},
        "nvcc": partial(said, "nvcc", "--version"), "Triton's ptxas": partial(said, _triton_ptxas(), "--version"),
        "PyTorch's ptxas": partial(said, str(library.torch_ptxas() or "no ptxas"), "--version"),
        "ncu": partial(said, "ncu", "--version"), "compute-sanitizer": partial(said, "compute-sanitizer", "--version"),
    }
    for name, ask in found.items():
        try:
            note = ask()
        except Exception as error:  # a missing tool is also a fact
            note = f"none ({type(error).__name__}: {error})"
        append(worker.path, Row("facts", name, result="fact", note=note))


def _triton_ptxas() -> str:
    try:
        import triton
    except Exception as error:
        return f"no Triton: {error}"
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas")


def nvcc(worker: Worker) -> None:
    """Compile fastgan._cuda for the architecture of this device, or write a row with the reason why it cannot be."""
    needed: dict[str, object] = {
        "nvcc": shutil.which("nvcc"), "a C++ compiler": any(map(shutil.which, COMPILERS)),
        "pybind11": importlib.util.find_spec("pybind11"), "setuptools": importlib.util.find_spec("setuptools"),
        "ninja": shutil.which("ninja") or importlib.util.find_spec("ninja"),
    }
    if lacking := [name for name, there in needed.items() if not there]:
        worker.row("fastgan._cuda", engine="native", result="not run", note=f"no {', no '.join(lacking)} here")
        return
    worker.each([("fastgan._cuda", partial(_build, worker))], engine="native")


def _build(worker: Worker) -> None:
    from proofs.gpu import library

    with tempfile.TemporaryDirectory() as scratch:
        for name in ("setup.py", "csrc"):  # without pyproject.toml, which setuptools before 77 does not understand
            source, target = ROOT / name, Path(scratch) / name
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        subprocess.run([sys.executable, "setup.py", "build_ext", "--build-lib", "built"], cwd=scratch, check=True,
                       stdout=sys.stdout, stderr=sys.stderr, env={
                           **os.environ, "FASTGAN_BUILD_CPU": "0", "FASTGAN_BUILD_CUDA": "1",
                           "FASTGAN_CUDA_ARCHITECTURES": str(library.architecture())})
        name = f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
        built = Path(scratch) / "built" / "fastgan" / name
        subprocess.run([sys.executable, "-c", LOAD, str(built)], check=True)
        part = PACKAGE / f"{name}.part"
        shutil.copyfile(built, part)
        part.replace(PACKAGE / name)
    worker.row("fastgan._cuda", "compiled", result="ok", engine="native")


def kernels(worker: Worker) -> None:
    """Compile a slice of all Triton kernels into the cache that later jobs read."""
    from proofs.gpu import library

    variant, (number, of) = worker.options["variant"], map(int, worker.options["slice"].split("/"))
    reason = library.missing("triton")
    if variant.endswith(":ptxas") and not library.torch_ptxas():
        reason = "PyTorch has no ptxas here"
    if reason:
        worker.row(f"slice {number}", engine=variant, result="not run", note=reason)
        return
    if variant.endswith(":stages1"):
        library.one_stage()
    jobs = list(_compiler_jobs(worker.options["precisions"].split(), [
        *map(int, worker.options["batches"].split())], "gemms" in worker.options).items())[number::of]
    counts = {"kernels": 0, "with wgmma": 0, "spilling": 0}

    def build(compiler: Callable[[], Any]) -> None:
        made = compiler()
        counts["kernels"] += 1
        if made is None:
            return
        if made.error:
            raise RuntimeError(made.error)
        counts["with wgmma"] += "wgmma" in made.ptx
        counts["spilling"] += made.stack + made.local > 0

    worker.each([(f"{key.split()[0]} {hashlib.sha256(key.encode()).hexdigest()[:8]}", partial(build, compiler))
                 for key, compiler in jobs], engine=variant)
    for name, count in counts.items():
        worker.row(f"slice {number} of {of}", name, count, engine=variant, result="fact")


def _compiler_jobs(precisions: list[str], batches: list[int], with_gemms: bool) -> dict[str, Callable[[], Any]]:
    """All kernels that steps of these precisions and batch sizes launch on this architecture, by key. with_gemms: also
    those of tuning, of dependent launch and of `gemms.triton_gemm`. A call compiles one, and returns a
    `proofs.compiled.Binary` or None. The device is only asked for its architecture."""
    import torch

    from fastgan.ops.triton.launch import dependent_launch
    from fastgan.ops.triton.tiles import Tile
    from proofs import compiled, launches
    from proofs.gpu import gemms, library

    found: dict[str, Callable[[], Any]] = {}

    def add(run: Callable[[], object]) -> None:
        for key, job in compiled.jobs(launches.record(run, library.architecture()), library.architecture()).items():
            found.setdefault(key, partial(compiled.build, job))

    for precision in precisions:
        for batch in batches:
            step = launches.training_step(library.config(batch), batch, precision, together=library.TOGETHER)
            add(step)
            if with_gemms and precision == "bf16":
                with dependent_launch():
                    add(step)
                for gemm in gemms.gemms(batch).values():
                    x, weight, gy = (torch.empty(shape, dtype=torch.bfloat16, memory_format=torch.channels_last)
                                     for shape in gemm.shapes())
                    for tile in (None, Tile(*gemms.RAW), *gemms.tile_candidates()):
                        add(gemms.triton_gemm(gemm, (x, weight, gy), tile))
    return found


def warm(worker: Worker) -> None:
    """Run torch.compile on PyTorch's loop in one mode at one batch size, to fill the cache that the timing reads."""
    from proofs.gpu import library, speed

    mode, batch = worker.options["mode"], int(worker.options["batch"])
    implementation = next(one for one in library.implementations((mode,)) if one.compiled == mode)

    def compile_it() -> None:
        with speed.settings(implementation):  # they are part of the cache key
            library.training(implementation, batch)(0)
            library.cuda.synchronize()
        worker.row(implementation.name, "compiled", batch=str(batch), result="fact")

    worker.each([(f"{implementation.name} {batch}", compile_it)])
