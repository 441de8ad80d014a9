"""Alerts: failures of training with finite losses, detected from the records of the log.

    discriminator won    d_real > 0.98 and d_fake < 0.02 in nine of ten records over 300 steps, and loss_g does not
                         fall; for hinge, whose loss is 0 for logits beyond 1 and -1: loss_d < 0.02 instead; not for
                         wgan-gp and least squares, where the gradients for G do not vanish with an optimal D
    mode collapse        the median diversity over 100 steps is below half of its maximum, if the maximum is at least
                         0.5; or it is below 0.2 over 500 steps. For conditional runs: the diversity within classes
    collapsed classes    score_diversity of --metrics is below 0.5 in two consecutive measurements

The windows are long because these conditions also occur in the first one or two hundred steps of normal runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from statistics import median
from typing import Any

MIN_RECORDS = 10  # minimum number of records in a window, regardless of their distance
MAX_STEPS = 500  # length of the longest window


class Alerts:
    """Checks each record of a run in order and raises each alert once.

    Args:
        loss: as in --loss.
        records: the records from before a resume.
        conditional: the fakes have labels, and diversity is measured within classes.
    """

    def __init__(self, loss: str, records: Iterable[dict[str, Any]] = (), *, conditional: bool = False) -> None:
        self._loss, self._conditional = loss, conditional
        self._scores: deque[float] = deque(maxlen=2)
        self._recent: deque[dict[str, Any]] = deque()
        self._best = 0.0
        self._raised: set[str] = set()
        for record in records:
            self.look(record)

    def look(self, record: dict[str, Any], saved: bool = False) -> dict[str, str]:
        """The new alerts after this record: messages by name. saved: the run has checkpoints."""
        if "score_diversity" in record:
            self._scores.append(record["score_diversity"])
            alerts = {"collapsed classes": self._classes_collapsed()}
        elif {"d_real", "d_fake", "diversity"} <= record.keys():
            self._recent.append(record)
            while len(self._recent) > MIN_RECORDS and self._recent[1]["step"] <= record["step"] - MAX_STEPS:
                self._recent.popleft()
            alerts = {"discriminator won": self._discriminator_won(), "mode collapse": self._collapsed()}
        else:
            return {}
        hint = "; earlier checkpoints are in the run folder" * saved
        new = {name: message + hint for name, message in alerts.items() if message and name not in self._raised}
        self._raised |= new.keys()
        return new

    def _discriminator_won(self) -> str:
        records = self._last(300)
        clear = sum(map(self._clear, records))
        losses = [record["loss_g"] for record in records if "loss_g" in record]
        if clear < 0.9 * len(records) or len(losses) < 2:
            return ""
        before, after = median(losses[: len(losses) // 2]), median(losses[len(losses) // 2 :])
        if after < before:
            return ""
        return (f"the discriminator has won: for {records[-1]['step'] - records[0]['step']} steps it has classified "
                f"nearly all images correctly, and the generator's loss went from {before:.1f} to {after:.1f}. Try a "
                "smaller --lr-d, " + ("a smaller --ndf or --label-smoothing 0.1" if self._loss in ("bce", "minimax")
                                      else "a smaller --ndf or --loss bce"))

    def _clear(self, record: dict[str, Any]) -> bool:
        """Whether D classifies nearly all images correctly."""
        if self._loss in ("wgan-gp", "least-squares"):
            return False
        if self._loss == "hinge":
            return record.get("loss_d", 1.0) < 0.02
        return record["d_real"] > 0.98 and record["d_fake"] < 0.02

    def _collapsed(self) -> str:
        now = _diversity(self._last(100))
        long = _diversity(self._last(500))
        if now is not None and self._best >= 0.5 and now < self._best / 2:
            past = f"after a maximum of {self._best:.0%}"
        elif long is not None and long < 0.2:
            now, past = long, "over 500 steps"
        else:
            self._best = max(self._best, now or 0.0)
            return ""
        whole = "class" if self._conditional else "batch"
        return (f"mode collapse: the diversity of the fakes in a {whole} is {now:.0%} of that of its real images, "
                f"{past}. Try a smaller --lr-g, a larger --batch or another --loss")

    def _classes_collapsed(self) -> str:
        if len(self._scores) < 2 or max(self._scores) >= 0.5:
            return ""
        return (f"collapsed classes: score_diversity is {self._scores[-1]:.2f} after {self._scores[0]:.2f}; the fakes "
                "of a class are less than half as diverse as its real images. Try a smaller --lr-g or --augment "
                "color,translation,cutout")

    def _last(self, steps: int) -> list[dict[str, Any]]:
        """The records of the last `steps` steps, at least `MIN_RECORDS`; [] if there are not enough."""
        window: list[dict[str, Any]] = []
        for record in reversed(self._recent):
            window.append(record)
            if len(window) >= MIN_RECORDS and record["step"] <= self._recent[-1]["step"] - steps:
                return window[::-1]
        return []


def _diversity(records: list[dict[str, Any]]) -> float | None:
    return median(record["diversity"] for record in records) if records else None
