"""fastgan: DCGAN-style networks, trained fast and checked against eager PyTorch.

The package imports nothing heavy by itself; `fastgan.models`, `fastgan.convert` and the others load torch on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_ROOMS = ("config", "data", "errors", "metrics", "models", "nn", "ops", "pictures", "presets", "train", "verify")
_FUNCTIONS = {"convert": "fastgan.nn", "to_eager": "fastgan.nn"}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"fastgan.{name}")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    raise AttributeError(f"module 'fastgan' has no attribute {name!r}")
