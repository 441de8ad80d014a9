"""Sequences of layers that run as fused operations, with the interface of `nn.Sequential`.

A `Chain` contains the eager layers with the names that they have in an `nn.Sequential`, so a checkpoint of one can be
loaded into the other. Each call groups the layers into blocks, convolution -> [batch normalization] -> [activation],
and passes each block to the engine; other layers are called unchanged. Because blocks are formed in each call, changes
such as registering a hook, replacing or freezing a layer, or switching it to evaluation take effect in the next call.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils import parametrize

from fastgan import ops
from fastgan.nn.blocks import block, read, why_not
from fastgan.nn.spectral import computed_together
from fastgan.ops import convolutions, synchronised
from fastgan.ops.arguments import check_activation, check_groups, check_impl


class Chain(nn.Sequential):
    """`nn.Sequential` whose convolutions, batch normalizations and activations run as fused operations.

    Input, output, gradients and state_dict keys are those of `nn.Sequential`. The reference engine also raises the same
    errors; the other engines raise `FastganError`, a ValueError. The layers of a nested `Chain` or `nn.Sequential`
    without hooks run as if they were layers of this one. A weight that a parametrization computes is computed once in
    each call.

    Args:
        layers: modules, or one OrderedDict of modules, as in `nn.Sequential`.
        impl: the engine, as in `fastgan.ops`.

    Attributes:
        impl: the engine.
        stat_groups: G. Each of G equal parts of the batch is treated as a separate batch, in order, with its own batch
            statistics and one update of the running statistics. `fastgan.nn.stat_groups` sets it temporarily.
    """

    impl: str = "auto"
    stat_groups: int = 1
    _fastgan: Any = None  # called once, before the first call of a chain in a converted network

    def __init__(self, *layers: nn.Module | OrderedDict[str, nn.Module], impl: str = "auto") -> None:
        check_impl(impl)
        super().__init__(*layers)  # type: ignore[arg-type]
        self.impl = impl

    def forward(self, input: Tensor) -> Tensor:
        if self._runs_eagerly(input):
            with _guard(self, input):
                return _in_parts(super().forward, input, self.stat_groups)
        if self._fastgan is not None:
            self._fastgan(self)
            self._fastgan = None
        groups = self.stat_groups if self.stat_groups == 1 else check_groups(input, self.stat_groups)
        layers = flat(self)
        if groups > 1 and any(map(parametrize.is_parametrized, layers)):
            # one call for each part, because spectral normalization computes another weight in each call
            self.stat_groups = 1
            try:
                return _in_parts(partial(Chain.forward, self), input, groups)
            finally:
                self.stat_groups = groups
        for part in read(layers):
            if isinstance(part, list):
                weights = computed_together([one[0] for one in part], input, self.impl)
                blocks = [block(*one, groups, weights.get(one[0])) for one in part]
                output = ops.chain(input, blocks, self.impl)
                input = in_eager_format(output, input, (tensors.weight for tensors, _ in blocks))
            else:
                with _guard(part, input):
                    input = _in_parts(part, input, groups)
        return input

    def _runs_eagerly(self, input: Any) -> bool:
        """Whether the layers are called one by one, for example because a compiler or tracer must see them."""
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        return (not isinstance(input, Tensor) or input.dim() != 4 or bool(_has_any_global_hook())
                or (traced and not synchronised.processes()) or disabled())

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, slice):
            return super().__getitem__(index)
        part = Chain(OrderedDict(list(self._modules.items())[index]), impl=self.impl)
        part.stat_groups = self.stat_groups
        return part

    def __prepare_scriptable__(self) -> nn.Module:
        """The module that torch.jit.script compiles instead."""
        from fastgan.nn.convert import to_eager

        return to_eager(self)


def disabled() -> bool:
    """Whether the environment variable FASTGAN_DISABLE disables fusion."""
    return os.environ.get("FASTGAN_DISABLE") == "1"


def in_eager_format(a: Tensor, x: Tensor, weights: Iterable[Any]) -> Tensor:
    """Convert a, the result of convolutions of x, to the memory format of eager layers, because `view` may follow."""
    return a if any(map(_is_channels_last, (x, *weights))) else a.contiguous()


def _is_channels_last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _guard(module: nn.Module, input: Any) -> AbstractContextManager[Any]:
    """The context in which a module is called unfused. It avoids convolutions that PyTorch computes incorrectly in
    channels_last, to which fastgan may have converted the network."""
    layers = module.children() if isinstance(module, Chain) else (module,)
    on_cpu = isinstance(input, Tensor) and input.device.type == "cpu" and not torch.compiler.is_compiling()
    return convolutions.guarded() if on_cpu and any(map(_may_convolve_wrongly, layers)) else nullcontext()


def _may_convolve_wrongly(layer: nn.Module) -> bool:
    """Whether a layer may compute a convolution that needs `convolutions.guarded`."""
    if isinstance(layer, nn.modules.conv._ConvNd):
        # not by layer.weight, which a parametrization computes
        return max(layer.stride) > 1 or layer.groups in (layer.in_channels, layer.out_channels)
    return not type(layer).__module__.startswith("torch.nn.")


def _in_parts(function: Any, input: Any, groups: int) -> Any:
    """Call `function` on each of `groups` equal parts of the batch, in order."""
    if groups == 1:
        return function(input)
    groups = check_groups(input, groups)
    # cloned, because a layer may modify its input in place, and views of one tensor would invalidate each other's
    # backward
    return torch.cat([function(part.clone()) for part in input.split([input.shape[0] // groups] * groups)])


class _Block(Chain):
    """A chain whose `weight` and `bias` are those of its convolution.

    Initializers such as DCGAN's `weights_init` expect these attributes in classes with "Conv" in their name.
    """

    @property
    def weight(self) -> Tensor:
        return self[0].weight

    @property
    def bias(self) -> Tensor | None:
        return self[0].bias


class ConvBNAct(_Block):
    """Conv2d -> BatchNorm2d -> activation, with the names "0", "1" and "2". (N, Ci, H, W) -> (N, Co, Ho, Wo).

    `in_channels`, `out_channels`, `kernel_size`, `stride` and `padding` are those of `nn.Conv2d`.

    Args:
        bias: whether the convolution has a bias; False by default.
        activation: "relu", "leaky_relu", "tanh", or "none" for no activation layer.
        negative_slope: negative slope of "leaky_relu".
        norm: whether there is a batch normalization layer.
        eps: as in `nn.BatchNorm2d`.
        momentum: as in `nn.BatchNorm2d`.
        impl: the engine, as in `fastgan.ops`.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, int],
                 stride: int | tuple[int, int] = 1, padding: int | tuple[int, int] = 0, *, bias: bool = False,
                 activation: str = "leaky_relu", negative_slope: float = 0.2, norm: bool = True, eps: float = 1e-5,
                 momentum: float | None = 0.1, impl: str = "auto") -> None:
        convolution = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=bias)
        super().__init__(convolution, *_after(out_channels, activation, negative_slope, norm, eps, momentum), impl=impl)


