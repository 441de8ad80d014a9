"""The forward of a module, compiled by Dynamo with the backend "fastgan"."""

from __future__ import annotations

import inspect
import logging
import sys
import threading
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch._dynamo import callback_handler, config
from torch._dynamo.exc import TorchDynamoException
from torch.utils._python_dispatch import _get_current_dispatch_mode

from fastgan.errors import first_line
from fastgan.nn import dynamo
from fastgan.nn.dynamo import runs
from fastgan.nn.fused import converted_class
from fastgan.nn.report import LAYERS, Report
from fastgan.ops import convolutions

RECOMPILE_LIMIT = 64
_SETTINGS = {
    "skip_nnmodule_hook_guards": False,  # a hook that is added to a layer later must run
    "allow_unspec_int_on_nn_module": True,  # a forward that counts its calls is compiled twice, not at every call
    "trace_numpy": False,  # numpy's random numbers come from numpy
}
_log = logging.getLogger("fastgan")


class CompiledForward:
    """The forward of one module, compiled at its first call.

    impl: the engine. report: that of the network; name: of the module in the network.
    """

    def __init__(self, impl: str, report: Report, name: str) -> None:
        self.impl, self.report, self.name = impl, report, name
        self.function: Any = None
        self.called = self.failed = self.warned = False

    def set_impl(self, impl: str) -> None:
        self.impl, self.function = impl, None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "function": None}

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        eager = module._eager_class
        if self.failed or _get_current_dispatch_mode() is not None:  # within such a mode Dynamo compiles nothing
            return _run_eagerly(module, args, kwargs)
        if self.function is None:
            self.function = _compile(eager.forward, self.impl)
        count = runs.count
        error: Exception | None = None
        kind = converted_class(eager)
        changes_class = type(module) is kind  # a forward may ask for its class, and write to it
        _settings.begin(module)
        try:
            if changes_class:
                object.__setattr__(module, "__class__", eager)
            result = self.function(module, *args, **kwargs)
        except Exception as raised:
            # not where part of the forward has run
            if runs.count != count or not (isinstance(raised, TorchDynamoException) or raised is _settings.error):
                raise
            error = raised
        finally:
            if changes_class:
                object.__setattr__(module, "__class__", kind)
            wrote = _settings.end()
        reason = "it writes an attribute of a class"  # in PyTorch up to 2.11, Dynamo does so once
        if error is not None:
            result = _run_eagerly(module, args, kwargs)  # an error of the network itself is raised here
            reason = f"torch.compile failed: {first_line(error)}"
        if runs.compiled or not self.called:
            self.report_compiled(module)
        if error is not None or wrote:
            self.failed = True
            self.report_eager(f"{eager.__name__}.forward runs eagerly from now on, {reason}")
        elif runs.count == count and not self.warned:
            self.report_eager(f"{eager.__name__}.forward ran eagerly in a call: torch.compile had no graph for it")
        return result

    def report_compiled(self, module: nn.Module) -> None:
        """Report what was compiled since the last call; after the first one, which layers no graph contains, too."""
        names = {id(tensor): (name, layer) for name, layer in module.named_modules(prefix=self.name)
                 if isinstance(layer, LAYERS) for tensor in (*layer.parameters(), *layer.buffers())}
        compiled, runs.compiled = runs.compiled, []
        for layers in compiled:
            known = dict(names[id(tensor)] for tensor in layers.tensors if id(tensor) in names)
            if known and not layers.reason:
                self.report.put_fused(known, layers.kinds, next(iter(known.values())), self.impl, ran=True)
            for name, layer in known.items() if layers.reason else ():
                self.report.put_left(name, layer, layers.reason)
        if not self.called:
            self.called = True
            for name, layer in dict(names.values()).items():
                if name in self.report.expected:
                    self.report.put_left(name, layer, f"no graph that torch.compile made of {type(module).__name__} "
                                         "contains it")

    def report_eager(self, text: str) -> None:
        """Report that a call ran no graph, if only because Dynamo's limit of recompilations was reached."""
        self.warned = True
        self.report.put([self.name or "the network"], text)
        _log.warning(f"fastgan: {self.name or 'the network'}: {text}")


def _run_eagerly(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with convolutions.guarded():
        return module._eager_class.forward(module, *args, **kwargs)


def _compile(forward: Any, impl: str) -> Any:
    """A forward, compiled for one module: Dynamo keeps and counts what it compiles by the code object."""
    if isinstance(forward, FunctionType):
        copied = FunctionType(forward.__code__.replace(), forward.__globals__, forward.__name__, forward.__defaults__,
                              forward.__closure__)
        copied.__kwdefaults__ = forward.__kwdefaults__
        forward = copied
    limit: dict[str, Any] = {}
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        limit = {"recompile_limit": RECOMPILE_LIMIT}
    elif config.recompile_limit < RECOMPILE_LIMIT:
        config.recompile_limit = RECOMPILE_LIMIT  # PyTorch up to 2.11 has none for a single function
    return torch.compile(forward, backend=dynamo.fastgan, options={"impl": impl}, **limit)


class _Settings(threading.local):
    """What holds while Dynamo compiles for a module of this thread: patching its settings at each call takes 30 us."""

    def __init__(self) -> None:
        self.modules: list[nn.Module] = []  # whose forwards are running
        self.patch: Any = None
        self.classes: dict[type, dict[str, Any]] = {}  # and their attributes when a compilation began
        self.error: BaseException | None = None  # with which the last compilation ended

    def begin(self, module: nn.Module) -> None:
        if self.enter not in callback_handler.start_callbacks:  # torch.compiler.reset removes them
            callback_handler.register_start_callback(self.enter)
            callback_handler.register_end_callback(self.leave)
        self.modules.append(module)

    def end(self) -> bool:
        """Whether an attribute of a class was written since a compilation began, if there was one."""
        self.modules.pop()
        classes, self.classes, self.error = self.classes, {}, None
        return any(vars(kind).get(key) is not value for kind, attributes in classes.items()
                   for key, value in attributes.items())

    def enter(self, _: Any) -> None:
        if self.modules:
            self.patch = config.patch(_SETTINGS)
            self.patch.__enter__()
            self.classes = self.classes or {
                kind: dict(vars(kind)) for module in self.modules[-1].modules() for kind in type(module).__mro__
                if not kind.__module__.startswith(("builtins", "torch."))}

    def leave(self, _: Any) -> None:
        self.error = sys.exc_info()[1]
        if self.patch is not None:
            self.patch.__exit__(None, None, None)
            self.patch = None


_settings = _Settings()
