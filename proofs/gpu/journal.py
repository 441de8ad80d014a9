"""A pytest plugin that writes down each test as it begins and as it ends: what a crash leaves of a run.

    FASTGAN_JOURNAL=tests.jsonl pytest -p proofs.gpu.journal

After a test that loses the device, where every later one would fail too, it ends the run with exit code LOST.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

LOST = 33
_failed = False


def _write(**line: Any) -> None:
    with Path(os.environ["FASTGAN_JOURNAL"]).open("a") as file:
        file.write(json.dumps(line) + "\n")


def pytest_runtest_logstart(nodeid: str) -> None:
    _write(test=nodeid, began=time.time())


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    global _failed
    if report.when != "call" and report.passed:
        return
    _failed = report.failed
    why = report.longrepr[2] if isinstance(report.longrepr, tuple) else _error(report)
    _write(test=report.nodeid, outcome=report.outcome, seconds=report.duration, why=why)


def pytest_runtest_logfinish(nodeid: str) -> None:
    if not _failed or not torch.cuda.is_available():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        pytest.exit(f"{nodeid} lost the device: {error}", LOST)


def _error(report: pytest.TestReport) -> str:
    """The first line of the error, without the traceback."""
    crash = getattr(report.longrepr, "reprcrash", None)
    words = getattr(crash, "message", "") or report.longreprtext
    return next(iter(words.splitlines()), "") if report.failed else ""