class ConvTransposeBNAct(_Block):
    """ConvTranspose2d -> BatchNorm2d -> activation, with the arguments of `ConvBNAct` and `output_padding`."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, int],
                 stride: int | tuple[int, int] = 1, padding: int | tuple[int, int] = 0,
                 output_padding: int | tuple[int, int] = 0, *, bias: bool = False, activation: str = "relu",
                 negative_slope: float = 0.2, norm: bool = True, eps: float = 1e-5, momentum: float | None = 0.1,
                 impl: str = "auto") -> None:
        convolution = nn.ConvTranspose2d(in_channels, out_channels, kernel_size, stride, padding, output_padding,
                                         bias=bias)
        super().__init__(convolution, *_after(out_channels, activation, negative_slope, norm, eps, momentum), impl=impl)


class ConvBNLeakyReLU(ConvBNAct):
    """`ConvBNAct` with LeakyReLU of slope 0.2, as in a DCGAN discriminator."""


class ConvTransposeBNReLU(ConvTransposeBNAct):
    """`ConvTransposeBNAct` with ReLU, as in a DCGAN generator."""


def _after(channels: int, activation: str, negative_slope: float, norm: bool, eps: float,
           momentum: float | None) -> list[nn.Module]:
    check_activation(activation, negative_slope)
    layers: list[nn.Module] = [nn.BatchNorm2d(channels, eps, momentum)] if norm else []
    if activation == "leaky_relu":
        layers.append(nn.LeakyReLU(negative_slope, inplace=True))
    elif activation != "none":
        layers.append(nn.ReLU(inplace=True) if activation == "relu" else nn.Tanh())
    return layers


def use(network: nn.Module, impl: str) -> nn.Module:
    """Select the engine of all fused operations of `network`, and return `network`.

    Raises:
        FastganError: for an unknown engine.
    """
    check_impl(impl)
    for module in network.modules():
        if isinstance(module, Chain):
            module.impl = impl
        elif "_fastgan" in vars(module):
            vars(module)["_fastgan"].set_impl(impl)
    return network


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Context manager in which calls of `network` compute gradients of its input, but not of its parameters.

    `torch.autograd.grad(loss, others)` alone does not avoid this computation, because a fused operation determines in
    its forward pass which gradients its backward pass computes.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def flat(chain: nn.Sequential) -> list[nn.Module]:
    """The layers of a chain, with the layers of nested chains in their place."""
    layers: list[nn.Module] = []
    for module in chain._modules.values():
        if opens(module, chain):
            layers += flat(module)
        else:
            layers.append(module)
    return layers


def named_layers(chain: nn.Sequential, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The layers of a chain, with the layers of nested chains in their place, and their names in the network."""
    for key, module in chain._modules.items():
        if opens(module, chain):
            yield from named_layers(module, join(name, key))
        elif module is not None:
            yield join(name, key), module


def join(name: str, key: str) -> str:
    """The name of a child in the network."""
    return f"{name}.{key}" if name else key


def opens(module: nn.Module | None, chain: nn.Sequential) -> TypeGuard[nn.Sequential]:
    """Whether the layers of `module`, a child of `chain`, run as if they were children of `chain`."""
    if type(module) is nn.Sequential:
        return not why_not(module)
    return (isinstance(module, Chain) and isinstance(chain, Chain) and type(module).forward is Chain.forward
            and not why_not(module) and module.impl == chain.impl and module.stat_groups in (1, chain.stat_groups))
