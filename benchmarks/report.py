"""Tables and plots of existing results: writes DIR/README.md and DIR/*.png from DIR/bench.csv.

    python -m benchmarks.report DIR
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from benchmarks import results
from benchmarks.results import Row
from fastgan.errors import FastganError
from fastgan.files import replacing

OURS = ("fastgan", "+ fastgan")  # prefixes of the names of our implementations
NOTE = ("Times are medians of interleaved rounds. TFLOP/s count the operations that a step needs, the same for all. "
        "Peaks are those of live tensors on a CPU, of PyTorch's allocator on a GPU.\n")


class Group:
    """Rows that were measured in turns: those of one device, workload and batch, in one run."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = list(rows)
        self.device, self.workload, self.batch = rows[0].device, rows[0].workload, rows[0].batch
        self.suite, _, self.what = self.workload.partition("/")
        self.timed = [row for row in rows if row.p50]

    @property
    def base(self) -> Row | None:
        """The first row, the baseline of the others."""
        return self.rows[0] if self.rows[0].p50 else None

    @property
    def best_of_pytorch(self) -> Row | None:
        return min((row for row in self.timed if not row.implementation.startswith(OURS)),
                   key=lambda row: row.p50 or 0.0, default=None)


def groups(rows: Sequence[Row]) -> list[Group]:
    """By device and workload in order of first appearance; batches ascend."""
    def key(row: Row) -> tuple[str, str, int]:
        return row.device, row.workload, row.batch

    seen = list(dict.fromkeys((row.device, row.workload) for row in rows))
    ordered = sorted(rows, key=lambda row: (seen.index((row.device, row.workload)), row.batch))
    return [Group(list(part)) for _, part in groupby(ordered, key)]


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """Markdown: the device and versions, then a table for each group."""
    for device, of_device in groupby(groups(rows), lambda group: group.device):
        own = list(of_device)
        row, days = own[0].rows[0], sorted({group.rows[0].date[:10] for group in own})
        commits = dict.fromkeys(group.rows[0].commit[:12] for group in own)
        versions = [f"torch {row.torch}", f"Triton {row.triton}" * bool(row.triton),
                    f"driver {row.driver}" * bool(row.driver), *(f"commit {name}" for name in commits if name)]
        yield f"# {device}\n"
        yield f"Measured {' to '.join(dict.fromkeys([days[0], days[-1]]))} with {', '.join(filter(None, versions))}.\n"
        for suite, of_suite in groupby(own, lambda group: group.suite):
            yield f"## {suite}\n"
            for group in of_suite:
                yield f"**{group.what}, batch {group.batch}**\n"
                yield _table(group)


def _table(group: Group) -> str:
    """A line for each implementation; empty columns are omitted."""
    base, best = group.base, group.best_of_pytorch
    head = ["", "precision", "p50 ms", "p20 - p80", "img/s", f"x {base.implementation}" if base else "x",
            "x the best of PyTorch", "TFLOP/s", "peak MB"]
    lines = [[row.implementation, row.precision, row.error.replace("|", "/"), *[""] * 6] if row.error else
             [row.implementation, row.precision, number(row.p50), f"{number(row.p20)} - {number(row.p80)}",
              number(row.images_per_s), _ratio(base, row), _ratio(best, row), number(row.tflop_per_s),
              number(row.peak_mb)] for row in group.rows]
    filled = [i for i in range(len(head)) if i == 0 or any(line[i] for line in lines)]
    return "\n".join("| " + " | ".join(line[i] for i in filled) + " |"
                     for line in [head, ["---"] * len(head), *lines]) + "\n"


def _ratio(slower: Row | None, row: Row) -> str:
    return f"{slower.p50 / row.p50:.2f}" if slower and slower.p50 and row.p50 else ""


def number(value: float | None) -> str:
    """The number with at least three digits."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def write(folder: Path) -> list[Path]:
    """Write all files from the CSV in `folder`. Raises `FastganError` if there is none, or if it is empty."""
    from benchmarks import plots

    path = folder / results.NAME
    if not path.is_file():
        raise FastganError(f"{path}: no such file; expected the folder given to `python -m benchmarks --out`")
    rows = results.latest(results.read(path))
    if not rows:
        raise FastganError(f"{path} has no results yet; expected results of `python -m benchmarks --out {folder}`")
    pictures = list(plots.all_of(rows))
    files = {name: png for name, _, png in pictures}
    files["README.md"] = "\n".join([*tables(rows), NOTE, *(f"![{caption}]({name})\n\n*{caption}*\n"
                                                           for name, caption, _ in pictures)]).encode()
    for name, content in files.items():
        with replacing(folder / name) as stream:
            stream.write(content)
    return [folder / name for name in files]


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("bench"), help="folder with bench.csv (bench)")
    try:
        print(*write(parser.parse_args(args).folder), sep="\n")
    except FastganError as error:
        print(f"benchmarks: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
