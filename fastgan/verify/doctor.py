"""What is installed, what can be used, and a verdict in one line."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import torch

import fastgan
from fastgan.errors import FastganError
from fastgan.ops.engines import check_device, why_no_kernels

_PACKAGES = ("torch", "torchvision", "triton", "numpy", "pillow", "safetensors", "tensorboard", "matplotlib",
             "scikit-learn", "tyro", "tqdm")


def report() -> list[tuple[str, str]]:
    """(subject, finding) pairs; the last one is the verdict."""
    found = {name: _version(name) for name in _PACKAGES}
    missing = [name for name, version in found.items() if version is None and name != "triton"]
    verdict = f"install {', '.join(missing)}" if missing else "ready to train on " + (
        "the GPU" if torch.cuda.is_available() or torch.backends.mps.is_available() else "the CPU")
    return [
        ("fastgan", fastgan.__version__),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        *((name, version or "not installed") for name, version in found.items()),
        ("cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, "
                f"{torch.backends.cpu.get_cpu_capability()}"),
        ("gpu", _gpu()),
        ("engines", f"reference (PyTorch's operators); triton: {_triton()}"),
        ("verdict", verdict),
    ]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _triton() -> str:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reason = why_no_kernels(device)
    if reason:
        return reason
    try:
        interpreted = check_device("triton", device)
    except FastganError:
        return "needs a CUDA device"
    return "in its interpreter, for tests" if interpreted else "ready (--impl triton)"


def _gpu() -> str:
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.total_memory / 2**30:.1f} GB"
    if torch.backends.mps.is_available():
        return "Apple (mps)"
    built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
    return f"none ({built})"
