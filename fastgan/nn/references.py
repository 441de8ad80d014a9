"""Copies of networks that share all tensors, and whose modules refer to each other as in the original.

A module refers to other modules as children, and through its other attributes: lists and dicts of modules, bound
methods, closures, and hooks.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from fastgan.nn.chain import join

_COLLECTIONS = (list, tuple, set, frozenset, deque)


def children_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Like `model.named_modules()`, but without the modules inside of wrapped, compiled or scripted modules."""
    seen, rest = set[int](), [("", model)]
    while rest:
        name, module = rest.pop()
        if id(module) not in seen:
            seen.add(id(module))
            yield name, module
            if not is_opaque(module):
                children = [(join(name, key), child) for key, child in module._modules.items() if child is not None]
                rest += reversed(children)


def _reachable(model: nn.Module) -> list[nn.Module]:
    """`model` and all modules that it refers to, directly or indirectly."""
    seen, rest = set[int](), [model]
    found: list[nn.Module] = []
    while rest:
        module = rest.pop()
        if id(module) not in seen:
            seen.add(id(module))
            found.append(module)
            rest += () if is_opaque(module) else referred_modules(vars(module))
    return found


def is_opaque(module: nn.Module) -> bool:
    """Whether a module is a wrapper, scripted or compiled, so that the modules inside are not converted."""
    return (isinstance(module, (torch.jit.ScriptModule, nn.DataParallel, nn.parallel.DistributedDataParallel))
            or "_orig_mod" in module._modules or module._compiled_call_impl is not None)


def referred_modules(value: Any) -> Iterator[nn.Module]:
    """The modules to which a value refers, without following the references of these modules."""
    seen, rest = set[int](), [value]
    while rest:
        part = rest.pop()
        if isinstance(part, nn.Module):
            yield part
        elif id(part) not in seen:
            seen.add(id(part))
            rest += _parts(part)


def _parts(value: Any) -> list[Any]:
    if isinstance(value, _COLLECTIONS):
        return list(value)
    if isinstance(value, dict):
        return [*value, *value.values()]
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, FunctionType):
        return [value.__defaults__, value.__kwdefaults__, *(value.__closure__ or ())]
    if isinstance(value, CellType):
        try:
            return [value.cell_contents]
        except ValueError:  # not assigned yet
            return []
    return []


def shared_copy(model: nn.Module, class_of: Callable[[nn.Module], type[nn.Module] | None]) -> nn.Module:
    """A copy of `model` that shares unchanged modules. New modules are created for `model`, for the children for which
    `class_of` returns a class, and for all modules that refer to a new module."""
    modules = _reachable(model)
    referring: dict[int, list[nn.Module]] = {}
    for module in modules:
        for other in () if is_opaque(module) else referred_modules(vars(module)):
            referring.setdefault(id(other), []).append(module)
    changed = [(module, class_of(module)) for _, module in children_of(model)]
    classes = {id(module): kind for module, kind in changed if kind is not None}
    rest = [model, *(module for module, kind in changed if kind is not None)]
    new: dict[int, nn.Module] = {}
    while rest:
        module = rest.pop()
        if id(module) not in new:
            kind = classes.get(id(module), type(module))
            new[id(module)] = kind.__new__(kind)
            rest += referring.get(id(module), [])
    substitution = _Substitution(new)
    for module in modules:
        if id(module) in new:
            shared = {key: substitution.of(value) for key, value in vars(module).items()}
            children = {key: substitution.of(child) for key, child in module._modules.items()}
            vars(new[id(module)]).update(shared, _modules=children)
    return new[id(model)]


class _Substitution:
    """Replaces references to modules by references to the new modules, in copies of the objects that contain them."""

    def __init__(self, new: dict[int, nn.Module]) -> None:
        self.new = new
        self.done: dict[int, Any] = {}

    def of(self, value: Any) -> Any:
        if isinstance(value, nn.Module):
            return self.new.get(id(value), value)
        if id(value) not in self.done:
            if not any(id(module) in self.new for module in referred_modules(value)):
                return value
            self.done[id(value)] = self.copied(value)
        return self.done[id(value)]

    def copied(self, value: Any) -> Any:
        if isinstance(value, MethodType):
            return MethodType(self.of(value.__func__), self.of(value.__self__))
        if isinstance(value, partial):
            return partial(self.of(value.func), *self.of(value.args), **self.of(value.keywords))
        if isinstance(value, (tuple, frozenset)):
            parts = [self.of(part) for part in value]
            return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        if isinstance(value, CellType):
            self.done[id(value)] = made = CellType()
            made.cell_contents = self.of(value.cell_contents)
            return made
        if isinstance(value, FunctionType):
            function = FunctionType(value.__code__, value.__globals__, value.__name__, self.of(value.__defaults__),
                                    value.__closure__ and tuple(map(self.of, value.__closure__)))
            function.__kwdefaults__ = self.of(value.__kwdefaults__)
            function.__dict__.update(value.__dict__)
            return function
        self.done[id(value)] = made = copy.copy(value)  # before its parts, which may contain it
        made.clear()
        if isinstance(value, dict):
            made.update((self.of(key), self.of(part)) for key, part in value.items())
        elif isinstance(value, set):
            made.update(map(self.of, value))
        else:
            made.extend(map(self.of, value))
        return made
