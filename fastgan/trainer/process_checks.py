"""Checks of batch sizes, and of runs with several processes: equal options and data, and mergeable statistics."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastgan import __version__
from fastgan.config import Config, option
from fastgan.data import Dataset
from fastgan.errors import FastganError
from fastgan.nn.groups import outside_of_stages

# options that may differ between machines: devices and paths
OWN_TO_A_MACHINE = {"device", "gpu_data_gb", "source", "data_root", "workers", "outdir", "plan", "net_g", "net_d",
                    "metrics_weights"}


def check_batch(config: Config, processes: int) -> None:
    """Raise `FastganError` if the batch cannot be divided among the processes."""
    batch = config.data.batch
    smallest = 1 if config.train.sync_bn or config.model.architecture == "gaussian" else 2
    if batch % processes or (processes > 1 and batch // processes < smallest):
        raise FastganError(f"--batch {batch} with {processes} processes: each would have {_images(batch, processes)}; "
                           f"expected a multiple of {processes}, and {smallest} or more for each")


def check_last_batch(config: Config, images: int, processes: int) -> int:
    """The size of a short last batch, or 0. Raises `FastganError` if it is too small for batch statistics."""
    rest = images % config.data.batch if config.data.last_batch == "keep" else 0
    if rest == 1 or rest % processes or (rest == processes and not config.train.sync_bn):
        raise FastganError(f"--last-batch keep --batch {config.data.batch}: the last batch of {images} would be "
                           f"{_images(rest, processes)}, too few for statistics; expected drop, pad or rollover")
    return rest


def check_statistics(generator: nn.Module, discriminator: nn.Module) -> None:
    """Raise `FastganError` if not all batch statistics of the networks can be merged over processes."""
    outside = outside_of_stages(generator, "generator") + outside_of_stages(discriminator, "discriminator")
    if outside:
        raise FastganError(f"--sync-bn: {outside[0]} does not follow a convolution in a fastgan.nn.Chain, so its "
                           "statistics cannot be merged; expected other networks, or no --sync-bn")


def common_values(config: Config, dataset: Dataset, precision: str) -> dict[str, Any]:
    """The values that must be equal in all processes, by option."""
    values = {option(key): value for key, value in config.flat().items() if key not in OWN_TO_A_MACHINE}
    return {"fastgan": __version__, "torch": torch.__version__, **values, "--precision": precision,
            "data": f"{len(dataset)} images of fingerprint {dataset.fingerprint[:12]}"}


def _images(batch: int, processes: int) -> str:
    whole, rest = divmod(batch, processes)
    return f"{whole} {f'{rest}/{processes} ' * (rest > 0)}image{'s' * (batch != processes)}"
