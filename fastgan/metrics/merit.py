"""Which of several measurements is better: of checkpoints of a run, or of two runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

# the first of these that was measured decides; more is better
_DECIDING: dict[str, Callable[[Mapping[str, float]], float]] = {
    "fid": lambda values: -values["fid"],
    "kid": lambda values: -values["kid"],
    "is": lambda values: values["is"],
    "score_confidence": lambda values: values["score_confidence"] * values["score_diversity"],
}
DIRECTIONS = {"fid": -1, "kid": -1, "is": 1, "score_confidence": 1, "score_classes": 1, "score_diversity": 1}


def merit(values: Mapping[str, float]) -> tuple[str, float] | None:
    """What decides and how good it is, more being better: of FID, KID, Inception Score, and the product of the score's
    confidence and diversity, the first that is in `values`; None where none is."""
    return next(((name, of(values)) for name, of in _DECIDING.items() if name in values), None)


def best(records: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The record with the best metrics, by what decides in the last one; the earliest of equal ones."""
    found = [(record, value) for record in records if (value := merit(record)) is not None]
    rivals = [(record, value[1]) for record, value in found if value[0] == found[-1][1][0]]
    return max(rivals, key=lambda pair: pair[1])[0] if rivals else None


def better(name: str, first: Mapping[str, float], second: Mapping[str, float]) -> int:
    """The index, 0 or 1, of the better value of a metric; -1 for equal ones, and where more is not better or worse."""
    if name not in DIRECTIONS or name not in first or name not in second or first[name] == second[name]:
        return -1
    return int((second[name] - first[name]) * DIRECTIONS[name] > 0)
