"""The CPU kernels compiled with warnings as errors, and on edge sizes under AddressSanitizer and UBSan."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fastgan import _cpu

ROOT = Path(__file__).parent.parent
CPU = ROOT / "csrc" / "cpu"
KERNELS = sorted(str(path) for path in CPU.glob("*.cpp") if path.name != "bindings.cpp")
FLAGS = {"portable": [], "avx2": ["-mavx2", "-mfma", "-mf16c"]}
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
COMPILE = ["g++", "-std=c++17", "-O1", "-fopenmp", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc' / 'include'}"]

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


def run(folder: Path, isa: str, kernels: list[str]) -> subprocess.CompletedProcess[str]:
    subprocess.run([*COMPILE, *SANITIZERS, *FLAGS[isa], f"-DFASTGAN_ISA={isa}", f"-I{CPU}", *kernels,
                    str(ROOT / "tests" / "csrc" / "edges.cpp"), "-o", str(folder / "edges")], check=True)
    return subprocess.run([str(folder / "edges")], capture_output=True, text=True,
                          env={**os.environ, "ASAN_OPTIONS": "detect_leaks=1"})


@pytest.mark.parametrize("isa", FLAGS)
def test_edges(isa, tmp_path):
    if isa not in _cpu.isas():
        pytest.skip(f"this processor has no {isa}")
    done = run(tmp_path, isa, KERNELS)
    assert done.returncode == 0 and done.stdout.strip() == isa, done.stderr


@pytest.mark.parametrize(("name", "right", "wrong"), [
    ("panel.h", "left < repeat ? left", "left < 0 ? left"),
    ("scatter.cpp", "row >= window.height", "row > window.height"),
], ids=["panel", "scatter"])
def test_a_step_too_far_is_seen(name, right, wrong, tmp_path):
    shutil.copytree(CPU, tmp_path / "cpu")
    source = (tmp_path / "cpu" / name).read_text()
    assert source.count(right) == 1
    (tmp_path / "cpu" / name).write_text(source.replace(right, wrong))
    done = run(tmp_path, "portable", [kernel.replace(str(CPU), str(tmp_path / "cpu")) for kernel in KERNELS])
    assert done.returncode != 0 and "AddressSanitizer" in done.stderr
