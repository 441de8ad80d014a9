"""Write the reference of the public names, from their signatures and docstrings.

`python docs/api.py` writes docs/api.md, and the signatures alone to tests/signatures.txt: a change there is a change of
the interface.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent / "api.md"
SIGNATURES = Path(__file__).parents[1] / "tests" / "signatures.txt"
# the names that users' code may depend on, by module
PUBLIC = {
    "fastgan": ["convert", "to_eager", "autotune"],
    "fastgan.nn": ["Chain", "ConvBNAct", "ConvTransposeBNAct", "ConvBNLeakyReLU", "ConvTransposeBNReLU", "stat_groups",
                   "frozen", "use"],
    "fastgan.trainer": ["Trainer"],
    "fastgan.train": ["GANStep", "GraphedStep"],
    "fastgan.trainer.distributed": ["group"],
    "fastgan.trainer.evaluate": ["evaluate"],
    "fastgan.config": ["Config"],
    "fastgan.presets": ["get"],
    "fastgan.data": ["open_dataset", "Loader", "make_feed", "to_model_range", "to_uint8"],
    "fastgan.models": ["build", "DCGANGenerator", "DCGANDiscriminator"],
    "fastgan.models.pretrained": ["Pretrained"],
    "fastgan.export": ["export", "load"],
    "fastgan.metrics": ["Metrics"],
    "fastgan.report": ["write"],
    "fastgan.ops": ["conv_bn_act", "conv_transpose_bn_act", "logistic_loss"],
    "fastgan.ops.tuning": ["use"],
    "fastgan.verify": ["certificate"],
    "fastgan.errors": ["FastganError"],
}


def page() -> str:
    """The whole of api.md."""
    lines = ["# API", "", "Written by `python docs/api.py` from signatures and docstrings. The options of `Config` are "
             "those of `fastgan train --help`.", ""]
    for room, names in PUBLIC.items():
        lines += [f"## {room}", ""]
        module = importlib.import_module(room)
        for name in names:
            lines += entry(name, getattr(module, name))
    return "\n".join(lines).rstrip() + "\n"


def entry(name: str, thing: Any) -> Iterator[str]:
    """A name with its docstring and, of a class, its public methods and properties."""
    yield from (f"### {name}", "")
    for head, member in members(name, thing):
        yield from block(head, member)


def signatures() -> str:
    """The whole of signatures.txt."""
    return "".join(f"{room}.{head}\n" for room, names in PUBLIC.items() for name in names
                   for head, _ in members(name, getattr(importlib.import_module(room), name)))


def members(name: str, thing: Any) -> Iterator[tuple[str, Any]]:
    """A name and, of a class, its public methods and properties with docstrings: each with its signature."""
    yield name + signature(thing), thing
    bases = [base for base in reversed(inspect.getmro(thing)) if base.__module__.startswith("fastgan.")] if (
        inspect.isclass(thing)) else []
    for key, member in {key: member for base in bases for key, member in vars(base).items()}.items():
        function = getattr(member, "__func__", member)  # of a classmethod
        if (key.startswith("_") and key != "__call__") or key == "forward" or not inspect.getdoc(function):
            continue
        if isinstance(member, property):
            yield f"{name}.{key}", member
        elif inspect.isfunction(function):
            yield f"{name}.{key}{signature(function)}", function


def block(head: str, thing: Any) -> list[str]:
    doc = (inspect.getdoc(thing) or "").splitlines()
    return ["```text", head, *["    " + line if line else "" for line in doc], "```", ""]


def signature(thing: Any) -> str:
    """Parameters and result as they are written, without self."""
    if inspect.isclass(thing) and issubclass(thing, Exception):
        return ""
    found = inspect.signature(thing)
    kept = [p for p in found.parameters.values() if p.name not in ("self", "cls")]
    result = found.return_annotation if inspect.isfunction(thing) else inspect.Signature.empty
    # annotations are strings, and are quoted
    return re.sub(r"(: |-> )(['\"])(.*?)\2", r"\1\3", str(found.replace(parameters=kept, return_annotation=result)))


if __name__ == "__main__":
    PAGE.write_text(page())
    SIGNATURES.write_text(signatures())
