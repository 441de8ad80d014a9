"""Comparison of metrics, between checkpoints of a run or between two runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

# the first of these metrics that was computed is used to compare; higher is better
_DECIDING: dict[str, Callable[[Mapping[str, float]], float]] = {
    "fid": lambda values: -values["fid"],
    "kid": lambda values: -values["kid"],
    "is": lambda values: values["is"],
    "score_confidence": lambda values: values["score_confidence"] * values["score_diversity"],
}
DIRECTIONS = {"fid": -1, "kid": -1, "is": 1, "score_confidence": 1, "score_classes": 1, "score_diversity": 1}


def merit(values: Mapping[str, float]) -> tuple[str, float] | None:
    """The name of the metric that is used to compare, and its value, where higher is better.

    It is the first that is in `values` of FID, KID, Inception Score, and the product of the score's confidence and
    diversity. None if there is none of them.
    """
    return next(((name, of(values)) for name, of in _DECIDING.items() if name in values), None)


def best(records: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The record with the best value of the metric that `merit` selects for the last record; of equal ones, the
    first."""
    found = [(record, value) for record in records if (value := merit(record)) is not None]
    rivals = [(record, value[1]) for record, value in found if value[0] == found[-1][1][0]]
    return max(rivals, key=lambda pair: pair[1])[0] if rivals else None


def better(name: str, first: Mapping[str, float], second: Mapping[str, float]) -> int:
    """The index, 0 or 1, of the better value of a metric; -1 for equal values, and for metrics without a direction."""
    if name not in DIRECTIONS or name not in first or name not in second or first[name] == second[name]:
        return -1
    return int((second[name] - first[name]) * DIRECTIONS[name] > 0)
