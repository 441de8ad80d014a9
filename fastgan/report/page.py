"""HTML elements of a page. All text is escaped here.

The content security policy allows only the style and script of the page, by their digests, and no network access.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

STYLE = (Path(__file__).parent / "style.css").read_text()
SCRIPT = (Path(__file__).parent / "report.js").read_text()
MAX_LENGTH = 300  # characters of a value in a table


def shell(title: str, body: str) -> str:
    """The whole page."""
    policy = f"default-src 'none'; img-src data:; style-src '{_digest(STYLE)}'; script-src '{_digest(SCRIPT)}'"
    return (f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{text(title)}</title>\n'
            f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n<script>{SCRIPT}</script>\n</body>\n"
            "</html>\n")


def text(value: object) -> str:
    """A value as escaped text, for elements and attributes."""
    return html.escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))


def short(value: object) -> str:
    """Like `text`, but long values are truncated."""
    string = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text(string if len(string) <= MAX_LENGTH else f"{string[:MAX_LENGTH]}... ({len(string):,} characters)")


def number(value: float) -> str:
    """A number with four significant digits."""
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"


def picture(alt: str, caption: str, png: bytes, size: tuple[int, int], attributes: str = "") -> str:
    """A figure of (width, height) pixels. The `attributes` of the figure are not escaped."""
    data = base64.b64encode(png).decode()
    return (f'<figure {attributes}><img alt="{text(alt)}" width="{size[0]}" height="{size[1]}" '
            f'src="data:image/png;base64,{data}"><figcaption>{text(caption)}</figcaption></figure>')


def table(about: str, head: Sequence[str], rows: Iterable[Iterable[str]], kind: str = "") -> str:
    """A table whose cells are HTML; the first cell of each row is its header. Wide tables scroll, also by keyboard."""
    columns = "".join(f'<th scope="col">{text(name)}</th>' for name in head)
    lines = "\n".join(f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
                      for first, *rest in rows)
    return (f'<div class="scroll" tabindex="0" role="region" aria-label="{text(about)}"><table class="{kind}">'
            f"<thead><tr>{columns}</tr></thead>\n<tbody>{lines}</tbody></table></div>")


def missing(reason: str) -> str:
    """A paragraph with the reason why something cannot be shown."""
    return f'<p class="missing">{short(reason)}</p>'


def folded(summary: str, content: str) -> str:
    """Content that is collapsed below its summary."""
    return f"<details><summary>{text(summary)}</summary>\n{content}\n</details>"


def _digest(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"
