"""The build: pyproject.toml has the metadata; the native engine's C++ in csrc/ is compiled here.

On a CPU the engine is a module for each instruction set, `fastgan._cpu_portable` and so on, of which
`fastgan/ops/native/extension.py` loads one. Without a compiler fastgan is installed all the same, without the engine.
`fastgan._cuda` is compiled where nvcc is found, for the architectures in csrc/cuda/architectures that it knows and, as
PTX, for newer ones; FASTGAN_BUILD_CUDA=0 in the environment leaves it out, and 1 makes it an error that it cannot be
built. FASTGAN_CUDA_ARCHITECTURES="90" compiles for that one alone, and FASTGAN_BUILD_CPU=0 leaves out the CPU's.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11
from pybind11.setup_helpers import ParallelCompile
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CPU, CUDA, INCLUDE = Path("csrc/cpu"), Path("csrc/cuda"), Path("csrc/include")
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
ISAS = {"portable": [], "avx2": AVX2, "avx512": [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl",
                                                 "-mprefer-vector-width=512"]}
if platform.machine().lower() not in ("x86_64", "amd64") or sys.platform == "win32":
    ISAS = {"portable": []}
# arithmetic has no side effects that would forbid vectors; a multiplication and an addition may be one instruction
GNU = ["-O3", "-g0", "-std=c++17", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math",
       "-ffp-contract=fast"]
MSVC = ["/O2", "/std:c++17", "/EHsc", "/openmp"]
FLAGS = MSVC if sys.platform == "win32" else GNU
OPENMP = ["-fopenmp"] if sys.platform == "linux" else []  # Apple's compiler has none


class Build(build_ext):
    """Compiles `fastgan._cuda` with nvcc."""

    def build_extension(self, ext: Extension) -> None:
        if not ext.name.endswith("_cuda"):
            return super().build_extension(ext)
        folder, target = Path(self.build_temp), Path(self.get_ext_fullpath(ext.name))
        for path in (folder, target.parent):
            path.mkdir(parents=True, exist_ok=True)
        known = subprocess.run(["nvcc", "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
        asked = os.environ.get("FASTGAN_CUDA_ARCHITECTURES") or (CUDA / "architectures").read_text()
        archs = [arch for arch in asked.split() if f"compute_{arch}" in known]
        if not archs:
            raise RuntimeError(f"nvcc knows none of the architectures {asked.split()}")
        flags = ["-std=c++17", "-O3", f"-I{INCLUDE}", f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}",
                 *(f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs)]
        if sys.platform != "win32":
            flags.append("-Xcompiler=-fPIC,-fvisibility=hidden")
        kernels = [source for source in ext.sources if source.endswith(".cu")]
        objects = [str(folder / f"{Path(source).stem}_cu.o") for source in kernels]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda source, to: self.spawn(["nvcc", *flags, "-c", source, "-o", to]), kernels, objects))
        bindings = self.compiler.compile([str(CUDA / "bindings.cpp")], output_dir=str(folder / "cuda"),
                                         include_dirs=ext.include_dirs, extra_postargs=FLAGS)
        # the runtime comes along: a machine without CUDA can load the module
        self.spawn(["nvcc", "-shared", "-cudart", "static", *bindings, *objects, "-o", str(target)])


def extension(name: str, folder: Path, pattern: str, flags: list[str], *, optional: bool = True) -> Extension:
    headers = sorted(str(path) for place in (folder, INCLUDE) for path in place.rglob("*.h"))
    sources = sorted(str(path) for path in folder.iterdir() if path.match(pattern) or path.name == "bindings.cpp")
    return Extension(f"fastgan.{name}", sources, language="c++", depends=headers, optional=optional,
                     include_dirs=[str(INCLUDE), pybind11.get_include()], extra_compile_args=flags,
                     extra_link_args=OPENMP)


def cpu() -> list[Extension]:
    if os.environ.get("FASTGAN_BUILD_CPU") == "0":
        return []
    return [extension(f"_cpu_{isa}", CPU, "*.cpp", [*FLAGS, *OPENMP, *more, f"-DFASTGAN_MODULE=_cpu_{isa}"])
            for isa, more in ISAS.items()]


def cuda() -> list[Extension]:
    """What FASTGAN_BUILD_CUDA asks for."""
    asked = os.environ.get("FASTGAN_BUILD_CUDA", "auto")
    if asked not in ("auto", "0", "1"):
        sys.exit(f"FASTGAN_BUILD_CUDA={asked}: expected auto, 0 or 1")
    if asked == "1" and shutil.which("nvcc") is None:
        sys.exit("FASTGAN_BUILD_CUDA=1, but there is no nvcc on PATH")
    if asked == "0" or shutil.which("nvcc") is None:
        return []
    return [extension("_cuda", CUDA, "*.cu", [], optional=asked == "auto")]


ParallelCompile().install()  # the sources of a module, on all cores
setup(ext_modules=[*cpu(), *cuda()], cmdclass={"build_ext": Build})
