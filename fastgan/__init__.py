"""fastgan: DCGAN-style networks, trained fast and checked against eager PyTorch.

    # use fused kernels in any network; its class, names and state_dict keys are kept
    network = fastgan.convert(network)

    # a training step of both networks, replayed as one CUDA graph; step(real) returns the losses
    step = fastgan.GraphedStep(fastgan.GANStep(netG, netD, nz=100))

    # a run with pictures and checkpoints, then images from its trained generator
    fastgan.Trainer(fastgan.presets.get("dcgan-64", data="folder:photos")).fit()
    generator = fastgan.Pretrained.load("runs/00000-photos")
    images = generator.draw(generator.noise.from_seeds(range(16)))

`fastgan.ops` contains the operations as functions, `fastgan.nn` the layers as modules, and `fastgan.verify` the
comparison with eager PyTorch on your device. `fastgan --help` describes the command line.

Importing the package is fast: torch and all submodules are imported when a public name is first used.
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

MOVED = {"fastgan.models.exported": "fastgan.export", "fastgan.ops.logistic_loss": "fastgan.ops.gan_loss",
         "fastgan.ops.plan": "fastgan.ops.tuning",
         "fastgan.train.Trainer": "fastgan.Trainer", "fastgan.train.distributed": "fastgan.trainer.distributed",
         "fastgan.train.evaluate": "fastgan.trainer.evaluate"}
_HOMES = {"Callback": "trainer", "Config": "config", "FastganError": "errors", "GANStep": "train",
          "GraphedStep": "train", "Pretrained": "models.pretrained", "Trainer": "trainer", "autotune": "ops.tuning",
          "convert": "nn", "to_eager": "nn"}


class _MovedNames:
    """An import hook that finds no module. Importing a module that has moved fails with its new name."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name in MOVED:
            raise ImportError(f"{name} is now {MOVED[name]}")


sys.meta_path.append(_MovedNames)

if not TYPE_CHECKING:  # hidden from type checkers, which then report unknown names as errors

    def __getattr__(name: str) -> object:
        import importlib

        if name in _HOMES:
            return getattr(importlib.import_module(f"fastgan.{_HOMES[name]}"), name)
        if name in __all__:
            return importlib.import_module(f"fastgan.{name}")
        raise AttributeError(f"module 'fastgan' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
