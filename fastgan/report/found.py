"""What lies in a run folder, which anybody may have written: read with limits, and damaged parts left out by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from PIL import Image

from fastgan.errors import FastganError, first_line

MOST_BYTES = 2**24  # of a picture or a JSON file
MOST_LOG = 2**28
MOST_PIXELS = 2**26
MOST_PICTURES = 40


class Picture(NamedTuple):
    """A PNG as it is. step: after which it was drawn, 0 for the untrained generator."""

    name: str
    step: int
    png: bytes
    size: tuple[int, int]


def json_of(path: Path, otherwise: str) -> dict[str, Any]:
    """The object in a JSON file. Raises `FastganError` that says what is wrong with it, or `otherwise` for none."""
    try:
        content = json.loads(_bytes(path, MOST_BYTES, otherwise))
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, FastganError) else FastganError(
            f"{path.name} cannot be read: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise FastganError(f"{path.name} cannot be read: it holds no JSON object")
    return content


def records(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records of a log, and how many lines of it are none. A run that goes on may be writing the last one."""
    good: list[dict[str, Any]] = []
    lines = _bytes(path, MOST_LOG, f"There is no {path.name}: the run has logged nothing yet").splitlines()
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and is_number(record.get("step")):
            good.append(record)
    return good, len(lines) - len(good)


def is_number(value: object) -> TypeGuard[float]:
    """Is it finite, and can it be drawn?"""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30


def fakes(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of every picture of fakes, in order."""
    named = ((re.fullmatch(r"fakes(_init|\d{6,12})\.png", path.name), path) for path in folder.glob("fakes*.png"))
    return sorted((0 if match[1] == "_init" else int(match[1]), path) for match, path in named if match)


def evenly(parts: list[Any], most: int) -> list[Any]:
    """At most so many of them, first and last included."""
    if len(parts) <= most:
        return parts
    return [parts[round(i * (len(parts) - 1) / (most - 1))] for i in range(most)]


def picture(path: Path, step: int = 0) -> Picture:
    """Raises `FastganError` for what is no whole PNG of a sensible size."""
    png = _bytes(path, MOST_BYTES, f"There is no {path.name}")
    try:
        with Image.open(path, formats=["PNG"]) as image:
            size = image.size
            if size[0] * size[1] > MOST_PIXELS:
                raise FastganError(f"{path.name} is left out: {size[0]} x {size[1]} pixels")
            image.load()
    except FastganError:
        raise
    except Exception as error:  # damaged pictures fail in many ways
        raise FastganError(f"{path.name} is no whole PNG: {first_line(error)}") from error
    return Picture(path.name, step, png, size)


def _bytes(path: Path, most: int, otherwise: str) -> bytes:
    if not path.is_file():
        raise FastganError(otherwise)
    try:
        with path.open("rb") as stream:
            content = stream.read(most + 1)
    except OSError as error:
        raise FastganError(f"{path.name} cannot be read: {error.strerror or error}") from error
    if len(content) > most:
        raise FastganError(f"{path.name} is left out: it has more than {most / 2**20:.0f} MB")
    return content
