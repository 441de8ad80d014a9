"""README.md of an export, a model card: how to draw without fastgan, and what was trained, by the run's own options."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fastgan import __version__
from fastgan.config import Config
from fastgan.models.pretrained import Pretrained

_COUNT = 16  # images that the code in the card draws
_NEEDS = {"safetensors": "torch and safetensors", "torch.export": "torch", "onnx": "numpy and onnxruntime",
          "pytorch-example": "PyTorch's DCGAN example, `dcgan/main.py` of pytorch/examples"}
# paths on the machine where it was trained
_PRIVATE = {"outdir", "data_root", "net_g", "net_d", "plan", "metrics_weights"}


def write(source: Pretrained, form: str, facts: dict[str, Any], files: list[str]) -> str:
    """The text for `source`, exported as `form` in `files`; `facts` as in `exported.export`."""
    config = Config.from_flat(facts["config"]) if facts else None
    what = f"{'x'.join(map(str, source.shape))} images" if len(source.shape) == 3 else "points in the plane"
    code = _command(source, files) if form == "pytorch-example" else _program(source, form)
    return "\n".join([
        "---", f"library_name: {'onnx' if form == 'onnx' else 'pytorch'}",
        "pipeline_tag: unconditional-image-generation", "tags: [gan, dcgan, fastgan]", "---", "",
        f"# {_plain(config.preset) if config else 'DCGAN'}: a generator of {what}", "",
        f"Written by `fastgan export --format {form}`, fastgan {__version__}. To use it takes {_NEEDS[form]}.", "",
        *code, "", "## What was trained", "", *(_trained(config, facts) if config else [
            "Not known here: the weights came without the options of their run."]),
        *_measured(facts.get("measured", []))]) + "\n"


def _program(source: Pretrained, form: str) -> list[str]:
    """A Python program that draws, and what comes out of it."""
    lines = {"safetensors": _safetensors, "torch.export": _torch_export, "onnx": _onnx}[form](source)
    shape = ", ".join(map(str, (_COUNT, *source.shape)))
    pixels = "255 * images" if source.unit_range else "127.5 * (images + 1)"
    notes = [f"`images` are points, ({shape})." if len(source.shape) == 1 else
             f"`images` is ({shape}); its bytes are `({pixels}).clip(0, 255).round()`."]
    if source.classes:
        notes += ["", "Labels: " + ", ".join(f"{i} is {_plain(name)}" for i, name in enumerate(source.classes)) + "."]
    if source.model.sample_bn == "batch":
        notes += ["", "Batch normalisation uses the statistics of the batch that is drawn, as in training: an image "
                  "depends on those drawn with it, and one drawn alone is another."]
    return ["```python", *lines, "```", "", *notes]


def _safetensors(source: Pretrained) -> list[str]:
    conditional = bool(source.classes)
    return [
        "import json", "", "import torch", "from safetensors.torch import load_file", "from torch import nn", "",
        'with open("config.json") as stream:', '    described = json.load(stream)["layers"]', "layers = []",
        "for kind, given in described:",
        "    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}",
        "    layers.append(getattr(nn, kind)(**given))",
        "generator = nn.Sequential(*layers).eval()", 'weights = load_file("model.safetensors")',
        *(['embedding = weights.pop("embedding.weight")'] if conditional else []),
        "generator.load_state_dict(weights)", "", *_inputs(source), "with torch.no_grad():",
        f"    images = generator({'torch.cat([z, embedding[labels]], 1)' if conditional else 'z'})"]


def _torch_export(source: Pretrained) -> list[str]:
    return ["import torch", "", 'generator = torch.export.load("model.pt2").module()', "", *_inputs(source),
            "with torch.no_grad():", f"    images = generator({'z, labels' if source.classes else 'z'})"]


def _onnx(source: Pretrained) -> list[str]:
    given = '{"z": z, "labels": labels}' if source.classes else '{"z": z}'
    return ["import numpy", "import onnxruntime", "", 'session = onnxruntime.InferenceSession("model.onnx")', "",
            *_inputs(source, "numpy"), f"[images] = session.run(None, {given})"]


def _inputs(source: Pretrained, library: str = "torch") -> list[str]:
    """z from the noise that it was trained on, and labels in turn."""
    model, shape = source.model, f"{_COUNT}, {source.model.nz}"
    numpy = {"uniform": f"numpy.random.uniform(-1, 1, ({shape}))",
             "normal": f"numpy.random.normal({model.noise_mean}, 1, ({shape}))"}
    torch = {"uniform": f"2 * torch.rand({shape}) - 1", "normal": f"torch.randn({shape}) + {model.noise_mean}"}
    z = numpy[model.noise] + '.astype("float32")' if library == "numpy" else torch[model.noise].removesuffix(" + 0.0")
    labels = [f"labels = {library}.arange({_COUNT}) % {len(source.classes)}"] if source.classes else []
    return [f"z = {z}", *labels]


def _command(source: Pretrained, files: list[str]) -> list[str]:
    """How that example goes on from its weights."""
    model = source.model
    with_d = f" --netD netD.pth --ndf {model.ndf}" if "netD.pth" in files else ""
    return ["```sh", "python main.py --dataset folder --dataroot PATH "
            f"--netG netG.pth --nz {model.nz} --ngf {model.ngf}{with_d}", "```", "",
            "The optimizers start anew there." + (
                " It makes images of 3 channels; these have another number: change `nc` in its code."
                if source.shape[0] != 3 else "")]


def _trained(config: Config, facts: dict[str, Any]) -> list[str]:
    """Tables of what is known of the run, and of all its options but paths."""
    found = facts["resolved"]  # {} in a run that was stopped before its first step
    rows = {"data": found.get("data", "unknown"),
            "steps": f"{facts['steps']} of {found.get('steps', 'unknown')}, {config.data.batch} images each",
            "weights": f"their moving average, decay {config.train.ema}" if config.train.ema else "of the last step",
            **{f"parameters of the {part}": f"{count:,}" for part, count in found.get("parameters", {}).items()},
            **{f"version of {what}": version for what, version in found.get("versions", {}).items()}}
    options = {key: value for key, value in config.flat().items() if key not in _PRIVATE}
    kind, _, path = config.data.source.partition(":")
    options["source"] = f"{kind}:{Path(path).name}" if path else kind
    return ["| | |", "|---|---|", *(f"| {what} | {_plain(fact)} |" for what, fact in rows.items()), "",
            "<details><summary>All options</summary>", "", "| option | value |", "|---|---|",
            *(f"| {key} | {_plain(value)} |" for key, value in options.items()), "", "</details>"]


def _measured(found: list[dict[str, Any]]) -> list[str]:
    """Tables of what `fastgan evaluate` found."""
    lines = ["", "## What was measured"] if found else []
    for one in found:
        lines += ["", f"{one.get('images', '?')} fakes against {_plain(one.get('data', 'unknown data'))}, after step "
                  f"{one.get('step', 'unknown')}:", "", "| metric | fakes | reals |", "|---|---|---|"]
        lines += [f"| {_plain(name)} | {_number(value)} | {_number(one['reals'].get(name))} |"
                  for name, value in one["fakes"].items()]
    return lines


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else ""


def _plain(value: object) -> str:
    """A value as text in Markdown, whatever signs it has."""
    return re.sub(r"([\\`*_\[\]<>&|~$])", r"\\\1", " ".join(str(value).split()))
