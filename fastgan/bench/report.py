"""What is made of a folder's results, without measuring anything: README.md, pictures, and one page that holds all.

    DIR/README.md     tables
    DIR/*.png         pictures
    DIR/report.html   both, with nothing outside of it
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path

from fastgan.bench import plots, results, table
from fastgan.errors import FastganError
from fastgan.files import replacing
from fastgan.report import page as pages

NOTE = ("Times are medians of interleaved rounds. *measured*: every number here, but for lines that say *published*. "
        "TFLOP/s count the operations that a step needs, the same for all. Peaks are those of live tensors on a CPU, "
        "of PyTorch's allocator on a GPU.")


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
    figures = (pages.picture(f"Chart: {caption}", caption, png, _size(png)) for _, caption, png in pictures)
    return pages.shell("fastgan: benchmark", "\n".join([
        *_blocks(text), f"<p>{_inline(NOTE)}</p>\n<h2>pictures</h2>", *figures]))


def _size(png: bytes) -> tuple[int, int]:
    """(width, height), which stand in every PNG's header."""
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def _blocks(text: str) -> Iterator[str]:
    """Of the Markdown that `table` writes: headings, tables and paragraphs."""
    title = "Results"
    for block in re.split(r"\n\s*\n", text.strip()):
        heading = re.match(r"(#+) (.*)", block)
        if heading:
            title = heading[2]
            yield f"<h{len(heading[1])}>{_inline(title)}</h{len(heading[1])}>"
        elif block.startswith("|"):
            head, _, *rows = ([word.strip() for word in line.split("|")[1:-1]] for line in block.splitlines())
            yield pages.table(title, head, ([_inline(word) for word in row] for row in rows), "bench")
        else:
            # a class in place of the sign, for which not every machine has a glyph
            mark = {"✅": "good", "🔴": "bad"}.get(block[:1])
            yield f'<p class="{mark}">{_inline(block[1:].strip())}</p>' if mark else f"<p>{_inline(block)}</p>"


def _inline(words: str) -> str:
    """Bold, italics and code."""
    words = html.escape(words, quote=False)
    for pattern, tag in ((r"\*\*(.+?)\*\*", "strong"), (r"\*(.+?)\*", "em"), (r"`(.+?)`", "code")):
        words = re.sub(pattern, rf"<{tag}>\1</{tag}>", words)
    return words
