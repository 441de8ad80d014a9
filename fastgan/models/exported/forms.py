"""The forms in which a generator is exported: the content of files, and images drawn from that content alone."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from fastgan.models.exported.plain import PlainGenerator

Files = dict[str, bytes]
Inputs = tuple[Tensor, ...]  # z (N, nz), and labels (N,) int64 for a conditional generator

_OPSET = 18


@dataclass(frozen=True)
class Form:
    """Attributes: write, a generator to files. draw, files and inputs to what the generator makes of them.

    within: how far any value of that may be from what fastgan draws, of 1 or, where that is more, the largest value.
    """

    write: Callable[[PlainGenerator], Files]
    draw: Callable[[Files, Inputs], Tensor]
    within: float


def _write_safetensors(generator: PlainGenerator) -> Files:
    return {"model.safetensors": safetensors.torch.save(generator.weights())}


def _draw_safetensors(files: Files, inputs: Inputs) -> Tensor:
    config = json.loads(files["config.json"])
    generator = PlainGenerator(config["layers"], len(config["classes"]), config["noise"]["length"])
    weights = safetensors.torch.load(files["model.safetensors"])
    generator.load_state_dict({key if "embedding" in key else f"layers.{key}": weights[key] for key in weights})
    return generator(*inputs)


def _write_program(generator: PlainGenerator) -> Files:
    stream = io.BytesIO()
    torch.export.save(torch.export.export(generator, _example(generator), dynamic_shapes=_shapes(generator)), stream)
    return {"model.pt2": stream.getvalue()}


def _draw_program(files: Files, inputs: Inputs) -> Tensor:
    return torch.export.load(io.BytesIO(files["model.pt2"])).module()(*inputs)


def _write_onnx(generator: PlainGenerator) -> Files:
    names = ["z", "labels"][:len(_example(generator))]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="# The axis name: batch")  # which z and labels are meant to share
        program = torch.onnx.export(generator, _example(generator), input_names=names, output_names=["images"],
                                    dynamic_shapes=_shapes(generator), opset_version=_OPSET, dynamo=True, verbose=False)
    assert program is not None
    return {"model.onnx": program.model_proto.SerializeToString()}


def _draw_onnx(files: Files, inputs: Inputs) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(files["model.onnx"], providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    values = (value.numpy() for value in inputs)
    return torch.from_numpy(session.run(None, dict(zip(names, values, strict=True)))[0])


def _example(generator: PlainGenerator) -> Inputs:
    """Inputs by which a program is traced; of 2 images, since 1 would be taken for a size that never changes."""
    z = torch.zeros(2, generator.nz, dtype=torch.float32)
    return (z,) if generator.embedding is None else (z, torch.zeros(2, dtype=torch.int64))


def _shapes(generator: PlainGenerator) -> tuple[Any, ...]:
    """Batches of any size."""
    return ({0: torch.export.Dim("batch")},) * len(_example(generator))


# One float32 pass against another whose sums run in another order. PyTorch's layers, built again or traced, make the
# same calls; onnxruntime has convolutions and a tanh of its own, and takes a batch's statistics otherwise.
FORMS = {
    "safetensors": Form(_write_safetensors, _draw_safetensors, within=2e-5),
    "torch.export": Form(_write_program, _draw_program, within=2e-5),
    "onnx": Form(_write_onnx, _draw_onnx, within=1e-4),
}
