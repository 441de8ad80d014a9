"""The checks that every compiled kernel must pass.

    fits          registers and shared memory within the device's limits
    no spills     no stack that is read, no local memory
    tensor cores  a GEMM has tensor core instructions, in PTX and in machine code
    loads         16 bytes at a time from every operand of a GEMM, with two exceptions: rows of channels whose bytes are
                  not a multiple of 16 (an image), and float32 operands that are contiguous across the depth. Tensor
                  cores need float32 contiguous along the depth (PTX ISA: wgmma and ldmatrix transpose only 16-bit
                  elements), so unless such an operand passes through registers, it is transposed on the way to shared
                  memory, 4 bytes at a time. The table lists these operands.
    loop          few instructions other than products: issue cycles of the inner loop per cycle of the tensor cores, at
                  most those in `LIMITS`, or `OLDER` times as many under an older Triton
    wgmma         no warning of ptxas that it serializes them

These are properties of the compiled code, not of speed or results.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from typing import NamedTuple

from proofs.compiled import Binary, Job

REGISTERS = 255  # maximum of a thread
SCHEDULERS = 4  # of a multiprocessor, each of which issues one instruction per cycle
NEWEST = (3, 8)  # the version of Triton with which `LIMITS` were set
OLDER = 1.15  # Triton 3.6 computes more addresses within a loop
PRODUCTS = {80: 1024, 90: 2048, 100: 4096}  # 16-bit products per cycle on the tensor cores of a multiprocessor


class Limit(NamedTuple):
    """Maximum issue cycles per cycle of the tensor cores, by architecture, for kernels whose tile begins with `tile`.
    why: the reason for a limit other than that of its path."""

    kernel: str  # with its form
    tile: str  # rows x columns [x depth]
    cycles: dict[int, float]
    why: str = ""


LIMITS = (  # the first that applies is used
    Limit("convolve_tma", "", {90: 0.4}),
    Limit("wgrad_tma", "", {90: 0.4}),
    Limit("convolve_tma tf32", "", {90: 0.55}),
    Limit("wgrad_tma tf32", "", {90: 0.55}),
    Limit("convolve", "128x128", {80: 0.45, 90: 0.55}),
    Limit("convolve", "128x64", {80: 0.8, 90: 0.8}),
    Limit("wgrad", "128x128", {80: 0.7, 90: 0.7}),
    Limit("convolve_tma", "", {100: 0.8}, "the loop of sm_90, for tensor cores that are twice as fast"),
    Limit("wgrad_tma", "", {100: 0.8}, "the loop of sm_90, for tensor cores that are twice as fast"),
    Limit("convolve_tma tf32", "", {100: 0.95}, "the loop of sm_90, for tensor cores that are twice as fast"),
    Limit("wgrad_tma tf32", "", {100: 1.2}, "the same, and float32 of one operand passes through registers"),
    Limit("convolve", "64x64x16", {80: 1.25, 90: 2.4, 100: 6.2}, "from 1 channel: a loop of one step"),
    Limit("convolve tf32", "64x64x16", {80: 0.8, 90: 1.7, 100: 3.8}, "from 1 channel: a loop of one step"),
    Limit("convolve", "64x128", {90: 0.75}, "z -> 4x4: two steps of depth with masks, for which 128x128 spills"),
    Limit("convolve", "128x128", {100: 1.6}, "z -> 4x4: two steps of depth with masks"),
    Limit("convolve", "64x64", {80: 0.65, 90: 1.15, 100: 2.5}, "too few pixels to occupy the device with larger tiles"),
    Limit("convolve tf32", "64x64", {80: 0.75, 90: 1.2, 100: 2.7}, "float32 on pointers has no larger tile"),
    Limit("convolve fold", "128x16", {80: 1.6, 90: 3.3, 100: 6.0}, "to an image: a product of 16 columns"),
    Limit("convolve run", "", {80: 1.75, 90: 3.1, 100: 6.5}, "from an image: rows of 3 channels; memory is slower"),
    Limit("wgrad run", "", {80: 1.4, 90: 2.6, 100: 5.1}, "of an image: rows of 3 channels; memory is slower"),
    Limit("wgrad run derivative", "", {80: 2.35, 90: 5.0, 100: 10.2}, "of an image, times act': half the bytes"),
    Limit("wgrad", "16x64", {80: 2.5, 90: 5.1, 100: 9.1}, "of the layer to 1 logit: one of 16 rows is used"),
    Limit("wgrad", "128x128", {100: 1.4}, "z -> 4x4 on pointers, which channels of 200 bytes need"),
    Limit("wgrad tf32", "64x64", {80: 0.95, 90: 1.45, 100: 3.0}, "float32 is transposed 4 bytes at a time"),
)


class Device(NamedTuple):
    """One multiprocessor, in KiB; `shared_each`: the maximum of one program.

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


