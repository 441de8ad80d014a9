"""What a result was made with, and the folder that is named after it."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import re
import subprocess
from pathlib import Path

import torch

from proofs.gpu.parts import ROOT


def collect(commit: str = "") -> dict[str, str | None]:
    """Device, driver, versions and commit; None for what nobody can tell."""
    device = torch.cuda.get_device_properties(0)
    changed = _answer("git", "status", "--porcelain", "--", "fastgan", "tests", "benchmarks", "proofs")
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "device": device.name, "capability": f"sm_{device.major}{device.minor}",
        "memory": f"{device.total_memory / 2**30:.1f} GiB",
        "driver": _answer("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"),
        "python": platform.python_version(), "torch": torch.__version__, "triton": _version("triton"),
        "cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version()), "platform": platform.platform(),
        "commit": commit or ((_answer("git", "rev-parse", "HEAD") or "") + " with changes" * bool(changed)) or None,
    }


def new_folder(out: Path, found: dict[str, str | None]) -> Path:
    """A folder in `out` such as nvidia-h100-80gb-hbm3-2026-11-23, with -2 behind it for the second of a day."""
    device = re.sub(r"[^a-z0-9]+", "-", str(found["device"]).lower()).strip("-")
    out.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = out / (f"{device}-{found['date']}" + (f"-{number}" if number > 1 else ""))
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


def write(path: Path, found: dict[str, str | None]) -> None:
    path.write_text(json.dumps(found, indent=2) + "\n")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _answer(*command: str) -> str | None:
    """What a program prints; None where it is not there, or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20, cwd=ROOT)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
