"""Optional dependencies: the extras of pyproject.toml, imported by the features that need them."""

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

    Raises `FastganError` if it cannot be imported. The message begins with `what` and names the packages to install.
    """
    package = module.split(".")[0]
    try:
        importlib.import_module(package)  # if this fails, a submodule may still be in sys.modules from an earlier try
        return importlib.import_module(module)
    except Exception as error:  # torchvision built for another torch raises many types
        raise FastganError(f"{what}: {package} cannot be imported ({first_line(error)}); expected fastgan's extra "
                           f"{extra!r}: pip install {' '.join(EXTRAS[extra])}") from error
