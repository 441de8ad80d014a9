"""A trained generator for use elsewhere: `generator.safetensors` beside `config.json`, plain tensors and plain JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from fastgan.config import ModelConfig
from fastgan.errors import FastganError, first_line
from fastgan.files import replacing
from fastgan.models import build, example
from fastgan.models.sampling import Noise, draw

WEIGHTS, CONFIG = "generator.safetensors", "config.json"


class Pretrained:
    """A generator with all that drawing from it needs.

    Attributes: generator; model (its `ModelConfig`); shape of what it makes; classes, names in order of the labels;
    unit_range, whether it makes pixels in [0, 1] instead of [-1, 1].
    """

    def __init__(self, generator: nn.Module, model: ModelConfig, shape: tuple[int, ...], classes: list[str],
                 unit_range: bool) -> None:
        self.generator, self.model, self.shape = generator, model, shape
        self.classes, self.unit_range = classes, unit_range
        self.noise = Noise(model.noise, model.noise_mean, model.nz)

    def draw(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (N, C, H, W) in the generator's range, or points (N, 2), for z (N, nz); labels (N,) if conditional."""
        return draw(self.generator, z, labels, batch_statistics=self.model.sample_bn == "batch")

    def labels_in_turn(self, count: int) -> Tensor | None:
        """Labels (count,) that go through the classes again and again; None for an unconditional generator."""
        return torch.arange(count) % len(self.classes) if self.classes else None

    def save(self, folder: Path) -> None:
        """Write both files into `folder`, each atomically."""
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.generator.state_dict().items()}
        config = {"architecture": type(self.generator).__name__, "model": vars(self.model), "shape": list(self.shape),
                  "classes": self.classes, "unit_range": self.unit_range}
        for name, content in ((WEIGHTS, safetensors.torch.save(weights)), (CONFIG, _json(config))):
            with replacing(folder / name) as stream:
                stream.write(content)

    @classmethod
    def load(cls, folder: Path) -> Pretrained:
        """The generator that `save` wrote into `folder`, or of a file like netG.pth of PyTorch's DCGAN example.

        Raises `FastganError` where files are missing or do not fit.
        """
        if folder.is_file():
            return cls(*example.read_generator(folder), [], False)
        if not (folder / WEIGHTS).is_file() or not (folder / CONFIG).is_file():
            raise FastganError(f"no trained generator in {folder}: expected {WEIGHTS} and {CONFIG}, or a file netG.pth")
        try:
            config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
            model, shape = ModelConfig(**config["model"]), tuple(config["shape"])
            generator, _ = build(model, shape, len(config["classes"]))
            generator.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS))
            return cls(generator, model, shape, config["classes"], config["unit_range"])
        except FastganError:
            raise
        except Exception as error:  # foreign or damaged files fail in many ways
            raise FastganError(f"cannot read the generator in {folder}: {first_line(error)}") from error


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
