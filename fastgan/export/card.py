"""The model card (README.md) of an export: a program that generates images without fastgan, and the run's options."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fastgan import __version__
from fastgan.config import Config
from fastgan.models.pretrained import Pretrained

_COUNT = 16  # number of images that the program in the card generates
_REQUIRES = {"safetensors": "torch and safetensors", "torch.export": "torch", "onnx": "numpy and onnxruntime",
             "pytorch-example": "PyTorch's DCGAN example, `dcgan/main.py` of pytorch/examples"}
_UNCONDITIONAL = "pipeline_tag: unconditional-image-generation\ntags: [gan, dcgan, fastgan]"
# options that contain paths on the machine of the run
_PRIVATE = {"outdir", "data_root", "net_g", "net_d", "plan", "metrics_weights"}


def write(source: Pretrained, form: str, facts: dict[str, Any], files: list[str]) -> str:
    """The model card of `source`, exported as `form` to `files`. `facts` as in `fastgan.export.export`."""
    config = Config.from_flat(facts["config"]) if facts else None
    what = f"{'x'.join(map(str, source.shape))} images" if len(source.shape) == 3 else "points in the plane"
    use = _command(source, files) if form == "pytorch-example" else _program(source, form)
    training = (_training(config, facts) if config else
                "Unknown, because the weights were exported without the options of their run.\n")
    return f"""---
library_name: {'onnx' if form == 'onnx' else 'pytorch'}
{'tags: [gan, dcgan, fastgan, conditional]' if source.classes else _UNCONDITIONAL}
---

# {_plain(config.preset) if config else 'DCGAN'}: a generator of {what}

Written by `fastgan export --format {form}`, fastgan {__version__}. It requires {_REQUIRES[form]}.

{use}
## Training

{training}{_measured(facts.get('measured', []))}"""


def _program(source: Pretrained, form: str) -> str:
    """A Python program that generates images, and a description of its result."""
    lines = {"safetensors": _safetensors, "torch.export": _torch_export, "onnx": _onnx}[form](source)
    shape = ", ".join(map(str, (_COUNT, *source.shape)))
    pixels = "255 * images" if source.unit_range else "127.5 * (images + 1)"
    notes = [f"`images` are points, ({shape})." if len(source.shape) == 1 else
             f"`images` is ({shape}); its bytes are `({pixels}).clip(0, 255).round()`."]
    if source.classes:
        notes += ["The generator is conditional: the label is the class of the image.",
                  "Labels: " + ", ".join(f"{i} is {_plain(name)}" for i, name in enumerate(source.classes)) + "."]
    if source.model.sample_bn == "batch":
        notes += ["Batch normalization uses the statistics of the batch, as in training: an image depends on the "
                  "other images in its batch."]
    return "\n".join(["```python", *lines, "```", "", "\n\n".join(notes), ""])


def _safetensors(source: Pretrained) -> list[str]:
    conditional = bool(source.classes)
    return [
        "import json", "", "import torch", "from safetensors.torch import load_file", "from torch import nn", "",
        'with open("config.json") as stream:', '    specs = json.load(stream)["layers"]', "layers = []",
        "for name, arguments in specs:",
        "    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}",
        "    layers.append(getattr(nn, name)(**arguments))",
        "generator = nn.Sequential(*layers).eval()", 'weights = load_file("model.safetensors")',
        *(['embedding = weights.pop("embedding.weight")'] if conditional else []),
        "generator.load_state_dict(weights)", "", *_inputs(source), "with torch.no_grad():",
        f"    images = generator({'torch.cat([z, embedding[labels]], 1)' if conditional else 'z'})"]


def _torch_export(source: Pretrained) -> list[str]:
    return ["import torch", "", 'generator = torch.export.load("model.pt2").module()', "", *_inputs(source),
            "with torch.no_grad():", f"    images = generator({'z, labels' if source.classes else 'z'})"]


def _onnx(source: Pretrained) -> list[str]:
    inputs = '{"z": z, "labels": labels}' if source.classes else '{"z": z}'
    return ["import numpy", "import onnxruntime", "", 'session = onnxruntime.InferenceSession("model.onnx")', "",
            *_inputs(source, "numpy"), f"[images] = session.run(None, {inputs})"]


def _inputs(source: Pretrained, library: str = "torch") -> list[str]:
    """Code for z, with the noise distribution of the training, and for labels that cycle through the classes."""
    model, shape = source.model, f"{_COUNT}, {source.model.nz}"
    numpy = {"uniform": f"numpy.random.uniform(-1, 1, ({shape}))",
             "normal": f"numpy.random.normal({model.noise_mean}, 1, ({shape}))"}
    torch = {"uniform": f"2 * torch.rand({shape}) - 1", "normal": f"torch.randn({shape}) + {model.noise_mean}"}
    z = numpy[model.noise] + '.astype("float32")' if library == "numpy" else torch[model.noise].removesuffix(" + 0.0")
    labels = [f"labels = {library}.arange({_COUNT}) % {len(source.classes)}"] if source.classes else []
    return [f"z = {z}", *labels]


def _command(source: Pretrained, files: list[str]) -> str:
    """The command that continues training with the example."""
    model = source.model
    with_d = f" --netD netD.pth --ndf {model.ndf}" if "netD.pth" in files else ""
    channels = (" Its networks have 3 channels: change `nc` in its code." if source.shape[0] != 3 else "")
    return f"""```sh
python main.py --dataset folder --dataroot PATH --netG netG.pth --nz {model.nz} --ngf {model.ngf}{with_d}
```

This starts with new optimizer states.{channels}
"""


def _training(config: Config, facts: dict[str, Any]) -> str:
    """Tables of facts about the run, and of all its options except paths."""
    resolved = facts["resolved"]  # {} in a run that was stopped before its first step
    rows = {"data": resolved.get("data", "unknown"),
            "steps": f"{facts['steps']} of {resolved.get('steps', 'unknown')}, {config.data.batch} images each",
            "weights": f"moving average, decay {config.train.ema}" if config.train.ema else "of the last step",
            **{f"parameters of the {name}": f"{count:,}" for name, count in resolved.get("parameters", {}).items()},
            **{f"version of {name}": version for name, version in resolved.get("versions", {}).items()}}
    options = {key: value for key, value in config.flat().items() if key not in _PRIVATE}
    kind, _, path = config.data.source.partition(":")
    options["source"] = f"{kind}:{Path(path).name}" if path else kind
    return (_table(["", ""], rows.items()) + "\n<details><summary>All options</summary>\n\n"
            + _table(["option", "value"], options.items()) + "\n</details>\n")


def _measured(results: list[dict[str, Any]]) -> str:
    """Tables of the results of `fastgan evaluate`."""
    text = "\n## Metrics\n" if results else ""
    for result in results:
        rows = [(name, _number(value), _number(result["reals"].get(name))) for name, value in result["fakes"].items()]
        data, step = _plain(result.get("data", "unknown data")), result.get("step", "unknown")
        text += (f"\n{result.get('images', '?')} fakes against {data}, after step {step}:\n\n"
                 + _table(["metric", "fakes", "reals"], rows))
    return text


def _table(head: list[str], rows: Any) -> str:
    lines = [head, *([_plain(cell) for cell in row] for row in rows)]
    first, *others = (f"| {' | '.join(line)} |\n" for line in lines)
    return "".join([first, f"{'|---' * len(head)}|\n", *others])


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else ""


def _plain(value: object) -> str:
    """A value as Markdown text, with special characters escaped."""
    return re.sub(r"([\\`*_\[\]<>&|~$])", r"\\\1", " ".join(str(value).split()))
