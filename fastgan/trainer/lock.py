"""One process at a time in a run folder: a lock of the system's, which ends with its process."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import weakref
from pathlib import Path

from fastgan.errors import FastganError
from fastgan.files import reason
from fastgan.trainer.host import logger

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FILE = ".lock"  # is never removed: an existing file does not mean that the folder is locked
_LOCKED = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK}
_locks: weakref.WeakSet[Lock] = weakref.WeakSet()  # of this process


class Lock:
    """The lock of a run folder, taken at once. by_rank_0: rank 0 holds it for this process."""

    def __init__(self, folder: Path, by_rank_0: bool = False) -> None:
        self.folder, self._handle, self._by_rank_0 = folder, -1, by_rank_0
        self.take()

    def take(self) -> None:
        """Take the lock, unless this object has it. Raises `FastganError` where another process has it, or where the
        folder cannot be written; logs a warning where the file system has no locks."""
        if self._handle >= 0 or self._by_rank_0:
            return
        try:
            handle = os.open(self.folder / FILE, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise FastganError(f"cannot write to {self.folder}: {reason(error)}") from error
        try:
            _lock(handle)
        except OSError as error:
            holder = os.read(handle, 200).decode(errors="replace").strip()
            os.close(handle)
            if error.errno in _LOCKED:
                raise FastganError(f"{self.folder} is in use by {holder or 'another process'}; expected one that "
                                   "nobody trains in: wait for its end, or train a run of your own") from None
            logger.warning(f"{self.folder} cannot be locked ({reason(error)}): see to it that nobody else resumes it")
            return
        self._handle = handle
        _locks.add(self)
        with contextlib.suppress(OSError):  # on a full disk the message to others names no process
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {platform.node()}\n".encode())

    def release(self) -> None:
        """Release the lock, if this object has it."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
            _locks.discard(self)

    def __del__(self) -> None:
        self.release()


def is_locked(folder: Path) -> bool | None:
    """Whether a process trains in this run folder; None where that cannot be found out. Takes the lock for a moment."""
    try:
        handle = os.open(folder / FILE, os.O_RDWR)
    except OSError:
        return None
    try:
        _lock(handle)
        return False
    except OSError as error:
        return True if error.errno in _LOCKED else None
    finally:
        os.close(handle)


def _lock(handle: int) -> None:
    """Raises OSError at once where the file is locked."""
    if fcntl is None:
        raise OSError(errno.ENOSYS, "no flock on this system")
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _release_in_child() -> None:
    """A worker that outlives a killed trainer must not keep its lock."""
    for lock in list(_locks):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)
