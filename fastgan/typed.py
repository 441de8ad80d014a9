"""Whether a value that came from a file, or from a caller, is of the type that a field declares."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_WORDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text",
                          NoneType: "none"}
_LARGEST = 2**63  # beyond it whole numbers are no index, no seed and no float worth having


def fields(kind: Any) -> dict[str, Any]:
    """The types of a dataclass's or named tuple's fields, by name."""
    return get_type_hints(kind)


def is_of(value: object, kind: Any) -> bool:
    """Whether `value` is of a type such as int, float | None, Literal["a", "b"] or tuple[int, ...].

    As in JSON, a whole number is a number, and true is no number.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if origin in (Union, UnionType):
        return any(is_of(value, one) for one in inner)
    if origin is tuple:
        return isinstance(value, tuple) and all(is_of(one, inner[0]) for one in value)
    if kind in (int, float):
        whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST
        return whole or (kind is float and isinstance(value, float))
    return isinstance(value, origin or kind)


def words(kind: Any) -> str:
    """What `is_of` accepts, for people."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin in (Union, UnionType):
        return " or ".join(map(words, inner))
    return f"a list, each {words(inner[0])}" if origin is tuple else _WORDS.get(origin or kind, str(kind))


def wrong(values: dict[str, Any], kind: Any) -> str:
    """What is wrong with the fields of a `kind` given as values by name, in words; "" when nothing is."""
    known = fields(kind)
    for name, value in values.items():
        if name not in known:
            return f"{name}: unknown"
        if not is_of(value, known[name]):
            return f"{name} {value!r:.80}: expected {words(known[name])}"
    return ""
