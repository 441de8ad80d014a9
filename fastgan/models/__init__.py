"""The networks, files with their weights, and sampling from a generator."""

from __future__ import annotations

import torch
from torch import nn

from fastgan.config import ModelConfig
from fastgan.errors import FastganError
from fastgan.models.dcgan import DCGANDiscriminator, DCGANGenerator
from fastgan.models.gaussian import GaussianDiscriminator, GaussianGenerator
from fastgan.models.oreilly import OReillyDiscriminator, OReillyGenerator
from fastgan.models.tf_mnist import TFDiscriminator, TFGenerator

__all__ = [
    "DCGANDiscriminator", "DCGANGenerator", "GaussianDiscriminator", "GaussianGenerator", "OReillyDiscriminator",
    "OReillyGenerator", "TFDiscriminator", "TFGenerator", "build",
]

_SHAPES: dict[str, tuple[int, ...]] = {"oreilly": (1, 28, 28), "tf": (1, 28, 28), "gaussian": (2,)}


def build(config: ModelConfig, shape: tuple[int, ...], num_classes: int = 0) -> tuple[nn.Module, nn.Module]:
    """Build a generator and a discriminator, in float32.

    Args:
        config: the architecture and its widths.
        shape: shape of the data, (C, H, W), or (2,) for points.
        num_classes: the number of classes of conditional networks; 0 for unconditional networks.

    Returns:
        generator: z (N, nz) -> (N, *shape).
        discriminator: (N, *shape) -> logits.

    Raises:
        FastganError: for a shape that the architecture does not support.
    """
    default = torch.get_default_dtype()
    try:  # casting after the initialization would give other random values
        torch.set_default_dtype(torch.float32)
        return _build(config, shape, num_classes)
    finally:
        torch.set_default_dtype(default)


def _build(config: ModelConfig, shape: tuple[int, ...], num_classes: int) -> tuple[nn.Module, nn.Module]:
    name, bn = config.architecture, {"bn_eps": config.bn_eps, "bn_momentum": config.bn_momentum}
    check_shape(name, shape)
    if num_classes and name != "dcgan":
        raise FastganError(f"--cond with --architecture {name}: only dcgan takes labels")
    if name == "oreilly":
        if config.nz != OReillyGenerator.nz:
            raise FastganError(f"--nz {config.nz}: --architecture oreilly reshapes z to 2x2x25; expected 100")
        return OReillyGenerator(**bn), OReillyDiscriminator()
    if name == "tf":
        return TFGenerator(config.nz, **bn), TFDiscriminator(**bn)
    if name == "gaussian":
        return GaussianGenerator(config.nz), GaussianDiscriminator()
    nc, height, width = shape
    shared = {"gamma_std": config.gamma_std, "fix_gamma": config.fix_gamma, "num_classes": num_classes}
    return (DCGANGenerator(config.nz, config.ngf, nc, (height, width), **bn, **shared),  # type: ignore[arg-type]
            DCGANDiscriminator(config.ndf, nc, (height, width), norm=config.norm_d, **bn, **shared))  # type: ignore[arg-type]


def check_shape(architecture: str, shape: tuple[int, ...]) -> None:
    """Raise `FastganError` if the architecture does not support this shape of the data."""
    expected = _SHAPES.get(architecture)
    if expected is not None and shape != expected:
        raise FastganError(f"data of shape {'x'.join(map(str, shape))}: --architecture {architecture} expects "
                           f"{'x'.join(map(str, expected))} (channels x height x width)")
    if expected is None and len(shape) != 3:
        raise FastganError(f"data of shape {shape}: --architecture {architecture} expects images; for --data gaussian "
                           "use --architecture gaussian")
