"""Properties of a compiled kernel from PTX and SASS: registers, tensor core instructions, load widths, inner loop."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path


def run(tool: str, *arguments: str) -> str:
    """The output of one of Triton's tools, including warnings."""
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    done = subprocess.run([os.fspath(path), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          check=True)
    return done.stdout


def resources(text: str) -> tuple[int, int, int]:
    """(registers, stack, local) of a thread, from cuobjdump's output."""
    matches = [re.search(rf"\b{name}:(\d+)", text) for name in ("REG", "STACK", "LOCAL")]
    if None in matches:
        raise ValueError(f"cuobjdump printed {text!r}, expected REG, STACK and LOCAL")
    registers, stack, local = (int(match[1]) for match in matches if match)
    return registers, stack, local


def tensor_ptx(ptx: str) -> tuple[str, ...]:
    """Kinds of matrix multiplication in PTX: "mma.sync", "wgmma", "tcgen05"."""
    kinds = {"mma.sync": r"\bmma\.sync\.", "wgmma": r"\bwgmma\.mma_async\.", "tcgen05": r"\btcgen05\.mma\."}
    return tuple(kind for kind, pattern in kinds.items() if re.search(pattern, ptx))


def tensor_sass(text: str) -> tuple[str, ...]:
    """Kinds of matrix multiplication in machine code, such as "HMMA", "HGMMA", "UTCHMMA"."""
    return tuple(sorted(set(re.findall(r"\b(UTC[A-Z]*MMA|[A-Z]GMMA|[HQDI]MMA|OMMA)\b", text))))


def serialised(path: Path) -> bool:
    """Whether ptxas warns, for a PTX file with wgmma, that it serializes wgmma (C7510 and similar warnings)."""
    return "wgmma.mma_async instructions are serialized" in run(
        "ptxas", "--gpu-name=sm_90a", str(path), "-o", os.devnull)


CLASSES = {  # of instructions of a loop; all others are "other"
    "tensor": r"HMMA|HGMMA|UTC[A-Z]*MMA",
    "shared": r"LDS|LDSM|STS|STSM|ATOMS|SYNCS",  # SYNCS: barriers in shared memory
    "global": r"LDG|LDGSTS|STG|LD|ST|ATOMG|RED|UTMA[A-Z]+|UBLK[A-Z]+"}  # LDGSTS: cp.async; UTMA: tensor descriptors
_OPCODE = re.compile(r"(?:@\S+\s+)?([A-Z0-9]+)")
_LABEL, _INSTRUCTION = re.compile(r"\s*(\.L_\w+):"), re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);")
_BRANCH = re.compile(r"\bBRA\b.*?(\.L_\w+)")


def hot_loop(text: str) -> list[str]:
    """The instructions of the innermost loop with products in nvdisasm's listing, from the target of a backward branch
    to the branch; empty if there is no such loop."""
    labels: dict[str, int] = {}
    instructions: list[str] = []
    for line in text.splitlines():
        if match := _LABEL.match(line):
            labels[match[1]] = len(instructions)
        if match := _INSTRUCTION.match(line):
            instructions.append(match[1])
    loops = [instructions[labels[match[1]]:i + 1] for i, instruction in enumerate(instructions)
             if (match := _BRANCH.search(instruction)) and labels.get(match[1], i + 1) <= i]
    return min((loop for loop in loops if "tensor" in map(kind, loop)), key=len, default=[])


def kind(instruction: str) -> str:
    """The class of an instruction: "tensor", "shared", "global" or "other"."""
    opcode = _OPCODE.match(instruction)
    return next((name for name, pattern in CLASSES.items() if opcode and re.fullmatch(pattern, opcode[1])), "other")


_LOAD = re.compile(r"ld\.global(?P<kind>[.\w:]*)\s+.*\[\s*(?P<address>%rd\d+)")
_COPY = re.compile(r"cp\.async\.c[ag]\.shared\.global\S*\s+\[[^]]*\],\s*\[\s*(?P<address>%rd\d+)[^]]*\],"
                   r"\s*(?P<size>0x[0-9a-f]+|\d+)")
_PARAMETER = re.compile(r"ld\.param\.\w+\s+(%rd\d+),\s*\[\w+_param_(\d+)\]")


def loads(ptx: str, names: list[str]) -> dict[str, int]:
    """Bytes of the narrowest load from global memory through each pointer parameter.

    An address is traced back, through the 64-bit registers from which it was computed, to parameters.
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
    """16 for ".v4.b32"."""
    vector, bits = re.search(r"\.v(\d)", kind), re.search(r"\.[bfusx]+(\d+)$", kind)
    if bits is None:
        raise ValueError(f"ld.global{kind}: expected a type with a number of bits")
    return int(vector[1] if vector else 1) * int(bits[1]) // 8


def _roots(address: str, sources: dict[str, set[str]], roots: dict[str, set[str]]) -> set[str]:
    seen, waiting = {address}, [address]
    while waiting:
        for register in sources.get(waiting.pop(), ()):
            if register not in seen:
                seen.add(register)
                waiting.append(register)
    return set().union(*(roots.get(register, set()) for register in seen))
