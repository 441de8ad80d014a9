"""The cost of the inner loop of every GEMM of a training step, from the machine code.

    make sass                                         # all presets, batches, precisions and architectures
    python -m proofs.sass                             # dcgan-64 at batch 128 in bf16 on sm_90
    python -m proofs.sass --preset dcgan-64 mxnet-dcgan-mnist --batch 64 1024 --precision fp16 tf32 --arch 80 100
    python -m proofs.sass --out table.md              # also write the table to a file

The GEMMs of a step, forward and backward, with D on [real; fake] in one call, are recorded and compiled, each build
once. A row is a launch; launches with the same shape and figures share a row. A line is printed for each launch that
does not pass a check (`gates.py`); the exit status is 1 if there is any. No GPU is needed, and no speed is measured.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastgan import presets
from fastgan.ops.triton.launch import by_name
from proofs import aot, assembly, compiled, gates
from proofs.aot import Case, Row
from proofs.compiled import Binary, Job
from proofs.launches import Launch, Pointer, record, training_step

OPTIONS: dict[str, tuple[Any, ...]] = {  # the first value of each is the default
    "preset": aot.PRESETS, "batch": (128, 64, 1024), "precision": aot.TENSOR_CORES, "arch": (90, 80, 100)}
PAGE = """# The inner loops of the GEMMs

Properties of the code that Triton {triton} compiles, not measurements of speed. Written by

    python -m proofs.sass {command}

A row is a launch of a training step, with D on [real; fake] in one call. Launches that differ only in preset, batch
size and precision share a row. The weight gradient of a transposed convolution is listed as that of the corresponding
convolution.

- kernel: `_tma` kernels use tensor descriptors; `run`, `fold` and `narrow` are variants for few channels, see
  [kernels](../kernels.md).
- M x N x K, warps, stages: the tile that a program computes per iteration of its loop, its warps and pipeline stages.
- tensor, shared, global, other: the instructions of the loop: products; shared memory and its barriers; global memory
  and tensor descriptors; integer and all other instructions. On sm_100 one warp issues the products; they are counted
  for each warp.
- issue: issue cycles of the loop per cycle of the tensor cores. A multiprocessor issues 4 instructions per cycle, and
  its tensor cores compute 1,024 products of 16 bits per cycle on sm_80, 2,048 on sm_90, 4,096 on sm_100, and half as
  many in tf32. limit: the maximum that `proofs/gates.py` accepts. Both are empty for kernels without tensor cores.
- spills: bytes of a thread's stack. KiB: shared memory of a program. CTAs: programs that fit on a multiprocessor.
- B/FLOP: bytes that a program reads from L2 per operation, computed from its tile: bytes of an element x (M + N) / (2 x
  M x N).
- wgmma: whether ptxas warns that it serializes them.
"""


def words(launch: Launch) -> str:
    """The pass of a launch and its convolution: "dgrad of conv 64x32x32 -> 128x16x16". The weight gradient of a
    transposed convolution is described as that of the corresponding convolution."""
    given = by_name(launch.arguments)
    wgrad = launch.pass_name == "wgrad"
    source, result = (given["fine"], given["coarse"]) if wgrad else (given["x"], given["y"])
    transposed = not wgrad and given["TRANSPOSED"]
    if launch.pass_name == "dgrad":
        source, result, transposed = result, source, not transposed
    kind = launch.pass_name + " of" if launch.pass_name in ("dgrad", "wgrad") else "forward"
    return f"{kind} {'transposed ' * transposed}conv {_size(source)} -> {_size(result)}"


def _size(image: Pointer) -> str:
    """"64x32x32" for [N, 32, 32, 64]."""
    _, height, width, channels = image.shape
    return f"{channels}x{height}x{width}"


def recorded(case: Case) -> list[tuple[str, Job]]:
    """The GEMMs of a step: a description and the compiler's input for each."""
    launches = record(training_step(presets.get(case.preset), case.batch, case.precision), case.arch)
    return [(words(launch), job) for launch in launches if launch.name in compiled.GEMMS
            for job in compiled.jobs([launch], case.arch).values()]


def bytes_per_flop(job: Job) -> float:
    """Bytes of both operands that a program reads from L2 per operation, computed from the tile."""
    given = job.given
    return float(job.itemsize() * (given["BM"] + given["BN"]) / (2 * given["BM"] * given["BN"]))


