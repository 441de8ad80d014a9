"""What was found out about a data set, kept for the next run: tensors in the cache folder, as safetensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from fastgan.errors import FastganError, first_line
from fastgan.files import cache_folder, replacing


def kept(name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of this name, on the CPU: read where they are kept, else made, and kept where that can be done."""
    path = cache_folder() / "metrics" / f"{name}.safetensors"
    try:
        return safetensors.torch.load_file(path)
    except (OSError, SafetensorError):  # not there, or damaged
        tensors = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as stream:
            stream.write(safetensors.torch.save(tensors))
    except (OSError, FastganError) as error:
        warnings.warn(f"will be computed again in the next run: {first_line(error)}", stacklevel=2)
    return tensors
