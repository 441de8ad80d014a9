"""The exception for what a user gave or met and can mend, that of a kernel, and the words of other people's."""

from __future__ import annotations

import signal
import traceback


class FastganError(ValueError):
    """One line that names what was given and what is accepted; the command line prints it and exits with 2."""


class KernelError(RuntimeError):
    """A kernel could not be compiled, loaded or started; names it and says why."""


def one_line(error: Exception) -> str:
    """What an exception says, in one line, or its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: Exception) -> str:
    """The first line of what an exception says, or its type where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def from_signal_handler(error: Exception) -> bool:
    """Whether a signal handler written in Python raised it, in the middle of whatever was running: PyTorch's does when
    a process of a DataLoader dies."""
    handlers = {getattr(signal.getsignal(number), "__code__", None) for number in signal.valid_signals()}
    return any(frame.f_code in handlers for frame, _ in traceback.walk_tb(error.__traceback__))
