"""Check that kernels with programmatic dependent launch wait for the previous kernel before they access memory.

    python -m proofs.pdl --arch 90 100 120

Each kernel of training steps of dcgan-64, without and with spectral normalization, and of fetching a batch, is compiled
with programmatic dependent launch. In PTX and machine code, there may be no access to global memory before the wait,
and no branch around it. This detects accesses that the compiler has moved, which a simulator that runs one kernel after
another does not. The exit status is 1 if a kernel fails.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

from fastgan import presets
from fastgan.ops.triton.launch import dependent_launch
from proofs import assembly, compiled
from proofs.compiled import Job
from proofs.launches import fetch, record, training_step

# (the wait, instructions that may not precede it), in PTX and in the listing of nvdisasm
PTX = r"griddepcontrol\.wait", r"\b(ld|st|atom|red)\.(?!param|shared)|\b(cp|prefetch|mbarrier|call|brx)\b"
SASS = r"\bACQBULK\b", r"\b(LDG|STG|LD|ST|LDL|ATOMG?|RED|UTMA\w+|UBLK\w+|LDGSTS|BRX|CALL(?!.*guardrail))\b"
BRANCH = re.compile(r"\bbra\S*\s+`?\(?([.$]\w+)", re.IGNORECASE)


def early(text: str, wait: str, access: str) -> str:
    """The reason why the listing of a kernel fails; "" if it passes."""
    at = re.search(wait, text)
    if at is None:
        return "it does not wait"
    before = text[:at.start()]
    if found := re.search(f"^.*({access}).*$", before, re.MULTILINE):
        return f"{found[0].strip()} before the wait"
    around = [target for target in BRANCH.findall(before) if f"{target}:" not in before]
    return f"a branch to {around[0]}, around the wait" if around else ""


def jobs(arch: int) -> list[Job]:
    """One launch of each kernel of a step, and of the kernel that fetches its batch."""
    configs = presets.get("dcgan-64"), presets.get("dcgan-64", norm_d="spectral", loss="hinge")
    steps = [fetch(configs[0], 128), *(training_step(config, 128, "bf16") for config in configs)]
    with dependent_launch():
        launches = [launch for step in steps for launch in record(step, arch)]
    return list(compiled.jobs(list({launch.name: launch for launch in launches}.values()), arch).values())


def failures(job: Job) -> list[str]:
    """A line for each error of a kernel."""
    built = compiled.compile_job(job)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(built.asm["cubin"])
        listing = assembly.run("nvdisasm", "-ndf", "-c", str(path))
    found = {"PTX": early(built.asm["ptx"].partition("\n{")[2], *PTX), "machine code": early(listing, *SASS)}
    return [f"sm_{job.arch} {job.kernel}: {where}: {what}" for where, what in found.items() if what]


def main() -> int:
    parser = argparse.ArgumentParser("python -m proofs.pdl", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", type=int, default=[90], help="90 or newer (default: 90)")
    failed = []
    for arch in parser.parse_args().arch:
        for job in jobs(arch):
            found = failures(job)
            print(f"sm_{arch} {job.kernel}: {'FAIL' if found else 'waits first'}")
            failed += found
    print(*failed, sep="\n", end="\n" if failed else "")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
