"""`python -m proofs.sass`: it counts instructions of loops, describes launches, and exits with 1 if one is slow."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fastgan import presets
from proofs import assembly, gates, sass
from proofs.compiled import GEMMS, Binary, Job
from proofs.launches import Launch, record, training_step
from proofs.sass import Case

pytest.importorskip("triton")

ROOT = Path(__file__).parents[1]


def test_classes_of_instructions() -> None:
    instructions = ["HGMMA.64x128x16.F32 R24, gdesc[UR8], R24", "UTCHMMA gdesc[UR6], gdesc[UR8]", "HMMA.16816.F32 R4",
                    "LDSM.16.M88.4 R4, [R2]", "@!P1 SYNCS.ARRIVE.TRANS64 RZ, [UR16], R4", "LDGSTS.E.128 [R3], [R4.64]",
                    "@UP2 UTMALDG.5D [UR16], [UR32]", "LDG.E R2", "IADD3 R2, R2, 0x1, RZ", "UTCBAR [UR24], URZ",
                    "LDGDEPBAR", "@!P0 BRA `(.L_x_1)"]
    assert Counter(map(assembly.kind, instructions)) == {"tensor": 3, "shared": 2, "global": 3, "other": 4}


def launches(batch: int) -> list[Launch]:
    return [launch for launch in record(training_step(presets.get("dcgan-64"), batch, "bf16"), 90)
            if launch.name in GEMMS]


def test_launches_are_described_by_their_pass() -> None:
    described = Counter(map(sass.words, launches(4)))
    assert described["forward transposed conv 100x1x1 -> 512x4x4"] == 1
    assert described["forward conv 3x64x64 -> 64x32x32"] == 2  # of [real; fake], and of fakes for G
    assert described["dgrad of conv 64x32x32 -> 128x16x16"] == 2
    assert described["dgrad of transposed conv 128x16x16 -> 64x32x32"] == 1
    assert described["wgrad of conv 64x32x32 -> 128x16x16"] == 2  # of D and of G
    assert sum(described.values()) == 38


def binary(**changes: Any) -> Binary:
    """A `Binary` of the first launch on tensor descriptors with a tile of 128 x 128 x 64 and 8 warps."""
    launch = next(one for one in launches(128) if one.name == "convolve_tma_kernel" and one.arguments["BM"] == 128)
    job = Job("m", launch.name, launch.arguments, launch.options, 90, "key")
    return Binary(job, registers=90, loop={"tensor": 4, "other": 90}, ptx=("wgmma",), sass=("HGMMA",))._replace(
        **changes)


def table(**changes: Any) -> list[sass.Row]:
    """The table of one launch in two presets, compiled twice."""
    cases = [Case("dcgan-64", 128, "bf16", 90), Case("d2l-dcgan-pokemon", 64, "bf16", 90)]
    found = binary(**changes)
    return sass.rows({("forward", "one"): cases, ("forward", "other"): cases[:1]}, {"one": found, "other": found})


def test_equal_launches_share_a_row() -> None:
    (row,) = table()
    assert (row["presets"], row["batches"]) == ("d2l-dcgan-pokemon dcgan-64", "64 128")
    assert (row["tensor"], row["other"], row["issue"], row["limit"], row["gates"]) == ("4", "90", "0.37", "0.4", "pass")
    assert (row["B/FLOP"], row["wgmma"]) == ("0.0156", "pipelined")  # 2 bytes x 256 / (2 x 128 x 128)


@pytest.mark.parametrize(("changes", "limit", "words"), [
    ({}, 0.4, "all gates pass"), ({}, 0.3, "0.37 issue cycles for each cycle of the tensor cores, at most 0.3"),
    ({"serialised": True}, 0.4, "ptxas serializes wgmma"), ({"stack": 8}, 0.4, "spills: 8 bytes of stack")],
    ids=["pass", "lowered-limit", "serialised", "spills"])
def test_the_command_fails_where_a_gate_is_exceeded(changes, limit, words, monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setattr(gates, "LIMITS", (gates.Limit("convolve_tma", "", {90: limit}),))
    out = tmp_path / "table.md"
    status = sass.report(table(**changes), sass.parser().parse_args(["--out", str(out)]))
    assert status == (words != "all gates pass")
    assert words in capsys.readouterr().out
    assert ("| pass " in out.read_text()) and (status == 0 or words in out.read_text())


COMPILE = """
import sys
from contextlib import nullcontext
from fastgan.ops.triton.tiles import Tile, using
from proofs import compiled, sass

batch, precision, words, tile = sys.argv[1:]
case = sass.Case("dcgan-64", int(batch), precision, 90)
with using(**{"convolve tma": Tile(64, 64, 64, 4, 3)}) if tile == "small" else nullcontext():
    what, job = next(each for each in sass.recorded(case) if each[0] == words)
table = sass.rows({(what, job.key): [case]}, {job.key: compiled.build(job)})
sys.exit(sass.report(table, sass.parser().parse_args([])))
"""


@pytest.mark.parametrize(("batch", "precision", "words", "tile", "printed"), [
    (128, "bf16", "forward conv 64x32x32 -> 128x16x16", "small", "cycle of the tensor cores, at most 0.4"),
    (128, "fp16", "forward conv 256x8x8 -> 512x4x4", "shipped", "all gates pass"),  # ptxas serialized its wgmma
    (1024, "bf16", "forward transposed conv 100x1x1 -> 512x4x4", "shipped", "all gates pass"),  # it spilled 24 bytes
    (128, "tf32", "wgrad of conv 64x32x32 -> 128x16x16", "shipped", "all gates pass"),  # it needed 0.58 of 0.55
], ids=["small-tile", "not-serialised", "not-spilled", "tf32-wgrad"])
def test_a_compiled_launch_against_its_gates(batch: int, precision: str, words: str, tile: str, printed: str) -> None:
    """Compiled in another process, because Triton's interpreter is enabled in this one."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COMPILE, str(batch), precision, words, tile], cwd=ROOT,
                          env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == (tile == "small") and printed in done.stdout, done.stdout + done.stderr
