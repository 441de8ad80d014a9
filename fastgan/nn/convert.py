"""From networks of eager layers to stages, and back.

`convert` looks for Conv2d or ConvTranspose2d -> BatchNorm2d -> activation in two places: in every `nn.Sequential`,
which becomes a `Chain`; and, through torch.fx, in modules whose forward uses such layers one after the other, which
keep their class and code but run the traced sequence. No layer is copied, moved or renamed.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from fastgan.errors import FastganError
from fastgan.nn.chain import Chain, opens, read, why_not
from fastgan.nn.traced import Traced, own_children, trace
from fastgan.ops import engines
from fastgan.ops.arguments import check_impl

_LAYERS = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def convert(model: nn.Module, impl: str = "auto") -> nn.Module:
    """A network like `model` whose convolutions, batch normalisations and activations run as stages where they can.

    `model` itself stays as it is; the result shares all its layers, parameters and buffers, so whatever trains, moves
    or loads one does so to the other, and an optimizer made for one serves both. state_dict keys, outputs and
    gradients are the same. Convert before wrapping in DistributedDataParallel or `torch.compile`.

    A forward is read through torch.fx only where nothing can change it unseen: no branches, no `with`, no globals but
    torch's, no attributes but numbers, words and tuples of them.

    impl: the engine, as in `fastgan.ops`.

    Returns the new network. Its `fastgan_report` is a list of lines: for each convolution and batch normalisation,
    whether it was fused and by which engine, or why not; the engine is that of the device and dtype which the network
    has when it is converted. Raises `FastganError` for an unknown engine.
    """
    check_impl(impl)
    _check_model(model)
    report: list[str] = []
    root = _Conversion(impl, report, dict(_held(model))).of(model, "")
    root = _container(root) if root is model else root
    root.__dict__["fastgan_report"] = report
    return root


def to_eager(model: nn.Module) -> nn.Module:
    """The inverse of `convert`: every `Chain` an `nn.Sequential` again, every module its own forward.

    Like `convert` it leaves `model` as it is and shares its layers.
    """
    _check_model(model)
    root = _Reversion().of(model, "")
    root = _container(root) if root is model else root
    root.__dict__.pop("fastgan_report", None)
    return root


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {model!r} ({type(model).__name__}), expected an nn.Module")
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel, torch.jit.ScriptModule)):
        raise FastganError(f"model is a {type(model).__name__}: convert the network inside, then wrap it")
    if "_orig_mod" in model._modules:
        raise FastganError("model is compiled: convert it first, then torch.compile the result")


def _container(module: nn.Module, kind: type[nn.Module] | None = None) -> Any:
    """A new module of that kind, or the same, that shares everything with `module` but the list of its children."""
    new = (kind or type(module)).__new__(kind or type(module))
    new.__dict__.update(module.__dict__, _modules=module._modules.copy())
    forward = new.__dict__.get("forward")
    if isinstance(forward, Traced):
        new.__dict__["forward"] = Traced(new, forward.impl)
    return new


class _Rebuild:
    """Containers made anew along the paths to what changes; each shared module once."""

    def __init__(self) -> None:
        self.done: dict[int, nn.Module] = {}

    def of(self, module: nn.Module, name: str) -> nn.Module:
        if id(module) not in self.done:
            self.done[id(module)] = self.make(module, name)
        return self.done[id(module)]

    def make(self, module: nn.Module, name: str) -> nn.Module:
        raise NotImplementedError

    def children(self, module: nn.Module, name: str) -> nn.Module:
        """`module`, or one like it with other children."""
        if isinstance(module, (*_LAYERS, torch.jit.ScriptModule)):
            return module
        new = {key: child and self.of(child, _join(name, key)) for key, child in module._modules.items()}
        if all(new[key] is child for key, child in module._modules.items()):
            return module
        rebuilt = _container(module)
        rebuilt._modules.update(new)
        return rebuilt


class _Reversion(_Rebuild):
    def make(self, module: nn.Module, name: str) -> nn.Module:
        new = self.children(module, name)
        if _is_chain(module):
            new = _container(new, nn.Sequential)
            for attribute in ("impl", "stat_groups"):
                new.__dict__.pop(attribute, None)
        elif isinstance(module.__dict__.get("forward"), Traced):
            new = _container(new) if new is module else new
            del new.forward
        return new


class _Conversion(_Rebuild):
    def __init__(self, impl: str, report: list[str], held: dict[int, str]) -> None:
        super().__init__()
        self.impl, self.report, self.held = impl, report, held
        self.told: set[int] = set()

    def make(self, module: nn.Module, name: str) -> nn.Module:
        holder = next((self.held[id(part)] for part in _run_by(module) if id(part) in self.held), "")
        if holder and not isinstance(module, _LAYERS) and not _is_chain(module):
            for key, layer in module.named_modules():
                self.leave(_join(name, key), layer, f"it is also in {holder}, which conversion does not reach")
            return module
        if type(module) is nn.Sequential or _is_chain(module):
            return self.chain(module, name)  # type: ignore[arg-type]
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            return self.children(module, name)
        return self.attributes(module, name)

    def chain(self, module: nn.Sequential, name: str) -> nn.Module:
        new = _container(module, type(module) if _is_chain(module) else Chain)
        new.impl = self.impl
        new.__dict__.setdefault("stat_groups", 1)
        layers = list(_named_layers(new, name))
        parts = read([layer for _, layer in layers])
        self.tell(layers, parts)
        rebuilt = self.children(module, name)
        if not _is_chain(module) and not any(isinstance(part, list) for part in parts):
            return rebuilt
        new._modules.update(rebuilt._modules)
        return new

    def attributes(self, module: nn.Module, name: str) -> nn.Module:
        """`module`, or one that runs the sequences of layers which its forward goes through."""
        if isinstance(module, _LAYERS):
            self.leave(name or "the model", module, "it stands alone")
            return module
        own = [(key, child) for key, child in own_children(module).items() if isinstance(child, _LAYERS)]
        found, reason = trace(module, self.impl) if own else (None, "")
        fused = False
        for run in found.runs if found else ():
            parts = read([layer for _, layer in run])
            fused = fused or any(isinstance(part, list) for part in parts)
            self.tell([(_join(name, label), layer) for label, layer in run], parts)
        for key, child in own:
            self.leave(_join(name, key), child, reason or "its neighbours in forward are no fusable layers")
        new = self.children(module, name)
        if fused:
            new = _container(new) if new is module else new
            new.forward = Traced(new, self.impl)
        return new

    def tell(self, layers: list[tuple[str, nn.Module]], parts: list[Any]) -> None:
        """Report what becomes of named layers that `read` has read as `parts`."""
        remaining = iter(layers)
        for part in parts:
            if not isinstance(part, list):
                self.leave(*next(remaining), "no fusable convolution comes before it")
                continue
            for block in part:
                named = [next(remaining) for layer in block if layer is not None]
                if id(block[0]) not in self.told:
                    self.told.update(id(layer) for _, layer in named)
                    kinds = " + ".join(type(layer).__name__ for _, layer in named)
                    engine = self.engine(block[0].weight)
                    what = f"{kinds} as PyTorch operators" if engine == "reference" else f"fused {kinds}"
                    self.report.append(f"{', '.join(label for label, _ in named)}: {what} (engine: {engine})")

    def engine(self, weight: Tensor) -> str:
        """The engine of a convolution with this weight, as far as it is known before the first call."""
        name = engines.named(self.impl, weight.device, weight.dtype)
        return "reference" if engines.why_not(name, weight.device) else name

    def leave(self, label: str, layer: nn.Module, reason: str) -> None:
        if isinstance(layer, _LAYERS) and id(layer) not in self.told:
            self.told.add(id(layer))
            self.report.append(f"{label}: left as it is, {why_not(layer) or reason}")


def _held(model: nn.Module) -> Iterator[tuple[int, str]]:
    """The modules, by id, that a module of `model` holds in lists and the like among its attributes, and in which."""
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key not in _OF_EVERY_MODULE:
                for held in _modules_in(value):
                    yield id(held), f"{_join(name, key)}, a {type(value).__name__}"


def _modules_in(value: Any) -> Iterator[nn.Module]:
    seen, rest = set[int](), [value]
    while rest:
        part = rest.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, nn.Module):
            yield part
        elif isinstance(part, (list, tuple, set, frozenset)):
            rest += part
        elif isinstance(part, dict):
            rest += [*part, *part.values()]
        elif isinstance(part, MethodType):
            rest.append(part.__self__)


def _run_by(module: nn.Module) -> Iterator[nn.Module]:
    """`module` and, of a sequence, what a chain in its place would run by itself."""
    yield module
    if isinstance(module, nn.Sequential):
        for child in module._modules.values():
            if child is not None and (opens(child, module) or not child._modules):
                yield from _run_by(child)


def _is_chain(module: nn.Module) -> bool:
    return isinstance(module, Chain) and type(module).forward is Chain.forward and "forward" not in module.__dict__


def _named_layers(chain: nn.Sequential, name: str) -> Iterator[tuple[str, nn.Module]]:
    """As `flat`, with names."""
    for key, module in chain._modules.items():
        if opens(module, chain):
            yield from _named_layers(module, _join(name, key))
        else:
            yield _join(name, key), module


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key
