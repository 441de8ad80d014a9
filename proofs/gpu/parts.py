"""A part of the examination: a process with a time limit, its log, and what became of it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LEAST = 20.0  # seconds; with less left a part is not begun
GRACE = 10.0  # seconds between Ctrl-C and the end
SETTLING = 35.0  # seconds that a part which watches the time itself may need beyond it


@dataclass(frozen=True)
class Part:
    """In the command {folder} stands for that of the results, {seconds} for the time that the part may plan with."""

    name: str
    command: list[str]
    limit: float


@dataclass(frozen=True)
class Outcome:
    """result: "passed", "failed", "crashed", "stopped at its limit" or "not run". words: the last line of its log."""

    name: str
    result: str
    seconds: float = 0.0
    words: str = ""

    @property
    def failed(self) -> bool:
        return self.result not in ("passed", "not run")


def run(part: Part, folder: Path, left: float) -> Outcome:
    """Run a part, to its limit or for the `left` seconds; what it prints goes to NAME.log in the folder."""
    limit = min(part.limit, left - GRACE)
    if limit < min(LEAST, part.limit):
        return Outcome(part.name, "not run", words="no time was left")
    command = [word.replace("{folder}", str(folder)).replace("{seconds}", f"{max(limit - SETTLING, 10):.0f}")
               for word in part.command]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
                                "PYTHONUNBUFFERED": "1", "TRITON_INTERPRET": "0"}
    begin, path = time.monotonic(), folder / f"{part.name}.log"
    with path.open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT,
                                   env=environment, start_new_session=True)
        late = False
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            late = True
            os.killpg(process.pid, signal.SIGINT)  # pytest and the timings write down what they have
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        finally:
            with suppress(ProcessLookupError):  # whoever is left of it: the group is its own
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    seconds = time.monotonic() - begin
    result = f"stopped at its limit of {limit:.0f} s" if late else _meaning(process.returncode)
    return Outcome(part.name, result, seconds, _last_line(path))


def _meaning(code: int) -> str:
    if code < 0:
        return f"crashed ({signal.Signals(-code).name})"
    return "failed" if code else "passed"


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").split("\n")
    return next((line.strip()[-300:] for line in reversed(lines) if line.strip()), "it printed nothing")
