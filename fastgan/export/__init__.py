"""Export of a trained generator: files that generate the same images without fastgan, and a model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from fastgan import __version__, extras
from fastgan.config import ModelConfig, nearest
from fastgan.errors import FastganError, first_line
from fastgan.export import card, pytorch_example
from fastgan.export.formats import FORMATS, TOLERANCE, WEIGHTS
from fastgan.export.sequential import SequentialGenerator, check_output, load_weights, to_sequential
from fastgan.files import StrPath, read_json, reason, replacing
from fastgan.models.pretrained import CONFIG, Pretrained, check

__all__ = ["FORMAT_NAMES", "PYTORCH_EXAMPLE", "export", "is_export", "load", "push"]

PYTORCH_EXAMPLE = "pytorch-example"
FORMAT_NAMES = (*FORMATS, PYTORCH_EXAMPLE)
_CARD = "README.md"
_SEEDS = range(16)  # seeds of the images that are compared


def export(source: Pretrained, form: str, out: StrPath, *, facts: dict[str, Any] | None = None,
           discriminator: dict[str, Tensor] | None = None) -> list[str]:
    """Write a generator as files that generate the same images without fastgan, with a model card.

    Before anything is written, images are generated from the exported files and compared with those of `source`.

    Args:
        source: the generator.
        form: "safetensors", "torch.export", "onnx" or "pytorch-example".
        out: the folder, which is created if it does not exist.
        facts: facts about the run, for the model card: the content of its training_options.json, "steps" (the number
            of completed steps) and "measured" (a list of results of `evaluate`).
        discriminator: the state_dict of the discriminator, which only "pytorch-example" writes.

    Returns:
        The names of the files.

    Raises:
        FastganError: for an unknown format, a network that the format does not support, a missing package, and a folder
            that cannot be written or contains other files of these names.
    """
    if form not in FORMAT_NAMES:
        raise FastganError(f"unknown format {form!r}; {nearest(form, list(FORMAT_NAMES))}")
    if form == PYTORCH_EXAMPLE:
        files = {CONFIG: _config(source, form), **pytorch_example.write(source, discriminator)}
    else:
        if form == "onnx":
            for package in extras.EXTRAS["export"]:
                extras.load(package, "export", "--format onnx")
        generator = to_sequential(source)
        files = {CONFIG: _config(source, form, generator), **FORMATS[form].write(generator)}
        _compare(source, form, files)
    files[_CARD] = card.write(source, form, facts or {}, list(files)).encode(errors="backslashreplace")
    _write(Path(out), files)
    return list(files)


def load(folder: StrPath) -> Pretrained:
    """Load the generator that `export` wrote to `folder` as "safetensors": eager layers, in evaluation mode.

    No code in the files is executed.

    Raises:
        FastganError: if files are missing or inconsistent.
    """
    try:
        config: dict[str, Any] = read_json(Path(folder, CONFIG))
        if config["format"] != "safetensors":
            raise FastganError(f"its --format is {config['format']}; expected safetensors")
        noise, shape, classes = config["noise"], tuple(config["shape"]), config["classes"]
        unit_range = {(0, 1): True, (-1, 1): False}[tuple(config["range"])]
        model = ModelConfig(nz=noise["length"], noise=noise["kind"], noise_mean=noise["mean"],
                            sample_bn=config["batch_normalisation"])
        check(model, shape, classes, unit_range)
        with torch.device("meta"):  # check shapes before memory is allocated
            generator = SequentialGenerator(config["layers"], len(classes), model.nz)
            check_output(generator, shape)
        load_weights(generator, safetensors.torch.load_file(Path(folder, WEIGHTS)))
        return Pretrained(generator, model, shape, classes, unit_range)
    except Exception as error:  # damaged files, or files of other programs, raise many types
        raise FastganError(f"cannot read the export in {folder}: {first_line(error)}") from error


def is_export(folder: StrPath) -> bool:
    """Whether the files in `folder` were written by `export`."""
    try:
        return str(read_json(Path(folder, CONFIG))["made_by"]).startswith("fastgan export")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def push(repository: str, folder: StrPath, files: list[str]) -> str:
    """Upload files to a model repository of the Hugging Face Hub.

    Args:
        repository: "NAME/REPOSITORY", which is created if it does not exist.
        folder: the folder of the files.
        files: the names of the files, as `export` returns them.

    Returns:
        The URL of the commit.

    Raises:
        FastganError: without a login, for an invalid name, and if the Hub cannot be reached.
    """
    api = extras.load("huggingface_hub", "hub", "--push").HfApi()
    try:
        api.create_repo(repository, exist_ok=True)
        return api.upload_folder(repo_id=repository, folder_path=Path(folder), allow_patterns=files,
                                     commit_message="Generator exported by fastgan").commit_url
    except Exception as error:  # network and login problems and invalid names raise many types
        raise FastganError(f"--push {repository}: {first_line(error)}; the files are in {folder}") from error


def _config(source: Pretrained, form: str, generator: SequentialGenerator | None = None) -> bytes:
    model = source.model
    config = {"made_by": f"fastgan export {__version__}", "format": form, "shape": source.shape,
              "range": [0, 1] if source.unit_range else [-1, 1], "classes": source.classes,
              "noise": {"kind": model.noise, "mean": model.noise_mean, "length": model.nz},
              "batch_normalisation": model.sample_bn}
    if generator is not None:
        config["layers"] = generator.specs
    return (json.dumps(config, indent=2) + "\n").encode()


def _compare(source: Pretrained, form: str, files: dict[str, bytes]) -> None:
    """Raise `FastganError` if images generated from `files` alone differ from those of `source`."""
    z = source.noise.from_seeds(_SEEDS)
    labels = source.labels_in_turn(len(z))
    expected = source.draw(z, labels)
    with torch.no_grad():
        images = FORMATS[form].draw(files, (z,) if labels is None else (z, labels))
    distance = float((images - expected).abs().max() / expected.abs().max().clamp(min=1))
    if not distance <= TOLERANCE[form]:
        raise FastganError(f"--format {form}: its images differ from fastgan's by {distance:.1e}, more than "
                           f"{TOLERANCE[form]:.0e}; nothing was written")


def _write(out: Path, files: dict[str, bytes]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        existing = [name for name in files if (out / name).exists()]
    except OSError as error:
        raise FastganError(f"--out {out}: cannot create this folder: {reason(error)}") from error
    if existing and not is_export(out):
        raise FastganError(f"--out {out} contains a {existing[0]} that fastgan did not export; expected another folder")
    for name, content in files.items():
        with replacing(out / name) as stream:
            stream.write(content)
