"""The documentation is correct: links resolve, code runs, commands parse, public names and messages have an entry."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fastgan
from fastgan import presets
from fastgan.cli import commands, parsing
from fastgan.models import build
from fastgan.trainer import run_files

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md",
         *(page for folder in ("docs", "docs/api") for page in sorted((ROOT / folder).glob("*.md")))]
READ = {page: page.read_text() for page in PAGES}
NOT_RUN = re.compile(r"<!-- not run: .+ -->\n\n?```python\n")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def prose(text: str) -> str:
    """Without blocks of code."""
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def anchors(text: str) -> set[str]:
    """Anchors of headings, as repository hosts create them."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_links(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(READ[page])):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name) if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.read_text()), target


def test_anchors_are_found():
    assert anchors("# A b\n## PyTorch's `x`: y\n```\n# no\n```") == {"a-b", "pytorchs-x-y"}


def given(page: Path) -> dict[str, Any]:
    """The names that the code of a page assumes: the reader's networks and batches."""
    if page.name in ("README.md", "step.md", "tuning.md"):
        config = presets.get("digits", image_size="16", ngf=4, ndf=4, nz=8)
        generator, discriminator = build(config.model, (1, 16, 16))
        real, fake = torch.randn(2, 4, 1, 16, 16)
        return {"config": config, "generator": generator, "discriminator": discriminator, "real": real, "fake": fake,
                "batches": [real]}
    return {}


@pages
def test_python_blocks(page, tmp_path, monkeypatch):
    """Blocks run one after another in one namespace, in a temporary folder; runs have 2 steps."""
    text = READ[page]
    blocks = re.findall(r"^```python\n(.*?)^```", NOT_RUN.sub("```not run\n", text), re.M | re.S)
    assert len(NOT_RUN.findall(text)) <= 1
    monkeypatch.chdir(tmp_path)
    small: dict[str, Any] = {"steps": 2, "batch": 16, "ngf": 4, "ndf": 4, "grid": 4, "plan": "default",
                             "tensorboard": False, "device": "cpu"}
    get = presets.get
    monkeypatch.setattr(presets, "get", lambda name, **values: get(name, **{**values, **small}))
    namespace = given(page)
    for block in blocks:
        exec(compile(block, page.name, "exec"), namespace)


def command_lines(text: str) -> Iterator[list[str]]:
    """Commands of `fastgan`, in indented blocks without descriptions and comments, and in running text."""
    lines = re.findall(r"^    (?:torchrun .* -m )?fastgan (.*)$", text, re.M)
    inline = re.findall(r"(?<!`)`fastgan ([a-z]+ [^`]*)`", " ".join(prose(text).split()))
    for command in [*lines, *inline]:
        words = shlex.split(re.split(r" {2,}|(?<=\S) #", command)[0])
        yield ["1" if word == "N" else word for word in words]


COMMANDS = [(page.name, words) for page in PAGES for words in command_lines(READ[page])]


@pytest.mark.parametrize(("name", "words"), COMMANDS, ids=[f"{name}-{' '.join(words)}" for name, words in COMMANDS])
def test_command_line(name, words, monkeypatch):
    """Its options exist. Nothing runs, because an exception is raised after parsing."""
    class Parsed(Exception):
        pass

    parse: Callable[..., Any] = parsing.parse

    def only_parse(*args: Any, **kwargs: Any) -> None:
        parse(*args, **kwargs)
        raise Parsed

    monkeypatch.setattr(parsing, "parse", only_parse)
    monkeypatch.setattr(run_files, "read_options", lambda folder: presets.get("digits"))
    monkeypatch.setattr(run_files, "newest", lambda folder: Path("runs/00000-digits"))
    monkeypatch.setattr("fastgan.data.recommend.recommend", lambda folder, on_gpu: [])  # it would read the images
    if words in (["train", "--help"], ["resume", "--help"]):  # printed without a parse
        assert commands.run(words[0], words[1:]) == 0
        return
    with pytest.raises((Parsed, SystemExit)):  # --help exits; invalid arguments raise FastganError
        commands.run(words[0], words[1:])


def test_command_lines_are_found():
    assert len(COMMANDS) > 30 and ["presets"] in [words for _, words in COMMANDS]


SAID = {"FastganError", "SharedError", "warn", "_warn", "info", "warning"}
# modules whose errors have an entry; every warning has one
WITH_ENTRY = ("train/", "trainer/", "data/", "combinations.py", "config.py", "device.py", "options.py", "cli/",
              "files.py", "models/", "metrics/", "export/", "report/")


def messages() -> Iterator[tuple[str, str]]:
    """The location of each message to the user, and its longest constant part."""
    package = ROOT / "fastgan"
    for path in sorted(package.rglob("*.py")):
        where = path.relative_to(package).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", None))
            if name in SAID and (name != "FastganError" or where.startswith(WITH_ENTRY)):
                parts = re.split(r"[…`]", constant(node.args[0]))
                longest = max((part.strip(" ,;:\"'") for part in parts), key=len)
                if len(longest) > 3:
                    yield f"{where}:{node.lineno}", longest


def constant(node: ast.expr) -> str:
    """A message, with … in place of variable parts."""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(constant, node.values))
    if isinstance(node, ast.BinOp):
        return constant(node.left) + constant(node.right)
    return str(node.value) if isinstance(node, ast.Constant) else "…"


def test_messages_have_an_entry():
    found = list(messages())
    assert len(found) > 80
    entries = READ[ROOT / "docs" / "troubleshooting.md"]
    missing = [f"{where}: {part}" for where, part in found if part not in entries]
    assert not missing, "docs/troubleshooting.md has no entry for\n" + "\n".join(missing)


DIRECTIVES = re.findall(r"^::: (\S+)$", "\n".join(READ[page] for page in PAGES if page.parent.name == "api"), re.M)


def documented(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("name", DIRECTIVES)
def test_api_pages_name_what_exists(name):
    assert inspect.getdoc(documented(name))


@pytest.mark.parametrize("module", [fastgan, fastgan.nn, fastgan.train, fastgan.trainer, fastgan.metrics])
def test_public_names_are_on_an_api_page(module):
    things = [documented(name) for name in DIRECTIVES]
    public = {name: getattr(module, name) for name in module.__all__ if not name.startswith("__")}
    assert not [name for name, thing in public.items() if callable(thing) and thing not in things]


def test_index_names_every_page():
    docs = ROOT / "docs"
    index = READ[docs / "README.md"]
    pages = [page.relative_to(docs).as_posix() for page in PAGES if page.is_relative_to(docs)]
    assert not [page for page in pages if page != "README.md" and f"]({page})" not in index]
