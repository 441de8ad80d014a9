"""A compiled kernel, read: what it occupies, with which instructions it multiplies and loads, and what must hold of it.

    fits          registers, and shared memory, within the device's limits
    no spills     no stack, no local memory
    tensor cores  a matrix multiplication on them, in the PTX and in the machine code, where the kernel is a GEMM
    loads         16 bytes at a time from every operand of a GEMM, but for two kinds that cannot be read so: rows of
                  channels that are not made of whole 16 bytes (an image), and float32 that lies across the depth of
                  the product. Tensor cores take float32 along the depth only (PTX ISA: wgmma and ldmatrix transpose
                  16-bit elements), so unless it passes through registers anyway it is turned on its way into shared
                  memory, 4 bytes at a time. The table names them.
    loop          few instructions beside the products: issue cycles of the inner loop for each cycle that the tensor
                  cores take for it, at most `ISSUE`; and on sm_90 one wait for the products of an iteration, not one
                  for each of them

These are facts of compilation. They say nothing about speed, and nothing about results.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from fastgan.errors import first_line
from fastgan.verify.launches import Launch, Pointer

REGISTERS = 255  # that a thread can name
SCHEDULERS = 4  # of a multiprocessor, each of which issues an instruction of one of its warps in a cycle
PRODUCTS = {80: 1024, 90: 2048}  # of 16 bits that the tensor cores of a multiprocessor take in a cycle, by architecture
ISSUE = {  # issue cycles for each cycle of the tensor cores, by architecture, kernel and tile, in 16 bits
    (80, "convolve_kernel", 128, 128): 0.45, (80, "convolve_kernel", 128, 64): 0.7,
    (80, "wgrad_kernel", 128, 128): 0.63, (80, "wgrad_kernel", 128, 64): 1.05,
    (90, "convolve_kernel", 128, 128): 0.62, (90, "convolve_kernel", 128, 64): 0.9,
    (90, "wgrad_kernel", 128, 128): 0.77, (90, "wgrad_kernel", 128, 64): 1.2}


class Device(NamedTuple):
    """One multiprocessor, in KiB; `shared_each`: the most that one program can have.

    CUDA C++ programming guide, technical specifications per compute capability.
    """

    shared_each: int
    shared: int
    threads: int
    programs: int


DEVICES = {
    80: Device(163, 164, 2048, 32),
    86: Device(99, 100, 1536, 16),
    89: Device(99, 100, 1536, 24),
    90: Device(227, 228, 2048, 32),
    100: Device(227, 228, 2048, 32),
    120: Device(99, 100, 1536, 24),
}


class Job(NamedTuple):
    """A launch as the compiler sees it, in values that travel between processes."""

    module: str
    kernel: str
    arguments: dict[str, Any]
    options: dict[str, int]
    arch: int
    key: str  # of all that distinguishes it from other builds

    def is_gemm(self) -> bool:
        return self.kernel in ("convolve_kernel", "wgrad_kernel") and not self.arguments["NARROW"]

    def has_tensor_cores(self) -> bool:
        """Whether its products can run on them: not those of float32 to its last bit."""
        operand = self.arguments["x" if self.kernel == "convolve_kernel" else "coarse"]
        return self.is_gemm() and (operand.dtype.itemsize == 2 or self.arguments["PRECISION"] == "tf32")

    def operands(self) -> dict[str, int]:
        """Bytes in a row of channels, as it lies in memory, of each operand of a GEMM."""
        given = self.arguments
        if not self.is_gemm():
            return {}
        if self.kernel == "wgrad_kernel":
            channels = {"coarse": given["A"], "fine": given["B"]}
        else:
            channels = {"x": given["CI"], "weight": given["CO" if given["TRANSPOSED"] else "CI"]}
        return {name: count * given[name].dtype.itemsize for name, count in channels.items()}

    def expected(self, operand: str) -> int:
        """The bytes that each load of an operand should have at least."""
        row, given = self.operands()[operand], self.arguments
        if row % 16:
            return 1
        across = self.kernel == "wgrad_kernel" or (operand == "weight" and given["TRANSPOSED"])
        return 4 if across and given[operand].dtype.itemsize == 4 else 16


class Binary(NamedTuple):
    """What the compiler made of a job. `loads`: bytes of the narrowest load from global memory, by argument. `loop`:
    instructions of the loop around the products, `waits`: those of them that wait for products."""

    job: Job
    registers: int = 0
    stack: int = 0
    local: int = 0
    shared: int = 0
    tensor_memory: int = 0  # columns, sm_100
    ptx: tuple[str, ...] = ()  # kinds of matrix multiplication
    sass: tuple[str, ...] = ()
    loads: dict[str, int] = {}  # noqa: RUF012
    loop: int = 0
    waits: int = 0
    seconds: float | None = None  # None: it came out of Triton's cache
    error: str = ""


def jobs(launches: list[Launch], arch: int) -> dict[str, Job]:
    """Launches without repetition, by what distinguishes their builds."""
    with _Target(arch):
        found: dict[str, Job] = {}
        for launch in launches:
            key = f"{launch.name} sm_{arch} {_specialisation(launch, arch)}"
            if key not in found:
                function = launch.kernel.fn
                found[key] = Job(function.__module__, function.__name__, launch.arguments, launch.options, arch, key)
    return found


def _specialisation(launch: Launch, arch: int) -> str:
    """What Triton's own binder makes of the arguments: types, divisibility, constants."""
    *_, binder = launch.kernel.device_caches[arch]
    _, specialised, options = binder(**launch.arguments, **launch.options)
    return f"{specialised} {options}"


