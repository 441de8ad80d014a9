"""Run the tests that depend most on PyTorch under several versions of Python and PyTorch.

    make matrix                                      # the default pairs; about 6 GB are downloaded for each
    python -m proofs.versions --pair 3.12:2.11       # one pair
    python -m proofs.versions --update               # write docs/results/versions.md

A pair is PYTHON:TORCH. TORCH is a release, "lowest" (the minimum in pyproject.toml) or "newest". Python interpreters
are searched on PATH and in pyenv. Each pair has a separate environment, which is removed before the next one is
created. The exit status is 1 if a test fails, or if a pair cannot be installed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "results" / "versions.md"
PAIRS = ("3.10:lowest", "3.12:2.11", "3.13:newest")
TESTS = ("ops", "operation", "nn", "convert", "step", "graph", "export", "kernel_networks")
HEAD = f"""# Versions

Results of the tests that depend most on PyTorch, on a CPU, with Triton's kernels in its interpreter. Written by `python
-m proofs.versions --update`. `test_kernel_networks.py` compiles with `fullgraph=True` and with `dynamic=True`, and
exports with a dynamic batch.

Tests: {', '.join(TESTS)} (`tests/test_*.py`).

| Python | PyTorch | Triton | NumPy | passed | failed | skipped |
|---|---|---|---|---|---|---|
"""


class Result(NamedTuple):
    """The versions, and the counts of pytest."""

    versions: tuple[str, ...]
    counts: tuple[int, ...]

    def row(self) -> str:
        return f"| {' | '.join(map(str, (*self.versions, *self.counts)))} |"


def interpreter(version: str) -> str:
    """The path of the newest Python of a version such as "3.12"."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = [*sorted(pyenv.glob(f"{version}.*/bin/python"), key=lambda path: int(path.parts[-3].split(".")[2]))]
    for command in (*map(str, reversed(found)), shutil.which(f"python{version}"), sys.executable):
        if command and version_of(command) == version:
            return command
    sys.exit(f"Python {version}: expected it on PATH or in {pyenv}")


def version_of(python: str) -> str:
    done = subprocess.run([python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True,
                          text=True)
    return done.stdout.strip()


def requirement(torch: str) -> str:
    """The pip requirement for the TORCH of a pair."""
    if torch == "newest":
        return "torch"
    if torch == "lowest":
        torch = re.findall(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[0]
    return f"torch=={torch}.*"


def examine(pair: str) -> Result:
    """Install a pair into an environment, and run the tests in it. Raises CalledProcessError if pip fails."""
    version, torch = pair.split(":")
    with tempfile.TemporaryDirectory(prefix="fastgan-versions-") as folder:
        python = str(Path(folder, "bin", "python"))
        subprocess.run([interpreter(version), "-m", "venv", folder], check=True)
        Path(folder, "constraints").write_text(f"{requirement(torch)}\n")
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--constraint", f"{folder}/constraints",
                        "--editable", f"{ROOT}[all]", "pytest", "hypothesis"], check=True,
                       env={**os.environ, "FASTGAN_BUILD_CUDA": "0"})
        asked = ("import platform, torch, triton, numpy; "
                 "print(platform.python_version(), torch.__version__, triton.__version__, numpy.__version__)")
        versions = subprocess.run([python, "-c", asked], check=True, capture_output=True, text=True).stdout.split()
        done = subprocess.run([python, "-m", "pytest", *(f"tests/test_{name}.py" for name in TESTS)], cwd=ROOT,
                              stdout=subprocess.PIPE, text=True)
    print(done.stdout, flush=True)
    return Result(tuple(versions), counts(done.stdout))


def counts(told: str) -> tuple[int, ...]:
    """passed, failed and skipped from pytest's last line; errors count as failures, and so does a missing line."""
    last = told.rstrip().rpartition("\n")[2]
    found = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|errors?|skipped)", last)}
    failed = sum(found.get(word, 0) for word in ("failed", "error", "errors"))
    return found.get("passed", 0), failed if found else 1, found.get("skipped", 0)


def main() -> int:
    parser = argparse.ArgumentParser("python -m proofs.versions", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", nargs="+", default=PAIRS, metavar="PYTHON:TORCH")
    parser.add_argument("--update", action="store_true", help="write docs/results/versions.md")
    chosen = parser.parse_args()
    results = [examine(pair) for pair in chosen.pair]
    print(*(result.row() for result in results), sep="\n")
    if chosen.update:
        PAGE.write_text(HEAD + "".join(f"{result.row()}\n" for result in results))
    return int(any(result.counts[1] for result in results))


if __name__ == "__main__":
    sys.exit(main())
