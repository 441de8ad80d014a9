"""The parts in order, and the supervision of their jobs.

A job is a process, `python -m proofs.gpu.child`. It writes the begin and end of each item to a journal. If the process
dies or hangs, the journal shows in which item, and the process is started again without that item.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from proofs.gpu.folder import ROOT
from proofs.gpu.rows import Row, append

FIRST = 90.0  # seconds until the first item, including imports from a cold disk
LOST = 33  # exit code of a child that has lost the device and written a row about it
ENGINES = ("reference", "native", "triton")
PRECISIONS: tuple[str, ...] = ("bf16", "fp16", "tf32", "fp32")
MODES: tuple[str, ...] = ("default", "reduce-overhead")
BATCHES: tuple[str, ...] = ("64", "128", "1024")  # batch sizes of timings
CHECKED = "128"  # batch size of checks


class Job(NamedTuple):
    """kind: the name of the job's function. patience: timeout of an item in seconds. deaths: the number of lost
    processes after which the job is given up."""

    kind: str
    options: dict[str, str] = {}  # noqa: RUF012
    environment: dict[str, str] = {}  # noqa: RUF012
    patience: float = 40.0
    deaths: int = 2


class Part(NamedTuple):
    """expected: estimated seconds on an H200 with 16 cores. limit: seconds after which the part is stopped."""

    name: str
    expected: float
    limit: float
    words: str
    jobs: list[Job]


def plan(only: str | None, cores: int, commit: str = "") -> list[Part]:
    """The parts: correctness before speed, and within each half the most important first."""
    def kernels(variant: str, processes: int, **options: str) -> list[Job]:
        """Compiler processes, each for a slice of the same list."""
        return [Job("kernels", {"variant": variant, "slice": f"{number}/{processes}", **options},
                    {**_assembler(variant), "OMP_NUM_THREADS": "1"}, patience=60) for number in range(processes)]

    def passes(*precisions: str, variants: tuple[str, ...] = (*ENGINES, "triton:ptxas", "triton:stages1")) -> list[Job]:
        return [Job("passes", {"engine": variant, "precisions": " ".join(precisions)}, _assembler(variant))
                for variant in variants]

    first = [Job("facts", {"commit": commit}), Job("nvcc", patience=150)]
    some, everything = max(1, cores // 5), " ".join(PRECISIONS)
    correctness = [
        Part("prepare", 34, 45, f"facts; kernels in {cores} processes, nvcc for the one architecture", [
            *first, *kernels("triton", max(1, cores - 2 * some), precisions=everything, batches=CHECKED),
            *kernels("triton:ptxas", some, precisions="bf16", batches=CHECKED),
            *kernels("triton:stages1", some, precisions="bf16", batches=CHECKED)]),
        Part("passes", 30, 60, "each pass of each engine: float64, poisoned memory, 200 repeats, both assemblers",
             passes("bf16")),
        Part("replays", 26, 60, "10 replays compared with 10 eager steps, bf16 first", [
            Job("replays", {"engine": engine, "precisions": everything}, patience=60) for engine in ENGINES]),
    ]
    compiled = [{"mode": mode, "batch": batch} for batch in BATCHES for mode in MODES]
    speed = [
        Part("compile", 60, 85, "facts; kernels, nvcc and torch.compile at the same time",
             [*first, *kernels("triton", cores, precisions=everything, batches=" ".join(BATCHES), gemms="yes"),
              *(Job("warm", {**each}, {"TORCHINDUCTOR_COMPILE_THREADS": "2"}, patience=90, deaths=1)
                for each in compiled)]),
        Part("steps", 70, 110, f"whole steps at batch {', '.join(BATCHES)} in turns: PyTorch's loops and each engine",
             [Job("steps", {"batches": " ".join(BATCHES)}, deaths=6)]),
        Part("gemm", 15, 30, "raw operands: cuDNN, pointers at 128x128x64, tensor descriptors", [Job("gemm")]),
        Part("auto", 45, 70, "impl auto: tuning, its step as a graph, a run by Trainer",
             [Job("auto", patience=90)]),
        Part("profile", 20, 35, "torch.profiler by kernel, for each engine", [Job("profile")]),
        Part("tiles", 40, 60, "a search of tiles on the GEMMs", [Job("tiles")]),
        Part("compiled", 35, 60, "torch.compile, in turns with PyTorch's loop",
             [Job("steps", {"batches": " ".join(BATCHES), "compiled": "yes"}, patience=60, deaths=3)]),
        Part("counters", 30, 45, "ncu on the dozen heaviest kernels", [Job("counters", patience=45, deaths=1)]),
        Part("others", 30, 50, "each pass in fp16, tf32 and fp32", passes(*PRECISIONS[1:], variants=ENGINES)),
        Part("sanitizer", 25, 45, "compute-sanitizer on one small step", [Job("sanitizer", patience=45, deaths=1)]),
    ]
    return correctness if only == "correctness" else speed if only == "speed" else [*correctness, *speed]


def _assembler(variant: str) -> dict[str, str]:
    """Environment variables with which Triton uses PyTorch's ptxas, for that variant."""
    return {"FASTGAN_PTXAS": "torch"} if variant.endswith(":ptxas") else {}