class _Target:
    """Stands in for the driver of a GPU: all that compilation asks is its architecture. A context."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def __enter__(self) -> None:
        from triton.runtime.driver import driver

        self._before = driver._active
        driver.set_active(self)

    def __exit__(self, *_: object) -> None:
        from triton.runtime.driver import driver

        driver._active = self._before

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch  # kernels keep their builds by device

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass

    def map_python_to_cpp_type(self, name: str) -> str:
        from triton.backends.nvidia.driver import ty_to_cpp

        return str(ty_to_cpp(name))


def build(job: Job) -> Binary:
    """Compile a job for its architecture, on a machine with any GPU or none."""
    import triton

    times: list[bool] = []
    before, triton.knobs.compilation.listener = triton.knobs.compilation.listener, (
        lambda **facts: times.append(facts["cache_hit"]))
    start = time.perf_counter()
    try:
        with _Target(job.arch):
            kernel = getattr(import_module(job.module), job.kernel)
            compiled = kernel.warmup(grid=(1,), **job.arguments, **job.options)
        seconds = time.perf_counter() - start
        read = inspect(job, compiled.asm["ptx"], compiled.asm["cubin"], _pointers(compiled.src.signature))
        return read._replace(shared=compiled.metadata.shared, seconds=None if times == [True] else seconds,
                             tensor_memory=getattr(compiled.metadata, "tmem_size", 0) or 0)
    except Exception as error:
        return Binary(job, error=f"{type(error).__name__}: {first_line(error)}")
    finally:
        triton.knobs.compilation.listener = before


def _pointers(signature: dict[str, str]) -> list[str]:
    """Names of the parameters that a compiled kernel has left, in order."""
    return [name for name, kind in signature.items() if kind != "constexpr"]


def inspect(job: Job, ptx: str, cubin: bytes, names: list[str]) -> Binary:
    """A `Binary` from the compiler's output; `names`: of the kernel's parameters, in order."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        registers, stack, local = resources(_run("cuobjdump", "--dump-resource-usage", str(path)))
        sass = _run("nvdisasm", "-ndf", "-c", str(path)) if job.is_gemm() else ""
    loop = hot_loop(sass)
    return Binary(job, registers, stack, local, ptx=tensor_ptx(ptx), sass=tensor_sass(sass), loads=loads(ptx, names),
                  loop=len(loop), waits=sum("WARPGROUP.DEPBAR" in instruction for instruction in loop))


