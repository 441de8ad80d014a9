"""The export formats: writing a generator as the content of files, and generating images from that content alone."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from fastgan.export.sequential import SequentialGenerator, load_weights

Files = dict[str, bytes]
Inputs = tuple[Tensor, ...]  # z (N, nz), and labels (N,) int64 for a conditional generator

WEIGHTS = "model.safetensors"
_OPSET = 18


class Format(NamedTuple):
    """write: converts a generator to files. draw: generates images from files, including config.json, and inputs."""

    write: Callable[[SequentialGenerator], Files]
    draw: Callable[[Files, Inputs], Tensor]


def _write_safetensors(generator: SequentialGenerator) -> Files:
    return {WEIGHTS: safetensors.torch.save(generator.weights())}


def _draw_safetensors(files: Files, inputs: Inputs) -> Tensor:
    config = json.loads(files["config.json"])
    generator = SequentialGenerator(config["layers"], len(config["classes"]), config["noise"]["length"])
    load_weights(generator, safetensors.torch.load(files[WEIGHTS]))
    return generator(*inputs)


def _write_program(generator: SequentialGenerator) -> Files:
    stream = io.BytesIO()
    torch.export.save(torch.export.export(generator, _example(generator), dynamic_shapes=_shapes(generator)), stream)
    return {"model.pt2": stream.getvalue()}


def _draw_program(files: Files, inputs: Inputs) -> Tensor:
    return torch.export.load(io.BytesIO(files["model.pt2"])).module()(*inputs)


def _write_onnx(generator: SequentialGenerator) -> Files:
    names = ["z", "labels"][:len(_example(generator))]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="# The axis name: batch")  # z and labels share this axis on purpose
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


def _example(generator: SequentialGenerator) -> Inputs:
    """Inputs for tracing. The batch size is 2, because a size of 1 would become a constant."""
    z = torch.zeros(2, generator.nz, dtype=torch.float32)
    return (z,) if generator.embedding is None else (z, torch.zeros(2, dtype=torch.int64))


def _shapes(generator: SequentialGenerator) -> tuple[Any, ...]:
    """Dynamic shapes for batches of any size."""
    return ({0: torch.export.Dim("batch")},) * len(_example(generator))


FORMATS = {
    "safetensors": Format(_write_safetensors, _draw_safetensors),
    "torch.export": Format(_write_program, _draw_program),
    "onnx": Format(_write_onnx, _draw_onnx),
}
# Maximum difference from fastgan's images, relative to 1 or to the largest value if that is greater. Both are computed
# in float32, but with different orders of summation. PyTorch's layers, rebuilt or traced, make the same calls;
# onnxruntime has other implementations of convolutions, tanh and batch statistics.
TOLERANCE = {"safetensors": 2e-5, "torch.export": 2e-5, "onnx": 1e-4}
