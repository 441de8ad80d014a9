"""The machine and the person around a run: its device, its memory, its signals, a word to the terminal."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tqdm import tqdm

from fastgan.errors import FastganError

quiet = False  # this process leaves all words to another


@contextmanager
def signals(stop: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Call `stop` on Ctrl-C and SIGTERM inside the block; only the main thread of a program can."""
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


def pick_device(name: str) -> torch.device:
    """The device of this name; auto is the first of cuda, mps and cpu that is there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or not available.get(device.type) or (
            device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        usable = [f"--device {kind}" for kind, there in available.items() if there]
        raise FastganError(f"--device {name}: expected auto or one that is here: {', '.join(usable)}")
    return device


def peak_memory_gb() -> float:
    """Peak resident memory of this process; 0 where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30


def say(line: str) -> None:
    """A line for the person at the terminal that does not tear the progress bar; of several processes, from rank 0."""
    if quiet:
        return
    tqdm.write(f"fastgan: {line}", file=sys.stderr)
