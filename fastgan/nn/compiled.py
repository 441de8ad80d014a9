"""The forward of a module, compiled by torch.compile with the backend "fastgan"."""

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
    "skip_nnmodule_hook_guards": False,  # so that hooks that are added later run
    "allow_unspec_int_on_nn_module": True,  # so that a forward that counts its calls is not recompiled in each call
    "trace_numpy": False,  # so that random numbers of NumPy come from NumPy
}
_log = logging.getLogger("fastgan")


class CompiledForward:
    """The forward of one module, compiled in its first call.

    impl: the engine. report: the report of the network. name: the name of the module in the network.
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
        if self.failed or _get_current_dispatch_mode() is not None:  # Dynamo does not compile in a dispatch mode
            return _run_eagerly(module, args, kwargs)
        if self.function is None:
            self.function = _compile(eager.forward, self.impl)
        count = runs.count
        error: Exception | None = None
        kind = converted_class(eager)
        changes_class = type(module) is kind  # because a forward may read its class and write to it
        _settings.begin(module)
        try:
            if changes_class:
                object.__setattr__(module, "__class__", eager)
            result = self.function(module, *args, **kwargs)
        except Exception as raised:
            # do not repeat a forward of which a part has run
            if runs.count != count or not (isinstance(raised, TorchDynamoException) or raised is _settings.error):
                raise
            error = raised
        finally:
            if changes_class:
                object.__setattr__(module, "__class__", kind)
            wrote = _settings.end()
        reason = "it writes an attribute of a class"  # which Dynamo up to PyTorch 2.11 does only once
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
        """Report what was compiled since the last call, and, after the first call, which layers are in no graph."""
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
                    self.report.put_left(name, layer, f"torch.compile traced no graph of {type(module).__name__} that "
                                         "contains it")

    def report_eager(self, text: str) -> None:
        """Report that a call ran eagerly, for example because Dynamo's recompilation limit was reached."""
        self.warned = True
        self.report.put([self.name or "the network"], text)
        _log.warning(f"fastgan: {self.name or 'the network'}: {text}")


def _run_eagerly(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with convolutions.guarded():
        return module._eager_class.forward(module, *args, **kwargs)


def _compile(forward: Any, impl: str) -> Any:
    """Compile a forward for one module. The function is copied, because Dynamo caches and counts compilations per code
    object."""
    if isinstance(forward, FunctionType):
        copied = FunctionType(forward.__code__.replace(), forward.__globals__, forward.__name__, forward.__defaults__,
                              forward.__closure__)
        copied.__kwdefaults__ = forward.__kwdefaults__
        forward = copied
    limit: dict[str, Any] = {}
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        limit = {"recompile_limit": RECOMPILE_LIMIT}
    elif config.recompile_limit < RECOMPILE_LIMIT:
        config.recompile_limit = RECOMPILE_LIMIT  # PyTorch up to 2.11 has no limit per function
    return torch.compile(forward, backend=dynamo.fastgan, options={"impl": impl}, **limit)


class _Settings(threading.local):
    """Settings of Dynamo while it compiles for a module of this thread; patching them in each call would take 30 us."""

    def __init__(self) -> None:
        self.modules: list[nn.Module] = []  # modules whose forward is running
        self.patch: Any = None
        self.classes: dict[type, dict[str, Any]] = {}  # their classes' attributes before a compilation
        self.error: BaseException | None = None  # the error of the last compilation

    def begin(self, module: nn.Module) -> None:
        if self.enter not in callback_handler.start_callbacks:  # torch.compiler.reset removes them
            callback_handler.register_start_callback(self.enter)
            callback_handler.register_end_callback(self.leave)
        self.modules.append(module)

    def end(self) -> bool:
        """Whether an attribute of a class was written since a compilation began."""
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
