"""One process at a time in a run folder: a lock of the system's, which ends with its process, however that ends."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import sys
import weakref
from pathlib import Path

from fastgan.errors import FastganError
from fastgan.files import reason
from fastgan.train.host import say

FILE = ".lock"  # stays; that it is there says nothing
_HELD = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK}
_FAR = 2**30  # Windows keeps others from reading bytes that are locked: lock one behind all that the file holds
_taken: weakref.WeakSet[Lock] = weakref.WeakSet()


class Lock:
    """The lock of a run folder, held from the start; `another`: by another process, for this one too."""

    def __init__(self, folder: Path, another: bool = False) -> None:
        self.folder, self._handle, self._another = folder, -1, another
        self.take()

    def take(self) -> None:
        """Hold the lock, also where it is held already. Raises `FastganError` where someone else holds it, or where
        the folder cannot be written; where the file system knows no locks, says so and goes on."""
        if self._handle >= 0 or self._another:
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
            if error.errno in _HELD:
                raise FastganError(f"{self.folder} is in use by {holder or 'another process'}; expected one that "
                                   "nobody trains in: wait for its end, or train a run of your own") from None
            say(f"{self.folder} cannot be locked ({reason(error)}): see to it that nobody else resumes it")
            return
        self._handle = handle
        _taken.add(self)
        with contextlib.suppress(OSError):  # a full disk: whoever is refused is told less
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {platform.node()}\n".encode())

    def release(self) -> None:
        """Let others in; nothing where it is not held."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
            _taken.discard(self)

    def __del__(self) -> None:
        self.release()


def held(folder: Path) -> bool | None:
    """Does a process train in this run folder? None where that cannot be known. Takes the lock, for that moment."""
    try:
        handle = os.open(folder / FILE, os.O_RDWR)
    except OSError:
        return None
    try:
        _lock(handle)
        return False
    except OSError as error:
        return True if error.errno in _HELD else None
    finally:
        os.close(handle)


def _lock(handle: int) -> None:
    """Raises OSError at once where the file is locked."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(handle, _FAR, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        finally:
            os.lseek(handle, 0, os.SEEK_SET)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _let_go() -> None:
    """In a child: a worker that outlives a killed trainer must not keep its lock."""
    for lock in list(_taken):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
