"""Names and values of options as the command line has them."""

from __future__ import annotations

import difflib

from fastgan.errors import FastganError

METRICS = ("fid", "kid", "is", "score")


def option(key: str) -> str:
    """The command line's word for a field."""
    return "--data" if key == "source" else "--" + key.replace("_", "-")


def nearest(given: str, known: list[str]) -> str:
    """A suggestion for a misspelt name."""
    close = difflib.get_close_matches(given, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"expected one of {', '.join(known)}"


def metric_names(text: str) -> list[str]:
    """["fid", "kid"] of "fid,kid"; none of ""."""
    names = [name.strip() for name in text.split(",")] if text else []
    for name in names:
        if name not in METRICS:
            close = difflib.get_close_matches(name, METRICS, n=1)
            raise FastganError(f"--metrics {text}: unknown {name!r}; expected some of {', '.join(METRICS)}, as in "
                               f"--metrics fid,kid" + (f"; did you mean {close[0]}?" if close else ""))
    return list(dict.fromkeys(names))


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) of "64" or "64x96"."""
    parts = str(text).lower().split("x")
    if len(parts) not in (1, 2) or not all(part.isdecimal() and 0 < int(part) <= 4096 for part in parts):
        raise FastganError(f"--image-size {text}: expected a side such as 64 or HEIGHTxWIDTH such as 64x96, up to 4096")
    return int(parts[0]), int(parts[-1])
