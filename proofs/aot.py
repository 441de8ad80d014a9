"""Compile every kernel that training steps launch, without a GPU, and check the compiled code.

    make aot                                          # everything; the gates are in proofs/gates.py
    make aot AOT=--quick                              # the part that CI runs
    python -m proofs.aot --presets dcgan-64 --archs 90 --precisions bf16 --batches 128
    python -m proofs.aot --update                     # write the baseline, docs/results/aot.csv; with --quick, only
                                                      # the part that CI compares

Launches are recorded from real networks, for each preset, batch size and precision, with D on [real; fake] in one call
and in two; of dcgan-64 also with spectral normalization. Launches that are equal for the compiler are compiled once,
and Triton's cache makes the next run short. Registers and shared memory are properties of the compiled code; speed is
not measured. Compared with the baseline of the same Triton version, a kernel may not need over 16 registers more, spill
more, or load in smaller pieces. A line is printed for each failure; the exit status is 1 if there is any.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tqdm import tqdm

from fastgan import presets
from fastgan.ops.numerics import PRECISIONS
from proofs import compiled, gates
from proofs.compiled import Binary, Job
from proofs.gates import DEVICES
from proofs.launches import fetch, record, training_step

ROOT = Path(__file__).resolve().parent.parent
BASELINE = ROOT / "docs" / "results" / "aot.csv"
GROWTH = 16  # registers that a kernel may gain over the baseline
COLUMNS = ("kernel", "problem", "precision", "arch", "tile", "warps", "stages", "registers", "stack", "shared",
           "programs_per_sm", "issue", "tensor_cores", "loads", "narrow", "seconds", "used_by", "key", "triton")
SHOWN = ("arch", "kernel", "problem", "precision", "tile", "registers", "shared", "programs_per_sm", "issue",
         "tensor_cores", "loads", "narrow", "seconds")
Row = dict[str, str]
Item = TypeVar("Item")
Result = TypeVar("Result")


class Case(NamedTuple):
    preset: str
    batch: int
    precision: str
    arch: int


PRESETS, BATCHES = ("dcgan-64", "mxnet-dcgan-mnist", "d2l-dcgan-pokemon"), (64, 128, 256, 1024)
TENSOR_CORES = ("bf16", "fp16", "tf32")


def cases(chosen: argparse.Namespace) -> list[Case]:
    """The product of the chosen options; with --quick one preset, each architecture in one precision."""
    if chosen.quick:
        return [Case("dcgan-64", 128, TENSOR_CORES[i % 3], arch) for i, arch in enumerate(chosen.archs)]
    return [Case(preset, batch, precision, arch) for arch in chosen.archs for preset in chosen.presets
            for precision in chosen.precisions for batch in chosen.batches]


FULL = tuple(Case(*each) for each in itertools.product(PRESETS, BATCHES, TENSOR_CORES, sorted(DEVICES)))


def recorded(case: Case) -> dict[str, Job]:
    """The jobs of a case, with D on both halves of its batch in one call and in two, and of fetching the batch."""
    configs = [presets.get(case.preset)]
    if case.preset == "dcgan-64":
        configs.append(presets.get(case.preset, norm_d="spectral", loss="hinge"))
    steps = (training_step(config, case.batch, case.precision, together=together) for config in configs
             for together in (True, False))  # one at a time in memory
    return {key: job for step in itertools.chain(steps, [fetch(configs[0], case.batch)])
            for key, job in compiled.jobs(record(step, case.arch), case.arch).items()}


def collect(found: Iterable[tuple[Case, dict[str, Job]]]) -> tuple[list[Job], dict[str, list[Case]]]:
    """Jobs without repetition, and the cases that need each."""
    jobs: dict[str, Job] = {}
    users: dict[str, list[Case]] = {}
    for case, some in found:
        for key, job in some.items():
            jobs.setdefault(key, job)
            users.setdefault(key, []).append(case)
    return list(jobs.values()), users


def row(found: Binary, users: list[Case]) -> Row:
    """One line of the table; without figures if compilation failed."""
    job, given = found.job, found.job.given
    tile = "x".join(str(given[side]) for side in ("BM", "BN", "BK", "BT", "BC") if side in given)
    narrow = gates.narrow_operands(found)
    issue = gates.issue(found)
    operands = {name: found.loads.get(name, 0) for name in job.operands()}
    return {
        "kernel": job.kernel.removesuffix("_kernel"), "problem": compiled.problem(job),
        "precision": compiled.precision(job), "arch": str(job.arch), "tile": tile,
        "warps": str(job.options["num_warps"]), "stages": str(job.options["num_stages"]),
        "registers": str(found.registers), "stack": str(found.stack + found.local), "shared": str(found.shared),
        "programs_per_sm": "" if found.error else str(gates.occupancy(found)),
        "issue": "" if issue is None else f"{issue:.2f}",
        "tensor_cores": "+".join((*found.ptx, *found.sass)),
        "loads": " ".join(f"{name}:{width}" for name, width in operands.items()),
        "narrow": "; ".join(f"{name}: {why}" for name, why in narrow.items()),
        "seconds": "" if found.seconds is None else f"{found.seconds:.2f}",
        "used_by": " ".join(sorted({case.preset for case in users})),
        "key": sha256(job.key.encode()).hexdigest()[:12], "triton": version("triton"),
    }


def regressions(rows: list[Row], baseline: list[Row]) -> list[str]:
    """Kernels that need more than in a baseline of the same Triton version."""
    before = {old["key"]: old for old in baseline}
    found = []
    for new in rows:
        old = before.get(new["key"])
        if old is None or old["triton"] != new["triton"]:
            continue
        grown = int(new["registers"]) - int(old["registers"])
        if grown > GROWTH:
            found.append(f"{name(new)}: {new['registers']} registers, {old['registers']} in the baseline")
        if int(new["stack"]) > int(old["stack"]):
            found.append(f"{name(new)}: {new['stack']} bytes of stack, {old['stack']} in the baseline")
        if any(width < before_ for width, before_ in zip(_widths(new), _widths(old), strict=True)):
            found.append(f"{name(new)}: loads {new['loads']}, {old['loads']} in the baseline")
    return found


def _widths(of: Row) -> list[int]:
    return [int(load.split(":")[1]) for load in of["loads"].split()]


def name(of: Row) -> str:
    return f"sm_{of['arch']} {of['kernel']} {of['problem']} {of['precision']} {of['tile']}"


def summary(rows: list[Row]) -> Iterator[str]:
    """For each architecture, the number of kernels and the extremes of their resources."""
    yield "arch    kernels  registers  shared KiB  programs/SM  tensor cores"
    for arch in sorted({int(each["arch"]) for each in rows}):
        some = [each for each in rows if each["arch"] == str(arch) and each["programs_per_sm"]]
        if not some:
            continue
        kinds = sorted({kind for each in some for kind in each["tensor_cores"].split("+") if kind})
        yield (f"sm_{arch:<5}{len(some):>7}{max(int(each['registers']) for each in some):>11}"
               f"{max(int(each['shared']) for each in some) / 1024:>12.1f}"
               f"{min(int(each['programs_per_sm']) for each in some):>13}  {' '.join(kinds)}")


def table(rows: list[Row], columns: Sequence[str]) -> Iterator[str]:
    """Rows as an aligned table in Markdown."""
    lines = [[each[column] for column in columns] for each in rows]
    widths = [max(map(len, (column, *(line[i] for line in lines)))) for i, column in enumerate(columns)]
    for line in (columns, ["-" * width for width in widths], *lines):
        yield f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |"


def read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def run(chosen: argparse.Namespace) -> int:
    """Record, compile, judge, print; the exit status."""
    if chosen.update and not (chosen.quick or set(FULL) <= set(cases(chosen))):
        sys.exit("--update: expected all presets, batches, precisions and archs, or --quick; otherwise kernels would "
                 "be missing in the baseline")
    started = time.perf_counter()
    # spawn, not fork, because torch has threads
    with ProcessPoolExecutor(chosen.workers, multiprocessing.get_context("spawn")) as pool:
        all_cases = cases(chosen)
        jobs, users = collect(zip(all_cases, progress(pool, recorded, all_cases, "record"), strict=True))
        found = list(progress(pool, compiled.build, jobs, "compile"))
    rows = sorted((row(each, users[each.job.key]) for each in found),
                  key=lambda of: (int(of["arch"]), of["kernel"], of["problem"], of["precision"], of["tile"], of["key"]))
    failed = [f"{name(row(each, users[each.job.key]))}: {words}" for each in found for words in gates.failures(each)]
    baseline = read(BASELINE)
    if not chosen.update:
        failed += regressions(rows, baseline)
    print(*table(rows, SHOWN), "", *summary(rows), "", sep="\n")
    write(chosen.out, rows)
    if chosen.update and not failed:
        write(BASELINE, [{**each, "seconds": ""} for each in rows])  # seconds would change every line
    seconds = [each.seconds for each in found if each.seconds is not None]
    known = {old["key"] for old in baseline}
    print(f"{len(rows)} kernels of {len(all_cases)} cases, {len(seconds)} compiled now ({sum(seconds):.0f} s of "
          f"compilation), {time.perf_counter() - started:.0f} s in all, Triton {version('triton')}; "
          f"{sum(each['key'] not in known for each in rows)} not in the baseline; table in {chosen.out}")
    print(*(f"FAIL {line}" for line in failed), sep="\n", end="\n" if failed else "")
    print(f"{len(failed)} failures" if failed else "all gates pass")
    return 1 if failed else 0


def progress(pool: ProcessPoolExecutor, function: Callable[[Item], Result], items: list[Item],
             what: str) -> Iterator[Result]:
    yield from tqdm(pool.map(function, items), what, len(items), disable=not sys.stderr.isatty())


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m proofs.aot", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    options: list[tuple[str, type, Sequence[Any], Sequence[Any] | None]] = [
        ("presets", str, PRESETS, sorted(presets.PRESETS)), ("batches", int, BATCHES, None),
        ("precisions", str, TENSOR_CORES, list(PRECISIONS)), ("archs", int, sorted(DEVICES), sorted(DEVICES))]
    for option, kind, default, accepted in options:
        parser.add_argument(f"--{option}", nargs="+", type=kind, default=default, choices=accepted,
                            help=f"default: {' '.join(map(str, default))}")
    parser.add_argument("--quick", action="store_true",
                        help="dcgan-64 at batch 128, each architecture in one precision")
    parser.add_argument("--workers", type=int, default=2, help="processes that compile (default: 2)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "aot.csv", help="default: build/aot.csv")
    parser.add_argument("--update", action="store_true",
                        help="if all gates pass, write the baseline, docs/results/aot.csv")
    return parser


if __name__ == "__main__":
    sys.exit(run(parser().parse_args()))
