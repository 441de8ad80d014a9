"""The convolutions of a step whose GEMMs are timed, their kernels with a given tile, and tile files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgan.ops.tuning import candidates
from proofs.gpu import library

LEAST_CHANNELS = 64  # minimum channels of a timed GEMM
RAW = (128, 128, 64, 8, 3)  # the tile of the comparison on raw operands
Given = tuple[Tensor, Tensor, Tensor]  # x, weight and the gradient of y, (N, C, H, W), channels_last


class Gemm(NamedTuple):
    """A pass of a convolution, without an activation, that is timed. x: the shape (N, C, H, W) of the input."""

    kind: str
    x: tuple[int, ...]
    to: int
    transposed: bool

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of x, weight and y."""
        n, channels, height, width = self.x
        sides = (2 * height, 2 * width) if self.transposed else (height // 2, width // 2)
        weight = (channels, self.to) if self.transposed else (self.to, channels)
        return self.x, (*weight, 4, 4), (n, self.to, *sides)

    @property
    def flops(self) -> float:
        n, channels, height, width = self.x
        pixels = height * width if self.transposed else height * width // 4
        return 2.0 * n * pixels * channels * self.to * 16


def gemms(batch: int) -> dict[str, Gemm]:
    """The distinct passes of 4x4 convolutions of stride 2 with at least `LEAST_CHANNELS` channels on both sides."""
    found: dict[str, Gemm] = {}
    for problem in library.passes("bf16", batch, torch.device("cpu")).values():
        if problem.kind not in candidates.CONVOLUTIONS or problem.weight[2:] != (4, 4) or problem.stride != (2, 2):
            continue
        to = problem.weight[1] if problem.transposed else problem.weight[0]
        kind = problem.kind.replace("conv_act_forward", "conv_forward")
        one = Gemm(kind, problem.x, to, problem.transposed)
        if min(problem.x[1], to) >= LEAST_CHANNELS and problem.dtype == "bfloat16":
            name = "convT" if one.transposed else "conv"
            found[f"{one.kind} {name} {'x'.join(map(str, one.x))} -> {to}"] = one
    return found


def triton_gemm(gemm: Gemm, given: Given, tile: Any) -> Callable[[], Tensor]:
    """Triton's kernel on pointers with a tile; None: the engine's default, on descriptors if the device has them."""
    from fastgan.ops.specs import ConvSpec
    from fastgan.ops.triton import passes, tiles

    x, weight, g = given
    conv = ConvSpec((2, 2), (1, 1), transposed=gemm.transposed)

    def call() -> Tensor:
        with tiles.using(**({"convolve": tile, "wgrad": tile} if tile else {})):
            if gemm.kind == "conv_forward":
                return passes.conv_forward(x, weight, None, conv, 0)[0]
            return (passes.dgrad if gemm.kind == "dgrad" else passes.wgrad)(g, x, weight, conv)
    return call


def tile_candidates() -> list[Any]:
    from fastgan.ops.triton.tiles import Tile

    found = [(64, 64, 64, 4, 3), (64, 64, 64, 4, 4), (128, 64, 64, 4, 3), (128, 64, 64, 8, 3), (64, 128, 64, 4, 3),
             (128, 128, 64, 8, 3), (128, 128, 64, 8, 4), (128, 128, 32, 8, 4), (128, 256, 64, 8, 3), (64, 64, 64, 4, 1),
             (128, 128, 64, 8, 1)]
    return [Tile(*one) for one in found]


def chosen_for(run: Callable[[], object]) -> list[dict[str, Any]]:
    """The arguments with which each GEMM in a call selects its tile, as a rule of the tile files without a tile."""
    from fastgan.ops.triton import gemm_pointer, wgrad_pointer

    asked: list[dict[str, Any]] = []

    def noting(choose: Callable[..., Any], kernel: str, arch: int, **given: Any) -> Any:
        asked.append({"kernel": kernel, "bytes": given["size"],
                      **{name: given[name] for name in ("rows", "columns", "depth")}})
        return choose(kernel, arch, **given)

    with ExitStack() as stack:
        for module in (gemm_pointer, wgrad_pointer):
            stack.callback(setattr, module, "choose", module.choose)
            module.choose = partial(noting, module.choose)  # type: ignore[attr-defined]
        run()
    return asked


def write_tiles(path: Path, rules: list[dict[str, Any]]) -> None:
    """Write the architecture's tile file with these rules before its own, smaller problems first."""
    from fastgan.ops.triton import tiles

    own = tiles._file(library.architecture())
    first = sorted(rules, key=lambda rule: (rule["kernel"], rule["columns"], rule["rows"], rule["depth"]))
    lines = ",\n".join("  " + json.dumps(rule) for rule in [*first, *own["rules"]])
    part = path.with_suffix(".part")
    part.write_text(f'{{"programs": {own["programs"]}, "rules": [\n{lines}\n]}}\n')
    json.loads(part.read_text())
    shutil.move(part, path)