def supervise(job: Job, part: str, number: int, path: Path, work: Path, deadline: float) -> None:
    """Run a job until it is done, is given up, or its time is over; write rows about failures of its process."""
    name, journal = f"{part}-{number}", work / f"{part}-{number}.journal"
    command = [sys.executable, "-m", "proofs.gpu.child", job.kind, part, str(path), str(journal),
               *(f"{key}={value}" for key, value in job.options.items())]
    environment = {
        "TRITON_CACHE_DIR": str(work / "triton"), "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"), **os.environ,
        **job.environment, "FASTGAN_CACHE": str(work / "cache"), "TRITON_INTERPRET": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT)))), "PYTHONUNBUFFERED": "1"}

    def tell(item: str, result: str, note: str) -> None:
        row = Row(part, item or job.kind, job.options.get("engine", ""), result=result, note=note)
        append(path, row)

    for death in range(1, job.deaths + 1):
        try:
            with (work / f"{name}.log").open("ab") as log:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                           cwd=ROOT, env=environment, start_new_session=True)
        except OSError as error:
            return tell("", "failed", f"cannot be started: {error}")
        why = _wait(process, journal, deadline, job.patience)
        if process.returncode == 0 and not why:
            return None
        item = running(journal)
        if why == "late":
            return tell(item, "not run", "stopped at the limit of its part")
        if process.returncode != LOST:
            tell(item, *_meaning(process.returncode, why, work / f"{name}.log"))
            if not item:  # it failed outside of items, and would fail again
                return None
            _mark(journal, "bad", item)
        if death == job.deaths:
            tell("", "not run", f"what was left, after {death} lost process{'es' * (death > 1)}")
    return None


def _wait(process: subprocess.Popen[bytes], journal: Path, deadline: float, patience: float) -> str:
    """The reason why the process was killed, "late" or "hung"; "" if it ended by itself. Its children are killed too.
    """
    begun, why, allowed = time.monotonic(), "", max(patience, FIRST)
    seen = journal.stat().st_mtime_ns if journal.exists() else 0
    try:
        while process.poll() is None and not why:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
            with suppress(FileNotFoundError):
                if journal.stat().st_mtime_ns != seen:
                    seen, begun, allowed = journal.stat().st_mtime_ns, time.monotonic(), patience
            if process.poll() is None and time.monotonic() > deadline:
                why = "late"
            elif process.poll() is None and time.monotonic() - begun > allowed:
                why = "hung"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return why


def _meaning(code: int, why: str, log: Path) -> tuple[str, str]:
    """(result, note)"""
    if why == "hung":
        return "hung", "killed, because it made no progress"
    if code < 0:
        return "crashed", signal.Signals(-code).name
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return "failed", f"exit code {code}: {lines[-1] if lines else ''}"


def marks(journal: Path) -> Iterator[tuple[str, str]]:
    """(mark, item), in order; marks are begin, end and bad."""
    text = journal.read_text(errors="replace") if journal.exists() else ""
    for line in text.splitlines():
        mark, _, item = line.partition(" ")
        yield mark, item


def running(journal: Path) -> str:
    """The item that was begun and not ended; "" if there is none."""
    open_items: dict[str, None] = {}
    for mark, item in marks(journal):
        if mark == "begin":
            open_items[item] = None
        else:
            open_items.pop(item, None)
    return next(reversed(open_items), "")


def _mark(journal: Path, mark: str, item: str) -> None:
    with suppress(OSError), journal.open("a") as file:
        file.write(f"{mark} {item}\n")


def progress(part: str, work: Path) -> str:
    """The progress of a part as text."""
    found = [mark for path in work.glob(f"{part}-*.journal") for mark, _ in marks(path)]
    return f"{found.count('end')} items done" + (f", {found.count('bad')} bad" if "bad" in found else "")
