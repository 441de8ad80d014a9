"""Grouping of modules into blocks, convolution -> [batch normalization] -> [activation], and reasons why a layer cannot
be part of one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.utils import parametrize

from fastgan.nn.same_padding import ConvSame, ConvTransposeSame
from fastgan.ops.arguments import LARGEST_KERNEL, LARGEST_STRIDE
from fastgan.ops.specs import Activation, BlockSpec, BlockTensors, ConvSpec, NormSpec

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d, ConvSame, ConvTransposeSame)
_ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.Tanh)
Layers = tuple[nn.Module, nn.Module | None, nn.Module | None]  # of one block: convolution, normalization, activation


def read(layers: list[nn.Module]) -> list[list[Layers] | nn.Module]:
    """Split the layers of a chain into parts, in order: lists of consecutive blocks, and layers that run unfused."""
    parts: list[list[Layers] | nn.Module] = []
    i = 0
    while i < len(layers):
        convolution = layers[i]
        i += 1
        if not _is_convolution(convolution) or why_not(convolution):
            parts.append(convolution)
            continue
        norm: nn.Module | None = None
        activation: nn.Module | None = None
        if i < len(layers) and type(layers[i]) is nn.BatchNorm2d and not why_not(layers[i]):
            norm, i = layers[i], i + 1
        if i < len(layers) and type(layers[i]) in _ACTIVATIONS and not why_not(layers[i]):
            activation, i = layers[i], i + 1
        if not parts or not isinstance(parts[-1], list):
            parts.append([])
        run = parts[-1]
        assert isinstance(run, list)
        run.append((convolution, norm, activation))
    return parts


def why_not(module: nn.Module) -> str:
    """The reason why a convolution, batch normalization or activation cannot be fused; "" if it can."""
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "it has hooks"
    if "forward" in module.__dict__:
        return "its forward has been replaced"
    if module._compiled_call_impl is not None:
        return "it is compiled by itself"
    if isinstance(module, nn.modules.conv._ConvNd):
        return _why_not_convolution(module)
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and type(module) is not nn.BatchNorm2d:
        return f"it is a {type(module).__name__}, not a BatchNorm2d"
    return ""


def _why_not_convolution(module: nn.modules.conv._ConvNd) -> str:
    if not _is_convolution(module):
        base = next((kind for kind in _CONVOLUTIONS if isinstance(module, kind)), None)
        return f"it is a {type(module).__name__}" + (f", a subclass of {base.__name__}" if base else "")
    if module.padding_mode != "zeros":
        return f"its padding_mode is {module.padding_mode!r}"
    return why_not_geometry(module.kernel_size, module.stride, module.padding, module.dilation, module.groups)


def _is_convolution(module: nn.Module) -> bool:
    """Whether a layer's class is one of the convolutions; that of a parametrized layer is a subclass made for it."""
    return type(module) in _CONVOLUTIONS or parametrize.type_before_parametrizations(module) in _CONVOLUTIONS


def why_not_geometry(kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int] | str,
                     dilation: Sequence[int], groups: int) -> str:
    """Why a convolution of these sizes cannot be fused, in words; "" when it can."""
    if groups != 1:
        return f"it has {groups} groups"
    if tuple(dilation) != (1, 1):
        return f"it has dilation {tuple(dilation)}"
    if isinstance(padding, str):
        return f"its padding is {padding!r}"
    if max(kernel) > LARGEST_KERNEL:
        return f"its kernel of {kernel[0]}x{kernel[1]} is larger than {LARGEST_KERNEL}"
    if max(stride) > LARGEST_STRIDE:
        return f"its stride {tuple(stride)} is larger than {LARGEST_STRIDE}"
    return ""


def block(convolution: nn.Module, norm: nn.Module | None, activation: nn.Module | None,
          groups: int = 1, weight: Tensor | None = None) -> tuple[BlockTensors, BlockSpec]:
    """The tensors and the specification of a block, with the current training flags of its layers.

    weight: the convolution's, if a parametrization has computed it. Otherwise it is computed here.
    """
    assert isinstance(convolution, _CONVOLUTIONS) and (norm is None or isinstance(norm, nn.BatchNorm2d))
    transposed = isinstance(convolution, nn.ConvTranspose2d)
    padding, extra = convolution.padding, convolution.output_padding if transposed else (0, 0)
    if isinstance(convolution, (ConvSame, ConvTransposeSame)):
        padding, extra = convolution.stage_padding, convolution.stage_output_padding
    conv = ConvSpec(convolution.stride, padding, extra, transposed)  # type: ignore[arg-type]
    weight = convolution.weight if weight is None else weight
    act = Activation() if activation is None else _activation(activation)
    if norm is None:
        return BlockTensors(weight, convolution.bias), BlockSpec(conv, None, act)
    # as in `nn.BatchNorm2d.forward`
    mean, var, training = norm.running_mean, norm.running_var, norm.training
    updates = training and norm.track_running_stats
    if training and not updates:
        mean = var = None
    tensors = BlockTensors(weight, convolution.bias, norm.weight, norm.bias, mean, var,
                           norm.num_batches_tracked if updates else None)
    return tensors, BlockSpec(conv, NormSpec(training or mean is None, norm.momentum, norm.eps, groups), act)


def _activation(module: nn.Module) -> Activation:
    if isinstance(module, nn.LeakyReLU):
        return Activation("leaky_relu", module.negative_slope, module.inplace)
    return Activation("relu", inplace=module.inplace) if isinstance(module, nn.ReLU) else Activation("tanh")
