"""Facilities of the host process: logging above the progress bar, signal handlers, and peak memory."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

logger = logging.getLogger("fastgan")


class _TerminalHandler(logging.Handler):
    """Writes messages to stderr above the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(f"fastgan: {record.getMessage()}", file=sys.stderr)


if not logger.handlers:  # do not override the handlers of a program
    logger.addHandler(_TerminalHandler())
    logger.setLevel(logging.INFO)


@contextmanager
def signals(stop: Callable[[signal.Signals], None]) -> Iterator[None]:
    """A context manager that calls `stop` on Ctrl-C and SIGTERM. Has no effect outside of the main thread."""
    def handler(number: int, frame: Any) -> None:
        stop(signal.Signals(number))

    try:
        before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:
        before = {}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def peak_memory_gb() -> float:
    """Peak resident memory of this process in GiB; 0 on Windows, where it is not available."""
    try:
        import resource
    except ImportError:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30
