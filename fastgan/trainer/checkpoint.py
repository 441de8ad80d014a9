"""Checkpoints: written atomically, verified when they are read, and read without executing code from them."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from fastgan.errors import FastganError, first_line
from fastgan.files import StrPath, replacing

BEST = "best.pt"


def save(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write a checkpoint such as step000500.pt and remove all but the newest `keep` checkpoints up to this step.

    Checkpoints of later steps, which were unreadable when the run was resumed, are neither counted nor removed. Raises
    `FastganError` if the disk is full.
    """
    path = folder / f"step{step:06d}.pt"
    folder.mkdir(exist_ok=True)
    write(path, state)
    done = [old for old in newest_first(folder) if _step(old) <= step]
    for old in done[keep:]:
        old.unlink(missing_ok=True)
    return path


def keep_best(folder: Path, step: int) -> None:
    """Copy the checkpoint of `step` to best.pt, which `save` does not count or remove."""
    with replacing(folder / BEST) as stream:
        stream.write((folder / f"step{step:06d}.pt").read_bytes())


def write(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values, atomically."""
    content = io.BytesIO()  # PyTorch's own error message for a full disk is misleading
    torch.save(state, content)
    with replacing(path) as stream:
        stream.write(content.getbuffer())


def read(path: StrPath) -> dict[str, Any]:
    """Read a state onto the CPU. Raises `FastganError` if the file is missing, damaged or contains code.

    Checksums are verified here, because `torch.load` does not and would miss a flipped bit.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            declared = sum(member.file_size for member in archive.infolist())
            damaged = archive.testzip() if declared <= path.stat().st_size else None
        if declared > path.stat().st_size:
            reason = f"its entries declare {declared} bytes, more than the file has"
        elif damaged is not None:
            reason = f"the checksum of {damaged} does not match"
        else:
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged archives and pickle streams raise nearly anything
        reason = first_line(error)
    raise FastganError(f"cannot read checkpoint {path}: {reason}")


def read_newest(folder: StrPath) -> tuple[dict[str, Any], Path, list[str]]:
    """The newest readable checkpoint: (state, path, errors of newer checkpoints).

    Raises `FastganError` if there is none.
    """
    problems: list[str] = []
    for path in newest_first(folder):
        try:
            return read(path), path, problems
        except FastganError as error:
            problems.append(str(error))
    raise FastganError("; ".join(problems) or f"no checkpoint in {folder}: expected files such as step000500.pt")


def newest_step(folder: StrPath) -> int | None:
    """The step of the newest checkpoint, by its name; None if there is none."""
    return next(map(_step, newest_first(folder)), None)


def newest_first(folder: StrPath) -> list[Path]:
    """The checkpoints in a folder, sorted by step in descending order."""
    paths = [path for path in Path(folder).glob("step*.pt") if re.fullmatch(r"step\d+\.pt", path.name)]
    return sorted(paths, key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step"))
