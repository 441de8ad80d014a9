"""Files that are either the old one or the whole new one, never half of it; others' JSON; where the cache lies."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from fastgan.errors import FastganError

StrPath: TypeAlias = "str | os.PathLike[str]"


@contextmanager
def replacing(path: StrPath) -> Iterator[BinaryIO]:
    """A stream whose content takes the place of `path` when the block ends well: written aside, synced, renamed.

    Raises `FastganError` when the disk is full or the folder cannot be written; `path` is then as it was.
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
        with contextlib.suppress(OSError):  # in a folder that cannot be entered there is nothing to remove
            aside.unlink()


def remove_leftovers(folder: Path) -> None:
    """Delete what `replacing` was writing below `folder` when its process was killed; nobody else may write there."""
    for aside in folder.rglob(".*.tmp"):
        with contextlib.suppress(OSError):
            aside.unlink()


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises OSError where it cannot be read, ValueError where it is no JSON."""
    try:
        return json.loads(path.read_text("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def cache_folder() -> Path:
    """Where what was found out once is kept: FASTGAN_CACHE, or the user's cache directory as the system has it."""
    named = os.environ.get("FASTGAN_CACHE")
    if named:
        return Path(named).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "fastgan"


def reason(error: OSError) -> str:
    """Words for why a file could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space and resume"
    return error.strerror or str(error)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where folders can be synced (not on Windows)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
