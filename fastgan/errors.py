"""The exceptions of fastgan, and one-line messages of other exceptions."""

from __future__ import annotations

import signal
import traceback


class FastganError(ValueError):
    """An error whose one-line message names what was given and what is accepted.

    The command line prints the message and exits with code 2.
    """


class KernelError(RuntimeError):
    """A kernel could not be compiled, loaded or launched; the message names the kernel and the reason."""


def one_line(error: Exception) -> str:
    """The message of an exception as one line, or the name of its type if the message is empty."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: Exception) -> str:
    """The first line of an exception's message, or the name of its type if the message is empty."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def from_signal_handler(error: Exception) -> bool:
    """Whether a Python signal handler raised the exception, while unrelated code was running. PyTorch's handler does so
    when a worker process of a DataLoader exits."""
    handlers = {getattr(signal.getsignal(number), "__code__", None) for number in signal.valid_signals()}
    return any(frame.f_code in handlers for frame, _ in traceback.walk_tb(error.__traceback__))
