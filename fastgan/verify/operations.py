"""Part one of the certificate: each block by itself, fused and eager, both against float64.

Weights are the network's; scales, shifts and running statistics differ from channel to channel, as after training, for
at 1, 0, 0 and 1 a fault in them would not show. Blocks of the discriminator see two groups, real and fake, with batch
statistics of their own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastgan.nn import Chain
from fastgan.ops import numerics
from fastgan.verify import kinks, machine
from fastgan.verify.found import Found, find
from fastgan.verify.stages import Stage

_WORDS = {"weight": "weight gradient", "bias": "bias gradient"}
_WORDS_OF_NORM = {"weight": "gamma gradient", "bias": "beta gradient", "running_mean": "running mean",
                  "running_var": "running variance"}


def examine(stage: Stage, impl: str, precision: numerics.Precision, batch: int, device: torch.device) -> Found:
    """One stage on one engine, forward and backward, in training mode, on a batch that its groups divide."""
    return find(lambda: _compare(stage, impl, precision, batch, device), impl)


def _compare(stage: Stage, impl: str, precision: numerics.Precision, batch: int,
             device: torch.device) -> dict[str, numerics.Nearness]:
    layers = _layers(stage, precision)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *stage.shape, generator=generator).to(precision.dtype)
    g = torch.randn(batch, *stage.made, generator=generator).to(precision.dtype)
    exactly = torch.device("cpu") if device.type == "mps" else device  # which has no float64

    def results(network: nn.Sequential, function: Callable[[Tensor], Tensor], dtype: torch.dtype,
                place: torch.device) -> dict[str, Tensor]:
        return _results(network.to(place), function, x.to(place, dtype, copy=True), g.to(place))

    def eager(network: nn.Sequential, dtype: torch.dtype, place: torch.device) -> dict[str, Tensor]:
        return results(network, lambda x: torch.cat([network(part) for part in x.chunk(stage.groups)]), dtype, place)

    wide = copy.deepcopy(layers).double()
    exact = eager(copy.deepcopy(wide), torch.float64, exactly)
    moved = [eager(other, torch.float64, exactly) for other in kinks.doubted(wide, precision)]
    fused = Chain(*copy.deepcopy(layers), impl=impl)
    fused.stat_groups = stage.groups
    with numerics.products("tf32" if precision.tf32 else "fp32"):
        theirs = eager(copy.deepcopy(layers), precision.dtype, device)
        ours = results(fused, fused, precision.dtype, device)
    unit = precision.unit
    if machine.interpreted(impl, device):  # the longest of its sums are those of a channel
        unit = max(unit, numerics.one_by_one(max(x.numel() // x.shape[1], g.numel() // g.shape[1])))
    return {name: numerics.judge(ours[name], theirs[name], value, numerics.FLOAT32 if "running" in name else unit,
                             _cancelled(stage, name, exact, unit), [one[name] for one in moved])
            for name, value in exact.items()}


def _cancelled(stage: Stage, name: str, exact: dict[str, Tensor], unit: float) -> float:
    """A bias before a normalisation has no gradient: what cancels in it has the size of beta's."""
    if name == "bias gradient" and stage.layers[1] is not None and "beta gradient" in exact:
        return unit * float(exact["beta gradient"].abs().max())
    return 0.0


def _layers(stage: Stage, precision: numerics.Precision) -> nn.Sequential:
    """Eager layers on the CPU as mixed precision has them."""
    generator = torch.Generator().manual_seed(0)
    layers = copy.deepcopy(nn.Sequential(*(one for one in stage.layers if one))).cpu().train().to(precision.dtype)
    for module in layers:
        if isinstance(module, nn.BatchNorm2d):
            _scatter(module.float(), generator)
    return layers


@torch.no_grad()
def _scatter(norm: nn.BatchNorm2d, generator: torch.Generator) -> None:
    """Scales, shifts and running statistics that differ from channel to channel."""
    if norm.weight is not None and norm.weight.requires_grad:
        norm.weight.normal_(1.0, 0.5, generator=generator)
    if norm.bias is not None:
        norm.bias.normal_(0.5, 0.5, generator=generator)
    if norm.running_mean is not None and norm.running_var is not None:
        norm.running_mean.normal_(0.0, 0.5, generator=generator)
        norm.running_var.uniform_(0.5, 2.0, generator=generator)


def _results(network: nn.Sequential, function: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Output, every gradient and the running statistics, on the CPU; a gradient that does not come is zero."""
    x.requires_grad_()
    out = function(x)
    inputs = {"input gradient": x, **{_name(network, key): parameter for key, parameter
                                      in network.named_parameters() if parameter.requires_grad}}
    grads = torch.autograd.grad(out, list(inputs.values()), g.to(out.dtype), allow_unused=True)
    kept = {_name(network, key): buffer for key, buffer in network.named_buffers() if "running" in key}
    found: dict[str, Any] = {"output": out, **{name: torch.zeros_like(inputs[name]) if grad is None else grad
                                               for name, grad in zip(inputs, grads, strict=True)}, **kept}
    return {name: value.detach().cpu() for name, value in found.items()}


def _name(network: nn.Sequential, key: str) -> str:
    index, _, what = key.partition(".")
    words = _WORDS_OF_NORM if isinstance(network[int(index)], nn.BatchNorm2d) else _WORDS
    return words[what]
