"""Pieces of a page: everything is escaped here, and nothing that has slipped through could run or be fetched.

The page's own style and script are all that its content security policy admits, by their digests.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

STYLE = (Path(__file__).parent / "style.css").read_text()
SCRIPT = (Path(__file__).parent / "report.js").read_text()
LONGEST = 300  # characters of a value in a table


def shell(title: str, body: str, data: Any = None) -> str:
    """The whole page. With `data`, JSON for the script, which is only then a part of it."""
    policy = f"default-src 'none'; img-src data:; style-src '{_digest(STYLE)}'; script-src '{_digest(SCRIPT)}'"
    script = "" if data is None else (f'<script type="application/json" id="data">{_json(data)}</script>\n'
                                      f"<script>{SCRIPT}</script>\n")
    return (f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{text(title)}</title>\n'
            f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n{script}</body>\n</html>\n")


def text(value: object) -> str:
    """Anything as escaped text, for elements and attributes."""
    words = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return html.escape(words)


def short(value: object) -> str:
    """The same, cut where a value would fill the page."""
    words = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text(words if len(words) <= LONGEST else f"{words[:LONGEST]}... ({len(words):,} characters)")


def number(value: float) -> str:
    """Four digits of it."""
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"


def picture(alt: str, caption: str, png: bytes, size: tuple[int, int], attributes: str = "") -> str:
    """A figure of (width, height) pixels; `attributes` of the figure are the caller's own words."""
    data = base64.b64encode(png).decode()
    return (f'<figure {attributes}><img alt="{text(alt)}" width="{size[0]}" height="{size[1]}" '
            f'src="data:image/png;base64,{data}"><figcaption>{text(caption)}</figcaption></figure>')


def table(about: str, head: Sequence[str], rows: Iterable[Iterable[str]], kind: str = "") -> str:
    """Cells are HTML, the first of a row heads it. Scrolls within itself, by keyboard too."""
    columns = "".join(f'<th scope="col">{text(name)}</th>' for name in head)
    lines = "\n".join(f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
                      for first, *rest in rows)
    return (f'<div class="scroll" tabindex="0" role="region" aria-label="{text(about)}"><table class="{kind}">'
            f"<thead><tr>{columns}</tr></thead>\n<tbody>{lines}</tbody></table></div>")


def folded(summary: str, content: str) -> str:
    return f"<details><summary>{text(summary)}</summary>\n{content}\n</details>"


def _digest(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def _json(data: Any) -> str:
    """JSON that no parser of HTML takes for a tag or a comment."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
