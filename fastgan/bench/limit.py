"""The least time in which a device can do a piece of work: whole steps, as `fastgan cost` models them."""

from __future__ import annotations

from functools import cache

import torch

from fastgan.bench.entry import Entry
from fastgan.errors import FastganError
from fastgan.verify import cost
from fastgan.verify.cost.devices import DEVICES, Device, find


@cache
def limit_seconds(entry: Entry, precision: str, device: torch.device) -> float | None:
    """Seconds of one call at the device's limit; None where no model knows.

    Of the direct method's arithmetic: Winograd's filtering, which takes less, can go beyond it.
    """
    known = _known(device)
    if entry.suite not in ("step", "ablation") or known is None or precision not in known.tflops:
        return None
    try:
        return cost.limit(entry.config, entry.batch, precision, known)
    except FastganError:  # a step that the model does not know
        return None


@cache
def _known(device: torch.device) -> Device | None:
    """The device as the model has it, by its name."""
    if device.type == "cpu":
        return find("cpu")
    name = torch.cuda.get_device_name(device).lower()
    return next((DEVICES[key] for key in DEVICES if key in name), None)
