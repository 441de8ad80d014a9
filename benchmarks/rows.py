"""What was measured on a GPU, as rows: a CSV file to keep, and tables to read."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Row(NamedTuple):
    """A contender at a batch size; where there is a reason, there are no numbers.

    ms, ms_p90: of one step, median and 90th percentile of the rounds. ratio: times as fast as `against`, the median of
    the ratios within a round. peak_mb: MB (2^20 bytes).
    """

    batch: int
    contender: str
    precision: str
    against: str
    ms: float = 0.0
    ms_p90: float = 0.0
    images_per_s: float = 0.0
    ratio: float = 0.0
    peak_mb: float = 0.0
    rounds: int = 0
    steps: int = 0
    reason: str = ""


def write(path: Path, rows: Iterable[Row]) -> None:
    """Append; with the names of the columns where the file is new."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(Row._fields)
        writer.writerows([f"{value:.6g}" if isinstance(value, float) else value for value in row] for row in rows)


def read(path: Path) -> list[Row]:
    kinds: list[type] = [int, str, str, str, float, float, float, float, float, int, int, str]
    with path.open(newline="") as file:
        return [Row(*(kind(row[name]) for kind, name in zip(kinds, Row._fields, strict=True)))
                for row in csv.DictReader(file)]


def tables(rows: list[Row]) -> str:
    """Markdown, a table for each batch size."""
    return "\n".join(table([row for row in rows if row.batch == batch])
                     for batch in dict.fromkeys(row.batch for row in rows))


def table(rows: list[Row]) -> str:
    """Markdown, of rows of one batch size."""
    measured = [row for row in rows if not row.reason]
    rounds = f"{measured[0].rounds} interleaved rounds of {measured[0].steps} steps" if measured else "nothing"
    return "\n".join([f"Batch {rows[0].batch}: median of {rounds}.", "",
                      "| step | ms | p90 | img/s | against the textbook in its precision | peak MB |",
                      "|---|---|---|---|---|---|", *map(_line, rows)]) + "\n"


def _line(row: Row) -> str:
    if row.reason:
        return f"| {row.contender} | {row.reason.replace('|', '/')} | | | | |"
    ratio = f"{row.ratio:.2f} x as fast ({row.precision})" if row.ratio else "it was not measured"
    return (f"| {row.contender} | {row.ms:.2f} | {row.ms_p90:.2f} | {row.images_per_s:,.0f} | {ratio} | "
            f"{row.peak_mb:.0f} |")
