"""The CPU kernels compiled with warnings as errors, and on edge sizes under AddressSanitizer and UBSan."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.test_native_rows import ISAS

ROOT = Path(__file__).parent.parent
CPU, EDGES = ROOT / "csrc" / "cpu", ROOT / "tests" / "csrc" / "edges.cpp"
SOURCES = [*sorted(path for path in CPU.glob("*.cpp") if path.name != "bindings.cpp"), EDGES]
# optimized once, for the warnings that need it: compiling takes longer than running
FLAGS = {"portable": ["-O1"], "avx2": ["-O0", "-mavx2", "-mfma", "-mf16c"]}
SANITIZERS = ["-fopenmp", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
COMPILE = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc' / 'include'}", *SANITIZERS]

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


def compiled(source: Path, isa: str, folder: Path, *flags: str, headers: Path = CPU) -> Path:
    to = folder / f"{source.stem}.o"
    subprocess.run([*COMPILE, *FLAGS[isa], *flags, f"-I{headers}", "-c", str(source), "-o", str(to)], check=True)
    return to


def run(folder: Path, objects: Iterable[Path]) -> subprocess.CompletedProcess[str]:
    subprocess.run(["g++", *SANITIZERS, *map(str, objects), "-o", str(folder / "edges")], check=True)
    return subprocess.run([str(folder / "edges")], capture_output=True, text=True,
                          env={**os.environ, "ASAN_OPTIONS": "detect_leaks=1"})


@pytest.fixture(scope="module", params=FLAGS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Path]]:
    """An instruction set, and its object files by the names of the sources."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, {source.name: compiled(source, request.param, folder) for source in SOURCES}


def test_edges(built, tmp_path):
    isa, objects = built
    if isa not in ISAS:
        pytest.skip(f"this processor has no {isa}")
    done = run(tmp_path, objects.values())
    assert done.returncode == 0 and done.stdout.strip() == "done", done.stderr


@pytest.mark.parametrize("built", ["portable"], indirect=True)
@pytest.mark.parametrize(("name", "right", "wrong", "used_by"), [
    ("row_blocks.h", "rows - packed_row * pack", "rows + packed_row * pack", "bn_act_forward.cpp"),
    ("patches.cpp", "y >= 0 && y < conv.fine_h", "y >= 0 && y <= conv.fine_h", "patches.cpp"),
    ("winograd_tiles.h", "conv.pad_w + conv.fine_w, width", "conv.pad_w + conv.fine_w + 1, width", "winograd.cpp"),
    ("winograd.cpp", "u_pool(1, pass.panels * POINTS", "u_pool(1, (pass.panels * POINTS - 1)", "winograd.cpp"),
], ids=["rows", "patches", "winograd-rows", "winograd-scratch"])
def test_a_step_too_far_is_seen(name, right, wrong, used_by, built, tmp_path):
    """With one file compiled from a copy of the sources with a bug."""
    shutil.copytree(CPU, tmp_path / "cpu")
    source = (tmp_path / "cpu" / name).read_text()
    assert source.count(right) == 1
    (tmp_path / "cpu" / name).write_text(source.replace(right, wrong))
    wrong_one = compiled(tmp_path / "cpu" / used_by, "portable", tmp_path, "-O0", headers=tmp_path / "cpu")
    done = run(tmp_path, (built[1] | {used_by: wrong_one}).values())
    assert done.returncode != 0 and "AddressSanitizer" in done.stderr
