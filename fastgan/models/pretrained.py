"""A trained generator for use elsewhere: `generator.safetensors` beside `config.json`, plain tensors and plain JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from fastgan import validation
from fastgan.config import ModelConfig, check_types
from fastgan.errors import FastganError, first_line
from fastgan.files import StrPath, read_json, replacing
from fastgan.models import build, example
from fastgan.models.sampling import Noise, draw
from fastgan.models.weights import unwrapped

WEIGHTS, CONFIG = "generator.safetensors", "config.json"
MAX_SIDE = 4096  # as `config.parse_size` has it


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

    def save(self, folder: StrPath) -> None:
        """Write both files into `folder`, each atomically."""
        state = unwrapped(self.generator.state_dict())
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        config = {"architecture": type(self.generator).__name__, "model": vars(self.model), "shape": list(self.shape),
                  "classes": self.classes, "unit_range": self.unit_range}
        for name, content in ((WEIGHTS, safetensors.torch.save(weights)), (CONFIG, _json(config))):
            with replacing(Path(folder, name)) as stream:
                stream.write(content)

    @classmethod
    def load(cls, folder: StrPath) -> Pretrained:
        """The generator that `save` wrote into `folder`, or of a file like netG.pth of PyTorch's DCGAN example.

        Raises `FastganError` where files are missing or do not fit.
        """
        folder = Path(folder)
        if folder.is_file():
            return cls(*example.read_generator(folder), [], False)
        if not (folder / WEIGHTS).is_file() or not (folder / CONFIG).is_file():
            raise FastganError(f"no trained generator in {folder}: expected {WEIGHTS} and {CONFIG}, or a file netG.pth")
        try:
            config: dict[str, Any] = read_json(folder / CONFIG)
            model, shape = ModelConfig(**config["model"]), tuple(config["shape"])
            classes, unit_range = config["classes"], config["unit_range"]
            check(model, shape, classes, unit_range)
            with torch.device("meta"):  # what it would take is compared with what is there, before memory is taken
                generator, _ = build(model, shape, len(classes))
            weights = unwrapped(safetensors.torch.load_file(folder / WEIGHTS))
            check_shapes(generator, weights, WEIGHTS)
            generator.to_empty(device="cpu").load_state_dict(weights)
            return cls(generator, model, shape, classes, unit_range)
        except FastganError as error:
            raise FastganError(f"cannot read the generator in {folder}: {error}") from error
        except Exception as error:  # foreign or damaged files fail in many ways
            raise FastganError(f"cannot read the generator in {folder}: {first_line(error)}") from error


def check(model: ModelConfig, shape: tuple[Any, ...], classes: Any, unit_range: Any) -> None:
    """ValueError for a description that is none."""
    check_types(ModelConfig, vars(model))
    if not all(validation.matches(side, int) and 0 < side <= MAX_SIDE for side in shape):
        raise ValueError(f"shape {shape}: expected sides from 1 to {MAX_SIDE}")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError("classes: expected a list of names")
    if not isinstance(unit_range, bool) or not math.isfinite(model.noise_mean):
        raise ValueError("unit_range: expected true or false; noise_mean: expected a finite number")


def check_shapes(generator: nn.Module, weights: dict[str, Tensor], file: str) -> None:
    """ValueError for the first tensor of a generator that is not among the weights of `file` in its shape."""
    for name, tensor in generator.state_dict().items():
        if name not in weights or weights[name].shape != tensor.shape:
            found = "none" if name not in weights else f"one of {tuple(weights[name].shape)}"
            raise ValueError(f"{file} has {found} for {name}, expected {tuple(tensor.shape)}")


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
