"""The short help of `train` and `resume`: the most important options with their defaults. `--help-all` lists all."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import itertools
import re
import textwrap
from collections.abc import Collection, Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fastgan.config import GROUPS, Config
from fastgan.options import option

COMMON = ("source", "image_size", "channels", "flip", "cond", "batch", "ngf", "ndf", "norm_d", "loss", "augment", "lr",
          "ema", "epochs", "steps", "outdir", "seed", "device", "snap", "metrics")
_WIDTH, _INDENT = 80, 24


def wanted(args: list[str]) -> bool:
    """Whether the arguments request the short help."""
    return any(word in ("-h", "--help") for word in args)


def lines(config: Config, fields: Collection[str]) -> list[str]:
    """An entry for each of these fields, in the order of the configuration: option, accepted values, description, and
    the value in `config` as the default."""
    values = config.flat()
    return [line for name, group in GROUPS.items() for key, text in _documents(group).items() if key in fields
            for line in entry(option(key) + _values(get_type_hints(group)[key]), text, values[key])]


def all_options(command: Any) -> None:
    """Run a command that prints tyro's help and exits, and print the help without {None} as a value of options."""
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            command()
    finally:
        # pad with spaces to keep the frame aligned
        shown = re.sub(r"\{None\}\|(\S+)", r"\1       ", text.getvalue())
        print(re.sub(r"\{None,(\S+)", r"{\1     ", shown), end="")


def _documents(group: type) -> dict[str, str]:
    """The docstring below each field of a group, parsed from the source because Python discards it."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(group))).body
    assert isinstance(tree, ast.ClassDef)
    return dict(_pairs(tree.body))


def _pairs(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for field, below in itertools.pairwise(body):
        if (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)):
            yield field.target.id, " ".join(str(below.value.value).split())


def _values(kind: Any) -> str:
    """The placeholder after an option: its choices as {a,b}, or N, NUMBER or TEXT; "" for a switch."""
    if get_origin(kind) is not Literal and get_args(kind):  # "int | None": int
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return " {" + ",".join(map(str, get_args(kind))) + "}"
    return {bool: "", int: " N", float: " NUMBER"}.get(kind, " TEXT")


def entry(head: str, text: str, value: object) -> Iterator[str]:
    """The lines of an option: `head` on the left; description and default on the right."""
    shown = {True: "on", False: "off"}[value] if isinstance(value, bool) else value
    body = textwrap.wrap(text + ("" if value in (None, "") else f" (default: {shown})"), _WIDTH - _INDENT)
    head = f"  {head}"
    if len(head) > _INDENT - 2:
        yield head
        head = ""
    for line in body:
        yield f"{head:{_INDENT}}{line}"
        head = ""
