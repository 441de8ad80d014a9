"""The seam to a cost model: the least time in which a device can do a piece of work."""

from __future__ import annotations

import torch

from fastgan.bench.entry import Entry


def limit_seconds(entry: Entry, precision: str, device: torch.device) -> float | None:
    """Seconds of one call at the device's limit; None where no model knows."""
    return None
