"""The lock of a run folder, of the operating system: one process at a time, released when that process ends."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path

from filelock import FileLock, Timeout

from fastgan.errors import FastganError
from fastgan.files import reason
from fastgan.trainer.host import logger

FILE = ".lock"  # is never removed: an existing file does not mean that the folder is locked


class Lock:
    """The lock of a run folder, taken at once. by_rank_0: rank 0 holds it for this process."""

    def __init__(self, folder: Path, by_rank_0: bool = False) -> None:
        self.folder, self._lock, self._by_rank_0 = folder, _lock(folder), by_rank_0
        self.take()

    def take(self) -> None:
        """Take the lock, unless this object has it. Raises `FastganError` where another process has it, or where the
        folder cannot be written; logs a warning where the file system has no locks."""
        if self._by_rank_0 or self._lock.is_locked:
            return
        file = self.folder / FILE
        try:
            file.touch()
        except OSError as error:
            raise FastganError(f"cannot write to {self.folder}: {reason(error)}") from error
        try:
            self._lock.acquire()
        except Timeout:
            raise FastganError(f"{self.folder} is in use by {_holder(file) or 'another process'}; expected a run "
                               "folder that no other process uses: wait for its end, or start another run") from None
        except OSError as error:
            logger.warning(f"{self.folder} cannot be locked ({reason(error)}): make sure that no other process "
                           "resumes it")
            return
        with contextlib.suppress(OSError):  # on a full disk the message to others names no process
            file.write_text(f"process {os.getpid()} on {platform.node()}\n")

    def release(self) -> None:
        """Release the lock, if this object has it."""
        self._lock.release()


def is_locked(folder: Path) -> bool | None:
    """Whether a process trains in this run folder; None where that cannot be found out. Takes the lock for a moment."""
    if not (folder / FILE).exists():
        return None
    try:
        with _lock(folder):
            return False
    except Timeout:
        return True
    except OSError:
        return None


def _lock(folder: Path) -> FileLock:
    # of any thread; without flock filelock's other lock would outlive a killed process
    return FileLock(folder / FILE, timeout=0, thread_local=False, fallback_to_soft=False)


def _holder(file: Path) -> str:
    try:
        return file.read_text(errors="replace")[:200].strip()
    except OSError:  # Windows locks the content, too
        return ""
