"""Reading of files in a run folder that may be missing, damaged or from other programs; errors name the file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from fastgan.errors import FastganError, first_line
from fastgan.files import read_json


class Picture(NamedTuple):
    """The bytes of a PNG file. step: the step after which it was generated, 0 for the untrained generator. size: width,
    height."""

    step: int
    png: bytes
    size: tuple[int, int]


def json_object(path: Path, missing: str) -> dict[str, Any]:
    """The object in a JSON file. Raises `FastganError` with the reason; if the file is missing, with the message
    `missing`."""
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise FastganError(missing) from None
    except (OSError, ValueError) as error:
        raise FastganError(f"{path.name} cannot be read: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise FastganError(f"{path.name} cannot be read: it does not contain a JSON object")
    return content


def fakes(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of each picture of fakes, in order."""
    named = ((re.fullmatch(r"fakes(_init|\d{6,12})\.png", path.name), path) for path in folder.glob("fakes*.png"))
    return sorted((0 if match[1] == "_init" else int(match[1]), path) for match, path in named if match)


def picture(path: Path, step: int = 0) -> Picture:
    """Read a PNG. Raises `FastganError` for a missing or incomplete file."""
    if not path.is_file():
        raise FastganError(f"There is no {path.name}")
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
            return Picture(step, path.read_bytes(), image.size)
    except Exception as error:  # damaged pictures raise many types
        raise FastganError(f"{path.name} is not a complete PNG: {first_line(error)}") from error
