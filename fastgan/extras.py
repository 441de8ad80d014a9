"""Packages that only some features need: the optional dependencies ("extras") of pyproject.toml."""

from __future__ import annotations

import importlib
from typing import Any

from fastgan.errors import FastganError, first_line

EXTRAS = {
    "cli": ("tyro",),
    "data": ("torchvision", "scikit-learn"),
    "plots": ("matplotlib",),
    "tensorboard": ("tensorboard",),
    "metrics": ("torch-fidelity",),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "hub": ("huggingface_hub",),
}


def load(module: str, extra: str, what: str) -> Any:
    """Import a module of one of the packages of `extra`.

    Raises `FastganError`, which begins with `what` and names the packages to install, where it cannot be imported.
    """
    package = module.split(".")[0]
    try:
        importlib.import_module(package)  # a submodule of one that has failed may be imported already
        return importlib.import_module(module)
    except Exception as error:  # torchvision built for another torch raises many types
        raise FastganError(f"{what}: {package} cannot be imported ({first_line(error)}); expected fastgan's extra "
                           f"{extra!r}: pip install {' '.join(EXTRAS[extra])}") from error
