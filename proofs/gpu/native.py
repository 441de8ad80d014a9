"""The native engine, compiled in place for the tests and timings that follow: python -m proofs.gpu.native

Nothing is installed. Without nvcc, a compiler or pybind11 the engine is left out, which its last line says and which is
no failure; with all of them a build that fails is one.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys

from proofs.gpu.parts import ROOT

COMPILERS = ("c++", "g++", "clang++", "cl")


def missing() -> list[str]:
    """What a build needs and this machine lacks."""
    found = {"nvcc": shutil.which("nvcc"), "a C++ compiler": any(map(shutil.which, COMPILERS)),
             "pybind11": importlib.util.find_spec("pybind11"), "setuptools": importlib.util.find_spec("setuptools")}
    return [name for name, is_there in found.items() if not is_there]


def main() -> int:
    if lacking := missing():
        print(f"the native engine is left out: no {', no '.join(lacking)} here")
        return 0
    built = subprocess.call([sys.executable, "setup.py", "build_ext", "--inplace"], cwd=ROOT)
    if built == 0:  # in a process of its own: an optional extension that fails is only a warning
        built = subprocess.call([sys.executable, "-c", "from fastgan import _cpu, _cuda"], cwd=ROOT)
    print("fastgan._cpu and fastgan._cuda are built" if built == 0 else "the native engine could not be built")
    return 1 if built else 0


if __name__ == "__main__":
    sys.exit(main())
