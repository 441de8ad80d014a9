"""Checks and measurements on a GPU within a quarter of an hour, written to a folder of at most 8 files.

    python -m proofs.gpu --seconds 100 --only correctness --out DIR
    python -m proofs.gpu --seconds 380 --only speed --out DIR
    python -m proofs.gpu --dry-run                      the parts with their expected seconds
    python -m proofs.gpu --import results.tar           fill docs/results/gpu/DEVICE-DATE, and the tables of the docs

This needs PyTorch and installs nothing; nvcc, pybind11, ninja, ncu and compute-sanitizer are used if they are
available. Each job of a part is a process. If it crashes, hangs or loses the device, its current item fails; the second
time, its remaining items are not run. Each row is written to disk when it is measured, and to the tar within a second.

The exit code is 0, 1 if anything was wrong, failed, crashed or hung, or 2 for invalid arguments.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from importlib import import_module
from pathlib import Path

from proofs.gpu import folder, jobs, tables
from proofs.gpu.jobs import Part
from proofs.gpu.rows import BAD, Row, append, read

CLOSING = 3.0  # seconds reserved for the end


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m proofs.gpu", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=480.0, help="time limit of the whole command (480)")
    parser.add_argument("--only", choices=("correctness", "speed"), help="the first half of the parts, or the second")
    parser.add_argument("--out", type=Path, help="folder of the results; those of an earlier call are continued")
    parser.add_argument("--commit", default="", help="commit of the code, if there is no git")
    parser.add_argument("--dry-run", action="store_true", help="print the timeline and exit")
    parser.add_argument("--import", dest="tars", type=Path, nargs="+", metavar="FILE", default=[])
    options = parser.parse_args(arguments)
    if stand_in := os.environ.get("FASTGAN_STAND_IN"):  # a rehearsal
        import_module(stand_in).install()
    parts = jobs.plan(options.only, os.cpu_count() or 1, options.commit)
    if options.dry_run:
        print("\n".join(timeline(parts)))
        return 0
    if options.tars:
        for tar in options.tars:
            print(folder.bring_in(tar))
        tables.update()
        return 0
    if options.out is None:
        parser.error("--out DIR is needed, or --dry-run, or --import FILE")
    with tempfile.TemporaryDirectory(prefix="fastgan-gpu-", ignore_cleanup_errors=True) as work:
        return examine(parts, options.out.resolve(), Path(work), options.seconds)


def timeline(parts: list[Part]) -> list[str]:
    """The expected start and duration of each part, and the sum."""
    lines, at = [], 0.0
    for part in parts:
        lines.append(f"{at:5.0f} s  {part.name:12} {part.expected:4.0f} s, at most {part.limit:3.0f} s   {part.words}")
        at += part.expected
    return [*lines, f"{at:5.0f} s  in all"]


def examine(parts: list[Part], out: Path, work: Path, seconds: float) -> int:
    """Run the parts one after another. A part for which no time is left is not run, which a row reports."""
    end = time.monotonic() + seconds - CLOSING
    folder.prepare(out, work)
    path = out / folder.CSV
    for part in parts:
        limit = min(part.limit, end - time.monotonic())
        if limit < part.expected / 3:
            append(path, Row("parts", part.name, result="not run", note="no time was left"))
            continue
        begin = time.monotonic()
        _run(part, out, work, begin + limit)
        if part.name == "passes":
            _compare_bits(path)
        append(path, Row("parts", part.name, quantity="took", value=f"{time.monotonic() - begin:.1f}", unit="s",
                         result="fact", note=f"expected {part.expected:.0f} s"))
        folder.renew(out, work)
    folder.finish(out, work)
    bad = [row for row in read(path) if row.result in BAD]
    print(f"{len(read(path))} rows, {len(bad)} of them bad; {out / folder.README}")
    return 1 if bad else 0


def _compare_bits(path: Path) -> None:
    """Compare the bits of the results of the Triton engine's variants with those of the engine."""
    bits = {(row.name, row.precision, row.engine): row.value for row in read(path)
            if row.part == "passes" and row.quantity == "bits"}
    for (name, precision, engine), value in bits.items():
        own = bits.get((name, precision, "triton"))
        if engine.startswith("triton:") and own is not None:
            append(path, Row("passes", name, engine, precision, quantity="same bits as triton",
                             value="yes" if value == own else "no", result="ok" if value == own else "wrong"))


def _run(part: Part, out: Path, work: Path, deadline: float) -> None:
    """Run all jobs of a part at once, and meanwhile update the tar and print progress."""
    print(f"{part.name} (at most {deadline - time.monotonic():.0f} s): {part.words}", flush=True)
    threads = [threading.Thread(target=jobs.supervise, args=(job, part.name, number, out / folder.CSV, work, deadline),
                                daemon=True)
               for number, job in enumerate(part.jobs)]
    for thread in threads:
        thread.start()
    told = renewed = time.monotonic()
    size = -1
    while any(thread.is_alive() for thread in threads):
        threads[0].join(0.1) if len(threads) == 1 else time.sleep(0.1)
        now, path = time.monotonic(), out / folder.CSV
        if now - renewed > 1 and path.exists() and path.stat().st_size != size:
            size = path.stat().st_size
            folder.renew(out, work)
            renewed = time.monotonic()
        if now - told > 5:
            print(f"    {part.name}: {jobs.progress(part.name, work)}", flush=True)
            told = now
    print(f"    {part.name}: {jobs.progress(part.name, work)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
