"""Forwards of hand-written modules, traced by torch.fx and run with their sequences of layers as chains.

A trace freezes what Python decided. So a forward is traced only if all it depends on is its arguments, its layers and
plain attributes of its module; and a trace is used only while those attributes, among them the mode, and those layers
are what they were.
"""

from __future__ import annotations

import dis
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional as F

from fastgan.errors import first_line
from fastgan.nn.chain import Chain, why_not


class Traced:
    """The forward of `module`, set as its attribute: traced when first called in each mode, and after any change.

    Where it cannot be traced, and under torch.compile, the class's own forward runs.
    """

    def __init__(self, module: nn.Module, impl: str) -> None:
        self.module, self.impl = module, impl
        self.traces: dict[bool, tuple[Any, Callable[..., Any]]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self.module
        own = type(module).forward
        if torch.compiler.is_compiling():
            return own(module, *args, **kwargs)
        frozen = _attributes(module), own_children(module)
        if module.training not in self.traces or self.traces[module.training][0] != frozen:
            found, _ = trace(module, self.impl)
            self.traces[module.training] = frozen, found.program if found else own.__get__(module)
        return self.traces[module.training][1](*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self.module, "impl": self.impl, "traces": {}}


class Trace(NamedTuple):
    """What stands for a forward, and the labelled layers of each sequence in it."""

    program: fx.GraphModule
    runs: list[list[tuple[str, nn.Module]]]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def trace(module: nn.Module, impl: str) -> tuple[Trace | None, str]:
    """The forward of `module` with chains, or None and why it cannot be read."""
    name = type(module).__name__
    reason = _opaque(module)
    if reason:
        return None, f"{name} {reason}"
    try:
        graph = _Tracer().trace(module)
    except Exception as error:  # fx gives up in as many ways as forwards are written
        return None, f"torch.fx cannot trace {name}: {first_line(error)}"
    known = own_children(module)
    for node in graph.nodes:
        if node.op == "get_attr":
            return None, f"{name} uses the tensor {node.target} directly"
        if node.op == "call_module" and node.target not in known:
            return None, f"{name} reaches into a child for {node.target}"
    runs = [list(run) for run in _sequences(graph, known)]
    program = fx.GraphModule(module, graph)
    for i, run in enumerate(runs):
        program.add_submodule(f"_chain_{i}", Chain(OrderedDict((str(k), layer) for k, (_, layer) in enumerate(run)),
                                                   impl=impl))
        with graph.inserting_before(run[0][0]):
            call = graph.call_module(f"_chain_{i}", (run[0][0].args[0],))
        run[-1][0].replace_all_uses_with(call)
        for node, _ in reversed(run):
            graph.erase_node(node)
    program.recompile()
    return Trace(program, [[(_label(node), layer) for node, layer in run] for run in runs]), ""


def own_children(module: nn.Module) -> dict[str, nn.Module | None]:
    """Children by name, those in lists and dicts of modules included."""
    children: dict[str, nn.Module | None] = {}
    for key, child in module._modules.items():
        children[key] = child
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            children |= {f"{key}.{inner}": layer for inner, layer in own_children(child).items()}
    return children


def _sequences(graph: fx.Graph, known: dict[str, nn.Module | None]) -> Iterator[list[tuple[fx.Node, nn.Module]]]:
    """Longest runs of layers that begin with a convolution, each computed right after the one that it alone reads."""
    run: list[tuple[fx.Node, nn.Module]] = []
    for node in graph.nodes:
        layer = _layer(node, known)
        follows = bool(run) and node.args[:1] == (run[-1][0],) and len(run[-1][0].users) == 1
        if layer is not None and follows:
            run.append((node, layer))
            continue
        if run:
            yield run
        run = [(node, layer)] if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)) else []
    if run:
        yield run


_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.ReLU, nn.LeakyReLU, nn.Tanh)
_FUNCTIONS: dict[Any, Callable[..., nn.Module]] = {
    F.relu: lambda inplace=False: nn.ReLU(inplace),
    F.leaky_relu: lambda negative_slope=0.01, inplace=False: nn.LeakyReLU(negative_slope, inplace),
    torch.relu: lambda: nn.ReLU(), "relu": lambda: nn.ReLU(), "relu_": lambda: nn.ReLU(inplace=True),
    torch.tanh: nn.Tanh, F.tanh: nn.Tanh, "tanh": nn.Tanh,
}


def _layer(node: fx.Node, known: dict[str, nn.Module | None]) -> nn.Module | None:
    """The layer that a node stands for, if it is one that a chain can fuse."""
    if node.op == "call_module":
        layer = known[str(node.target)]
        usual = len(node.args) == 1 and not node.kwargs and type(layer) in _LAYERS
        return layer if usual and layer is not None and not why_not(layer) else None
    options = (*node.args[1:], *node.kwargs.values())
    if node.op not in ("call_function", "call_method") or not all(map(_plain, options)):
        return None
    make = _FUNCTIONS.get(node.target)
    try:
        return make(*node.args[1:], **node.kwargs) if make and node.args else None
    except TypeError:  # an argument that the layer does not know
        return None


def _label(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name


def _attributes(module: nn.Module) -> dict[str, Any]:
    """What a module holds beside parameters, buffers, children and hooks."""
    return {key: value for key, value in module.__dict__.items() if key not in _NOT_READ}


_NOT_READ = (frozenset(nn.Module().__dict__) | {"forward", "fastgan_report"}) - {"training"}


def _plain(value: Any) -> bool:
    """Whether a change of such an attribute would show in a comparison."""
    if isinstance(value, tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device))


def _opaque(module: nn.Module) -> str:
    """What a trace of `module`'s forward could miss, in words; "" when nothing."""
    kind = type(module)
    if "forward" in module.__dict__ and not isinstance(module.__dict__["forward"], Traced):
        return "has had its forward replaced"
    for key, value in _attributes(module).items():
        if not _plain(value):
            return f"holds {key}, a {type(value).__name__}, which could change unseen"
    functions: list[Any] = [kind.forward]
    seen: set[Any] = set()
    while functions:
        function = functions.pop()
        if function in seen:
            continue
        seen.add(function)
        if not isinstance(function, FunctionType) or function.__closure__:
            return "has a forward that is not a plain function"
        for instruction in _instructions(function.__code__):
            name = instruction.argval
            if "WITH" in instruction.opname:
                return "has a with statement in its forward"
            if "JUMP" in instruction.opname and "IF_" in instruction.opname:
                return "has a branch in its forward"
            if instruction.opname == "LOAD_GLOBAL" and not _known(name, function):
                return f"uses {name} in its forward"
            if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and not hasattr(nn.Module, name):
                attribute = inspect.getattr_static(kind, name, None)
                if attribute is not None and not _plain(attribute):
                    functions.append(attribute)
    return ""


def _instructions(code: CodeType) -> Iterator[dis.Instruction]:
    yield from dis.get_instructions(code)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _instructions(constant)


def _known(name: str, function: FunctionType) -> bool:
    """Whether a global name means what it always means: torch, or a way to walk through layers."""
    if name not in function.__globals__:
        return name in ("zip", "enumerate", "range", "reversed", "len")
    value = function.__globals__[name]
    home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None) or ""
    return home.split(".")[0] == "torch"
