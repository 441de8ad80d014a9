"""Atomic replacement of files, reading of untrusted JSON, and the cache folder."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from fastgan.errors import FastganError

StrPath: TypeAlias = "str | os.PathLike[str]"


@contextmanager
def replacing(path: StrPath) -> Iterator[BinaryIO]:
    """A context manager that replaces `path` atomically: it yields a stream to a temporary file, which is synced and
    renamed to `path` if the block ends without an error.

    Raises `FastganError` if the disk is full or the folder is not writable; `path` is then unchanged.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise FastganError(f"cannot write {path}: {reason(error)}") from error
    finally:
        with contextlib.suppress(OSError):  # after the rename, or if the file was never created
            aside.unlink()


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files that a killed process left below `folder`. No other process may be writing there."""
    for aside in folder.rglob(".*.tmp"):
        with contextlib.suppress(OSError):
            aside.unlink()


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises OSError if it cannot be read, and ValueError if it is not JSON."""
    try:
        return json.loads(path.read_text("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def cache_folder() -> Path:
    """The folder for measurements and downloads: $FASTGAN_CACHE, otherwise $XDG_CACHE_HOME/fastgan, or
    ~/.cache/fastgan."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("FASTGAN_CACHE") or Path(base, "fastgan")).expanduser()


def reason(error: OSError) -> str:
    """The reason why a file could not be read or written, for a message."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space and resume"
    return error.strerror or str(error)


def _sync_folder(folder: Path) -> None:
    """Make the rename durable, on systems where folders can be synced (not on Windows)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