def _run(tool: str, *arguments: str) -> str:
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    done = subprocess.run([os.fspath(path), *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def resources(text: str) -> tuple[int, int, int]:
    """(registers, stack, local) of a thread, from cuobjdump's words."""
    found = [re.search(rf"\b{name}:(\d+)", text) for name in ("REG", "STACK", "LOCAL")]
    if None in found:
        raise ValueError(f"cuobjdump said {text!r}, expected REG, STACK and LOCAL")
    registers, stack, local = (int(match[1]) for match in found if match)
    return registers, stack, local


def tensor_ptx(ptx: str) -> tuple[str, ...]:
    """Kinds of matrix multiplication in PTX: "mma.sync", "wgmma", "tcgen05"."""
    kinds = {"mma.sync": r"\bmma\.sync\.", "wgmma": r"\bwgmma\.mma_async\.", "tcgen05": r"\btcgen05\.mma\."}
    return tuple(kind for kind, pattern in kinds.items() if re.search(pattern, ptx))


def tensor_sass(text: str) -> tuple[str, ...]:
    """Kinds of matrix multiplication in machine code: "HMMA", "HGMMA", "UTCHMMA" and their like."""
    return tuple(sorted(set(re.findall(r"\b(UTC[A-Z]*MMA|[A-Z]GMMA|[HQDI]MMA|OMMA)\b", text))))


_MMA = re.compile(r"\b(HMMA|HGMMA)\b")
_LABEL, _INSTRUCTION = re.compile(r"\s*(\.L_\w+):"), re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);")
_BRANCH = re.compile(r"\bBRA\b.*?(\.L_\w+)")


def hot_loop(text: str) -> list[str]:
    """The instructions of the innermost loop with products in nvdisasm's listing, from the target of a backward branch
    to the branch; none where there is no such loop."""
    labels: dict[str, int] = {}
    instructions: list[str] = []
    for line in text.splitlines():
        if match := _LABEL.match(line):
            labels[match[1]] = len(instructions)
        if match := _INSTRUCTION.match(line):
            instructions.append(match[1])
    loops = [instructions[labels[match[1]]:i + 1] for i, instruction in enumerate(instructions)
             if (match := _BRANCH.search(instruction)) and labels.get(match[1], i + 1) <= i]
    return min((loop for loop in loops if any(map(_MMA.search, loop))), key=len, default=[])


_LOAD = re.compile(r"ld\.global(?P<kind>[.\w:]*)\s+.*\[\s*(?P<address>%rd\d+)")
_COPY = re.compile(r"cp\.async\.c[ag]\.shared\.global\S*\s+\[[^]]*\],\s*\[\s*(?P<address>%rd\d+)[^]]*\],"
                   r"\s*(?P<size>0x[0-9a-f]+|\d+)")
_PARAMETER = re.compile(r"ld\.param\.\w+\s+(%rd\d+),\s*\[\w+_param_(\d+)\]")


def loads(ptx: str, names: list[str]) -> dict[str, int]:
    """Bytes of the narrowest load from global memory through each pointer parameter.

    An address is followed back through the 64-bit registers that it was computed from to the parameters at its root.
    """
    sources: dict[str, set[str]] = {}
    roots: dict[str, set[str]] = {}
    accesses: set[tuple[str, int]] = set()
    for line in ptx.splitlines():
        line = line.split("//")[0]
        if match := _PARAMETER.search(line):
            if int(match[2]) < len(names):
                roots.setdefault(match[1], set()).add(names[int(match[2])])
        elif (match := _COPY.search(line)):
            accesses.add((match["address"], int(match["size"], 0)))
        elif (match := _LOAD.search(line)):
            accesses.add((match["address"], _width(match["kind"])))
        else:
            target, *given = re.findall(r"%rd\d+", line) or [""]
            sources.setdefault(target, set()).update(given)
    narrowest: dict[str, int] = {}
    for address, width in accesses:
        for name in _roots(address, sources, roots):
            narrowest[name] = min(width, narrowest.get(name, width))
    return narrowest


def _width(kind: str) -> int:
    """16 of ".v4.b32"."""
    vector, bits = re.search(r"\.v(\d)", kind), re.search(r"\.[bfusx]+(\d+)$", kind)
    if bits is None:
        raise ValueError(f"ld.global{kind}: expected a type of so many bits")
    return int(vector[1] if vector else 1) * int(bits[1]) // 8


def _roots(address: str, sources: dict[str, set[str]], roots: dict[str, set[str]]) -> set[str]:
    seen, waiting = {address}, [address]
    while waiting:
        for register in sources.get(waiting.pop(), ()):
            if register not in seen:
                seen.add(register)
                waiting.append(register)
    return set().union(*(roots.get(register, set()) for register in seen))


def occupancy(binary: Binary) -> int:
    """How many programs share a multiprocessor: registers, shared and tensor memory, threads, programs."""
    device, warps = DEVICES[binary.job.arch], binary.job.options["num_warps"]
    each = -(-binary.registers * 32 // 256) * 256 * warps  # registers are given to warps, 256 at a time
    shared = -(-binary.shared // 128) * 128 + 1024  # the system keeps 1 KiB of each program's
    limits = [65536 // max(each, 1), device.shared * 1024 // shared, device.threads // (32 * warps), device.programs]
    if binary.tensor_memory:
        limits.append(512 // binary.tensor_memory)
    return min(limits)


def issue(binary: Binary) -> float | None:
    """Issue cycles of an iteration of the hot loop for each cycle of the tensor cores, below 1 where these can be busy;
    None for what is not counted: float32, image layers, other architectures."""
    job, given = binary.job, binary.job.arguments
    counted = job.is_gemm() and job.arch in PRODUCTS and job.has_tensor_cores() and not given["PACKED"]
    if not counted or not binary.loop or given["PRECISION"] == "tf32":
        return None
    cycles = binary.loop * job.options["num_warps"] / SCHEDULERS
    return float(cycles * PRODUCTS[job.arch] / (given["BM"] * given["BN"] * given["BK"]))


def narrow_operands(binary: Binary) -> dict[str, str]:
    """The operands of a GEMM that are not read 16 bytes at a time, and why they cannot be."""
    job = binary.job
    return {name: f"row of {row} bytes" if row % 16 else "turned" for name, row in job.operands().items()
            if binary.loads.get(name, 0) < 16 and job.expected(name) < 16}


def failures(binary: Binary) -> list[str]:
    """What does not hold of a binary, in words; empty when it passes."""
    job, found = binary.job, []
    if binary.error:
        return [f"does not compile: {binary.error}"]
    limit = DEVICES[job.arch].shared_each
    if binary.stack or binary.local:
        found.append(f"spills: {binary.stack} bytes of stack and {binary.local} of local memory, expected none")
    if binary.registers > REGISTERS:
        found.append(f"{binary.registers} registers, at most {REGISTERS}")
    if binary.shared > limit * 1024:
        found.append(f"{binary.shared / 1024:.1f} KiB of shared memory, sm_{job.arch} has {limit}")
    if job.is_gemm() and job.has_tensor_cores() and not (binary.ptx and binary.sass):
        found.append(f"no matrix multiplication on tensor cores: {', '.join(binary.ptx) or 'none'} in PTX, "
                     f"{', '.join(binary.sass) or 'none'} in machine code")
    found += _slow_loop(binary)
    for name in job.operands():
        width, expected = binary.loads.get(name, 0), job.expected(name)
        if width < expected:
            found.append(f"{name} is loaded {width} bytes at a time, expected {expected}" if width
                         else f"no load of {name} found")
    return found


def _slow_loop(binary: Binary) -> Iterator[str]:
    """Of a loop that is pipelined."""
    job, taken = binary.job, issue(binary)
    if taken is None or job.options["num_stages"] == 1:
        return
    limit = ISSUE.get((job.arch, job.kernel, job.arguments["BM"], job.arguments["BN"]))
    if limit is not None and taken > limit:
        yield f"{taken:.2f} issue cycles for each cycle of the tensor cores, at most {limit}"
    if binary.waits > 1:
        yield f"{binary.waits} waits for products in an iteration, expected 1"


def problem(job: Job) -> str:
    """What a job computes, in short words."""
    given = job.arguments
    if job.kernel == "convolve_kernel":
        words = [f"{'transposed ' * given['TRANSPOSED']}{given['CI']}->{given['CO']}",
                 f"{given['KH']}x{given['KW']}/{given['SH']}", *_after(given)]
    elif job.kernel == "wgrad_kernel":
        words = [f"{given['A']}x{given['B']}", f"{given['KH']}x{given['KW']}/{given['SH']}"]
    elif job.kernel == "logistic_kernel":
        words = [f"{len(given['ones'])} part{'s' * (len(given['ones']) > 1)}"]
    else:
        words = [f"{given['C']} channels"] if "C" in given else []
        words += [str(given[name]) for name in ("KIND", "ACTIVATION") if name in given]
    return " ".join(words + [word.lower() for word in ("NARROW", "PACKED", "LARGE") if given.get(word)])


def _after(given: dict[str, Any]) -> list[str]:
    """What follows a convolution in its launch."""
    words = [given["ACTIVATION"]] if given["ACTIVATION"] != "none" else []
    return words + [name for name in ("mask", "statistics") if given[name] is not None]


def precision(job: Job) -> str:
    """"bf16", "fp16", "tf32", "fp32", or "any" of a kernel that reads only float32 vectors and sums."""
    dtypes = {str(value.dtype).removeprefix("torch.") for name, value in job.arguments.items()
              if isinstance(value, Pointer) and name in ("x", "coarse", "y", "ga", "out", "logits")}
    if "bfloat16" in dtypes:
        return "bf16"
    if "float16" in dtypes:
        return "fp16"
    return str(job.arguments.get("PRECISION", "any"))
