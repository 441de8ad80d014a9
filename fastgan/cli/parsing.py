"""Functions shared by the subcommands: parsing with one-line errors, and the default run."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import tyro

from fastgan.errors import FastganError

if TYPE_CHECKING:
    from fastgan.models.pretrained import Pretrained

Options = TypeVar("Options")


def parse(kind: type[Options], args: list[str], command: str, default: Options | None = None) -> Options:
    """Parse options with tyro, whose framed error messages become one-line `FastganError`s."""
    words = io.StringIO()
    try:
        with contextlib.redirect_stderr(words):
            known = {} if default is None else {"default": default}
            return tyro.cli(kind, args=args, prog=f"fastgan {command}", **known)  # type: ignore[call-overload]
    except SystemExit as end:
        if end.code in (0, None):
            raise
        raise FastganError(_one_line(words.getvalue())) from None


def _one_line(framed: str) -> str:
    """The text of tyro's error box without the frame, the title and the hint about --help."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", framed).split("For full helptext")[0]
    lines = [line.strip("│ ") for line in text.splitlines() if not re.match(r"[╭╰]", line)]
    return re.sub(r"\s+", " ", " ".join(line for line in lines if line.strip("─ "))).replace(" .", ".").strip()


def value_of(flag: str, args: list[str]) -> str | None:
    """The value of a single option, without parsing the others."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(flag, nargs="?", dest="value")
    value: str | None = parser.parse_known_args(args)[0].value
    return value


def writable(path: Path, option: str = "--out") -> None:
    """Raise `FastganError` if the folder of `path` does not exist."""
    if not path.parent.is_dir():
        raise FastganError(f"{option} {path}: no such folder: {path.parent}; expected a path in an existing folder")


def load(folder: Path | None) -> Pretrained:
    """The generator of a run or an export; for None, of the newest run in runs/."""
    from fastgan import export
    from fastgan.models.pretrained import Pretrained
    from fastgan.trainer import run_files

    folder = folder or run_files.newest(Path("runs"))
    return export.load(folder) if export.is_export(folder) else Pretrained.load(folder)
