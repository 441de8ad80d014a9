"""results.csv: each line is a measured value or a fact, appended and flushed to the disk as soon as it is known."""

from __future__ import annotations

import csv
import io
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

RESERVE = "reserve.bin"  # a file that is deleted to free space when the disk is full


class Row(NamedTuple):
    """part, name, engine, precision, batch: what was examined. quantity, value, unit: the result.

    result: "ok", "wrong", "failed", "crashed", "hung", "not run", or "fact" for values that are not checked.
    """

    part: str
    name: str = ""
    engine: str = ""
    precision: str = ""
    batch: str = ""
    quantity: str = ""
    value: str = ""
    unit: str = ""
    result: str = "ok"
    note: str = ""


HEAD = Row(*Row._fields)
BAD = ("wrong", "failed", "crashed", "hung")


def append(path: Path, row: Row) -> None:
    """Add a row. If the disk is full, the reserve is deleted; if there is still no space, the row is printed."""
    line = _line(row)
    try:
        _write(path, line)
    except OSError as error:
        with suppress(OSError):
            (path.parent / RESERVE).unlink()
        try:
            _write(path, line)
        except OSError:
            print(f"results.csv cannot be written ({error}): {line}", flush=True)


def read(path: Path) -> list[Row]:
    """All complete rows. Of rows with the same key, the last is returned, in the place of the first."""
    text = path.read_text(errors="replace") if path.exists() else ""
    found: dict[tuple[str, ...], Row] = {}
    for cells in csv.reader(io.StringIO(text.replace("\0", ""))):
        if len(cells) == len(Row._fields) and cells != list(HEAD):
            found[tuple(cells[:6])] = Row(*cells)
    return list(found.values())


def _line(row: Row) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow([" ".join(str(cell).split())[:500] for cell in row])
    return line.getvalue()


def _write(path: Path, line: str) -> None:
    """Write a line in one call, so that lines of several processes do not mix. An incomplete last line is ended first.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        before = "" if size and os.pread(descriptor, 1, size - 1) == b"\n" else "\n" if size else _line(HEAD)
        data = (before + line).encode()
        if os.write(descriptor, data) != len(data):
            raise OSError("no space for a whole line")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
