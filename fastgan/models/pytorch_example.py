"""The file netG.pth of PyTorch's DCGAN example.

`DCGANGenerator` and `DCGANDiscriminator` have the layers and names of the example, so its files can be loaded
unchanged; width and depth are determined from the shapes. The example's discriminator ends in a sigmoid, whereas
fastgan's returns logits; this does not affect the weights.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from fastgan.config import ModelConfig
from fastgan.errors import FastganError
from fastgan.models import build, weights
from fastgan.models.dcgan import DCGANGenerator

_DEEPEST = 10  # halvings of an image of side 4096


def read_generator(path: Path) -> tuple[DCGANGenerator, ModelConfig, tuple[int, ...]]:
    """The generator whose state_dict is in `path`, its configuration and the shape (C, H, W) of its images.

    Sizes other than the example's 64x64 are accepted. Raises `FastganError` for a file that cannot be read, and for
    other networks.
    """
    state = weights.read(path)
    numbers = sorted(int(match[1]) for name in state if (match := re.fullmatch(r"main\.(\d{1,3})\.weight", name)))
    ends = [state[f"main.{number}.weight"] for number in numbers[:1] + numbers[-1:]]
    count, rest = divmod(numbers[-1], 3) if numbers else (0, 0)
    if rest or not 0 < count <= _DEEPEST or any(weight.dim() != 4 or not weight.numel() for weight in ends):
        found = f"main.{numbers[-1]}.weight is its last layer" if numbers else f"it begins with {next(iter(state), '')}"
        raise FastganError(f"{path} is not a generator of PyTorch's DCGAN example: {found}; expected main.0.weight, "
                           "main.1.weight, ... to main.12.weight, as in its netG")
    first, last = ends
    model = ModelConfig(nz=first.shape[0], ngf=last.shape[0])
    shape = (last.shape[1], first.shape[2] << count, first.shape[3] << count)
    with torch.device("meta"):  # check shapes before memory is allocated
        generator, _ = build(model, shape)
    weights.put(state, generator, path)
    assert isinstance(generator, DCGANGenerator)
    return generator, model, shape