def row(what: str, found: Binary) -> Row:
    """A row of the table for one launch, which `rows` completes."""
    facts, limit = aot.row(found, []), gates.limit(found.job)
    return {
        "arch": facts["arch"], "pass": what, "precision": "", "kernel": gates.form(found.job),
        "M x N x K, warps, stages": f"{facts['tile']}, {facts['warps']}, {facts['stages']}",
        **{name: str(found.loop.get(name, 0)) if found.loop else "" for name in (*assembly.CLASSES, "other")},
        "issue": facts["issue"], "limit": f"{limit.cycles[found.job.arch]}" if limit and facts["issue"] else "",
        "registers": facts["registers"], "spills": facts["stack"], "KiB": f"{found.shared / 1024:.0f}",
        "CTAs": facts["programs_per_sm"], "B/FLOP": f"{bytes_per_flop(found.job):.4f}",
        "wgmma": ("serialized" if found.serialised else "pipelined") if "wgmma" in found.ptx else "",
        "presets": "", "batches": "", "gates": "; ".join(gates.failures(found, strict=True)) or "pass",
    }


def rows(uses: dict[tuple[str, str], list[Case]], found: dict[str, Binary]) -> list[Row]:
    """A row for each launch; launches that differ only in preset, batch size and precision share one."""
    merged: dict[tuple[str, ...], tuple[Row, list[Case]]] = {}
    for (what, key), cases in uses.items():
        facts = row(what, found[key])
        merged.setdefault(tuple(facts.values()), (facts, []))[1].extend(cases)
    order = sorted(merged.values(), key=lambda each: (int(each[0]["arch"]), each[0]["pass"], each[0]["kernel"]))
    return [{**facts, "precision": _once(cases, "precision"), "presets": _once(cases, "preset"),
             "batches": _once(cases, "batch")} for facts, cases in order]


def _once(cases: list[Case], field: str) -> str:
    return " ".join(map(str, sorted({getattr(case, field) for case in cases})))


def page(table: list[Row], command: str) -> Iterator[str]:
    """A table for each architecture."""
    yield PAGE.format(triton=version("triton"), command=command)
    for arch in dict.fromkeys(each["arch"] for each in table):
        some = [each for each in table if each["arch"] == arch]
        yield from (f"## sm_{arch}", "", *aot.table(some, [name for name in some[0] if name != "arch"]), "")


def run(chosen: argparse.Namespace) -> int:
    """Record, compile each build once, report."""
    cases = [Case(preset, batch, precision, arch) for arch in chosen.arch for preset in chosen.preset
             for precision in chosen.precision for batch in chosen.batch]
    jobs: dict[str, Job] = {}
    uses: dict[tuple[str, str], list[Case]] = {}
    # spawn, not fork, because torch has threads
    with ProcessPoolExecutor(chosen.workers, multiprocessing.get_context("spawn")) as pool:
        for case, launches in zip(cases, aot.progress(pool, recorded, cases, "record"), strict=True):
            for what, job in launches:
                jobs.setdefault(job.key, job)
                uses.setdefault((what, job.key), []).append(case)
        found = {each.job.key: each for each in aot.progress(pool, compiled.build, list(jobs.values()), "compile")}
    return report(rows(uses, found), chosen)


def report(table: list[Row], chosen: argparse.Namespace) -> int:
    """Print the table and a line for each launch that fails; the exit status."""
    print(*aot.table(table, list(table[0])), sep="\n")
    if chosen.out:
        options = " ".join(f"--{name} {' '.join(map(str, getattr(chosen, name)))}" for name in OPTIONS)
        chosen.out.write_text("\n".join(page(table, options)))
    failed = [f"sm_{each['arch']} {each['pass']} {each['precision']}: {each['gates']}" for each in table
              if each["gates"] != "pass"]
    print(*(f"FAIL {line}" for line in failed), sep="\n", end="\n" if failed else "")
    print(f"{len(table)} rows: " + (f"{len(failed)} failures" if failed else "all gates pass"))
    return 1 if failed else 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m proofs.sass", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, values in OPTIONS.items():
        parser.add_argument(f"--{option}", nargs="+", type=type(values[0]), default=values[:1], metavar="VALUE",
                            choices=None if option == "batch" else values,
                            help=f"of {', '.join(map(str, values))}; default: {values[0]}")
    parser.add_argument("--workers", type=int, default=2, help="processes that compile (default: 2)")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="write the table as Markdown")
    return parser


if __name__ == "__main__":
    sys.exit(run(parser().parse_args()))
