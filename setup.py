"""The build: pyproject.toml has the metadata; ninja compiles the native engine's C++ in csrc/, as written down here.

For CPUs there is a module for each instruction set, `fastgan._cpu_portable` and so on, of which
`fastgan/ops/native/extension.py` loads one; `fastgan._cuda` is compiled where nvcc is found. What cannot be compiled is
left out: a line names the reason, and a wheel without any module is tagged py3-none-any. In the environment:

    FASTGAN_BUILD_CPU, FASTGAN_BUILD_CUDA   0 leaves the modules out; 1 makes it an error that they cannot be built
    FASTGAN_CUDA_ARCHITECTURES="80 90"      instead of the GPUs of this machine, for a build in place, or otherwise
                                            csrc/cuda/architectures; PTX of the newest one serves newer GPUs
    CXX, MAX_JOBS                           the C++ compiler, and how many processes may run at once

build/ninja/build.ninja has every command. Objects of kernels do not depend on Python, so they serve every interpreter.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CPU, CUDA, FOLDER = Path("csrc/cpu"), Path("csrc/cuda"), Path("build/ninja")
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
ISAS = {"portable": [], "avx2": AVX2, "avx512": [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl",
                                                 "-mprefer-vector-width=512"]}
if platform.machine().lower() not in ("x86_64", "amd64") or sys.platform == "win32":
    ISAS = {"portable": []}
# arithmetic has no side effects that would forbid vectors; a multiplication and an addition may be one instruction
GNU = ["-O3", "-g0", "-fPIC", "-std=c++17", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math",
       "-ffp-contract=fast", "-Icsrc/include"]
MSVC = ["/O2", "/std:c++17", "/EHsc", "/openmp"]
NVCC = ["-O3", "-std=c++17", "-Xcompiler=-fPIC,-fvisibility=hidden", "-Xfatbin=-compress-all", "-Icsrc/include"]
SHARED = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
NO_NVCC = "nvcc was not found"
RULES = """ninja_required_version = 1.5
builddir = {folder}
rule cxx
  command = {cxx} $flags -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule nvcc
  command = nvcc $flags -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = {cxx} {shared} $in -o $out $flags
rule nvlink
  command = nvcc -shared -cudart static $in -o $out
