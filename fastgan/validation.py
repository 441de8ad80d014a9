"""Type checks of values that come from a file or a caller, against the types that dataclass fields declare."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fastgan.errors import FastganError
from fastgan.options import option

_DESCRIPTIONS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text",
                                 NoneType: "none"}
_LARGEST = 2**63  # the range of indices and seeds; larger numbers also lose digits as floats


def matches(value: object, kind: Any) -> bool:
    """Whether `value` is of a type such as int, float | None, Literal["a", "b"] or tuple[int, ...].

    As in JSON, an integer is a valid float, and a bool is not a number.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if origin in (Union, UnionType):
        return any(matches(value, one) for one in inner)
    if origin is tuple:
        return isinstance(value, tuple) and all(matches(one, inner[0]) for one in value)
    if kind in (int, float):
        whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST
        return whole or (kind is float and isinstance(value, float))
    return isinstance(value, origin or kind)


def describe(kind: Any) -> str:
    """A description of the accepted values, for a message."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin in (Union, UnionType):
        return " or ".join(map(describe, inner))
    return f"a list, each {describe(inner[0])}" if origin is tuple else _DESCRIPTIONS.get(origin or kind, str(kind))


def first_error(values: dict[str, Any], kind: Any) -> str:
    """A message for the first of these fields of a dataclass or named tuple that has a wrong type; "" if none has."""
    known = get_type_hints(kind)
    for name, value in values.items():
        if name not in known:
            return f"{name}: unknown"
        if not matches(value, known[name]):
            return f"{name} {value!r:.80}: expected {describe(known[name])}"
    return ""


def check_types(group: type, values: dict[str, Any]) -> None:
    """Raise `FastganError` for the first value that does not have its field's type."""
    types = get_type_hints(group)
    for key, value in values.items():
        if not matches(value, types[key]):
            raise FastganError(f"{option(key)} {value!r:.80}: expected {describe(types[key])}")
