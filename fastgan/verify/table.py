"""A certificate as text: tables and a verdict for the terminal, and JSON for the file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

_NUMBERS = ("ours", "eager", "allowed")


def lines(certificate: dict[str, Any]) -> Iterator[str]:
    """A table for each engine, with one line for each check: the quantity with the largest error relative to the
    allowed error."""
    facts, rows = certificate["machine"], [*certificate["operations"], *certificate["steps"]]
    yield f"{certificate['preset']}, batch {certificate['batch']}, on {facts['device']}"
    yield ", ".join(f"{name} {value}" for name, value in facts.items() if value and name not in ("device", "commit"))
    column = max([len(row["what"]) for row in rows], default=0) + 2
    for name, note in certificate["engines"].items():
        own = [row for row in rows if row["engine"] == name]
        widths = sorted({row["width"] for row in own if row["width"]})
        yield "\n" + f"{name}: {note}" + "".join(f", networks at width {width}" for width in widths)
        if own:
            yield f"{'':{column + 9}}{'worst quantity':32}" + "".join(f"{word:>9}" for word in _NUMBERS)
        for row in own:
            yield from _lines(row, column)
    marked = ["* within the limit only because inputs of a (leaky) ReLU are so close to 0 that rounding decides their "
              "sign"] * any(map(_by_kinks, rows))
    yield "\n" + "\n".join([*marked, *certificate["not_checked"], verdict(certificate)])


def _by_kinks(row: dict[str, Any]) -> bool:
    """Whether a check passes only because of the allowance for kinks."""
    return row["passed"] and any(one["by_kinks"] for one in row["quantities"].values())


def _lines(row: dict[str, Any], column: int) -> Iterator[str]:
    begin, end = f"{row['what']:{column}}{row['precision']:9}", "  pass" if row["passed"] else "  FAIL"
    end += " *" * _by_kinks(row)
    # all quantities that failed, the worst first
    names = sorted(row["quantities"], key=lambda name: -row["quantities"][name]["used"])
    wrong = [name for name in names if not row["quantities"][name]["used"] <= 1]
    shown = [row["error"]] if row["error"] else [_numbers(name, row["quantities"][name]) for name in wrong or names[:1]]
    for i, words in enumerate(shown):
        yield (" " * len(begin) if i else begin) + words + end


def _numbers(name: str, one: dict[str, Any]) -> str:
    words = name + (", one element" if one["measure"] == "worst element" else "")
    return f"{words:32}" + "".join(f"{one[key]:9.1e}" for key in _NUMBERS)


def verdict(certificate: dict[str, Any]) -> str:
    """The verdict in one line."""
    rows = [*certificate["operations"], *certificate["steps"]]
    wrong = [row for row in rows if not row["passed"]]
    if not wrong:
        count = "1 check" if len(rows) == 1 else f"{len(rows)} checks"
        return f"pass: {count}, all errors within the limit, which is based on the rounding errors of eager PyTorch"
    one = wrong[0]
    return (f"FAIL: {len(wrong)} of {len(rows)} checks, first {one['engine']} {one['precision']} {one['what']}: "
            f"{one['error'] or one['worst']}")


def as_json(certificate: dict[str, Any]) -> str:
    """The certificate as JSON. NaN and infinities, which JSON does not support, are written as strings."""
    return json.dumps(_finite(certificate), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
