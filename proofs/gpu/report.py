"""The folder's README.md: what ran, what did not, and what came out, from the files beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from fastgan.bench import results, table
from proofs.gpu import tested
from proofs.gpu.parts import Outcome


def write(folder: Path, found: dict[str, str | None], outcomes: list[Outcome], quick: bool) -> None:
    (folder / "README.md").write_text("\n".join(_lines(folder, found, outcomes, quick)) + "\n")


def _lines(folder: Path, found: dict[str, str | None], outcomes: list[Outcome], quick: bool) -> Iterator[str]:
    yield f"# {found['device']}, {found['date']}\n"
    yield f"What `make gpu{' GPU=--quick' if quick else ''}` found.\n"
    yield from _table(["part", "result", "seconds", "in its own words"],
                      [[o.name, o.result, f"{o.seconds:.0f}" if o.seconds else "", o.words] for o in outcomes])
    yield from _table(["made with", ""], [[name, value or "unknown"] for name, value in found.items()])
    for title, file, section in (("Tests", "tests.jsonl", _tests), ("Certificates", "certificates.json", _certificates),
                                 ("Timings", results.NAME, _timings)):
        if (folder / file).exists():
            yield f"## {title}\n"
            yield from section(folder / file)


def _tests(path: Path) -> Iterator[str]:
    """Counts for each function; then what failed, and why others were skipped."""
    found = list(tested.read(path).values())
    groups: dict[str, list[tested.Test]] = {}
    for test in found:
        groups.setdefault(_short(test).partition("[")[0], []).append(test)
    outcomes = ["passed", "failed", "skipped", ""]
    yield from _table(["test", "passed", "failed", "skipped", "unfinished", "seconds"], [
        [name, *(str(sum(test.outcome == outcome for test in group) or "") for outcome in outcomes),
         f"{sum(test.seconds for test in group):.1f}"] for name, group in groups.items()])
    yield from _table(["failed", "why"], [[_short(t), t.why] for t in found if t.outcome in ("failed", "")])
    reasons = dict.fromkeys(test.why for test in found if test.outcome == "skipped")
    yield from _table(["skipped", "why"], [[str(sum(t.why == why and t.outcome == "skipped" for t in found)), why]
                                           for why in reasons])


def _short(test: tested.Test) -> str:
    return test.name.partition("::")[2]


def _certificates(path: Path) -> Iterator[str]:
    """Counts for each preset, engine and precision, with the quantity that uses most of what is allowed."""
    lines, wrong = [], []
    for preset, certificate in json.loads(path.read_text()).items():
        checks = [*certificate["operations"], *certificate["steps"]]
        for engine, precision in dict.fromkeys((check["engine"], check["precision"]) for check in checks):
            group = [c for c in checks if (c["engine"], c["precision"]) == (engine, precision)]
            used, where = max(((float(one["used"]), f"{check['what']}: {name}") for check in group
                               for name, one in check["quantities"].items()), default=(float("nan"), ""))
            lines.append([preset, engine, precision, f"{sum(c['passed'] for c in group)} of {len(group)}",
                          f"{used:.2f}", where])
        wrong += [[preset, c["engine"], c["precision"], c["what"], c["error"] or c["worst"]]
                  for c in checks if not c["passed"]]
    yield from _table(["preset", "engine", "precision", "passed", "most of its allowance used", "by"], lines)
    yield from _table(["failed", "engine", "precision", "what", "why"], wrong)


def _timings(path: Path) -> Iterator[str]:
    yield "One D+G step of dcgan-64, by `fastgan.bench`; `fastgan bench` has torch.compile and the plan, too.\n"
    for group in table.groups(results.latest(results.read(path))):
        yield from table.whole(group)


def _table(head: list[str], lines: list[list[str]]) -> Iterator[str]:
    if lines:
        yield "\n".join("| " + " | ".join(cell.replace("|", "/").replace("\n", " ")[:300] for cell in line) + " |"
                        for line in [head, ["---"] * len(head), *lines]) + "\n"
