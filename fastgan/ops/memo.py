"""Results that depend on shapes and options alone, computed once for each."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import TypeVar

import torch

Result = TypeVar("Result")
_MOST = 4096  # results that are kept of a function, the latest


def memoized(function: Callable[..., Result]) -> Callable[..., Result]:
    """`function`, whose arguments are hashable; called again each time where a compiler's symbols stand for sizes."""
    remembering = lru_cache(_MOST)(function)

    @wraps(function)
    def call(*arguments: object) -> Result:
        if torch.compiler.is_compiling():
            return function(*arguments)
        try:
            return remembering(*arguments)
        except TypeError:  # a symbol has no hash; an error of the function's own is raised again
            return function(*arguments)

    return call
