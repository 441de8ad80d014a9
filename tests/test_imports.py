"""Imports go down the list of packages, never up, and engines never import each other: read from the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fastgan"
# from the top; packages of one line may import each other
ORDER = [("__main__", "cli"), ("trainer",), ("presets", "verify", "metrics", "export", "report"), ("train",),
         ("models", "data"), ("nn",), ("ops",),
         ("combinations", "config", "device", "errors", "extras", "files", "memory", "options", "pictures",
          "validation", "__version__")]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
ENGINES = ("fastgan.ops.native", "fastgan.ops.triton")  # the reference is the definition, which both may call
# current exceptions, with the reason; a line is removed with its import, and none is added
RUNS = "the page of a run reads its files, whose names and formats the trainer defines"
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("fastgan.report.run", "fastgan.trainer.lock"): RUNS,
    ("fastgan.report.run", "fastgan.trainer.log.read_stats"): RUNS,
    ("fastgan.report.run", "fastgan.trainer.evaluate.MEANINGS"): RUNS,
    ("fastgan.report.run", "fastgan.trainer.run_files.OPTIONS"): RUNS,
    ("fastgan.report.run", "fastgan.trainer.evaluate.FILE"): RUNS,
}


def imported(tree: ast.AST) -> Iterator[str]:
    """The modules of fastgan that a program imports, and the names in them, in full."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("fastgan."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used"
            if (node.module or "").split(".")[0] == "fastgan":
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def wrong_imports(module: str, source: str) -> list[str]:
    """The imports of a module that go up, or from one engine to another."""
    engine = next((name for name in ENGINES if module.startswith(name)), None)
    room = module.split(".")[1]
    return [target for target in imported(ast.parse(source))
            if LEVEL[target.split(".")[1]] < LEVEL[room]
            or (engine is not None and any(target.startswith(other) for other in ENGINES if other != engine))]


def test_imports_go_down():
    found = set()
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        if module != "fastgan":  # it imports the public names of all packages
            found |= {(module, target) for target in wrong_imports(module, path.read_text())}
    assert found == EXCEPTIONS.keys()


@pytest.mark.parametrize(("module", "source"), [
    ("fastgan.nn.chain", "from fastgan.train.step import GANStep"), ("fastgan.config", "import fastgan.ops"),
    ("fastgan.data.feed", "def f():\n    from fastgan import presets"),
    ("fastgan.ops.native.engine", "from fastgan.ops.triton import launch"),
    ("fastgan.ops.triton.passes", "from fastgan.ops import native")])
def test_wrong_imports_are_found(module, source):
    assert wrong_imports(module, source)
