"""The lock of a run folder: an operating-system lock for one process, released when that process ends."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path

from filelock import FileLock, Timeout

from fastgan.errors import FastganError
from fastgan.files import reason
from fastgan.trainer.host import logger

FILE = ".lock"  # never removed; the existence of this file does not mean that the folder is locked


class Lock:
    """The lock of a run folder, acquired on construction. by_rank_0: rank 0 holds the lock for this process."""

    def __init__(self, folder: Path, by_rank_0: bool = False) -> None:
        self.folder, self._lock, self._by_rank_0 = folder, _lock(folder), by_rank_0
        self.take()

    def take(self) -> None:
        """Acquire the lock, unless this object holds it. Raises `FastganError` if another process holds it or the
        folder is not writable; logs a warning if the file system does not support locks."""
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
                               "folder that no other process uses: wait until it ends, or start another run") from None
        except OSError as error:
            logger.warning(f"{self.folder} cannot be locked ({reason(error)}): make sure that no other process "
                           "resumes it")
            return
        with contextlib.suppress(OSError):  # on a full disk, messages of other processes cannot name this one
            file.write_text(f"process {os.getpid()} on {platform.node()}\n")

    def release(self) -> None:
        """Release the lock, if this object holds it."""
        self._lock.release()


def is_locked(folder: Path) -> bool | None:
    """Whether a process trains in this run folder; None if unknown. Acquires the lock briefly to find out."""
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
    # not thread-local, because any thread may release it; no soft lock, which would remain after a killed process
    return FileLock(folder / FILE, timeout=0, thread_local=False, fallback_to_soft=False)


def _holder(file: Path) -> str:
    try:
        return file.read_text(errors="replace")[:200].strip()
    except OSError:  # on Windows, a locked file cannot be read
        return ""
