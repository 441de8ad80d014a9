"""Out of memory: what was asked of it, and what would fit, by the model of `memory.py`."""

from __future__ import annotations

from functools import cache

import torch

from fastgan import memory
from fastgan.config import Config
from fastgan.device import pick_device
from fastgan.train.precision import choose
from fastgan.verify.cost.counted import experiment
from fastgan.verify.cost.memory import estimate, largest_batch

ROOM = 0.9  # of the memory: the model leaves out libraries' workspaces, the allocator's gaps and a CUDA context


def words(config: Config) -> str:
    """One line that names the batch size, what a step needs by the model, and which batch would fit."""
    device = pick_device(config.run.device)
    held = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else memory.limit()
    precision, asked = choose(config.run.precision, device), config.data.batch

    @cache
    def peak(batch: int) -> int:
        return estimate(experiment(config, batch, precision))["peak"]

    best = largest_batch(peak, ROOM * held / 2**30)
    told = (f"out of memory on {device} at --batch {asked}: by the model a step needs {peak(asked) / 2**20:,.0f} MB of "
            f"the {held / 2**20:,.0f} MB there; expected ")
    if best < 2 or peak(best) > held:  # the line through large batches promises too much for small ones
        return told + "smaller networks, by --ngf, --ndf or --image-size: no batch fits these"
    if best < asked:
        return told + f"--batch {best} or less"
    return told + ("other programs to leave it more, or the data to take less, by --cache-gb and --gpu-data-gb: "
                   f"--batch {best} would fit")
