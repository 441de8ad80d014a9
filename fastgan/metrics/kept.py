"""What was found out about a data set, kept for the next run: tensors in the cache folder, as safetensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from fastgan.errors import FastganError, first_line
from fastgan.files import cache_folder, replacing

Shapes = Mapping[str, tuple[int | str, ...]]  # by name; a letter is any size, the same wherever it stands


def kept(name: str, shapes: Shapes, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of this name, on the CPU: read where they are kept in these shapes, else made, and kept where that
    can be done."""
    path = cache_folder() / "metrics" / f"{name}.safetensors"
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, SafetensorError):  # not there, or damaged
        tensors = {}
    if _fit(tensors, shapes):
        return tensors
    tensors = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as stream:
            stream.write(safetensors.torch.save(tensors))
    except (OSError, FastganError) as error:
        warnings.warn(f"will be computed again in the next run: {first_line(error)}", stacklevel=2)
    return tensors


def _fit(tensors: dict[str, Tensor], shapes: Shapes) -> bool:
    sizes: dict[str, int] = {}
    return tensors.keys() == shapes.keys() and all(
        len(shape) == tensors[name].dim() and all(
            size == (sizes.setdefault(wanted, size) if isinstance(wanted, str) else wanted)
            for wanted, size in zip(shape, tensors[name].shape, strict=True))
        for name, shape in shapes.items())
