"""Whether the gains of single changes account for the whole.

The chain goes from the textbook to fastgan, and each of its contenders adds one thing to the one before. The product of
the single ratios is compared with the whole, which is measured by itself: only the two ends, in a run of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fastgan.bench.results import Row

TOLERANCE = 0.10
ADDS = "+ "  # how the name of a link begins


class Link(NamedTuple):
    """A change, the milliseconds of a step with it, and how many times as fast that is as without it."""

    name: str
    ms: float
    gain: float


class Ablation(NamedTuple):
    """links: the textbook first, with gain 1. total: of the two ends by themselves, None where that is not known.
    missing: who has no time, and why."""

    links: list[Link]
    total: float | None
    missing: list[str]

    @property
    def product(self) -> float:
        """Of all gains."""
        found = 1.0
        for link in self.links:
            found *= link.gain
        return found

    @property
    def closes(self) -> bool:
        """Whether the product is within `TOLERANCE` of the total, and no link is missing."""
        return self.total is not None and not self.missing and abs(self.product / self.total - 1) <= TOLERANCE

    @property
    def verdict(self) -> str:
        """One line."""
        if self.missing:
            return f"does not account for the whole gain: {'; '.join(self.missing)}"
        if self.total is None:
            return "not compared with the whole gain, which was not measured by itself"
        words = "accounts for" if self.closes else "does NOT account for"
        apart = f"{abs(self.product / self.total - 1):.0%} apart ({TOLERANCE:.0%} are allowed)"
        return (f"{words} the whole gain: the product of the single gains is {self.product:.2f} x, the ends by "
                f"themselves {self.total:.2f} x, {apart}")


def of(rows: Sequence[Row], ends: Sequence[Row]) -> Ablation | None:
    """From the rows of one run: those of the chain, in its order, and those of its two ends; None without a chain."""
    chain = [row for i, row in enumerate(rows) if i == 0 or row.contender.startswith(ADDS)]
    timed = [row for row in chain if row.p50]
    if len(chain) < 2:
        return None
    missing = [f"{row.contender}: {row.error}" for row in chain if not row.p50]
    links = [Link(row.contender, row.p50 or 0.0, (before.p50 or 0.0) / (row.p50 or 1.0))
             for before, row in zip(timed[:1] + timed, timed, strict=False)]
    by_name = {row.contender: row.p50 for row in ends}
    first, last = by_name.get(chain[0].contender), by_name.get(chain[-1].contender)
    return Ablation(links, first / last if first and last else None, missing)
