"""Who can compute a problem, and how one of them is called.

A candidate is a word, an engine or an engine with a way of its own: "reference", "native/gemm", "triton",
"triton/apart" (what is owed in a kernel of its own), "triton/128x64x32w4s3" (a tile, with its warps and stages).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from fastgan.ops.layers import Convolution, Measurement, Owed
from fastgan.ops.plan.problem import Problem

Run = Callable[..., Any]  # (engine, name, *arguments, **choice), as `library.run`
CONVOLUTIONS = ("forward", "dgrad", "wgrad")
TILES = ("64x64x32w4s3", "64x64x64w4s3", "128x64x32w4s3", "128x64x64w4s3", "64x128x32w4s3", "128x128x32w8s3",
         "128x128x64w8s3")


def of(problem: Problem, tune: bool = False) -> list[str]:
    """All candidates that the device at hand has for a problem, the reference first. tune: each of `TILES` is one."""
    found: list[str] = []
    for engine in engines(torch.device(problem.device)):
        ways = [""]
        if problem.kind in CONVOLUTIONS and engine == "native":
            ways = native_ways(problem)
        elif problem.kind in CONVOLUTIONS and engine == "triton":
            ways = ["", "apart", *(TILES if tune else ())]
        found += [f"{engine}/{way}" if way else engine for way in ways]
    return found


def engines(device: torch.device) -> list[str]:
    """Those that can run on a device, not in an interpreter, the reference first."""
    names = ["native", "triton"] if device.type == "cuda" else ["native"]
    return ["reference", *(name for name in names if not why_not(name, device))]


def native_ways(problem: Problem) -> list[str]:
    """How the native engine can convolve there."""
    return list(import_module("fastgan.ops.native.convolve").variants(
        problem.device, getattr(torch, problem.dtype), problem.weight, problem.stride))


@cache
def why_not(engine: str, device: torch.device) -> str:
    """Why an engine cannot run on a device, in words; "" when it can."""
    return str(import_module("fastgan.ops.engines").why_not(engine, device))  # which imports this package


def default(device: torch.device) -> str:
    """What computes a problem that nobody has measured."""
    return "native" if device.type == "cpu" and not why_not("native", device) else "reference"


def called(run: Run, candidate: str, name: str, *arguments: Any, **options: Any) -> Any:
    """The function of that name, by a candidate."""
    engine, _, way = candidate.partition("/")
    if engine == "native" and way:
        options["variant"] = way
    with tiled(way):
        return run(engine, name, *arguments, **options)


def stage(run: Run, candidate: str, x: Tensor, owed: Owed, convolution: Convolution, groups: int,
          measurement: Measurement | None, fuse: bool) -> tuple[Tensor, Tensor]:
    out: tuple[Tensor, Tensor] = called(run, candidate, "stage", x, owed, convolution, groups, measurement,
                                        fuse and not candidate.endswith("/apart"))
    return out


def stage_backward(run: Run, dgrad: str, wgrad: str, gy: Tensor, gstatistics: Tensor | None, y: Tensor,
                   statistics: Tensor, x: Tensor, owed: Owed, convolution: Convolution, spread: str, fuse: bool,
                   needs: tuple[bool, bool, bool, bool]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """By the candidates for dgrad (gradients of x and what is owed) and wgrad (weight and bias): in one call where one
    engine computes both in one way, else in two."""
    (engine, _, way), (other, _, other_way) = dgrad.partition("/"), wgrad.partition("/")
    dgrad_needs, wgrad_needs = (needs[0], False, False, needs[3]), (False, needs[1], needs[2], False)
    given = gy, gstatistics, y, statistics, x, owed, convolution, spread

    def call(engine: str, ways: tuple[str, str], needs: tuple[bool, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        choice = {"variants": ways} if engine == "native" and any(ways) else {}
        with tiled(ways[0] or ways[1]):
            out: tuple[Tensor, Tensor, Tensor, Tensor] = run(
                engine, "stage_backward", *given, fuse and "apart" not in ways, needs, **choice)
        return out

    if not any(wgrad_needs):
        return call(engine, (way, ""), needs)
    if not any(dgrad_needs):
        return call(other, ("", other_way), needs)
    if engine == other and (engine == "native" or way == other_way):
        return call(engine, (way, other_way), needs)
    gx, _, _, gnorm = call(engine, (way, ""), dgrad_needs)
    _, gweight, gbias, _ = call(other, ("", other_way), wgrad_needs)
    return gx, gweight, gbias, gnorm


@contextmanager
def tiled(way: str) -> Iterator[None]:
    """Within the block, Triton's convolutions take the tile that a way names, if it names one."""
    found = re.fullmatch(r"(\d+)x(\d+)x(\d+)w(\d+)s(\d+)", way)
    if not found:
        yield
        return
    from fastgan.ops.triton import tiles

    tile = tiles.Tile(*map(int, found.groups()))
    with tiles.using(convolve=tile, wgrad=tile):
        yield
