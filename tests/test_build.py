"""setup.py: which files are recompiled, which modules are omitted, and the tags of the wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="setuptools compiles there, without ninja")
# a compiler that logs its arguments
FAKE = f"""#!{sys.executable}
import pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index("-o") + 1])
out.touch()
pathlib.Path("compiled").open("a").write(f"{{out.parent.name}}/{{out.name}}\\n")
if "bn_backward" in out.name and pathlib.Path("broken").exists():
    sys.exit("error: broken")
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "csrc", "fastgan/__init__.py"):
        target = tmp_path / name
        target.parent.mkdir(exist_ok=True)
        shutil.copytree(ROOT / name, target) if (ROOT / name).is_dir() else shutil.copy(ROOT / name, target)
    (tmp_path / "fake-cc").write_text(FAKE)
    (tmp_path / "fake-cc").chmod(0o755)
    return tmp_path


def build(project: Path, command: str = "bdist_wheel", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "setup.py", command], cwd=project, capture_output=True, text=True,
                          env={**os.environ, "FASTGAN_BUILD_CUDA": "0", "FASTGAN_BUILD_CPU": "auto", **environment})


def wheel(project: Path) -> str:
    (found,) = (project / "dist").iterdir()
    return found.name


@pytest.mark.parametrize(("compiler", "told"), [
    ("nowhere/c++", "no C++ compiler (nowhere/c++) was found"), ("./fake-cc", "./fake-cc or nvcc failed")])
def test_without_a_working_compiler_the_wheel_is_for_any_platform(project, compiler, told):
    (project / "broken").touch()
    done = build(project, CXX=compiler)
    lines = [line for line in done.stderr.splitlines() if line.startswith("fastgan: ")]
    assert done.returncode == 0 and len(lines) == 1 and told in lines[0], done.stderr
    assert wheel(project).endswith("-py3-none-any.whl")
    required = build(project, CXX=compiler, FASTGAN_BUILD_CPU="1")
    assert required.returncode and f"FASTGAN_BUILD_CPU=1, but {told}" in required.stderr


def test_with_one_it_is_for_this_platform(project):
    assert build(project, CXX="./fake-cc").returncode == 0
    assert f"-cp{sys.version_info[0]}{sys.version_info[1]}-" in wheel(project)


def test_only_what_has_changed_is_compiled(project):
    def compiled() -> set[str]:
        (project / "compiled").unlink(missing_ok=True)
        done = build(project, "build_ext", CXX="./fake-cc")
        assert done.returncode == 0, done.stderr
        return {line for line in (project / "compiled").read_text().splitlines() if "openmp" not in line}

    modules = {path.split("/")[0] for path in compiled() if path.startswith("_cpu")}
    assert "_cpu_portable" in modules
    assert compiled() == set()
    (project / "csrc" / "cpu" / "winograd.cpp").touch()
    again = compiled()
    links = {line for line in again if line.endswith(".so")}
    assert again - links == {f"{module}/winograd.o" for module in modules} and len(links) == len(modules)


def test_a_wrong_setting_is_refused(project):
    done = build(project, FASTGAN_BUILD_CPU="yes")
    assert done.returncode and "FASTGAN_BUILD_CPU=yes: expected auto, 0 or 1" in done.stderr
