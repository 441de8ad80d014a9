"""Results as rows of one CSV, to which every run appends.

Times are milliseconds of one call (a pass, a step, a start), peak memory is MB (2^20 bytes), "% of limit" is the
limit's time over p50. A row with an error has no numbers. Rows of one run have the same date.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from fastgan.errors import FastganError
from fastgan.files import reason

NAME = "bench.csv"
COLUMNS = ("commit", "date", "device", "driver", "torch", "triton", "workload", "contender", "precision", "batch",
           "p20", "p50", "p80", "img/s", "GB/s", "TFLOP/s", "% of limit", "peak memory", "error")


@dataclass(frozen=True)
class Row:
    """A line of the CSV: fields in the order of `COLUMNS`, None where nothing was measured."""

    commit: str
    date: str
    device: str
    driver: str
    torch: str
    triton: str
    workload: str
    contender: str
    precision: str
    batch: int
    p20: float | None = None
    p50: float | None = None
    p80: float | None = None
    images_per_s: float | None = None
    gb_per_s: float | None = None
    tflop_per_s: float | None = None
    of_limit: float | None = None
    peak_mb: float | None = None
    error: str = ""

    def timed(self, seconds: Sequence[float], images: int, flops: float | None, moved: float | None,
              limit: float | None) -> Row:
        """With the numbers of calls that took so many seconds, on `images` each; flops and bytes of a call, if known.

        limit: seconds below which the device cannot do it, if known.
        """
        p20, p50, p80 = (percentile(seconds, share) for share in (0.2, 0.5, 0.8))
        return replace(self, p20=p20 * 1e3, p50=p50 * 1e3, p80=p80 * 1e3, images_per_s=images / p50 if images else None,
                       gb_per_s=None if moved is None else moved / p50 / 1e9,
                       tflop_per_s=None if flops is None else flops / p50 / 1e12,
                       of_limit=None if limit is None else 100 * limit / p50)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed; the median of an even number is between two."""
    ordered = sorted(values)
    if share == 0.5 and len(ordered) % 2 == 0:
        return (ordered[len(ordered) // 2 - 1] + ordered[len(ordered) // 2]) / 2
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def check(folder: Path) -> Path:
    """The CSV in `folder`, which is made if need be. Raises `FastganError` where nothing can be appended to it."""
    path = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _check_columns(path)
        with path.open("a", newline="") as file:
            if file.tell() == 0:
                csv.writer(file).writerow(COLUMNS)
    except OSError as error:
        raise FastganError(f"--out {folder}: cannot write there: {reason(error)}") from error
    return path


def append(path: Path, rows: Sequence[Row]) -> None:
    """Add rows, and see to it that they are on the disk."""
    with path.open("a", newline="") as file:
        csv.writer(file).writerows([_text(getattr(row, field.name)) for field in fields(row)] for row in rows)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[Row]:
    """All rows. Raises `FastganError` for a file that is none, or of another version."""
    try:
        _check_columns(path)
        with path.open(newline="") as file:
            return [_row(line) for line in list(csv.reader(file))[1:]]
    except (OSError, ValueError) as error:
        if isinstance(error, FastganError):
            raise
        raise FastganError(f"cannot read {path}: {error}") from error


def latest(rows: Sequence[Row]) -> list[Row]:
    """Of each device, workload and batch, the rows of the last run: only these were measured in turns."""
    last = {(row.device, row.workload, row.batch): row.date for row in sorted(rows, key=lambda row: row.date)}
    return [row for row in rows if last[row.device, row.workload, row.batch] == row.date]


def _check_columns(path: Path) -> None:
    with path.open(newline="") as file:
        found = tuple(next(csv.reader(file), ()))
    if found and found != COLUMNS:
        raise FastganError(f"{path} has other columns ({','.join(found)[:60]} ...): written by another version; move "
                           "it away, or give another folder")


def _text(value: object) -> object:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value


def _row(line: list[str]) -> Row:
    values: list[Any] = [*line[:9], int(line[9]), *(float(word) if word else None for word in line[10:18]), line[18]]
    return Row(*values)
