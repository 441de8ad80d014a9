"""Learning rate schedules, as functions of the step count on the device.

    factor(t) = min(1, (t + 1) / warmup) * decay(t / total)

    constant    decay(s) = 1
    linear      decay(s) = 1 - s
    cosine      decay(s) = (1 + cos(pi s)) / 2
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastgan.config import TrainConfig
from fastgan.train.optim import DeviceAdam


def factor(config: TrainConfig, t: Tensor, total: Tensor) -> Tensor:
    """The factor of the learning rates after t () of total () steps: a float64 scalar on the device, or float32 on
    devices without float64 (mps)."""
    wide = torch.float32 if t.device.type == "mps" else torch.float64
    t, total = t.to(wide), total.to(wide)
    progress = (t / total).clamp(max=1)
    decay = {"constant": lambda: torch.ones_like(t), "linear": lambda: 1 - progress,
             "cosine": lambda: (1 + torch.cos(math.pi * progress)) / 2}[config.lr_schedule]()
    return decay * ((t + 1) / config.lr_warmup).clamp(max=1) if config.lr_warmup else decay


def apply(config: TrainConfig, t: Tensor, total: Tensor, optimizers: Sequence[object]) -> None:
    """Set the learning rates of step t. With a constant schedule, they do not change."""
    if config.lr_schedule != "constant" or config.lr_warmup:
        scale = factor(config, t, total)
        for adam in optimizers:
            assert isinstance(adam, DeviceAdam)  # other optimizers have no schedule
            adam.rate.copy_(scale * adam.defaults["lr"])
