"""An export back in fastgan: the layers that config.json lists, with the weights beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from fastgan.config import ModelConfig
from fastgan.errors import FastganError, first_line
from fastgan.files import StrPath, read_json
from fastgan.models.exported.plain import ARGUMENTS, PlainGenerator
from fastgan.models.pretrained import CONFIG, MAX_SIDE, Pretrained, check, check_shapes

FORM, WEIGHTS = "safetensors", "model.safetensors"
_LARGEST = 64 * MAX_SIDE**2  # elements between two layers


def is_export(folder: StrPath) -> bool:
    """Whether `export` wrote what is in there."""
    try:
        return str(read_json(Path(folder, CONFIG))["made_by"]).startswith("fastgan export")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def load(folder: StrPath) -> Pretrained:
    """The generator that `export` wrote into `folder` as "safetensors", of eager layers, in evaluation mode.

    Raises `FastganError` where files are missing or do not fit. Nothing in them is run.
    """
    try:
        told: dict[str, Any] = read_json(Path(folder, CONFIG))
        if told["format"] != FORM:
            raise FastganError(f"it is of --format {told['format']}, expected {FORM}")
        noise, shape, classes = told["noise"], tuple(told["shape"]), told["classes"]
        unit_range = {(0, 1): True, (-1, 1): False}[tuple(told["range"])]
        model = ModelConfig(nz=noise["length"], noise=noise["kind"], noise_mean=noise["mean"],
                            sample_bn=told["batch_normalisation"])
        check(model, shape, classes, unit_range)
        with torch.device("meta"):  # what it would take is compared with what is there, before memory is taken
            generator = PlainGenerator(list(map(_layer, told["layers"])), len(classes), model.nz)
            _check_output(generator, shape)
        weights = {name if name.startswith("embedding.") else f"layers.{name}": tensor
                   for name, tensor in safetensors.torch.load_file(Path(folder, WEIGHTS)).items()}
        check_shapes(generator, weights, WEIGHTS)
        generator.to_empty(device="cpu").load_state_dict(weights)
        return Pretrained(generator, model, shape, classes, unit_range)
    except Exception as error:  # foreign or damaged files fail in many ways
        raise FastganError(f"cannot read the export in {folder}: {first_line(error)}") from error


def _layer(told: Any) -> tuple[str, dict[str, Any]]:
    """ValueError unless it is a layer that `plain` writes."""
    kind, given = told
    allowed = {*ARGUMENTS.get(kind, ()), "bias", "track_running_stats"}
    if kind not in ARGUMENTS or not set(given) <= allowed:
        raise ValueError(f"layer {kind!r} with {', '.join(given)}: expected one of {', '.join(ARGUMENTS)}")
    return kind, given


def _check_output(generator: PlainGenerator, shape: tuple[int, ...]) -> None:
    """ValueError unless images of this shape come out, through nothing that is much larger."""
    x = torch.empty(2, generator.nz * (1 if generator.embedding is None else 2), dtype=torch.float32)
    for layer in generator.layers:
        x = layer(x)
        if x.numel() > _LARGEST:
            raise ValueError(f"{type(layer).__name__} makes {tuple(x.shape)}, expected {_LARGEST} elements or fewer")
    if tuple(x.shape[1:]) != shape:
        raise ValueError(f"its layers make {tuple(x.shape[1:])}, expected {shape}")
