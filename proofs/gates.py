"""The gates that every compiled kernel must pass.

    fits          registers and shared memory within the device's limits
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

These are facts of compilation, not of speed and not of results.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from proofs.compiled import Binary

REGISTERS = 255  # that a thread can name
SCHEDULERS = 4  # of a multiprocessor, each of which issues an instruction of one of its warps in a cycle
PRODUCTS = {80: 1024, 90: 2048}  # of 16 bits that the tensor cores of a multiprocessor take in a cycle, by architecture
ISSUE = {  # issue cycles for each cycle of the tensor cores, by architecture, kernel and tile, in 16 bits
    (80, "convolve_kernel", 128, 128): 0.45, (80, "convolve_kernel", 128, 64): 0.7,
    (80, "wgrad_kernel", 128, 128): 0.63, (80, "wgrad_kernel", 128, 64): 1.05,
    (90, "convolve_kernel", 128, 128): 0.55, (90, "convolve_kernel", 128, 64): 0.8,
    (90, "wgrad_kernel", 128, 128): 0.75, (90, "wgrad_kernel", 128, 64): 0.95}
ISSUE_TMA = {False: 0.4, True: 0.6}  # of kernels on tensor descriptors on sm_90, in 16 bits and in tf32


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
    None for what is not counted: exact float32, image layers, other architectures."""
    job, given = binary.job, binary.job.given
    counted = job.is_gemm() and job.arch in PRODUCTS and job.has_tensor_cores()
    if not counted or not binary.loop or given.get("RUN") or given.get("FOLD"):
        return None
    cycles = binary.loop * job.options["num_warps"] / SCHEDULERS
    rate = PRODUCTS[job.arch] / (2 if given["PRECISION"] == "tf32" else 1)
    return float(cycles * rate / (given["BM"] * given["BN"] * given["BK"]))


def narrow_operands(binary: Binary) -> dict[str, str]:
    """The operands of a GEMM that are not read 16 bytes at a time, and why they cannot be."""
    job = binary.job
    return {name: f"row of {row} bytes" if row % 16 else "turned" for name, row in job.operands().items()
            if binary.loads.get(name, 0) < 16 and job.expected(name) < 16}


def failures(binary: Binary) -> list[str]:
    """A message for each gate that a binary does not pass."""
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
    failed += _slow_loop(binary)
    for name in job.operands():
        width, expected = binary.loads.get(name, 0), job.expected(name)
        if width < expected:
            failed.append(f"{name} is loaded {width} bytes at a time, expected {expected}" if width
                          else f"no load of {name} found")
    return failed


def _slow_loop(binary: Binary) -> Iterator[str]:
    """Of a loop that is pipelined."""
    job, taken = binary.job, issue(binary)
    if taken is None or job.options["num_stages"] == 1:
        return
    tf32 = job.given["PRECISION"] == "tf32"
    limit = ISSUE.get((job.arch, job.kernel, job.arguments["BM"], job.arguments["BN"])) if not tf32 else None
    if job.kernel.endswith("tma_kernel") and job.arch == 90:
        limit = ISSUE_TMA[tf32]
    if limit is not None and taken > limit:
        yield f"{taken:.2f} issue cycles for each cycle of the tensor cores, at most {limit}"
    if binary.waits > 1:
        yield f"{binary.waits} waits for products in an iteration, expected 1"
