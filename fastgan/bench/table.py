"""Results as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from fastgan.bench import ablation
from fastgan.bench.results import Row

# images per second that a preset's document prints, of a device that it does not name: (source, batch, images/s)
PUBLISHED = {"d2l-dcgan-pokemon": ("Dive into Deep Learning, section 17.2", 256, 2466.6)}
OURS = ("fastgan", "+ fastgan")


class Group:
    """Rows that were measured in turns: of one device, workload and batch, in one run."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = list(rows)
        self.device, self.workload, self.batch = rows[0].device, rows[0].workload, rows[0].batch
        self.suite, _, self.what = self.workload.partition("/")
        self.timed = [row for row in rows if row.p50]

    @property
    def base(self) -> Row | None:
        """Whom the others are compared with: the first."""
        return self.rows[0] if self.rows[0].p50 else None

    @property
    def rival(self) -> Row | None:
        """The fastest of those that are not ours."""
        return min((row for row in self.timed if not row.contender.startswith(OURS)), key=lambda row: row.p50 or 0.0,
                   default=None)


def groups(rows: Sequence[Row]) -> list[Group]:
    """By device, suite and workload, in order of first appearance; batches ascend."""
    def key(row: Row) -> tuple[str, str, int]:
        return row.device, row.workload, row.batch

    seen = list(dict.fromkeys((row.device, row.workload) for row in rows))
    ordered = sorted(rows, key=lambda row: (seen.index((row.device, row.workload)), row.batch))
    return [Group(list(part)) for _, part in groupby(ordered, key)]


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """A table for each group, with what it was made with above; suites of many small workloads share one."""
    found = groups(rows)
    for device in dict.fromkeys(group.device for group in found):
        own = [group for group in found if group.device == device]
        yield from _made_with(own)
        for suite in dict.fromkeys(group.suite for group in own):
            yield f"## {suite}\n"
            of_suite = [group for group in own if group.suite == suite]
            if suite in ("operations", "stages"):
                yield from _side_by_side(of_suite)
            else:
                for group in of_suite:
                    yield from whole(group)
            yield from checks(of_suite)


def _made_with(own: list[Group]) -> Iterator[str]:
    row = own[0].rows[0]
    facts = [f"torch {row.torch}", f"Triton {row.triton}" if row.triton else "", f"driver {row.driver}" if row.driver
             else "", *(f"commit {name[:12]}" for name in dict.fromkeys(one.rows[0].commit for one in own) if name)]
    days = sorted({group.rows[0].date[:10] for group in own})
    yield f"# {row.device}\n"
    yield f"Measured {' to '.join(dict.fromkeys([days[0], days[-1]]))} with {', '.join(filter(None, facts))}.\n"


def whole(group: Group) -> Iterator[str]:
    """A line for each contender, and one for what others have published."""
    base, rival = group.base, group.rival
    yield f"**{group.what}, batch {group.batch}**\n"
    head = ["", "precision", "p50 ms", "p20 - p80", "img/s", f"x {base.contender}" if base else "x",
            "x the best of PyTorch", "TFLOP/s", "% of limit", "peak MB"]
    lines = [_line(row, base, rival) for row in group.rows]
    source, batch, speed = PUBLISHED.get(group.what, ("", 0, 0.0))
    if source and batch == group.batch:
        lines.append([f"*published: {source}; its device is not named*", "", "", "", f"*{speed:.1f}*", *[""] * 5])
    yield from _table(head, lines)


def _line(row: Row, base: Row | None, rival: Row | None) -> list[str]:
    if row.error:
        return [row.contender, row.precision, row.error, *[""] * 7]
    spread = f"{_number(row.p20)} - {_number(row.p80)}" if row.p50 else ""
    return [row.contender, row.precision, _number(row.p50), spread,
            _number(row.images_per_s), _ratio(base, row), _ratio(rival, row), _number(row.tflop_per_s),
            _number(row.of_limit), _number(row.peak_mb)]


def _side_by_side(found: list[Group]) -> Iterator[str]:
    """A line for each workload, a column for each contender, the fastest in bold."""
    for (what, batch), part in groupby(found, lambda group: (group.what.partition("/")[0], group.batch)):
        own = list(part)
        names = list(dict.fromkeys(row.contender for group in own for row in group.rows))
        yield f"**{what}, batch {batch}**, p50 in ms; TFLOP/s of the fastest\n"
        lines = []
        for group in own:
            best = min(group.timed, key=lambda row: row.p50 or 0.0, default=None)
            cells = {row.contender: _number(row.p50) if row.p50 else "wrong" if "wrong" in row.error else "failed"
                     for row in group.rows}
            if best:
                cells[best.contender] = f"**{cells[best.contender]}**"
            lines.append([group.what.partition("/")[2], *(cells.get(name, "") for name in names),
                          _number(best.tflop_per_s) if best else ""])
        yield from _table(["", *names, "TFLOP/s"], lines)
        yield from _errors(own)


def _errors(found: list[Group]) -> Iterator[str]:
    wrong = [[group.what.partition("/")[2], row.contender, row.error] for group in found for row in group.rows
             if row.error]
    if wrong:
        yield from _table(["not timed", "", "why"], wrong)


def checks(found: Sequence[Group]) -> Iterator[str]:
    """Whether each ablation accounts for the whole gain; in red where it does not."""
    for group, made in ablations(found):
        mark = "✅" if made.closes else "🔴"
        yield f"{mark} {group.what}, batch {group.batch}: the ablation {made.verdict}.\n"


def ablations(found: Sequence[Group]) -> list[tuple[Group, ablation.Ablation]]:
    """Of those groups that hold one."""
    ends = {(group.device, group.what, group.batch): group.rows for group in found}
    made = [(group, ablation.of(group.rows, ends.get((group.device, f"{group.what}/total", group.batch), [])))
            for group in found if group.suite == "ablation" and not group.what.endswith("/total")]
    return [(group, one) for group, one in made if one is not None]


def _ratio(slower: Row | None, row: Row) -> str:
    return f"{slower.p50 / row.p50:.2f}" if slower and slower.p50 and row.p50 else ""


def _number(value: float | None) -> str:
    """Three digits or more."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def _table(head: list[str], lines: list[list[str]]) -> Iterator[str]:
    """Without the columns that nobody fills."""
    filled = [i for i in range(len(head)) if i == 0 or any(line[i] for line in lines)]
    rows = [head, ["---"] * len(head), *lines]
    yield "\n".join("| " + " | ".join(line[i].replace("|", "/").replace("\n", " ") for i in filled) + " |"
                    for line in rows) + "\n"
