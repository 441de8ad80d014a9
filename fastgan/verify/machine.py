"""Facts about the machine and the installed versions, for reports and certificates."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
from pathlib import Path

import torch

import fastgan
from fastgan.errors import FastganError
from fastgan.ops import engines


def version(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """The versions of all software that affects the results; None for missing software."""
    cudnn = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    return {"fastgan": fastgan.__version__, "python": platform.python_version(), "torch": torch.__version__,
            "triton": version("triton"), "CUDA": torch.version.cuda, "cuDNN": None if cudnn is None else str(cudnn)}


def describe(device: torch.device) -> str:
    """A description of the device: name, architecture and memory of a GPU, or threads and instruction set of a CPU."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.total_memory / 2**30:.1f} GB"
    if device.type == "mps":
        return "Apple (mps)"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def driver() -> str | None:
    """The version of NVIDIA's driver according to nvidia-smi, or None if nvidia-smi is missing or fails."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    try:
        answer = _answer([command, "--query-gpu=driver_version", "--format=csv,noheader"])
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.splitlines()[0].strip() if answer else None


def commit() -> str | None:
    """The commit of the clone from which fastgan runs, with a + if files were changed; None for an installed package.
    """
    root = Path(fastgan.__file__).parent.parent
    command = shutil.which("git")
    if command is None or not (root / ".git").exists():  # not a repository of another project above site-packages
        return None
    try:
        name = _answer([command, "-C", str(root), "rev-parse", "HEAD"])
        changed = _answer([command, "-C", str(root), "status", "--porcelain", "--", "fastgan"])
    except (OSError, subprocess.SubprocessError):
        return None
    return name + "+" * bool(changed)


def why_not(impl: str, device: torch.device) -> str:
    """The reason why an engine is not available on a device; "" if it is."""
    reason = engines.why_not(impl, device)
    if reason:
        return reason
    try:
        engines.check_device(impl, device)
    except FastganError:
        return "needs a CUDA device"
    return ""


def interpreted(impl: str, device: torch.device) -> bool:
    """Whether an available engine runs in Triton's interpreter, which is for tests."""
    if impl != "triton" or why_not(impl, device):
        return False
    from fastgan.ops.triton import launch

    return launch.INTERPRETED


def _answer(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
