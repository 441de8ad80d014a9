"""Compile the CUDA C++ of csrc/cuda without a GPU, and check the compiled code.

    make aot                              # also Triton's kernels; for every architecture in csrc/cuda/architectures
    make aot AOT=--quick                  # the part that CI runs: the oldest and the newest architecture
    python -m proofs.csrc --update        # write docs/results/csrc.md

    warnings      none, in device and host code
    no spills     no stack, nothing spilled
    occupancy     two blocks per multiprocessor, by registers and by the shared memory of sm_75, which has the least
    16 bytes      in PTX, every load and store of elements in kernels that process more than one at a time

These are properties of the compiled code; speed is not measured. A line is printed for each failure; the exit status is
1 if there is any, and 0 if nvcc is missing.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
CUDA, INCLUDE = ROOT / "csrc" / "cuda", ROOT / "csrc" / "include"
PAGE = ROOT / "docs" / "results" / "csrc.md"
FLAGS = ("-std=c++17", "-O3", f"-I{INCLUDE}", "-Werror", "all-warnings")
BLOCKS, THREADS = 2, 256
REGISTERS, SHARED = 65536 // (BLOCKS * THREADS), 64 * 1024 // BLOCKS  # maxima of a thread, of a block
SUMS = ("measure", "bn_backward_sums")  # kernels that write single float32 elements
ACTIVATIONS = ("none", "relu", "leaky_relu", "tanh")
TYPES = {"f": "fp32", "13__nv_bfloat16": "bf16", "6__half": "fp16"}
HEAD = """# Compiled code of csrc/cuda

