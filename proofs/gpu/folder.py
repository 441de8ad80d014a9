"""The folder of results on the machine with the GPU, and its import into docs/results.

    README.md results.csv       the results
    tuning.json tiles.json      the choices of impl "auto", and the fastest tiles, in the format of
                                fastgan/ops/triton/tiles
    results.tar                 all of these, and the logs, profiles and counters
"""

from __future__ import annotations

import io
import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from proofs.gpu.rows import BAD, RESERVE, Row, read

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results" / "gpu"
CSV, README, TAR = "results.csv", "README.md", "results.tar"
TAKEN = (CSV, README, "tuning.json", "tiles.json")  # with the tar: at most 8 files
LONGEST = 200_000  # bytes of a log that are kept, from its end
SPARE = 2 * 2**20  # bytes of the reserve


def prepare(out: Path, work: Path) -> None:
    """Create both folders; results of an earlier call in `out` are continued."""
    for folder in (out, work):
        folder.mkdir(parents=True, exist_ok=True)
    if (out / TAR).exists():
        unpack(out / TAR, work)
    with suppress(OSError):
        (out / RESERVE).write_bytes(bytes(SPARE))


def renew(out: Path, work: Path) -> None:
    """Replace README.md and the tar atomically. Never raises OSError."""
    with suppress(OSError):
        text = "\n".join(lines(read(out / CSV))) + "\n"
        (work / README).write_text(text)
        _replace(out / README, work / README)
    taken = [out / name for name in TAKEN if (out / name).exists()]
    logs = [path for path in sorted(work.rglob("*")) if path.is_file() and path.suffix in (".log", ".txt", ".csv")]
    for given_up, files in ((False, [*taken, *logs]), (True, taken)):
        if given_up:  # there is no space for the logs
            with suppress(OSError):
                (out / RESERVE).unlink()
        with suppress(OSError):
            _pack(out / TAR, files, work)
            return


def _pack(path: Path, files: list[Path], work: Path) -> None:
    part = path.with_suffix(".part")
    try:
        with tarfile.open(part, "w") as tar:
            for file in files:
                data = file.read_bytes() if file.name in TAKEN else file.read_bytes()[-LONGEST:]
                member = tarfile.TarInfo(str(file.relative_to(work)) if file.is_relative_to(work) else file.name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _replace(path: Path, source: Path) -> None:
    part = path.with_suffix(".part")
    try:
        shutil.copyfile(source, part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def finish(out: Path, work: Path) -> None:
    (out / RESERVE).unlink(missing_ok=True)
    renew(out, work)


def unpack(tar: Path, folder: Path) -> None:
    with tarfile.open(tar) as opened:
        for member in opened.getmembers():
            if member.isfile() and not member.name.startswith(("/", ".")) and ".." not in member.name:
                target = folder / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                content = opened.extractfile(member)
                assert content is not None
                target.write_bytes(content.read())


def bring_in(tar: Path, results: Path = RESULTS) -> Path:
    """Unpack a tar into `results`/DEVICE-DATE, in addition to results of the same day. Returns the folder."""
    unpacked = results / ".unpacked"
    try:
        unpack(tar, unpacked)
        facts = {row.name: row.note for row in read(unpacked / CSV) if row.part == "facts"}
        device = re.sub(r"[^a-z0-9]+", "-", facts.get("device", "unknown").lower()).strip("-")
        folder = results / f"{device}-{facts.get('date', 'undated')}"
        folder.mkdir(parents=True, exist_ok=True)
        text = (unpacked / CSV).read_text()
        if (folder / CSV).exists() and not text.startswith((folder / CSV).read_text()):
            text = (folder / CSV).read_text() + text  # of rows with equal keys, `read` uses the last
        (folder / CSV).write_text(text)
        (folder / README).write_text("\n".join(lines(read(folder / CSV))) + "\n")
        for name in TAKEN[2:]:
            if (unpacked / name).exists():
                shutil.copyfile(unpacked / name, folder / name)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    return folder


def lines(rows: list[Row]) -> Iterator[str]:
    """README.md: bad results, parts that were not run, then a table for each part."""
    facts = {row.name: row.note for row in rows if row.part == "facts"}
    yield f"# {facts.get('device', 'a device')}, {facts.get('date', '')}\n"
    yield "Results of `python -m proofs.gpu`. results.csv has all rows.\n"
    yield from table(["made with", ""], [[name, note] for name, note in facts.items()])
    yield from table(["part", "ok", *BAD, "not run"], [
        [part, *(str(sum(row.part == part and row.result in group for row in rows) or "")
                 for group in (("ok",), *((bad,) for bad in BAD), ("not run",)))]
        for part in dict.fromkeys(row.part for row in rows) if part != "facts"])
    yield "## Wrong, failed, crashed or not run\n"
    shown = [row for row in rows if row.result in (*BAD, "not run")]
    yield from _rows(shown)
    if not shown:
        yield "Nothing.\n"
    for part in dict.fromkeys(row.part for row in rows):
        if part not in ("facts", "parts"):
            yield f"## {part}\n"
            yield from _rows([row for row in rows if row.part == part and row.result in ("ok", "fact")])


def _rows(rows: list[Row]) -> Iterator[str]:
    """Rows that differ only in the quantity share a line."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.part, row.name, row.engine, row.precision, row.batch), []).append(row)
    yield from table(["part", "name", "engine", "precision", "batch", "found"], [
        [*key, "; ".join(_words(row) for row in group)] for key, group in groups.items()])


def _words(row: Row) -> str:
    found = " ".join(filter(None, (row.quantity, row.value, row.unit)))
    result = row.result if row.result in (*BAD, "not run") else ""
    return ": ".join(filter(None, (result, found, row.note)))


def table(head: list[str], body: list[list[str]]) -> Iterator[str]:
    if body:
        yield "\n".join("| " + " | ".join(cell.replace("|", "/")[:400] for cell in line) + " |"
                        for line in [head, ["---"] * len(head), *body]) + "\n"
