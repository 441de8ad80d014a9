"""Files that are replaced as a whole or not at all; JSON of any origin; the cache folder."""

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
    """A stream whose content replaces `path` when the block ends without an error: written aside, synced, renamed.

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
    """Delete temporary files of `replacing` below `folder`, of a process that was killed; no other may write there."""
    for aside in folder.rglob(".*.tmp"):
        with contextlib.suppress(OSError):
            aside.unlink()


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises OSError where it cannot be read, ValueError where it is no JSON."""
    try:
        return json.loads(path.read_text("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def cache_folder() -> Path:
    """The folder for measurements and downloads: FASTGAN_CACHE, or fastgan in XDG_CACHE_HOME, by default ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("FASTGAN_CACHE") or Path(base, "fastgan")).expanduser()


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