Written by `python -m proofs.csrc --update` with nvcc {}. Each cell has the registers of a thread, and the KiB of shared
memory of a block of {} threads. "x 8": elements that a thread processes at a time. No kernel spills, and kernels that
process more than one element load and store 16 bytes. These are properties of the compiled code, not measurements of
speed.
"""


class Compiled(NamedTuple):
    """A kernel on an architecture; shared, stack and spilled in bytes."""

    kernel: str
    arch: int
    registers: int
    shared: int
    stack: int
    spilled: int


def name(mangled: str) -> str:
    """A readable name, such as "measure bf16 x 8"."""
    found = re.search(r"\d([a-z_]+)_kernel(.*)", mangled)
    if found is None:
        return mangled
    words = [found[1]]
    if given := re.match(r"I(f|13__nv_bfloat16|6__half)(?:Li(\d)E)?", found[2]):
        words += [TYPES[given[1]], *(["x", given[2]] if given[2] else [])]
    if activation := re.search(r"ActivationE(\d)E", found[2]):
        words.append(ACTIVATIONS[int(activation[1])])
    return " ".join(words)


def parsed(report: str) -> Iterator[Compiled]:
    """The kernels in the output of `ptxas -v`."""
    for part in report.split("Compiling entry function ")[1:]:
        entry = re.match(r"'(\S+)' for 'sm_(\d+)'", part)
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        registers, shared = re.search(r"Used (\d+) registers", part), re.search(r"(\d+) bytes smem", part)
        if entry is None or frame is None or registers is None:
            raise ValueError(f"unexpected output of ptxas: {part}")
        yield Compiled(name(entry[1]), int(entry[2]), int(registers[1]), int(shared[1]) if shared else 0, int(frame[1]),
                       int(frame[2]) + int(frame[3]))


def failures(of: Compiled) -> Iterator[str]:
    if of.stack or of.spilled:
        yield f"{of.stack} bytes of stack, {of.spilled} of spills: expected none"
    if of.registers > REGISTERS:
        yield f"{of.registers} registers: expected at most {REGISTERS}, for {BLOCKS} blocks on a multiprocessor"
    if of.shared > SHARED:
        yield f"{of.shared} bytes of shared memory: expected at most {SHARED}, for {BLOCKS} blocks on a multiprocessor"


def narrow(ptx: str) -> Iterator[str]:
    """Kernels that process several elements at a time, but load or store fewer than 16 bytes."""
    for entry, body in re.findall(r"\.entry (\S+)\((.*?)\n}\n", ptx, re.DOTALL):
        kernel = name(entry)
        if " x " not in kernel or " x 1" in kernel:
            continue
        stores = "ld" if kernel.startswith(SUMS) else "st"
        wide = all(re.search(rf"\b{kind}\.global\.(nc\.)?v4", body) for kind in ("ld", stores))
        if not wide or re.search(r"\b(ld|st)\.global\.\S*16\b", body):
            yield f"{kernel}: pieces of less than 16 bytes in PTX"


def architectures(known: str) -> list[int]:
    """The architectures in csrc/cuda/architectures that `nvcc --list-gpu-arch` also lists."""
    wanted = [int(each) for each in (CUDA / "architectures").read_text().split()]
    return [arch for arch in wanted if f"compute_{arch}" in known.split()]


def nvcc(*arguments: str) -> str:
    done = subprocess.run(["nvcc", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"FAIL nvcc {' '.join(arguments)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def compiled(source: Path, archs: list[int]) -> tuple[list[Compiled], list[str]]:
    """The kernels of a source file on each architecture, and messages for those with narrow accesses."""
    with tempfile.TemporaryDirectory() as folder:
        targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
        report = nvcc(*FLAGS, *targets, "-Xptxas=-v", "-Xcompiler=-Wall,-Wextra,-Werror,-fPIC", "-c", str(source), "-o",
                      f"{folder}/out.o")
        nvcc(*FLAGS, f"-arch=compute_{archs[-1]}", "-ptx", str(source), "-o", f"{folder}/out.ptx")
        return list(parsed(report)), list(narrow(Path(folder, "out.ptx").read_text()))


def page(kernels: list[Compiled], version: str) -> Iterator[str]:
    archs = sorted({each.arch for each in kernels})
    yield HEAD.format(version, THREADS)
    yield f"| kernel | {' | '.join(f'sm_{arch}' for arch in archs)} |"
    yield f"|---|{'---|' * len(archs)}"
    for kernel in sorted({each.kernel for each in kernels}):
        line = {each.arch: f"{each.registers}, {each.shared / 1024:.0f} KiB"
                for each in kernels if each.kernel == kernel}
        yield f"| {kernel} | {' | '.join(line[arch] for arch in archs)} |"


def main() -> int:
    parser = argparse.ArgumentParser("python -m proofs.csrc", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the oldest and the newest architecture")
    parser.add_argument("--update", action="store_true", help="if all gates pass, write docs/results/csrc.md")
    chosen = parser.parse_args()
    if shutil.which("nvcc") is None:
        print("csrc/cuda: nvcc was not found, nothing was compiled")
        return 0
    archs = architectures(nvcc("--list-gpu-arch"))
    archs = archs[:: max(1, len(archs) - 1)] if chosen.quick else archs
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda source: compiled(source, archs), sorted(CUDA.glob("*.cu"))))
    kernels = [each for found, _ in results for each in found]
    failed = [f"sm_{each.arch} {each.kernel}: {words}" for each in kernels for words in failures(each)]
    failed += [words for _, pieces in results for words in pieces]
    version = nvcc("--version").split("release ")[1].split(",")[0]
    if chosen.update and not chosen.quick and not failed:
        PAGE.write_text("\n".join(page(kernels, version)) + "\n")
    print(f"csrc/cuda: {len(kernels)} kernels for {' '.join(f'sm_{arch}' for arch in archs)} by nvcc {version}, at "
          f"most {max(each.registers for each in kernels)} registers and "
          f"{max(each.shared for each in kernels) / 1024:.0f} KiB of shared memory")
    print(*(f"FAIL {line}" for line in failed), sep="\n", end="\n" if failed else "")
    print(f"{len(failed)} failures" if failed else "all gates pass")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
