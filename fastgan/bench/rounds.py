"""Contenders take turns: in each round one turn each, in an order that is drawn, so that a machine which slows down
slows all of them.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from fastgan.bench.contender import Contender
from fastgan.bench.entry import Entry

PATIENCE = 600.0  # seconds for an answer
LEAST = 3  # rounds, however late it is


class Failed(Exception):
    """Why a contender cannot go on, in words."""


class Player(Protocol):
    """One that takes turns; each of these raises `Failed`."""

    def make(self, entry: Entry, judged: str) -> int: ...
    def turn(self) -> float: ...
    def peak(self) -> float | None: ...


def command(contender: Contender, device: str, threads: int) -> list[str]:
    """What Python is told for the process of a contender."""
    given = {"contender": asdict(contender), "device": device, "threads": threads}
    return ["-m", "fastgan.bench.worker", json.dumps(given)]


class Worker:
    """A contender in a process of its own. Ctrl-C at the terminal does not reach it: whoever started it ends it."""

    def __init__(self, contender: Contender, device: str, threads: int, clone: str = "") -> None:
        """clone: a folder with another fastgan, "" for this one."""
        self._late = False
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, *command(contender, device, threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._log, text=True, env=environment(clone), cwd=clone or None)

    def judge(self, entry: Entry, precisions: list[str], path: str) -> tuple[float | None, float | None]:
        """(operations, bytes) of a call."""
        answer = self._ask(do="judge", entry=entry.as_json(), precisions=precisions, path=path)
        return answer["flops"], answer["moved"]

    def make(self, entry: Entry, judged: str) -> int:
        return int(self._ask(do="make", entry=entry.as_json(), judged=judged)["images"])

    def turn(self) -> float:
        return float(self._ask(do="turn")["seconds"])

    def peak(self) -> float | None:
        return float(self._ask(do="peak")["mb"])

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()
        self._log.close()

    def _ask(self, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        timer = threading.Timer(PATIENCE, self._lose_patience)
        timer.daemon = True  # Ctrl-C may come before the `try`: a program does not wait at its end for this one
        timer.start()
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        finally:
            timer.cancel()
        if not line and self._late:
            raise Failed(f"no answer within {PATIENCE:.0f} s")
        if not line:
            raise Failed(f"its process ended ({self._process.wait()}){self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def _lose_patience(self) -> None:
        self._late = True
        self._process.kill()

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1][:200]}" if lines else ""


class Fresh:
    """A process that is started anew in each turn, which is all of its life: a command, and what it is told."""

    def __init__(self, command: list[str], told: str = "", cold: bool = False) -> None:
        self.command, self.told, self.cold = command, told, cold

    def make(self, entry: Entry, judged: str) -> int:
        self.turn()  # files come from the disk, and caches are filled
        return 0

    def turn(self) -> float:
        with tempfile.TemporaryDirectory() as empty:
            caches = {"FASTGAN_CACHE": empty, "TORCHINDUCTOR_CACHE_DIR": empty, "TRITON_CACHE_DIR": empty}
            begin = time.perf_counter()
            done = subprocess.run([sys.executable, *self.command], input=self.told, capture_output=True, text=True,
                                  env={**environment(), **(caches if self.cold else {})})
            seconds = time.perf_counter() - begin
        if done.returncode:
            raise Failed((done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1][:200])
        if self.told and "error" in (answer := json.loads(done.stdout)):
            raise Failed(answer["error"])
        return seconds

    def peak(self) -> float | None:
        return None


def environment(clone: str = "") -> dict[str, str]:
    """That of this process, in which the same fastgan is found, or the one of a clone."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([path for path in (clone, *sys.path) if path] or [""])}


@dataclass
class Taken:
    """What a contender has done. seconds: of a call, in each round. error: why it stopped, "" where it did not."""

    images: int = 0
    seconds: list[float] = field(default_factory=list)
    peak_mb: float | None = None
    error: str = ""

    def attempt(self, action: Callable[[], None]) -> None:
        """Do it, unless something went wrong before."""
        if self.error:
            return
        try:
            action()
        except Failed as error:
            self.error = str(error)
            self.seconds.clear()


def play(entry: Entry, players: Mapping[str, Player], judged: str, taken: dict[str, Taken], *, rounds: int,
         deadline: float, order: random.Random, progress: Callable[[str], None] = lambda words: None) -> None:
    """Fill `taken`, name by name, as it goes: what is there when this is interrupted counts.

    rounds: none measures memory alone; they end early at `deadline`, of time.monotonic(). progress: told what is done.
    """
    def make(name: str) -> None:
        taken[name].images = players[name].make(entry, judged)

    def turn(name: str) -> None:
        taken[name].seconds.append(players[name].turn())

    def peak(name: str) -> None:
        taken[name].peak_mb = players[name].peak()

    for name in players:
        progress(f"{name}: warming up")
        taken[name] = Taken()
        taken[name].attempt(lambda name=name: make(name))  # type: ignore[misc]
    for done in range(rounds):
        if done >= LEAST and time.monotonic() > deadline:
            break
        progress(f"round {done + 1} of {rounds}")
        for name in order.sample(list(players), len(players)):
            taken[name].attempt(lambda name=name: turn(name))  # type: ignore[misc]
    progress("memory")
    for name in players:
        taken[name].attempt(lambda name=name: peak(name))  # type: ignore[misc]
