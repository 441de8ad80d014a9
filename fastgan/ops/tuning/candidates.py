"""The candidates for a problem, and how one is called.

A candidate is the name of an engine, or of an engine and a variant: "reference", "native", "native/gemm" (a variant of
the convolution), "triton", "triton/128x64x32w4s3" (a tile with its numbers of warps and stages).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache, partial
from importlib import import_module
from typing import Any

import torch

from fastgan.ops.tuning.problem import Problem

Run = Callable[..., Any]  # (engine, name, *arguments, **options), as `dispatch.run`
CONVOLUTIONS = ("conv_forward", "conv_act_forward", "dgrad", "wgrad")
TILES = ("64x64x32w4s3", "64x64x64w4s3", "128x64x32w4s3", "128x64x64w4s3", "64x128x32w4s3", "128x128x32w8s3",
         "128x128x64w8s3")


def of(problem: Problem, tiles: bool = False) -> list[str]:
    """The candidates for a problem on its device, the reference first. tiles: include each of `TILES`."""
    found: list[str] = []
    for engine in engines(torch.device(problem.device)):
        ways = [""]
        if problem.kind in CONVOLUTIONS and engine == "native":
            ways = native_ways(problem)
        elif problem.kind in CONVOLUTIONS and engine == "triton":
            ways = ["", *(TILES if tiles else ())]
        found += [f"{engine}/{way}" if way else engine for way in ways]
    return found


def engines(device: torch.device) -> list[str]:
    """The engines that can run on a device without an interpreter, the reference first."""
    names = ["native", "triton"] if device.type == "cuda" else ["native"]
    return ["reference", *(name for name in names if not why_not(name, device))]


def native_ways(problem: Problem) -> list[str]:
    """The variants of the native engine's convolution for a problem."""
    return list(import_module("fastgan.ops.native.convolve").variants(
        problem.device, getattr(torch, problem.dtype), problem.weight, problem.stride))


@cache
def why_not(engine: str, device: torch.device) -> str:
    """The reason why an engine cannot run on a device; "" if it can."""
    return str(import_module("fastgan.ops.engines").why_not(engine, device))  # which imports this package


def default(device: torch.device) -> str:
    """The engine for problems without a measurement."""
    return "native" if device.type == "cpu" and not why_not("native", device) else "reference"


def called(run: Run, candidate: str, name: str, *arguments: Any) -> Any:
    """The results of a pass, computed by a candidate."""
    engine, options, tiled = _parts(candidate)
    if tiled is None:
        return run(engine, name, *arguments, **options)
    with tiled():
        return run(engine, name, *arguments)


@cache
def _parts(candidate: str) -> tuple[str, dict[str, str], Callable[[], AbstractContextManager[None]] | None]:
    """A candidate's engine, options of its passes, and the context in which Triton's convolutions use its tile."""
    engine, _, way = candidate.partition("/")
    sizes = re.fullmatch(r"(\d+)x(\d+)x(\d+)w(\d+)s(\d+)", way)
    if engine != "triton" or not sizes:
        return engine, {"variant": way} if engine == "native" and way else {}, None
    from fastgan.ops.triton import tiles

    tile = tiles.Tile(*map(int, sizes.groups()))
    return engine, {}, partial(tiles.using, convolve=tile, wgrad=tile)
