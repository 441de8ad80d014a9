"""Selection of a device by a name such as "auto" or "cuda:1"."""

from __future__ import annotations

import torch

from fastgan.errors import FastganError


def pick_device(name: str) -> torch.device:
    """The device with this name; "auto" is the first available of cuda, mps and cpu."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, usable in available.items() if usable))
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or not available.get(device.type) or (
            device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        usable = [f"--device {kind}" for kind, usable in available.items() if usable]
        raise FastganError(f"--device {name}: expected auto or one of {', '.join(usable)}")
    return device
