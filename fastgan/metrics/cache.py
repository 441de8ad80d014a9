"""Tensors that depend only on a data set, in the cache folder as safetensors, for the next run."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from fastgan.errors import FastganError, first_line
from fastgan.files import cache_folder, replacing


def cached_tensors(name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of this name, on the CPU: from the cache, or else made and written to it if that is possible."""
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
        warnings.warn(f"will be computed again in the next run: {first_line(error)}", stacklevel=2)
    return tensors