def occupancy(binary: Binary) -> int:
    """The number of programs that fit on a multiprocessor, by registers, shared and tensor memory, threads, programs.
    """
    device, warps = DEVICES[binary.job.arch], binary.job.options["num_warps"]
    each = -(-binary.registers * 32 // 256) * 256 * warps  # registers are allocated per warp, in units of 256
    shared = -(-binary.shared // 128) * 128 + 1024  # 1 KiB of each program is reserved
    limits = [65536 // max(each, 1), device.shared * 1024 // shared, device.threads // (32 * warps), device.programs]
    if binary.tensor_memory:
        limits.append(512 // binary.tensor_memory)
    return min(limits)


def issue(binary: Binary) -> float | None:
    """Issue cycles of an iteration of the hot loop per cycle of the tensor cores, which can be busy if it is below 1;
    None without tensor cores and for other architectures."""
    job, given = binary.job, binary.job.given
    if not binary.loop or job.arch not in PRODUCTS or not job.has_tensor_cores():
        return None
    cycles = sum(binary.loop.values()) * job.options["num_warps"] / SCHEDULERS
    rate = PRODUCTS[job.arch] / (2 if given["PRECISION"] == "tf32" else 1)
    return float(cycles * rate / (given["BM"] * given["BN"] * given["BK"]))


def narrow_operands(binary: Binary) -> dict[str, str]:
    """The operands of a GEMM that are not read 16 bytes at a time, with the reason."""
    job = binary.job
    return {name: f"row of {row} bytes" if row % 16 else "transposed" for name, row in job.operands().items()
            if binary.loads.get(name, 0) < 16 and job.expected(name) < 16}


def failures(binary: Binary, *, strict: bool = False) -> list[str]:
    """A message for each check that a binary does not pass.

    strict: report loops without a limit.
    """
    job, failed = binary.job, []
    if binary.error:
        return [f"does not compile: {binary.error}"]
    limit = DEVICES[job.arch].shared_each
    if binary.stack or binary.local:
        failed.append(f"spills: {binary.stack} bytes of stack and {binary.local} of local memory, expected none")
    if binary.registers > REGISTERS:
        failed.append(f"{binary.registers} registers, at most {REGISTERS}")
    if binary.shared > limit * 1024:
        failed.append(f"{binary.shared / 1024:.1f} KiB of shared memory, sm_{job.arch} has {limit}")
    if job.is_gemm() and job.has_tensor_cores() and not (binary.ptx and binary.sass):
        failed.append(f"no matrix multiplication on tensor cores: {', '.join(binary.ptx) or 'none'} in PTX, "
                      f"{', '.join(binary.sass) or 'none'} in machine code")
    if binary.serialised:
        failed.append("ptxas serializes wgmma")
    failed += _slow_loop(binary, strict)
    for name in job.operands():
        width, expected = binary.loads.get(name, 0), job.expected(name)
        if width < expected:
            failed.append(f"{name} is loaded {width} bytes at a time, expected {expected}" if width
                          else f"no load of {name} found")
    return failed


def form(job: Job) -> str:
    """The kernel of a GEMM with its form: "convolve_tma", "wgrad run"."""
    words = [word.lower() for word in ("RUN", "FOLD", "NARROW", "DERIVATIVE") if job.given.get(word)]
    return " ".join([job.kernel.removesuffix("_kernel"), *words])


def limit(job: Job) -> Limit | None:
    """The limit of a GEMM; a limit for its precision comes first."""
    given, name = job.given, form(job)
    tile = f"{given['BM']}x{given['BN']}x{given['BK']}x"
    names = (f"{name} tf32", name) if given["PRECISION"] == "tf32" else (name,)
    return next((each for name in names for each in LIMITS if each.kernel == name and job.arch in each.cycles
                 and tile.startswith(f"{each.tile}x" if each.tile else "")), None)


def _slack() -> float:
    return 1.0 if tuple(map(int, version("triton").split(".")[:2])) >= NEWEST else OLDER


def _slow_loop(binary: Binary, strict: bool) -> Iterator[str]:
    taken, job = issue(binary), binary.job
    if taken is None:
        return
    found = limit(job)
    if found is None:
        if strict:
            yield f"no limit in `LIMITS` for {form(job)} with this tile on sm_{job.arch}"
        return
    accepted = found.cycles[job.arch] * (1 if strict else _slack())
    if taken > accepted:
        yield f"{taken:.2f} issue cycles for each cycle of the tensor cores, at most {accepted:.3g}"
