"""The table of subcommands. Each parses its options, calls the library and prints the result."""

from __future__ import annotations

from collections.abc import Callable

from fastgan.cli import drawing, proof, results, speed, training
from fastgan.config import nearest
from fastgan.errors import FastganError

COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": training.train, "resume": training.resume, "sample": drawing.sample, "interpolate": drawing.interpolate,
    "evaluate": results.evaluate, "export": results.export, "presets": training.list_presets, "verify": proof.verify,
    "tune": speed.tune, "report": results.report, "doctor": proof.doctor}

MOVED = {"plan": "`fastgan tune`", "bench": "`python -m benchmarks`, in a clone of the repository",
         "cost": "`python -m benchmarks.counters`, in a clone of the repository"}


def run(name: str, args: list[str]) -> int:
    """Run the subcommand `name` and return its exit code."""
    if name in MOVED:
        raise FastganError(f"`fastgan {name}` is now {MOVED[name]}")
    if name not in COMMANDS:
        raise FastganError(f"unknown command {name!r}; {nearest(name, list(COMMANDS))}")
    return COMMANDS[name](args)
