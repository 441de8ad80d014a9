"""results.csv: one measured value, or one fact, a line; appended and flushed to the disk as soon as it is known."""

from __future__ import annotations

import csv
import io
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

RESERVE = "reserve.bin"  # space beside a file that is given up when the disk is full


class Row(NamedTuple):
    """part, name, engine, precision, batch: what was examined. quantity, value, unit: what was found.

    result: "ok", "wrong", "failed", "crashed", "hung", "not run", or "fact" for what is neither right nor wrong.
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
    """Add a row. Where the disk is full the reserve makes room; where there is none left the row is printed."""
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
    """All complete rows; of several with the same key the last, in the place of the first."""
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
    """In one call, so that lines of several processes do not mix; behind a line that was broken off, on a new one."""
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
