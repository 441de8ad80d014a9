"""What is timed: a piece of work, as plain data that travels to other processes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from fastgan import presets
from fastgan.config import Config
from fastgan.ops.tuning import Problem


@dataclass(frozen=True)
class Entry:
    """A workload at a batch size, which all its contenders do.

    suite: its name in `suites.SUITES`. preset: whose networks, with the fields in `changes`. part: which piece of them,
    the stage, the network or the pass; "" for all. problem: the pass that `part` names.
    """

    suite: str
    preset: str
    batch: int
    part: str = ""
    problem: Problem | None = None
    changes: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def workload(self) -> str:
        """Such as "step/dcgan-64" or "stages/dcgan-64/G2 512x4x4 -> 256x8x8"."""
        return "/".join(word for word in (self.suite, self.preset, self.part) if word)

    @property
    def config(self) -> Config:
        return presets.get(self.preset, **self.changes).replace(preset=self.preset, batch=self.batch)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "problem": None if self.problem is None else self.problem._asdict()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Entry:
        problem = values.pop("problem")
        return cls(**values, problem=None if problem is None else Problem.from_json(problem))
