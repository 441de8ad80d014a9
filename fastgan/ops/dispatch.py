"""The function that computes a pass on an engine, found once, and the fallback to the reference.

An engine is a module `fastgan/ops/<engine>/passes.py` with the functions of `fastgan/ops/reference.py`, which is the
engine "reference". A kernel that does not compile, or does not fit the device, is named once in a warning; from then on
the reference computes its pass. If an earlier kernel has made the device unusable, the device's error is raised.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import torch

from fastgan.errors import KernelError
from fastgan.ops import reference
from fastgan.ops.layout import empty

ENGINES = ("reference", "native", "triton")
cuda: Any = torch.cuda  # this module calls CUDA only through this name, which tests replace
_failed: set[tuple[str, str]] = set()  # (engine, pass)


def run(engine: str, name: str, *arguments: Any, **options: Any) -> Any:
    """The results of an engine's pass. options: specific to the engine, such as the variant of a convolution."""
    return pass_of(engine, name)(*arguments, **options)


@cache
def pass_of(engine: str, name: str) -> Callable[..., Any]:
    """An engine's pass of that name; once its kernels have failed, the reference computes it."""
    def call(*arguments: Any, **options: Any) -> Any:
        # below autograd, which would treat results as views of their [N, H, W, C] form
        with torch._C._AutoDispatchBelowADInplaceOrView():
            if (engine, name) not in _failed:
                try:
                    return bound(engine, name)(*arguments, **options)
                except KernelError as error:
                    raise_if_lost()
                    _failed.add((engine, name))
                    warnings.warn(f"fastgan: {error}; fastgan::{name} falls back to the reference engine", stacklevel=2)
            return bound("reference", name)(*arguments)
    return call


@cache
def bound(engine: str, name: str) -> Callable[..., Any]:
    """An engine's function of that name. Images that the reference returns are made channels_last, as in all engines.
    """
    if engine == "reference":
        function = getattr(reference, name)
        return lambda *arguments: _channels_last(function(*arguments))
    package = "tuning" if engine == "plan" else engine
    found: Callable[..., Any] = getattr(import_module(f"fastgan.ops.{package}.passes"), name)
    return found


def failed(engine: str) -> list[str]:
    """The passes that the reference computes because an engine's kernels for them have failed."""
    return sorted(name for one, name in _failed if one == engine)


def raise_if_lost() -> None:
    """Raise the device's error if an earlier kernel has made it unusable: then every later launch fails with that
    error, whichever kernel it launches."""
    if cuda.is_initialized() and not cuda.is_current_stream_capturing():
        cuda.synchronize()


def _channels_last(results: Any) -> Any:
    if isinstance(results, tuple):
        return tuple(map(_channels_last, results))
    return results if results.dim() != 4 else empty(results, *results.shape).copy_(results)
