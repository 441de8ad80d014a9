"""A trained generator for people who have no fastgan: files that make the same images, and a page that says how."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastgan import __version__
from fastgan.config import nearest
from fastgan.errors import FastganError
from fastgan.files import StrPath, reason, replacing
from fastgan.models.exported import card, example
from fastgan.models.exported.forms import FORMS
from fastgan.models.exported.loaded import is_export, load
from fastgan.models.exported.plain import PlainGenerator, plain
from fastgan.models.pretrained import CONFIG, Pretrained

__all__ = ["EXAMPLE", "FORMATS", "export", "is_export", "load", "need", "plain"]

EXAMPLE = "pytorch-example"
FORMATS = (*FORMS, EXAMPLE)
_CARD = "README.md"
_EXTRAS = {"export": ("onnx", "onnxscript", "onnxruntime"), "hub": ("huggingface_hub",)}
_SEEDS = range(16)  # of the images that are compared


def export(source: Pretrained, form: str, out: StrPath, *, facts: dict[str, Any] | None = None,
           discriminator: dict[str, Tensor] | None = None) -> list[str]:
    """Write `source` into the folder `out`, made if it is not there, once what is written makes the same images.

    Args:
        form: one of `FORMATS`.
        facts: of the run, for the model card: the content of its training_options.json, "steps", how many were done,
            and "measured", a list of what `evaluate` returned.
        discriminator: its state_dict, which "pytorch-example" writes too.

    Returns the names of the files. Raises `FastganError` for an unknown form, a network that it cannot hold, a missing
    package, and a folder that cannot be written or has files of these names from elsewhere.
    """
    if form not in FORMATS:
        raise FastganError(f"unknown format {form!r}; {nearest(form, list(FORMATS))}")
    if form == EXAMPLE:
        files = {CONFIG: _config(source, form), **example.write(source, discriminator)}
    else:
        if form == "onnx":
            need("export", "--format onnx")
        generator = plain(source)
        files = {CONFIG: _config(source, form, generator), **FORMS[form].write(generator)}
        _compare(source, form, files)
    files[_CARD] = card.write(source, form, facts or {}, list(files)).encode(errors="backslashreplace")
    _write(Path(out), files)
    return list(files)


def need(extra: str, what: str) -> None:
    """`FastganError` unless the packages of this optional extra are installed."""
    for package in _EXTRAS[extra]:
        if importlib.util.find_spec(package) is None:
            raise FastganError(f"{what} needs {package}, which is not installed; expected fastgan's extra "
                               f"{extra!r}: pip install {' '.join(_EXTRAS[extra])}")


def _config(source: Pretrained, form: str, generator: PlainGenerator | None = None) -> bytes:
    model = source.model
    config = {"made_by": f"fastgan export {__version__}", "format": form, "shape": source.shape,
              "range": [0, 1] if source.unit_range else [-1, 1], "classes": source.classes,
              "noise": {"kind": model.noise, "mean": model.noise_mean, "length": model.nz},
              "batch_normalisation": model.sample_bn}
    if generator is not None:
        config["layers"] = generator.described
    return (json.dumps(config, indent=2) + "\n").encode()


def _compare(source: Pretrained, form: str, files: dict[str, bytes]) -> None:
    """`FastganError` unless images drawn from `files` alone are those that fastgan draws."""
    z = source.noise.from_seeds(_SEEDS)
    labels = source.labels_in_turn(len(z))
    ours = source.draw(z, labels)
    with torch.no_grad():
        theirs = FORMS[form].draw(files, (z,) if labels is None else (z, labels))
    distance = float((theirs - ours).abs().max() / ours.abs().max().clamp(min=1))
    if not distance <= FORMS[form].within:
        raise FastganError(f"--format {form}: its images are {distance:.1e} from fastgan's, allowed are "
                           f"{FORMS[form].within:.0e}; nothing was written")


def _write(out: Path, files: dict[str, bytes]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        there = [name for name in files if (out / name).exists()]
    except OSError as error:
        raise FastganError(f"--out {out}: cannot make this folder: {reason(error)}") from error
    if there and not is_export(out):
        raise FastganError(f"--out {out} has a {there[0]} that was not exported; expected another folder")
    for name, content in files.items():
        with replacing(out / name) as stream:
            stream.write(content)
