"""`convert`, which makes an existing network use fused kernels, and `to_eager`, its inverse.

The result consists of new modules that share parameters, buffers and layers with the given network: every
`nn.Sequential` becomes a `Chain`, and a module with convolutions outside of an `nn.Sequential` gets a class whose
forward is compiled by Dynamo (`fused.py`). No layer is copied, moved or renamed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from fastgan.errors import FastganError, first_line
from fastgan.nn.blocks import why_not, why_not_geometry
from fastgan.nn.chain import Chain, disabled, join
from fastgan.nn.fused import Converted, converted_class
from fastgan.nn.references import children_of, is_opaque, shared_copy
from fastgan.nn.report import LAYERS, Report
from fastgan.ops.arguments import check_impl

_log = logging.getLogger("fastgan")


def convert(model: nn.Module, impl: str = "auto") -> nn.Module:
    """Convert a network so that its convolutions, batch normalizations and activations run as fused operations.

    `model` is neither run nor changed. The result shares all its layers, parameters and buffers: training, moving or
    loading one also affects the other, and an optimizer of one also works for the other. state_dict keys, outputs and
    gradients are the same. Convert a network before wrapping it in DistributedDataParallel or `torch.compile`.

    Every `nn.Sequential` becomes a `fastgan.nn.Chain`. A module with convolutions or batch normalizations outside of an
    `nn.Sequential` gets a subclass of its class, whose first call compiles its forward by torch.compile with the
    backend "fastgan", without Inductor. Both run their eager layers under jit, export, ONNX and other compilers, and if
    the environment variable FASTGAN_DISABLE is 1.

    Args:
        model: any module.
        impl: the engine, as in `fastgan.ops`.

    Returns:
        The new network. Its attribute `fastgan_report` is a list of lines: for each convolution and batch
            normalization, whether it is expected to be fused, and after the first call whether it was and by which
            engine, or why not.

    Raises:
        FastganError: for an unknown engine, and for a network that is already wrapped.
    """
    check_impl(impl)
    _check_model(model)
    report = Report()
    network = shared_copy(model, lambda module: None if disabled() else _class_for(module))
    if disabled():
        report.append("FASTGAN_DISABLE=1: all layers run in eager PyTorch")
    else:
        for name, module in children_of(network):
            _prepare(module, name, impl, report)
    vars(network)["fastgan_report"] = report
    return network


def to_eager(model: nn.Module) -> nn.Module:
    """The inverse of `convert`: each `Chain` becomes an `nn.Sequential`, and each module gets its original class.

    Like `convert` it does not change `model`, and the result shares its layers.
    """
    _check_model(model)
    network = shared_copy(model, _eager_class)
    for _, module in children_of(network):
        ours = ("impl", "stat_groups") if isinstance(module, nn.Sequential) else ()
        for key in ("_fastgan", "fastgan_report", *ours):
            vars(module).pop(key, None)
    return network


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {model!r} ({type(model).__name__}), expected an nn.Module")
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel, torch.jit.ScriptModule)):
        raise FastganError(f"model is a {type(model).__name__}; expected the network inside: convert it, then wrap it")
    if is_opaque(model):
        raise FastganError("model is compiled; expected the network inside: convert it, then call torch.compile")


def _eager_class(module: nn.Module) -> type[nn.Module] | None:
    if isinstance(module, Converted):
        return module._eager_class
    return nn.Sequential if isinstance(module, Chain) and type(module).forward is Chain.forward else None


def _class_for(module: nn.Module) -> type[nn.Module] | None:
    """The class of a module in the converted network; None for a module that can be shared with the given network."""
    kind: Any = type(module)
    if is_opaque(module) or isinstance(module, LAYERS):
        return None
    if isinstance(module, Converted) or kind.forward is Chain.forward:
        return kind
    if "forward" in vars(module):
        return None
    if kind is nn.Sequential:
        return Chain
    if kind.forward is nn.Sequential.forward or any(_why_left(layer) == "" for _, layer in _own_layers(module, "")):
        try:
            return converted_class(kind)
        except Exception as error:  # raised by a metaclass or __init_subclass__ of the user
            _log.warning(f"fastgan: {kind.__name__} cannot be subclassed, so its forward is not fused: "
                         f"{first_line(error)}")
    return None


def _own_layers(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The layers that are called directly by the forward of a module, if it has one."""
    if type(module).forward is nn.Module.forward:
        return
    rest = [(join(name, key), child) for key, child in module._modules.items()]
    while rest:
        key, child = rest.pop(0)
        if isinstance(child, LAYERS):
            yield key, child
        elif child is not None and type(child).forward is nn.Module.forward:  # such as a ModuleList
            rest[:0] = [(join(key, inner), layer) for inner, layer in child._modules.items()]


def _why_left(layer: nn.Module) -> str:
    """The reason why the backend can never fuse this layer; "" if it may be fused."""
    if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
        return why_not_geometry(layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)
    if isinstance(layer, nn.BatchNorm2d):
        return "its momentum is None" if layer.momentum is None and layer.track_running_stats else ""
    return f"it is a {type(layer).__name__}"


def _prepare(module: nn.Module, name: str, impl: str, report: Report) -> None:
    """Set the engine of a module of a converted network, and report which of its layers are expected to be fused."""
    if isinstance(module, Chain) and type(module).forward is Chain.forward:
        vars(module).update(impl=impl, _fastgan=partial(report.put_chain, name=name, ran=True))
        report.put_chain(module, name, ran=False)
    elif isinstance(module, Converted):
        from fastgan.nn.compiled import CompiledForward  # imports Dynamo, which takes a second

        vars(module)["_fastgan"] = CompiledForward(impl, report, name)
        for key, layer in _own_layers(module, name):
            if _why_left(layer):
                report.put_left(key, layer, _why_left(layer))
            else:
                report.put_expected(key, layer, impl)
    elif not report.has(name):
        report.put_left(name or "the model", module, why_not(module) or "it is not in an nn.Sequential")
