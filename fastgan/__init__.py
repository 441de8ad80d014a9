"""fastgan: DCGAN-style networks, trained fast and checked against eager PyTorch.

    # fused kernels in any network of yours, which keeps its class, names and state_dict keys
    network = fastgan.convert(network)

    # a training step of two networks, replayed as one CUDA graph; step(real) returns the losses
    step = fastgan.GraphedStep(fastgan.GANStep(netG, netD, nz=100))

    # a run with pictures, checkpoints and a report, and images of a trained generator
    fastgan.Trainer(fastgan.presets.get("dcgan-64", data="folder:photos")).fit()
    generator = fastgan.Pretrained.load("runs/00000-photos")
    images = generator.draw(generator.noise.from_seeds(range(16)))

`fastgan.ops` has the operations as functions, `fastgan.nn` the blocks as modules, `fastgan.verify` the comparison with
eager PyTorch on your device. The command line is `fastgan --help`.

The package imports nothing heavy by itself: each public name loads what it needs, torch among it, on first use.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastgan import (
        config,
        data,
        errors,
        export,
        metrics,
        models,
        nn,
        ops,
        pictures,
        presets,
        report,
        train,
        trainer,
        verify,
    )
    from fastgan.config import Config
    from fastgan.errors import FastganError
    from fastgan.models.pretrained import Pretrained
    from fastgan.nn.convert import convert, to_eager
    from fastgan.ops.tuning import autotune
    from fastgan.train import GANStep, GraphedStep
    from fastgan.trainer import Callback, Trainer

__version__ = "0.2.0.dev0"
__all__ = ["Callback", "Config", "FastganError", "GANStep", "GraphedStep", "Pretrained", "Trainer", "__version__",
           "autotune", "config", "convert", "data", "errors", "export", "metrics", "models", "nn", "ops", "pictures",
           "presets", "report", "to_eager", "train", "trainer", "verify"]

MOVED = {"fastgan.models.exported": "fastgan.export", "fastgan.ops.plan": "fastgan.ops.tuning",
         "fastgan.train.Trainer": "fastgan.Trainer", "fastgan.train.distributed": "fastgan.trainer.distributed",
         "fastgan.train.evaluate": "fastgan.trainer.evaluate"}
_HOMES = {"Callback": "trainer", "Config": "config", "FastganError": "errors", "GANStep": "train",
          "GraphedStep": "train", "Pretrained": "models.pretrained", "Trainer": "trainer", "autotune": "ops.tuning",
          "convert": "nn", "to_eager": "nn"}


class _MovedNames:
    """Finds no module. An import of a name that has moved fails with the name's new place."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name in MOVED:
            raise ImportError(f"{name} is now {MOVED[name]}")


sys.meta_path.append(_MovedNames)

if not TYPE_CHECKING:  # a type checker sees the imports above, and unknown names as errors

    def __getattr__(name: str) -> object:
        import importlib

        if name in _HOMES:
            return getattr(importlib.import_module(f"fastgan.{_HOMES[name]}"), name)
        if name in __all__:
            return importlib.import_module(f"fastgan.{name}")
        raise AttributeError(f"module 'fastgan' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
