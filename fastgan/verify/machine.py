"""The machine and the installed versions, for reports and certificates."""

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
    """Everything that decides what is computed; None for what is not there."""
    cudnn = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    return {"fastgan": fastgan.__version__, "python": platform.python_version(), "torch": torch.__version__,
            "triton": version("triton"), "CUDA": torch.version.cuda, "cuDNN": None if cudnn is None else str(cudnn)}


def describe(device: torch.device) -> str:
    """The device in words: a GPU's name, architecture and memory, or the CPU's threads and instructions."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.total_memory / 2**30:.1f} GB"
    if device.type == "mps":
        return "Apple (mps)"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def driver() -> str | None:
    """The version of NVIDIA's driver by nvidia-smi, or None without nvidia-smi or an answer of it."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    try:
        answer = _answer([command, "--query-gpu=driver_version", "--format=csv,noheader"])
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.splitlines()[0].strip() if answer else None


def commit() -> str | None:
    """The commit of the checkout that fastgan runs from, with a + if files differ; None for an installed package."""
    root = Path(fastgan.__file__).parent.parent
    command = shutil.which("git")
    if command is None or not (root / ".git").exists():  # a repository above site-packages is another project's
        return None
    try:
        name = _answer([command, "-C", str(root), "rev-parse", "HEAD"])
        changed = _answer([command, "-C", str(root), "status", "--porcelain", "--", "fastgan"])
    except (OSError, subprocess.SubprocessError):
        return None
    return name + "+" * bool(changed)


def why_not(impl: str, device: torch.device) -> str:
    """Why an engine cannot run on a device, in words; "" when it can."""
    reason = engines.why_not(impl, device)
    if reason:
        return reason
    try:
        engines.check_device(impl, device)
    except FastganError:
        return "needs a CUDA device"
    return ""


def interpreted(impl: str, device: torch.device) -> bool:
    """Whether an engine that can run there runs in Triton's interpreter, which is for tests."""
    if impl != "triton" or why_not(impl, device):
        return False
    from fastgan.ops.triton import launch

    return launch.INTERPRETED


def _answer(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
