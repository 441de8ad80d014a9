"""A cache for functions of shapes and options."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import TypeVar

import torch

Result = TypeVar("Result")
_SIZE = 4096  # results of a function that are kept


def memoized(function: Callable[..., Result]) -> Callable[..., Result]:
    """`function` with a cache, for hashable arguments; symbolic sizes of a compiler bypass the cache."""
    remembering = lru_cache(_SIZE)(function)

    @wraps(function)
    def call(*arguments: object) -> Result:
        if torch.compiler.is_compiling():
            return function(*arguments)
        try:
            return remembering(*arguments)
        except TypeError:  # a symbol is not hashable; an error that `function` raised is raised again
            return function(*arguments)

    return call
