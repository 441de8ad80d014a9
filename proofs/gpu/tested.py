"""`pytest -m gpu` that goes on after a crash: python -m proofs.gpu.tested FOLDER [--quick]

A test that kills its process, loses the device or hangs is named, and the tests after it run in a new process. The
folder gets tests.jsonl, a line for each beginning and each end, and tests.xml (tests-2.xml ... of further processes).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from proofs.gpu.journal import LOST
from proofs.gpu.parts import ROOT

FILES = ["tests/test_gpu.py"]  # others need what may not be installed there
QUICK = "bf16 or bfloat16 or not (fp32 or tf32 or fp16 or float32 or float16)"
PATIENCE = 100.0  # seconds for one test


@dataclass
class Test:
    """outcome: "passed", "failed", "skipped", or "" while it runs."""

    name: str
    outcome: str = ""
    seconds: float = 0.0
    why: str = ""


def read(journal: Path) -> dict[str, Test]:
    """By name, in order."""
    found: dict[str, Test] = {}
    for text in journal.read_text().splitlines() if journal.exists() else []:
        with suppress(json.JSONDecodeError):  # the last line of a process that was killed
            line = json.loads(text)
            test = found.setdefault(line["test"], Test(line["test"]))
            if "outcome" in line and test.outcome != "failed":
                test.outcome, test.why = line["outcome"], line["why"]
                test.seconds += line["seconds"]
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m proofs.gpu.tested", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--files", nargs="+", default=FILES)
    parser.add_argument("--patience", type=float, default=PATIENCE, help="seconds for one test")
    options = parser.parse_args(arguments)
    journal = options.folder / "tests.jsonl"
    code = _run_all(options, journal)
    found = read(journal)
    counts = {outcome: sum(test.outcome == outcome for test in found.values())
              for outcome in ("passed", "failed", "skipped")}
    unfinished = sum(not test.outcome for test in found.values())
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items())
          + (f", {unfinished} unfinished" if unfinished else ""))
    return 0 if code == 0 and counts["passed"] and not counts["failed"] and not unfinished else 1


def _run_all(options: argparse.Namespace, journal: Path) -> int:
    """The exit code of the last process, which ran to its end; or that of one that could not begin."""
    number = 0
    while True:
        number += 1
        seen = read(journal)
        command = [sys.executable, "-m", "pytest", *options.files, "-m", "gpu", "-vv", "-p", "proofs.gpu.journal",
                   "-p", "no:cacheprovider", *(["-k", QUICK] if options.quick else []),
                   f"--junit-xml={options.folder / ('tests.xml' if number == 1 else f'tests-{number}.xml')}",
                   *(word for name in seen for word in ("--deselect", name))]
        code, why = _watch(subprocess.Popen(command, cwd=ROOT, env=os.environ | {"FASTGAN_JOURNAL": str(journal)}),
                           journal, options.patience)
        _close(journal, why)
        if not why or len(read(journal)) == len(seen):
            return 0 if code == 5 and seen else code  # 5: nothing was left to run


def _watch(process: subprocess.Popen[bytes], journal: Path, patience: float) -> tuple[int, str]:
    """(exit code, why tests are left over or "")."""
    try:
        while process.poll() is None:
            running = [test for test in read(journal).values() if not test.outcome]
            if running and time.time() - journal.stat().st_mtime > patience:
                process.kill()
                return process.wait(), f"hung: nothing in {patience:.0f} s"
            time.sleep(0.3)
    except KeyboardInterrupt:  # which pytest has received too
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        _close(journal, "stopped at the limit of all tests")
        return 1, ""
    if process.returncode == LOST:
        return LOST, "lost the device"
    return process.returncode, f"killed its process ({process.returncode})" if process.returncode < 0 else ""


def _close(journal: Path, why: str) -> None:
    """Write down the end of a test that could not do it itself."""
    for test in read(journal).values():
        if why and not test.outcome:
            line = {"test": test.name, "outcome": "failed", "seconds": 0.0, "why": why}
            with journal.open("a") as file:
                file.write("\n" + json.dumps(line) + "\n")  # behind whatever it was writing


if __name__ == "__main__":
    sys.exit(main())
