"""The model of an experiment's step on a device: eager PyTorch, a compiler's fusion of it, and fastgan."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastgan import presets
from fastgan.config import Config
from fastgan.errors import FastganError
from fastgan.models import build
from fastgan.nn import Chain
from fastgan.ops import engines
from fastgan.verify.cost import counted
from fastgan.verify.cost.counted import Count, Experiment
from fastgan.verify.cost.devices import Device, find, precision_of
from fastgan.verify.cost.roofline import Totals, totals

OLDEST = 80  # architecture from which Triton's kernels run on tensor cores; older ones are counted as if they were it


class Model(NamedTuple):
    """What was counted for whom, and for which device."""

    preset: str
    what: Experiment
    device: Device
    counts: dict[str, Count]

    def totals(self) -> dict[str, Totals]:
        return {name: totals(count, self.device) for name, count in self.counts.items()}


def count(preset: str | Config, batch: int | None, gpu: str | Device, precision: str = "auto") -> Model:
    """Counts for "eager", "compiled" and "fastgan" of a step of `batch` images, the preset's own when None.

    Raises `FastganError` for a name that is unknown, a batch that is none, or a precision that the device lacks.
    """
    config = _config(preset)
    device = gpu if isinstance(gpu, Device) else find(gpu)
    what = _experiment(config, batch, precision_of(precision, device))
    eager, compiled = counted.eager(what)
    return Model(config.preset, what, device, {"eager": eager, "compiled": compiled, "fastgan": ours(what, device)})


def limit(preset: str | Config, batch: int | None, precision: str, device: str | Device) -> float:
    """Seconds that a step of fastgan takes at least on a device ("h100", ... or "cpu"), by the model.

    Raises `FastganError` as `count` does.
    """
    device = device if isinstance(device, Device) else find(device)
    what = _experiment(_config(preset), batch, precision_of(precision, device))
    return totals(ours(what, device), device).seconds


def ours(what: Experiment, device: Device) -> Count:
    """fastgan's step as it would run there."""
    return counted.ours(what, impl=engine(what), arch=architecture(device))


def engine(what: Experiment) -> str:
    """"triton" where the networks have chains, else "reference"; `FastganError` where Triton cannot be imported."""
    with torch.device("meta"):
        networks = build(what.config.model, what.shape, what.classes)
    if not any(isinstance(module, Chain) for network in networks for module in network.modules()):
        return "reference"
    reason = engines.why_not("triton", torch.device("cpu"))
    if reason:
        raise FastganError(f"the launches of Triton's kernels cannot be counted: {reason}")
    return "triton"


def architecture(device: Device) -> int:
    """For which Triton's kernels are counted: that of a CPU's limit is an H100's."""
    return max(device.arch or 90, OLDEST)


def _config(preset: str | Config) -> Config:
    return presets.get(preset) if isinstance(preset, str) else preset


def _experiment(config: Config, batch: int | None, precision: str) -> Experiment:
    batch = config.data.batch if batch is None else batch
    if batch < 1:
        raise FastganError(f"--batch {batch}: expected 1 or more")
    return counted.experiment(config, batch, precision)
