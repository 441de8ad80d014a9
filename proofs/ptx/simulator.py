"""Runs kernels in a PTX simulator (ptxsim).

Triton compiles a kernel as for a real launch. The simulator executes its PTX on the CPU, warp by warp, and checks
bounds, uninitialized reads and races. It raises an error for unsupported instructions; `lowered` replaces two of them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fastgan.ops.triton import launch


class Schedule(NamedTuple):
    """A valid order of execution; results of a kernel must be bit for bit the same under all of them."""

    name: str
    options: dict[str, Any]


# cp.async and wgmma complete as late as possible, unless eager; only one schedule checks races
RACES = Schedule("in order, latest completion, races", {"race": True})
PLAIN = Schedule("in order, latest completion", {})
REVERSED = Schedule("warps in reverse", {"order": "reverse"})
EARLIEST = Schedule("warps at random, earliest cp.async", {"order": "random", "cp_async": "eager", "wgmma": "deferred"})
EARLIEST_WGMMA = Schedule("earliest wgmma", {"wgmma": "eager"})


def schedules(arch: int) -> list[Schedule]:
    return [RACES, REVERSED, EARLIEST] + [EARLIEST_WGMMA] * (arch == 90)


class Launch(NamedTuple):
    """An executed kernel: its name, arguments and options, and the simulator's counters."""

    kernel: str
    arguments: dict[str, Any]
    options: dict[str, int]
    result: Any


def find(folder: str | None) -> Any:
    """The simulator's module from `folder`, or None if there is none."""
    if not folder or not (Path(folder) / "ptxsim.py").is_file():
        return None
    sys.path.insert(0, str(Path(folder).resolve()))
    import ptxsim
    from triton.tools.tensor_descriptor import TensorDescriptor

    if not hasattr(TensorDescriptor, "round_f32_to_tf32"):  # missing before Triton 3.7, read by the simulator
        TensorDescriptor.round_f32_to_tf32 = False
    return ptxsim


_ONE = re.compile(r"^(?P<before>\s*(?:@!?%\w+\s+)?)setp\.(?P<compare>\w+)\.(?P<type>b?f16)x2\s+"
                  r"(?P<low>%\w+)\|(?P<high>%\w+),\s*(?P<left>%\w+),\s*(?P<right>%\w+);", re.MULTILINE)
_HALVES = [f"%half_{side}_{half}" for side in ("left", "right") for half in ("low", "high")]
_TABLE = re.compile(r"^\s*(?P<name>\$\w+):\s*\.branchtargets\s+(?P<labels>[^;]+);", re.MULTILINE)
_JUMP = re.compile(r"^\s*brx\.idx\s+(?P<index>%\w+),\s*(?P<name>\$\w+);", re.MULTILINE)


def lowered(ptx: str) -> str:
    """The kernel without the two instructions that the simulator does not support."""
    return _without_tables(_without_pairs(ptx))


def _without_tables(ptx: str) -> str:
    """Replaces `brx.idx %r, table`, to which LLVM converts comparisons with constants, by a branch for each entry."""
    tables = {table["name"]: re.findall(r"\$\w+", table["labels"]) for table in _TABLE.finditer(ptx)}
    if not tables:
        return ptx

    def spell(jump: re.Match[str]) -> str:
        *others, last = tables[jump["name"]]
        tests = [f"setp.eq.u32 %is_entry, {jump['index']}, {entry}; @%is_entry bra {label};"
                 for entry, label in enumerate(others)]
        return "\t" + " ".join([*tests, f"bra {last};"])

    text = _JUMP.sub(spell, _TABLE.sub("", ptx))
    return re.sub(r"^\s*\.reg\s", "\t.reg .pred %is_entry;\n\\g<0>", text, count=1, flags=re.MULTILINE)


def _without_pairs(ptx: str) -> str:
    """Replaces `setp.CMP.bf16x2 %p|%q, %ra, %rb`, and the same with f16x2.

    From sm_90 on, LLVM converts comparisons of extended 16-bit values to it. By the PTX ISA, %p compares the low halves
    and %q the high halves, so it is equivalent to

        mov.b32 {al, ah}, %ra;   mov.b32 {bl, bh}, %rb;   setp.CMP.bf16 %p, al, bl;   setp.CMP.bf16 %q, ah, bh;

    under the same guard, with four scratch registers. Other forms are not replaced, and the simulator rejects them.
    """
    def spell(match: re.Match[str]) -> str:
        before, compare, kind = match["before"], match["compare"], match["type"]
        al, ah, bl, bh = _HALVES
        return " ".join([f"{before}mov.b32 {{{al}, {ah}}}, {match['left']};",
                         f"{before.strip()} mov.b32 {{{bl}, {bh}}}, {match['right']};",
                         f"{before.strip()} setp.{compare}.{kind} {match['low']}, {al}, {bl};",
                         f"{before.strip()} setp.{compare}.{kind} {match['high']}, {ah}, {bh};"])

    text, count = _ONE.subn(spell, ptx)
    if not count:
        return ptx
    return re.sub(r"^\s*\.reg\s", f"\t.reg .b16 {', '.join(_HALVES)};\n\\g<0>", text, count=1, flags=re.MULTILINE)


@contextmanager
def executing(ptxsim: Any, arch: int, schedule: Schedule = PLAIN, *, sectors: bool = False,
              unwritten: bool = True, each: Callable[[Launch], None] | None = None) -> Iterator[list[str]]:
    """Within the block, every Triton kernel of fastgan runs in the simulator. Yields the list of their names.

    Memory from torch.empty is poisoned, and a pointer may only access its own tensor. unwritten: whether reading
    poisoned memory is an error. each: called with every launch.
    """
    names: list[str] = []

    def start(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], options: dict[str, int]) -> None:
        kernel[grid](**arguments, **options)
        names.append(kernel.fn.__name__)
        if each is not None:
            each(Launch(kernel.fn.__name__, arguments, options, session.launches[-1]))
        session.launches.clear()

    execute = ptxsim._launch
    ptxsim._launch = lambda ptx, *rest, **options: execute(lowered(ptx), *rest, **{**options, "poison": unwritten})
    try:
        with (ptxsim.patch_triton(arch=arch, poison_empty=True, bounds="view", sectors=sectors,
                                  **schedule.options) as session, launch.through(start, arch)):
            yield names
    finally:
        ptxsim._launch = execute
