"""Part one of the certificate: each block of a network separately, fused and eager, both compared with float64.

Weights are those of the network. Gamma, beta and running statistics are different in each channel, as after training,
because their initial values (1, 0, 0 and 1) would hide errors. Blocks of the discriminator have two groups, real and
fake, with separate batch statistics.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fastgan.nn import Chain
from fastgan.nn.blocks import Layers, read
from fastgan.nn.chain import flat
from fastgan.ops import numerics
from fastgan.verify import kinks, machine

_NAMES = {"weight": "weight gradient", "bias": "bias gradient"}
_NAMES_OF_NORM = {"weight": "gamma gradient", "bias": "beta gradient", "running_mean": "running mean",
                  "running_var": "running variance"}


class Block(NamedTuple):
    """A block of a network.

    layers: convolution, normalization or None, activation or None. in_shape: (Ci, H, W). out_shape: (Co, Ho, Wo).
    groups: number of groups with separate batch statistics.
    """

    name: str
    layers: Layers
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    groups: int


def blocks_of(network: nn.Module, example: Tensor, letter: str, groups: int) -> list[Block]:
    """The distinct blocks of `network`, in order, named by `letter` and their number. `example`: an input of `network`.
    """
    shapes = _shapes(network, example)
    blocks: dict[str, Block] = {}
    for layers in _all_layers(network):
        in_shape, out_shape = shapes[layers[0]]
        name = f"{letter}{len(blocks) + 1} {_describe(layers, in_shape, out_shape)}"
        # blocks with equal descriptions of their layers compute the same function of their parameters
        blocks.setdefault(f"{layers} {in_shape}", Block(name, layers, in_shape, out_shape, groups))
    return list(blocks.values())


def _describe(layers: Layers, in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> str:
    """A description such as "3x64x64 -> 64x32x32, 4x4/2 bn leaky"; T after the kernel means transposed convolution."""
    def size(lengths: Any) -> str:
        return "x".join(map(str, lengths))

    convolution, norm, activation = layers
    assert isinstance(convolution, (nn.Conv2d, nn.ConvTranspose2d))
    transposed = "T" * isinstance(convolution, nn.ConvTranspose2d)
    words = [f"{size(convolution.kernel_size)}{transposed}/{convolution.stride[0]}"]
    words += ["bias"] * (convolution.bias is not None) + ["bn"] * (norm is not None)
    words += {nn.ReLU: ["relu"], nn.LeakyReLU: ["leaky"], nn.Tanh: ["tanh"]}.get(type(activation), [])
    return f"{size(in_shape)} -> {size(out_shape)}, {' '.join(words)}"


def _all_layers(network: nn.Module) -> Iterator[Layers]:
    """The layers of each block in the chains of a network. `read` also returns the blocks of nested chains."""
    if isinstance(network, Chain):
        for part in read(flat(network)):
            if isinstance(part, list):
                yield from part
    else:
        for child in network.children():
            yield from _all_layers(child)


@torch.no_grad()
def _shapes(network: nn.Module, example: Tensor) -> dict[nn.Module, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Input and output shape of each convolution, without the batch."""
    shapes: dict[nn.Module, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        shapes[module] = tuple(args[0].shape[1:]), tuple(out.shape[1:])

    handles = [module.register_forward_hook(keep) for module in network.modules()
               if isinstance(module, nn.modules.conv._ConvNd)]
    was_training = network.training
    try:
        network.eval()(example)  # does not change running statistics
    finally:
        network.train(was_training)
        for handle in handles:
            handle.remove()
    return shapes


def compare(block: Block, impl: str, precision: numerics.Precision, batch: int,
            device: torch.device) -> dict[str, numerics.Nearness]:
    """Compare one block on one engine, forward and backward, in training mode. `batch` is a multiple of the groups."""
    layers = _layers(block, precision)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *block.in_shape, generator=generator).to(precision.dtype)
    g = torch.randn(batch, *block.out_shape, generator=generator).to(precision.dtype)
    exact_device = torch.device("cpu") if device.type == "mps" else device  # mps has no float64

    def results(network: nn.Sequential, function: Callable[[Tensor], Tensor], dtype: torch.dtype,
                place: torch.device) -> dict[str, Tensor]:
        return _results(network.to(place), function, x.to(place, dtype, copy=True), g.to(place))

    def eager(network: nn.Sequential, dtype: torch.dtype, place: torch.device) -> dict[str, Tensor]:
        return results(network, lambda x: torch.cat([network(part) for part in x.chunk(block.groups)]), dtype, place)

    wide = copy.deepcopy(layers).double()
    exact = eager(copy.deepcopy(wide), torch.float64, exact_device)
    moved = [eager(other, torch.float64, exact_device) for other in kinks.doubted(wide, precision)]
    fused = Chain(*copy.deepcopy(layers), impl=impl)
    fused.stat_groups = block.groups
    with numerics.products("tf32" if precision.tf32 else "fp32"):
        theirs = eager(copy.deepcopy(layers), precision.dtype, device)
        ours = results(fused, fused, precision.dtype, device)
    unit = precision.unit
    if machine.interpreted(impl, device):  # its longest sums are over all elements of a channel
        unit = max(unit, numerics.one_by_one(max(x.numel() // x.shape[1], g.numel() // g.shape[1])))
    return {name: numerics.judge(ours[name], theirs[name], value, numerics.FLOAT32 if "running" in name else unit,
                                 _cancelled(block, name, exact, unit), [one[name] for one in moved])
            for name, value in exact.items()}


def _cancelled(block: Block, name: str, exact: dict[str, Tensor], unit: float) -> float:
    """The rounding error of terms that cancel: the exact gradient of a bias before batch normalization is 0, but its
    terms are as large as those of beta's gradient."""
    if name == "bias gradient" and block.layers[1] is not None and "beta gradient" in exact:
        return unit * float(exact["beta gradient"].abs().max())
    return 0.0


def _layers(block: Block, precision: numerics.Precision) -> nn.Sequential:
    """Eager layers on the CPU in mixed precision, with normalizations in float32 and computed weights as parameters."""
    generator = torch.Generator().manual_seed(0)
    layers = copy.deepcopy(nn.Sequential(*(one for one in block.layers if one))).cpu().train()
    for module in layers:
        computed = module.parametrizations if parametrize.is_parametrized(module) else ()
        for name in list(computed):  # type: ignore[arg-type]
            parametrize.remove_parametrizations(module, name)
    for module in layers.to(precision.dtype):
        if isinstance(module, nn.BatchNorm2d):
            _randomize(module.float(), generator)
    return layers


@torch.no_grad()
def _randomize(norm: nn.BatchNorm2d, generator: torch.Generator) -> None:
    """Set gamma, beta and running statistics to different values in each channel."""
    if norm.weight is not None and norm.weight.requires_grad:
        norm.weight.normal_(1.0, 0.5, generator=generator)
    if norm.bias is not None:
        norm.bias.normal_(0.5, 0.5, generator=generator)
    if norm.running_mean is not None and norm.running_var is not None:
        norm.running_mean.normal_(0.0, 0.5, generator=generator)
        norm.running_var.uniform_(0.5, 2.0, generator=generator)


def _results(network: nn.Sequential, function: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Output, all gradients and the running statistics, on the CPU. Missing gradients are zero."""
    x.requires_grad_()
    out = function(x)
    inputs = {"input gradient": x, **{_name(network, key): parameter for key, parameter
                                      in network.named_parameters() if parameter.requires_grad}}
    grads = torch.autograd.grad(out, list(inputs.values()), g.to(out.dtype), allow_unused=True)
    results: dict[str, Any] = {
        "output": out, **{name: torch.zeros_like(inputs[name]) if grad is None else grad
                          for name, grad in zip(inputs, grads, strict=True)},
        **{_name(network, key): buffer for key, buffer in network.named_buffers() if "running" in key}}
    return {name: value.detach().cpu() for name, value in results.items()}


def _name(network: nn.Sequential, key: str) -> str:
    index, _, what = key.partition(".")
    return (_NAMES_OF_NORM if isinstance(network[int(index)], nn.BatchNorm2d) else _NAMES)[what]
