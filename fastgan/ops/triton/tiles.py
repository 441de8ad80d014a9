"""The tile of a kernel: the first rule that applies in the file of its architecture, or of the nearest older one.

A file `tiles/sm_*.json` has "programs", the number that keeps such a device busy (two for each multiprocessor of the
largest one), and "rules". A rule is {"kernel", conditions ..., "tile": [rows, columns, depth], "warps", "stages"}, with
"registers" if a kernel needs more than ptxas would allocate. Conditions: "bytes" of an element, upper bounds "rows",
"columns", "depth" of the problem, and "tiles", a lower bound on its number of tiles. sm_0 is the interpreter, which is
fastest with few large programs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from fastgan.ops.triton import fence

WASTE = 1.3  # maximum ratio of computed to needed elements


class Tile(NamedTuple):
    """rows x columns of the result, computed by one program in steps of `depth`; number of warps and pipeline stages.

    registers: maximum per thread; with 0, ptxas chooses, which may spill a few bytes instead of using a 170th register.
    """

    rows: int
    columns: int
    depth: int
    warps: int = 4
    stages: int = 3
    registers: int = 0


_overrides: list[dict[str, Tile]] = []


@contextmanager
def using(**tiles: Tile) -> Iterator[None]:
    """Within the block, kernels of these names use these tiles."""
    _overrides.append(tiles)
    try:
        yield
    finally:
        _overrides.pop()


def choose(kernel: str, arch: int, *, rows: int, columns: int, depth: int, size: int) -> Tile:
    """The tile for a problem of rows x columns x depth with elements of `size` bytes. It has one stage if this version
    of Triton omits a fence in pipelined loops (`fence.py`)."""
    tile = _override(kernel) or _by_rule(kernel, arch, rows, columns, depth, size)
    if tile is None:
        raise AssertionError(f"no tile for {kernel} on sm_{arch}")
    return tile._replace(stages=1) if tile.stages > 1 and fence.missing(arch) else tile


def described(kernel: str, arch: int, *, rows: int, columns: int, depth: int, size: int) -> Tile | None:
    """The tile for the same kernel on tensor descriptors; None if the architecture has none, or if `using` sets one for
    pointers. Copies by TMA need no fence."""
    if _override(kernel):
        return None
    return _override(f"{kernel} tma") or _by_rule(f"{kernel} tma", arch, rows, columns, depth, size)


def _override(kernel: str) -> Tile | None:
    return next((tiles[kernel] for tiles in reversed(_overrides) if kernel in tiles), None)


@cache
def _by_rule(kernel: str, arch: int, rows: int, columns: int, depth: int, size: int) -> Tile | None:
    problem = {"rows": rows, "columns": columns, "depth": depth}
    for rule in _file(arch)["rules"]:
        fits = rule["kernel"] == kernel and rule.get("bytes", size) == size
        if fits and all(value <= rule.get(name, value) for name, value in problem.items()):
            tile = Tile._make([*rule["tile"], rule["warps"], rule["stages"], rule.get("registers", 0)])
            if -(-rows // tile.rows) * -(-columns // tile.columns) >= rule.get("tiles", 0):
                return tile
    return None


def fitting(length: int, side: int) -> int:
    """The side of a tile, at most `side` and at least 16, that covers `length` with little waste."""
    while side > 16 and -(-length // side) * side > WASTE * length:
        side //= 2
    return side


def covering(length: int, side: int) -> int:
    """The side of a tile, at most `side` and at least 16, smaller for a short length, such as one pixel per image."""
    while side > 16 and side >= 2 * length:
        side //= 2
    return side


def programs(arch: int) -> int:
    """The number of programs that keeps a device of this architecture busy."""
    return int(_file(arch)["programs"])


@cache
def _file(arch: int) -> dict[str, Any]:
    files = {int(path.stem[3:]): path for path in (Path(__file__).parent / "tiles").glob("sm_*.json")}
    rules: dict[str, Any] = json.loads(files[max(a for a in files if a <= arch)].read_text())
    return rules
