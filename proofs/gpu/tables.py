"""The GPU tables of README.md and docs: python -m proofs.gpu.tables

Writes the results in docs/results/gpu, or a note that there are none, between the markers `<!-- gpu:begin -->` and
`<!-- gpu:end -->`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from proofs.gpu.folder import CSV, README, RESULTS, ROOT, table
from proofs.gpu.rows import Row, read

PAGES = (ROOT / "README.md", ROOT / "docs" / "performance.md")
NOTHING = "**No measurements on a GPU are available yet.**"
BEGIN, END = "<!-- gpu:begin -->", "<!-- gpu:end -->"


def update(pages: tuple[Path, ...] = PAGES, results: Path = RESULTS) -> None:
    """Replace the text between the markers of each page."""
    for page in pages:
        text = "\n".join(lines(results, page.parent))
        before, begin, rest = page.read_text().partition(BEGIN)
        _, end, after = rest.partition(END)
        if begin and end:
            page.write_text(f"{before}{begin}\n{text.rstrip() or NOTHING}\n{end}{after}")


def lines(results: Path, place: Path) -> Iterator[str]:
    """For each folder of results, newest last: step times by implementation and batch size, and the number of correct
    passes. place: the folder of the page, for links."""
    for path in sorted(results.glob(f"*/{CSV}"), key=lambda path: path.parent.name[-10:]):
        rows = read(path)
        facts = {row.name: row.note for row in rows if row.part == "facts"}
        yield (f"{facts.get('device')}, {facts.get('date')}, torch {facts.get('torch')}, Triton {facts.get('triton')}, "
               f"commit {facts.get('commit', '')[:10]}: milliseconds of a D+G step of dcgan-64, by batch size; "
               f"`python -m proofs.gpu`, [all rows]({Path(os.path.relpath(path.parent / README, place)).as_posix()})\n")
        yield from _steps(rows)
        yield from table(["passes within the allowed error of float64", "precision", "right"], [
            [engine, precision, f"{right} of {of}"] for (engine, precision), (right, of) in _right(rows).items()])


def _steps(rows: list[Row]) -> Iterator[str]:
    found = {(row.name, row.batch): row for row in rows if row.quantity == "step" and row.note.startswith("median")}
    wrong = {row.name for row in rows if row.part == "steps" and row.result == "wrong"}
    batches = sorted({batch for _, batch in found}, key=int)
    yield from table(["", *batches], [
        [name + (" (wrong)" if name in wrong else ""),
         *(f"{float(found[name, batch].value):.3g}" if (name, batch) in found else "" for batch in batches)]
        for name in dict.fromkeys(name for name, _ in found)])


def _right(rows: list[Row]) -> dict[tuple[str, str], tuple[int, int]]:
    """The number of correct passes, and of all passes, for each engine and precision."""
    counted: dict[tuple[str, str], tuple[int, int]] = {}
    for row in rows:
        if row.part in ("passes", "others") and row.quantity == "of the allowed error":
            right, of = counted.get((row.engine, row.precision), (0, 0))
            counted[row.engine, row.precision] = right + (row.result == "ok"), of + 1
    return counted


if __name__ == "__main__":
    update()
