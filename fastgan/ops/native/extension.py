"""The compiled part of the engine: `fastgan._cpu`, built from csrc/ when the package is installed."""

from __future__ import annotations

import torch

from fastgan.errors import first_line


def why_not(device: torch.device) -> str:
    """Why there is nothing compiled for a device, in words; "" when there is."""
    if device.type != "cpu":
        return f"the native engine has nothing for {device.type}"
    try:
        import fastgan._cpu  # type: ignore[import-not-found]  # noqa: F401
    except ImportError as error:
        return f"the native engine was not built: {first_line(error)}"
    return ""