"""


def tell(message: str) -> None:
    """Print a line, and on the terminal too: pip hides the output of a build that succeeds."""
    print(f"fastgan: {message}", file=sys.stderr)
    if not sys.stderr.isatty():
        with contextlib.suppress(OSError), Path("/dev/tty").open("w") as terminal:
            print(f"fastgan: {message}", file=terminal)


def setting(ext: Extension) -> tuple[str, str]:
    """The variable that decides on a module, and its value: auto, 0 or 1."""
    name = "FASTGAN_BUILD_CUDA" if is_cuda(ext) else "FASTGAN_BUILD_CPU"
    value = os.environ.get(name, "auto")
    if value not in ("auto", "0", "1"):
        sys.exit(f"{name}={value}: expected auto, 0 or 1")
    return name, value


def is_cuda(ext: Extension) -> bool:
    return ext.name == "fastgan._cuda"


def architectures(in_place: bool) -> list[str]:
    """Compute capabilities to compile for, such as ["80", "90"], of those that nvcc knows."""
    def output(*command: str) -> str:
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            return ""

    here = output("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader") if in_place else ""
    asked = (os.environ.get("FASTGAN_CUDA_ARCHITECTURES") or here.replace(".", "")
             or (CUDA / "architectures").read_text()).split()
    known = output("nvcc", "--list-gpu-arch").split()
    return sorted({arch for arch in asked if f"compute_{arch}" in known}, key=int)


class Graph:
    """The text of build.ninja."""

    def __init__(self, cxx: str, include: list[str]) -> None:
        self.own = FOLDER / sysconfig.get_config_var("SOABI")  # what depends on Python
        self.own.mkdir(parents=True, exist_ok=True)
        probe = self.own / "openmp.cpp"
        probe.write_text("#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n")
        command = [*cxx.split(), "-fopenmp", str(probe), "-o", f"{probe}.out"]
        self.openmp = [] if subprocess.run(command, capture_output=True).returncode else ["-fopenmp"]
        # pip installs pybind11 in another place for each build; depfiles do not name system headers
        pybind = self.own / f"pybind11-{pybind11.__version__}"
        pybind.unlink(missing_ok=True)
        pybind.symlink_to(pybind11.get_include())
        self.python = [shlex.quote(f"-isystem{place}") for place in (pybind, *include)]
        self.lines = [RULES.format(folder=FOLDER, cxx=cxx, shared=" ".join(SHARED))]

    def add(self, out: Path, rule: str, inputs: list[Path], flags: list[str]) -> Path:
        self.lines.append(f"build {out}: {rule} {' '.join(map(str, inputs))}\n  flags = {' '.join(flags)}\n")
        return out

    def add_module(self, ext: Extension, archs: list[str]) -> Path:
        """The objects of a module and its link. Only bindings.cpp includes Python.h."""
        name = ext.name.split(".")[1]
        flags = [*GNU, *ext.extra_compile_args, *(self.openmp if not is_cuda(ext) else [])]
        nvcc = [*NVCC, *(f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs),
                *(f"-gencode=arch=compute_{arch},code=compute_{arch}" for arch in archs[-1:])]
        objects = []
        for source in map(Path, ext.sources):
            if source.name == "bindings.cpp":
                more = [*flags, *self.python, f"-DFASTGAN_MODULE={name}"]
                objects.append(self.add(self.own / f"{name}.o", "cxx", [source], more))
            else:
                rule = ("nvcc", [source], nvcc) if source.suffix == ".cu" else ("cxx", [source], flags)
                objects.append(self.add(FOLDER / name / f"{source.stem}.o", *rule))
        return self.add(self.own / f"{name}.so", "nvlink" if is_cuda(ext) else "link", objects, self.openmp)


class Ninja(build_ext):
    """Compiles what can be compiled, and leaves out the rest."""

    def build_extensions(self) -> None:
        if sys.platform == "win32":
            return super().build_extensions()
        cxx = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), "")
        failures = {ext.name: self.missing(ext, cxx) for ext in self.extensions}
        possible = [ext for ext in self.extensions if not failures[ext.name]]
        failures |= self.compile(possible, cxx) if possible else {}
        self.report(failures)
        self.extensions[:] = [ext for ext in self.extensions if not failures[ext.name]]
        if not self.extensions:  # a wheel without modules must not be tagged as one with them
            self.distribution.ext_modules = []
            if wheel := self.distribution.command_obj.get("bdist_wheel"):
                wheel.root_is_pure = True

    def missing(self, ext: Extension, cxx: str) -> str:
        """Why a module cannot be compiled here; "" where it can be tried."""
        if is_cuda(ext) and not shutil.which("nvcc"):
            return NO_NVCC
        if not cxx or not shutil.which(cxx.split()[0]):
            return f"no C++ compiler ({cxx or 'c++, g++ or clang++'}) was found"
        if not any(Path(place, "Python.h").is_file() for place in self.include_dirs):
            return "Python.h was not found (on Debian and Ubuntu it is in python3-dev)"
        if is_cuda(ext) and not architectures(self.inplace or self.editable_mode):
            return "nvcc supports none of the GPU architectures asked for"
        return ""

    def compile(self, extensions: list[Extension], cxx: str) -> dict[str, str]:
        """Why each module could not be built; "" for those that were."""
        graph = Graph(cxx, self.include_dirs)
        archs = architectures(self.inplace or self.editable_mode)
        modules = {ext.name: graph.add_module(ext, archs) for ext in extensions}
        script = FOLDER / "build.ninja"
        script.write_text("\n".join(graph.lines))
        jobs = os.environ.get("MAX_JOBS")
        command = [ninja(), "-f", str(script), *([f"-j{jobs}"] if jobs else [])]
        # nvcc compiles a file for all architectures at once, unless the number of processes is limited
        more = "" if jobs else f" --threads={os.cpu_count()}"
        environment = os.environ | {"NVCC_APPEND_FLAGS": os.environ.get("NVCC_APPEND_FLAGS", "") + more}
        complete = subprocess.call([*command, "-k0", *map(str, modules.values())], env=environment) == 0
        failures = {}
        for name, module in modules.items():
            failed = not complete and subprocess.call([*command, str(module)])
            failures[name] = f"{cxx} or nvcc failed, see pip install -v" if failed else ""
            if not failed:
                target = Path(self.get_ext_fullpath(name))
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(module, target)
        return failures

    def report(self, failures: dict[str, str]) -> None:
        reasons: dict[str, list[str]] = {}
        for ext in self.extensions:
            name, value = setting(ext)
            reason = failures[ext.name]
            if reason and value == "1":
                sys.exit(f"{name}=1, but {reason}")
            if reason and reason != NO_NVCC:
                reasons.setdefault(reason, []).append("GPUs" if is_cuda(ext) else "CPUs")
        for reason, devices in reasons.items():
            kinds = " and ".join(dict.fromkeys(devices))
            tell(f"installed without C++ kernels for {kinds}, so PyTorch's operators are used: {reason}. To have "
                 "them, install what is missing, then reinstall fastgan with pip install --no-cache-dir")


def ninja() -> str:
    with contextlib.suppress(ImportError):
        from ninja import BIN_DIR

        return str(Path(BIN_DIR, "ninja"))
    return shutil.which("ninja") or sys.exit("ninja was not found: pip install ninja")


def extension(name: str, folder: Path, flags: list[str]) -> Extension:
    sources = sorted(str(path) for path in folder.iterdir() if path.suffix in (".cpp", ".cu"))
    if sys.platform == "win32":
        flags = [*MSVC, f"/DFASTGAN_MODULE={name}"]
    return Extension(f"fastgan.{name}", sources, ["csrc/include", pybind11.get_include()], extra_compile_args=flags,
                     optional=True, language="c++")


modules = [extension(f"_cpu_{isa}", CPU, flags) for isa, flags in ISAS.items()]
if sys.platform != "win32":
    modules.append(extension("_cuda", CUDA, []))
setup(ext_modules=[ext for ext in modules if setting(ext)[1] != "0"], cmdclass={"build_ext": Ninja})
