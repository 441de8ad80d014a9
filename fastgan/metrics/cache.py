"""A cache for tensors that depend only on a data set, stored as safetensors in the cache folder."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from fastgan.errors import FastganError, first_line
from fastgan.files import cache_folder, replacing


def cached_tensors(name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors with this name, on the CPU: read from the cache, or computed by `make` and written to the cache."""
    path = cache_folder() / "metrics" / f"{name}.safetensors"
    try:
        return safetensors.torch.load_file(path)
    except (OSError, SafetensorError):  # missing or damaged
        tensors = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as stream:
            stream.write(safetensors.torch.save(tensors))
    except (OSError, FastganError) as error:
        warnings.warn(f"metrics cannot be cached and are computed again in the next run: {first_line(error)}",
                      stacklevel=2)
    return tensors
