"""Part one, spectral normalization: its kernels in every type of weight, on each architecture, under every schedule.

The errors of weights, vectors and gradients relative to float64 are compared with those of the same formulas in PyTorch
operators. A call has weights in both memory formats and of odd sizes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from fastgan.ops import reference
from fastgan.ops.torch_ops import power_iteration
from fastgan.ops.triton import spectral
from proofs.ptx import kernels, rule
from proofs.ptx.operations import ARCHITECTURES, WARPS

# (out, in, kh, kw) of the weights of a call
CASES = [((5, 3, 4, 4), (7, 5, 3, 2), (1, 33, 4, 5)), ((70, 17, 2, 3), (6, 9, 1, 1), (3, 1, 4, 4)),
         ((64, 3, 4, 4), (128, 64, 4, 4), (1, 128, 4, 4))]
PRECISIONS = ("bf16", "fp16", "fp32")
FORWARD = ["spectral_rows_kernel", "spectral_columns_kernel", "spectral_scale_kernel"]
BACKWARD = ["spectral_dot_kernel", "spectral_gradient_kernel"]
TILES = ("_ROWS", "_COLUMNS", "_SCALE", "_DOT")


class Run(NamedTuple):
    precision: str
    arch: int
    shapes: tuple[tuple[int, ...], ...]
    training: bool
    warps: int  # 0: as shipped

    def __str__(self) -> str:
        shapes = " ".join("x".join(map(str, shape)) for shape in self.shapes)
        return (f"sm_{self.arch} {self.precision} spectral {shapes}{' evaluation' * (not self.training)}: "
                f"{f'{self.warps} warps' if self.warps else 'as shipped'}")


def runs(quick: bool) -> Iterator[Run]:
    """Quick: as shipped, and one precision and architecture of each."""
    pairs = list(itertools.product(PRECISIONS, ARCHITECTURES))
    for i, (shapes, training) in enumerate(itertools.product(CASES, (True, False))):
        for precision, arch in [pairs[i % len(pairs)]] if quick else pairs:
            for warps in (0,) if quick else WARPS:
                yield Run(precision, arch, shapes, training, warps)


class Given(NamedTuple):
    """Weights (R, in, kh, kw), every other channels_last, u (R,) and v (K,), and gradients of what is computed."""

    weights: list[Tensor]
    u: list[Tensor]
    v: list[Tensor]
    grads: list[Tensor]

    def to(self, dtype: torch.dtype) -> Given:
        return Given(*([one.to(dtype, copy=True) for one in part] for part in self))


def draw(shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype) -> Given:
    torch.manual_seed(len(shapes[0]))
    formats = (torch.channels_last, torch.contiguous_format)
    weights = [(0.02 * torch.randn(shape)).contiguous(memory_format=formats[i % 2]) for i, shape in enumerate(shapes)]
    u, v = ([torch.nn.functional.normalize(torch.randn(length), dim=0) for length in lengths]
            for lengths in zip(*((len(weight), weight[0].numel()) for weight in weights), strict=True))
    for weight, one, other in zip(weights, u, v, strict=True):  # sigma of random vectors cancels
        power_iteration(weight.flatten(1), one, other)
    return Given(weights, u, v, [torch.randn_like(weight).to(dtype).float() for weight in weights])


def evaluate(engine: Any, given: Given, training: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights, gradients and vectors by the functions of `engine`."""
    u, v = ([one.clone() for one in part] for part in given[1:3])
    normalized, *saved = engine.spectral_norm(given.weights, u, v, training, dtype)
    gradients = engine.spectral_norm_backward([g.to(dtype) for g in given.grads], given.weights, *saved)
    return {f"{name} {i}": one for name, part in (("weight", normalized), ("gradient", gradients), ("u", u), ("v", v),
                                                  ("sigma", saved[2])) for i, one in enumerate(part)}


def execute(ptxsim: Any, run: Run) -> tuple[float, list[str]]:
    """The largest error relative to the allowed one, and messages for what failed."""
    precision = rule.PRECISIONS[run.precision]
    given = draw(run.shapes, precision.dtype)
    shipped = {name: getattr(spectral, name) for name in TILES}
    expected = [*(name for name in FORWARD if run.training or name != FORWARD[1]), *BACKWARD]
    with patch.multiple(spectral, **{name: tile._replace(warps=run.warps or tile.warps)
                                     for name, tile in shipped.items()}):
        ours = kernels.every_schedule(
            ptxsim, run.arch, lambda: evaluate(spectral, given, run.training, precision.dtype), expected)
    return kernels.judge(ours, evaluate(reference, given, run.training, precision.dtype),
                         evaluate(reference, given.to(torch.float64), run.training, torch.float64),
                         lambda key: precision.unit if key[0] == "w" else rule.FLOAT32)


def prove(ptxsim: Any, quick: bool, match: str = "") -> list[str]:
    """Execute all runs, print a line for each, and return the failures."""
    return kernels.prove(runs(quick), partial(execute, ptxsim), match)
