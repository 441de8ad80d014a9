"""Subclasses of a network's classes, with the same names, as FSDP2's `fully_shard` creates them.

`isinstance` checks still work, and copies, pickles and replicas keep the fusion. A subclass of `nn.Sequential` also
inherits from `Chain`; the forward of any other module is compiled (`compiled.py`).
"""

from __future__ import annotations

import copyreg
import functools
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.module import _has_any_global_hook

from fastgan.nn.chain import Chain, disabled
from fastgan.ops import synchronised


class Converted:
    """Base class of the subclasses created here."""

    _eager_class: type[nn.Module]

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        function, arguments, *rest = reduced
        if function is copyreg.__newobj__ and arguments[0] is type(self):  # type: ignore[attr-defined]
            return _new, (self._eager_class, *arguments[1:]), *rest
        return function, arguments, *rest

    __prepare_scriptable__: Any = Chain.__prepare_scriptable__


def _new(eager_class: Any, *arguments: Any) -> Any:
    return converted_class(eager_class).__new__(converted_class(eager_class), *arguments)


@functools.cache
def converted_class(eager_class: Any) -> Any:
    """The subclass of `eager_class` that runs blocks of layers as fused operations."""
    namespace: dict[str, Any] = {"_eager_class": eager_class, "__module__": eager_class.__module__,
                                 "__qualname__": eager_class.__qualname__, "__doc__": eager_class.__doc__}
    metaclass = _metaclass(eager_class)
    if eager_class.forward is nn.Sequential.forward:
        return metaclass(eager_class.__name__, (Converted, Chain, eager_class), namespace)

    @functools.wraps(eager_class.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or _runs_eagerly(args):
            return eager_class.forward(self, *args, **kwargs)
        return self._fastgan(self, args, kwargs)

    return metaclass(eager_class.__name__, (Converted, eager_class), {**namespace, "forward": forward})


def _metaclass(eager_class: Any) -> Any:
    """A metaclass that sets class attributes, as in `type(self).calls += 1`, on the eager class."""
    kind = type(eager_class)

    def __setattr__(cls: Any, name: str, value: Any) -> None:
        setattr(cls._eager_class, name, value)

    return type(kind.__name__, (kind,), {"__setattr__": __setattr__})


def _runs_eagerly(args: tuple[Any, ...]) -> bool:
    """Whether a tracer, a global module hook or the exchange of batch statistics requires the eager forward."""
    return (torch.jit.is_tracing() or bool(_has_any_global_hook()) or synchronised.processes() > 0 or disabled()
            or any(isinstance(value, fx.Proxy) for value in args))
