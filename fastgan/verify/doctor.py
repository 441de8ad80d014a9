"""The report of `fastgan doctor`: installed packages, available engines, and a one-line summary."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

import fastgan
from fastgan.config import DataConfig
from fastgan.errors import first_line
from fastgan.ops.native import extension
from fastgan.ops.tuning import stored
from fastgan.verify import machine

_PACKAGES = ("torch", "triton", "filelock", "numpy", "pillow", "safetensors", "tqdm")
_OPTIONAL = {"tyro": "the command line", "torchvision": "--data mnist, fashion-mnist, cifar10 or celeba",
             "scikit-learn": "--data digits", "matplotlib": "loss curves", "tensorboard": "TensorBoard curves",
             "torch-fidelity": "--metrics fid,kid,is", "onnx": "export --format onnx",
             "onnxscript": "export --format onnx", "onnxruntime": "export --format onnx",
             "huggingface_hub": "export --push"}


def report() -> list[tuple[str, str]]:
    """(subject, finding) pairs. The last pair is the verdict."""
    found = {name: machine.version(name) for name in _PACKAGES}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    caches = {subject: (path, _why_not_writable(path)) for subject, path in _caches().items()}
    graphs = _graphs(device)
    return [
        ("fastgan", fastgan.__version__),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        *((name, version or "not installed") for name, version in found.items()),
        *((name, machine.version(name) or f"not installed; needed for {use}: pip install {name}")
          for name, use in _OPTIONAL.items()),
        ("cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, "
                f"{torch.backends.cpu.get_cpu_capability()}"),
        ("gpu", _gpu(device)),
        ("driver", machine.driver() or "unknown (no output of nvidia-smi)"),
        ("reference", "ready: PyTorch operators"),
        ("native engine", _native(device)),
        ("triton engine", _triton(device)),
        ("CUDA graphs", graphs),
        *((subject, f"{path} ({reason or 'writable'})") for subject, (path, reason) in caches.items()),
        ("verdict", _verdict(found, {subject: reason for subject, (_, reason) in caches.items()}, graphs)),
    ]


def _verdict(found: dict[str, str | None], caches: dict[str, str], graphs: str) -> str:
    missing = [name for name, version in found.items() if version is None and name != "triton"]
    if missing:
        return f"install {', '.join(missing)}"
    troubles = [f"{subject} {reason}" for subject, reason in caches.items() if reason]
    troubles += ["CUDA graphs fail"] if graphs.startswith("fail") else []
    where = "the GPU" if torch.cuda.is_available() or torch.backends.mps.is_available() else "the CPU"
    return f"ready to train on {where}" + (f", but {'; '.join(troubles)}" if troubles else "")


def _native(device: torch.device) -> str:
    reason = machine.why_not("native", device)
    if reason:
        return f"not usable: {reason}"
    return f"ready (--impl native), compiled for {extension.ISA if device.type == 'cpu' else 'CUDA'}"


def _triton(device: torch.device) -> str:
    reason = machine.why_not("triton", device)
    if reason:
        return f"not usable: {reason}"
    if machine.interpreted("triton", device):
        return "in Triton's interpreter, for tests"
    return "ready (--impl triton); `fastgan verify` checks it"


def _gpu(device: torch.device) -> str:
    if device.type == "cuda":
        return machine.describe(device)
    if torch.backends.mps.is_available():
        return "Apple (mps)"
    built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
    return f"none ({built})"


def _graphs(device: torch.device) -> str:
    """Whether CUDA graphs can be captured and replayed correctly."""
    if device.type != "cuda":
        return "no CUDA device"
    try:
        x = torch.zeros(1, device=device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            x += 1
        graph.replay()
        graph.replay()
        value = float(x)
    except Exception as error:  # drivers and runtimes raise many types
        return f"fail: {first_line(error)}"
    return "work" if value == 2 else f"fail: two replays of an increment gave {value:g}"


def _caches() -> dict[str, Path]:
    """The cache folders, determined without importing Triton or torchvision, which may be missing."""
    triton = os.environ.get("TRITON_CACHE_DIR") or Path(os.environ.get("TRITON_HOME") or "~") / ".triton" / "cache"
    return {"kernel cache": Path(triton).expanduser(), "plans": stored.folder(),
            "data": Path(DataConfig().data_root).expanduser()}


def _why_not_writable(path: Path) -> str:
    """The reason why a folder, which need not exist yet, is not writable; "" if it is."""
    there = next((place for place in (path, *path.parents) if place.exists()), Path("/"))
    if not there.is_dir():
        return f"{there} is not a folder"
    return "" if os.access(there, os.W_OK) else f"{there} is not writable"
