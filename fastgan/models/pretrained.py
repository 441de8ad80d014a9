"""A trained generator and its files, `generator.safetensors` and `config.json`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from fastgan import validation
from fastgan.config import ModelConfig
from fastgan.errors import FastganError, first_line
from fastgan.files import StrPath, read_json, replacing
from fastgan.models import build, pytorch_example, weights
from fastgan.models.sampling import Noise, draw, measure_statistics
from fastgan.validation import check_types

WEIGHTS, CONFIG = "generator.safetensors", "config.json"
MAX_SIDE = 4096  # the limit of `config.parse_size`


class Pretrained:
    """A trained generator with everything that is needed to generate images.

    Attributes:
        generator: the network.
        model: its `ModelConfig`.
        shape: shape of an image, (C, H, W), or of a point, (2,).
        classes: the names of the classes in the order of the labels; [] for an unconditional generator.
        unit_range: whether pixels are in [0, 1] instead of [-1, 1].
        noise: the distribution of z; `noise.from_seeds(range(8))` returns latent vectors (8, nz).
    """

    def __init__(self, generator: nn.Module, model: ModelConfig, shape: tuple[int, ...], classes: list[str],
                 unit_range: bool) -> None:
        self.generator, self.model, self.shape = generator, model, shape
        self.classes, self.unit_range = classes, unit_range
        self.noise = Noise(model.noise, model.noise_mean, model.nz)

    def draw(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Generate images (N, C, H, W) in the generator's range, or points (N, 2), from z (N, nz), and labels (N,) if
        conditional."""
        return draw(self.generator, z, labels, batch_statistics=self.model.sample_bn == "batch")

    def measure_statistics(self, images: int = 256) -> None:
        """Replace the running statistics of the generator's batch normalization by those over `images` latents with
        seeds from 0, with labels that cycle through the classes. 256 images give the same KID and diversity as 1,024.
        """
        measure_statistics(self.generator, self.noise.from_seeds(range(images)), self.labels_in_turn(images))

    def labels_in_turn(self, count: int) -> Tensor | None:
        """Labels (count,) 0, 1, ..., classes - 1, 0, 1, ...; None for an unconditional generator."""
        return torch.arange(count) % len(self.classes) if self.classes else None

    def names(self, labels: Tensor | None) -> list[str]:
        """The class of each label; [] for None."""
        return [] if labels is None else [self.classes[label] for label in labels.tolist()]

    def save(self, folder: StrPath) -> None:
        """Write generator.safetensors and config.json to `folder`, each atomically."""
        state = weights.unwrapped(self.generator.state_dict())
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        config = {"architecture": type(self.generator).__name__, "model": vars(self.model), "shape": list(self.shape),
                  "classes": self.classes, "unit_range": self.unit_range}
        described = (json.dumps(config, indent=2) + "\n").encode()
        for name, content in ((WEIGHTS, safetensors.torch.save(tensors)), (CONFIG, described)):
            with replacing(Path(folder, name)) as stream:
                stream.write(content)

    @classmethod
    def load(cls, folder: StrPath) -> Pretrained:
        """Load a generator that `save` wrote to a folder, or a netG.pth of PyTorch's DCGAN example.

        Raises:
            FastganError: if files are missing or inconsistent.
        """
        folder = Path(folder)
        if folder.is_file():
            return cls(*pytorch_example.read_generator(folder), [], False)
        if not (folder / WEIGHTS).is_file() or not (folder / CONFIG).is_file():
            raise FastganError(f"no trained generator in {folder}: expected {WEIGHTS} and {CONFIG}, or a file netG.pth")
        try:
            config: dict[str, Any] = read_json(folder / CONFIG)
            model, shape = ModelConfig(**config["model"]), tuple(config["shape"])
            classes, unit_range = config["classes"], config["unit_range"]
            check(model, shape, classes, unit_range)
            with torch.device("meta"):  # check shapes before memory is allocated
                generator, _ = build(model, shape, len(classes))
            weights.put(weights.unwrapped(safetensors.torch.load_file(folder / WEIGHTS)), generator, WEIGHTS)
            return cls(generator, model, shape, classes, unit_range)
        except FastganError as error:
            raise FastganError(f"cannot read the generator in {folder}: {error}") from error
        except Exception as error:  # damaged files, or files of other programs, raise many types
            raise FastganError(f"cannot read the generator in {folder}: {first_line(error)}") from error


def check(model: ModelConfig, shape: tuple[Any, ...], classes: Any, unit_range: Any) -> None:
    """Raise ValueError for values that do not describe a generator."""
    check_types(ModelConfig, vars(model))
    if not all(validation.matches(side, int) and 0 < side <= MAX_SIDE for side in shape):
        raise ValueError(f"shape {shape}: expected sides from 1 to {MAX_SIDE}")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError("classes: expected a list of names")
    if not isinstance(unit_range, bool) or not math.isfinite(model.noise_mean):
        raise ValueError("unit_range: expected true or false; noise_mean: expected a finite number")

