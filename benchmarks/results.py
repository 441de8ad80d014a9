"""Results as rows of one CSV, to which every run appends.

p20, p50 and p80 are milliseconds of one call, peak_mb is MB (2^20 bytes). A row with an error has no numbers. Rows of
one run have the same date.
"""

from __future__ import annotations

import csv
import datetime
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastgan.errors import FastganError
from fastgan.files import reason
from fastgan.ops.tuning import stored
from fastgan.verify import machine

if TYPE_CHECKING:
    from benchmarks.implementation import Implementation
    from benchmarks.run import Timings
    from benchmarks.workload import Workload

NAME = "bench.csv"


@dataclass(frozen=True)
class Row:
    """A line of the CSV, whose columns are these fields; None for values that were not measured."""

    commit: str
    date: str
    device: str
    driver: str
    torch: str
    triton: str
    workload: str
    implementation: str
    precision: str
    batch: int
    p20: float | None = None
    p50: float | None = None
    p80: float | None = None
    images_per_s: float | None = None
    tflop_per_s: float | None = None
    peak_mb: float | None = None
    error: str = ""

    @classmethod
    def of(cls, facts: dict[str, str], workload: Workload, implementation: Implementation, timings: Timings,
           flops: float | None) -> Row:
        """A row from measurements. facts: from `facts`. flops: of a call."""
        values: dict[str, Any] = dict(facts)
        if timings.seconds:
            p20, p50, p80 = (float(value) for value in np.percentile(timings.seconds, (20, 50, 80)))
            values |= {"p20": 1e3 * p20, "p50": 1e3 * p50, "p80": 1e3 * p80, "images_per_s": timings.images / p50,
                       "tflop_per_s": None if flops is None else flops / p50 / 1e12}
        return cls(**values, workload=workload.name, implementation=implementation.name,
                   precision=implementation.precision, batch=workload.batch, peak_mb=timings.peak_mb,
                   error=timings.error)


COLUMNS = [field.name for field in fields(Row)]
NUMBERS = [field.name for field in fields(Row) if "float" in field.type]


def facts(device: torch.device) -> dict[str, str]:
    """The common values of all rows of a run: commit, date, device, versions."""
    known, versions = stored.machine(device), machine.versions()
    name = known["device"]
    if device.type == "cpu":
        name += f", {known['threads']} threads, {known['instructions']}"
    return {"commit": machine.commit() or "", "device": name,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "driver": (machine.driver() or "") if device.type == "cuda" else "",
            "torch": str(versions["torch"]), "triton": versions["triton"] or ""}


def prepare(folder: Path) -> Path:
    """The CSV in `folder`; both are created. Raises `FastganError` if nothing can be appended to it."""
    path = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("a", newline="") as file:
            if file.tell() == 0:
                csv.writer(file).writerow(COLUMNS)
        read(path)
    except OSError as error:
        raise FastganError(f"--out {folder}: cannot write there: {reason(error)}") from error
    return path


def append(path: Path, rows: Sequence[Row]) -> None:
    """Add rows, and flush them to the disk."""
    with path.open("a", newline="") as file:
        csv.DictWriter(file, COLUMNS).writerows(
            {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in asdict(row).items()}
            for row in rows)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[Row]:
    """All rows. Raises `FastganError` for other files, and for results of another version."""
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames != COLUMNS:
                raise FastganError(f"{path} has other columns ({','.join(reader.fieldnames or [])[:60]} ...): written "
                                   "by another version; move it away, or give another folder")
            return [_row(line) for line in reader]
    except (OSError, TypeError, ValueError) as error:
        if isinstance(error, FastganError):
            raise
        raise FastganError(f"cannot read {path}: {error}") from error


def _row(line: dict[str, Any]) -> Row:
    numbers = {name: float(line[name]) if line[name] else None for name in NUMBERS}
    return Row(**{**line, **numbers, "batch": int(line["batch"])})


def latest(rows: Sequence[Row]) -> list[Row]:
    """The rows of the last run for each device, workload and batch: only these were measured in turns."""
    last = {(row.device, row.workload, row.batch): row.date for row in sorted(rows, key=lambda row: row.date)}
    return [row for row in rows if last[row.device, row.workload, row.batch] == row.date]
