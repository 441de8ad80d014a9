"""The build: metadata stands in pyproject.toml; the native engine's C++ in csrc/ is compiled from here.

`fastgan._cpu` is compiled once for each instruction set and chooses among them when it is loaded. Without a compiler
fastgan is installed all the same, without the engine. `fastgan._cuda` is compiled where nvcc is found, for the
architectures in csrc/cuda/architectures that it knows and, as PTX, for newer ones; FASTGAN_BUILD_CUDA=0 in the
environment leaves it out, and 1 makes it an error that it cannot be built. FASTGAN_CUDA_ARCHITECTURES="90" compiles for
that one alone, and FASTGAN_BUILD_CPU=0 leaves out `fastgan._cpu`.
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
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CPU, CUDA, INCLUDE = Path("csrc/cpu"), Path("csrc/cuda"), Path("csrc/include")
BINDINGS = CPU / "bindings.cpp"  # compiled once, for every processor
KERNELS = sorted(path for path in CPU.glob("*.cpp") if path != BINDINGS)
IS_X86 = platform.machine().lower() in ("x86_64", "amd64") and sys.platform != "win32"
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
ISAS = {"portable": []} | ({
    "avx2": AVX2,
    "avx512": [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"],
} if IS_X86 else {})
# arithmetic has no side effects that would forbid vectors; a multiplication and an addition may be one instruction
GNU = ["-O3", "-g0", "-std=c++17", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math",
       "-ffp-contract=fast"]
MSVC = ["/O2", "/std:c++17", "/openmp", "/EHsc"]


class Build(build_ext):
    """Kernels once for each instruction set, on all cores; threads where the compiler has OpenMP."""

    def build_extension(self, ext: Extension) -> None:
        if ext.name.endswith("_cuda"):
            self.build_cuda(ext)
        else:
            self.build_cpu(ext)

    def build_cuda(self, ext: Extension) -> None:
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
        bindings = self.compiled(ext, str(CUDA / "bindings.cpp"), "cuda", MSVC if sys.platform == "win32" else GNU)
        # the runtime comes along: a machine without CUDA can load the module
        self.spawn(["nvcc", "-shared", "-cudart", "static", *bindings, *objects, "-o", str(target)])

    def build_cpu(self, ext: Extension) -> None:
        is_msvc = self.compiler.compiler_type == "msvc"
        openmp = [] if is_msvc or not self.has_openmp() else ["-fopenmp"]
        flags = [*(MSVC if is_msvc else GNU), *openmp, *(["-DFASTGAN_X86"] if IS_X86 else [])]
        jobs = [(str(BINDINGS), "bindings", flags)]
        jobs += [(str(source), isa, [*flags, *more, f"-DFASTGAN_ISA={isa}"])
                 for isa, more in ISAS.items() for source in KERNELS]
        Path(self.get_ext_fullpath(ext.name)).parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = [name for names in pool.map(lambda job: self.compiled(ext, *job), jobs) for name in names]
        self.compiler.link_shared_object(objects, self.get_ext_fullpath(ext.name), extra_postargs=openmp,
                                         export_symbols=None if not is_msvc else self.get_export_symbols(ext),
                                         build_temp=self.build_temp, target_lang="c++")

    def compiled(self, ext: Extension, source: str, folder: str, flags: list[str]) -> list[str]:
        return self.compiler.compile([source], output_dir=str(Path(self.build_temp) / folder),
                                     include_dirs=ext.include_dirs, extra_postargs=flags, depends=ext.depends)

    def has_openmp(self) -> bool:
        Path(self.build_temp).mkdir(parents=True, exist_ok=True)
        source = Path(self.build_temp) / "openmp.cpp"
        source.write_text("#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n")
        try:
            objects = self.compiler.compile([str(source)], output_dir=self.build_temp, extra_postargs=["-fopenmp"])
            self.compiler.link_executable(objects, str(source.with_suffix("")), extra_postargs=["-fopenmp"])
        except Exception:  # of whatever compiler it is
            return False
        return True


def extension(name: str, sources: list[Path], folder: Path, *, optional: bool = True) -> Extension:
    headers = sorted(str(path) for place in (folder, INCLUDE) for path in place.rglob("*.h"))
    return Extension(name, [str(path) for path in sources], language="c++", depends=headers, optional=optional,
                     include_dirs=[str(INCLUDE), pybind11.get_include()])


def cuda() -> list[Extension]:
    """What FASTGAN_BUILD_CUDA asks for."""
    asked = os.environ.get("FASTGAN_BUILD_CUDA", "auto")
    if asked not in ("auto", "0", "1"):
        sys.exit(f"FASTGAN_BUILD_CUDA={asked}: expected auto, 0 or 1")
    if asked == "1" and shutil.which("nvcc") is None:
        sys.exit("FASTGAN_BUILD_CUDA=1, but there is no nvcc on PATH")
    if asked == "0" or shutil.which("nvcc") is None:
        return []
    return [extension("fastgan._cuda", [CUDA / "bindings.cpp", *sorted(CUDA.glob("*.cu"))], CUDA,
                      optional=asked == "auto")]


setup(
    ext_modules=[*([] if os.environ.get("FASTGAN_BUILD_CPU") == "0" else [
        extension("fastgan._cpu", [BINDINGS, *KERNELS], CPU)]), *cuda()],
    cmdclass={"build_ext": Build},
)
