"""Results of torch.profiler, ncu and compute-sanitizer for the kernels of a step."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from functools import partial

import torch

from proofs.gpu import library
from proofs.gpu.child import Worker
from proofs.gpu.folder import CSV
from proofs.gpu.rows import read

BATCH = 128
CHECKED = 8  # batch size under compute-sanitizer, which is slow
SHOWN = 15  # kernels of an engine
HEAVIEST = 12
COUNTERS = ("Duration", "Compute (SM) Throughput", "Memory Throughput", "DRAM Throughput", "L2 Cache Throughput",
            "Registers Per Thread", "Achieved Occupancy", "Theoretical Occupancy")


def profile(worker: Worker) -> None:
    """Device time by kernel, for eager steps of each engine."""
    worker.each([(engine, partial(_profile, worker, engine)) for engine in library.engines()])


def _profile(worker: Worker, engine: str, count: int = 5) -> None:
    from torch.profiler import ProfilerActivity

    step, real = library.step(engine, "bf16", BATCH), library.images(BATCH, 0)
    for _ in range(2):
        step(real)
    library.cuda.synchronize()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (library.DEVICE.type == "cuda")
    with torch.profiler.profile(activities=activities) as profiled:
        for _ in range(count):
            step(real)
        library.cuda.synchronize()
    events = [(event.self_device_time_total if library.DEVICE.type == "cuda" else event.self_cpu_time_total, event)
              for event in profiled.key_averages()]
    events = sorted((pair for pair in events if pair[0]), key=lambda pair: -pair[0])
    key = {"engine": engine, "precision": "bf16", "batch": str(BATCH), "result": "fact"}
    worker.row("all kernels", "of a step", sum(took for took, _ in events) / count, "us", **key)
    for took, event in events[:SHOWN]:
        worker.row(event.key[:160], "of a step", took / count, "us", **key, note=f"{event.count / count:g} launches")
    (worker.work / f"profile-{engine}.txt").write_text("".join(
        f"{took / count:12.2f} us  {event.count / count:6g} x  {event.key}\n" for took, event in events))


def once(worker: Worker) -> None:
    """Two steps of an engine; the second is marked for ncu."""
    step = library.step(worker.options["engine"], "bf16", int(worker.options["batch"]))
    real = library.images(int(worker.options["batch"]), 0)
    step(real)
    library.cuda.synchronize()
    library.cuda.profiler.start()
    step(real)
    library.cuda.synchronize()
    library.cuda.profiler.stop()


def _once(worker: Worker, engine: str, batch: int) -> list[str]:
    return [sys.executable, "-m", "proofs.gpu.child", "once", worker.part, str(worker.path),
            str(worker.work / "once.journal"), f"engine={engine}", f"batch={batch}"]


def counters(worker: Worker) -> None:
    """Run ncu on the kernels of Triton's engine that take the most time according to `profile`."""
    if not shutil.which("ncu"):
        worker.row("ncu", result="not run", note="no ncu here")
        return
    engine = library.engines()[-1]
    worker.each([("ncu", partial(_count, worker, engine))], engine=engine)


def _count(worker: Worker, engine: str) -> None:
    heaviest = [row.name for row in read(worker.out / CSV) if row.part == "profile" and row.engine == engine][1:]
    names = dict.fromkeys(name for name in heaviest[:HEAVIEST] if name.isidentifier())  # other names are C++ templates
    chosen = ["--kernel-name", "regex:^(" + "|".join(names) + ")$"] if names else []
    done = subprocess.run(
        ["ncu", "--clock-control", "none", "--profile-from-start", "off", "--set", "basic", "--csv", "--page",
         "details", *chosen, "--launch-count", "60", *_once(worker, engine, BATCH)], capture_output=True, text=True)
    (worker.work / "ncu.csv").write_text(done.stdout)
    print(done.stderr[-4000:])
    lines = done.stdout.splitlines()
    head = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if head is None:
        raise RuntimeError(f"ncu: exit code {done.returncode}: {' '.join((done.stdout + done.stderr).split())[-300:]}")
    for line in csv.DictReader(lines[head:]):
        if line.get("Metric Name") in COUNTERS:
            worker.row(f"{line['ID']} {line['Kernel Name']} {line.get('Grid Size', '')}", line["Metric Name"],
                       line["Metric Value"], line["Metric Unit"], engine=engine, batch=str(BATCH), result="fact")


def sanitizer(worker: Worker) -> None:
    """Run compute-sanitizer's memcheck on two small steps of each engine, Triton's first."""
    if not shutil.which("compute-sanitizer"):
        worker.row("memcheck", result="not run", note="no compute-sanitizer here")
        return
    worker.each([(engine, partial(_memcheck, worker, engine)) for engine in reversed(library.engines()[1:])])


def _memcheck(worker: Worker, engine: str) -> None:
    apart = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # so that each tensor is a separate allocation
    done = subprocess.run(["compute-sanitizer", "--tool", "memcheck", "--target-processes", "all",
                           *_once(worker, engine, CHECKED)], capture_output=True, text=True, env=apart)
    text = done.stdout + done.stderr
    (worker.work / f"memcheck-{engine}.txt").write_text(text[-200_000:])
    summary = next((line.strip("= ") for line in reversed(text.splitlines()) if "ERROR SUMMARY" in line), "")
    if not summary:
        raise RuntimeError(f"compute-sanitizer: exit code {done.returncode}: {' '.join(text.split())[-300:]}")
    worker.row("memcheck", summary, engine=engine, batch=str(CHECKED),
               result="ok" if " 0 errors" in summary else "wrong")
