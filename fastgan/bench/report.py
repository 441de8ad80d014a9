"""What is made of a folder's results, without measuring anything: README.md, pictures, and one page that holds all.

    DIR/README.md     tables
    DIR/*.png         pictures
    DIR/report.html   both, with nothing outside of it
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterator
from pathlib import Path

from fastgan.bench import plots, results, table
from fastgan.errors import FastganError
from fastgan.files import replacing

NOTE = ("Times are medians of interleaved rounds. *measured*: every number here, but for lines that say *published*. "
        "TFLOP/s count the operations that a step needs, the same for all. Peaks are those of live tensors on a CPU, "
        "of PyTorch's allocator on a GPU.")
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: .6em 0 1.6em; font-size: 13px; display: block; overflow-x: auto }
th, td { border-bottom: 1px solid #ddd; padding: .25em .7em; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 17em }
th { border-bottom: 2px solid #888 }
figure { margin: 1.5em 0 2.5em } img { max-width: 100%; height: auto } figcaption { color: #555; font-size: 13px }
.red { color: #b03a2e; font-weight: bold } .green { color: #1e7e34 }
"""


def write(folder: Path) -> list[Path]:
    """All files, from `folder`'s CSV. Raises `FastganError` where there is none, or nothing in it."""
    path = folder / results.NAME
    if not path.is_file():
        raise FastganError(f"{path}: no such file; expected a folder in which `fastgan bench --out` has left results")
    rows = results.latest(results.read(path))
    if not rows:
        raise FastganError(f"{path} holds no results yet; expected some of `fastgan bench --out {folder}`")
    text = "\n".join([*table.tables(rows)])
    pictures = list(plots.all_of(rows))
    files = {name: png for name, _, png in pictures}
    files["README.md"] = "\n".join([text, f"{NOTE}\n", *(f"![{caption}]({name})\n\n*{caption}*\n"
                                                         for name, caption, _ in pictures)]).encode()
    files["report.html"] = page(text, pictures).encode()
    for name, content in files.items():
        with replacing(folder / name) as stream:
            stream.write(content)
    return [folder / name for name in files]


def page(text: str, pictures: list[tuple[str, str, bytes]]) -> str:
    """One HTML page from Markdown and (name, caption, PNG)."""
    figures = "\n".join(
        f'<figure><img alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>" for name, caption, png in pictures)
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>fastgan: benchmark</title>'
            f"<style>{STYLE}</style></head><body>\n" + "\n".join(_blocks(text))
            + f"\n<p>{_inline(NOTE)}</p>\n<h2>pictures</h2>\n{figures}\n</body></html>\n")


def _blocks(text: str) -> Iterator[str]:
    """Of the Markdown that `table` writes: headings, tables and paragraphs."""
    for block in re.split(r"\n\s*\n", text.strip()):
        heading = re.match(r"(#+) (.*)", block)
        if heading:
            yield f"<h{len(heading[1])}>{_inline(heading[2])}</h{len(heading[1])}>"
        elif block.startswith("|"):
            yield "\n".join(_table(block.splitlines()))
        else:
            mark = {"✅": "green", "🔴": "red"}.get(block[:1])
            yield f'<p class="{mark}">{_inline(block)}</p>' if mark else f"<p>{_inline(block)}</p>"


def _table(lines: list[str]) -> Iterator[str]:
    yield "<table>"
    for i, line in enumerate(lines):
        if i != 1:  # the rule below the head
            cell = "td" if i else "th"
            cells = (f"<{cell}>{_inline(word.strip())}</{cell}>" for word in line.split("|")[1:-1])
            yield f"<tr>{''.join(cells)}</tr>"
    yield "</table>"


def _inline(words: str) -> str:
    """Bold, italics and code."""
    words = html.escape(words, quote=False)
    for pattern, tag in ((r"\*\*(.+?)\*\*", "strong"), (r"\*(.+?)\*", "em"), (r"`(.+?)`", "code")):
        words = re.sub(pattern, rf"<{tag}>\1</{tag}>", words)
    return words
