"""What a result was made with, and the folder that is named after it."""

from __future__ import annotations

import datetime
import json
import platform
import re
from pathlib import Path

import torch

from fastgan.verify import machine


def collect(commit: str = "") -> dict[str, str | None]:
    """Device, driver, versions and commit; None for what nobody can tell."""
    device = torch.cuda.get_device_properties(0)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "device": device.name, "capability": f"sm_{device.major}{device.minor}",
        "memory": f"{device.total_memory / 2**30:.1f} GiB", "driver": machine.driver(), **machine.versions(),
        "platform": platform.platform(), "commit": commit or machine.commit(),
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
