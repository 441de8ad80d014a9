"""Several batches in one call of a network, with separate batch statistics."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fastgan.errors import FastganError, from_signal_handler
from fastgan.nn.blocks import read
from fastgan.nn.chain import Chain, flat, use
from fastgan.ops import synchronised
from fastgan.ops.arguments import check_int

# layers outside of a chain that treat each image independently
_EACH_BY_ITSELF = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding, nn.Flatten, nn.Unflatten, nn.Identity, nn.ReLU,
                   nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.GELU, nn.SiLU, nn.LayerNorm, nn.GroupNorm,
                   nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.Upsample)


@contextmanager
def stat_groups(network: nn.Module, groups: int) -> Iterator[None]:
    """Context manager in which `network` treats each of `groups` equal parts of a batch as a separate batch.

    Outputs, gradients and running statistics are those of `groups` consecutive calls:

        with fastgan.nn.stat_groups(discriminator, 2):
            logits_real, logits_fake = discriminator(torch.cat([real, fake])).chunk(2)

    Raises:
        FastganError: if a batch normalization of the network is outside of a `Chain`, where it would use the whole
            batch.
    """
    groups = check_int("groups", groups)
    if groups < 1:
        raise FastganError(f"groups {groups}: expected a positive number")
    chains = list(_outermost_chains(network, ""))
    before = [chain.stat_groups for chain in chains]
    try:
        for chain in chains:
            chain.stat_groups = groups
        yield
    finally:
        for chain, value in zip(chains, before, strict=True):
            chain.stat_groups = value


def is_divisible(network: nn.Module) -> bool:
    """Whether one call under `stat_groups` is known to equal separate calls for the parts.

    This is true for a chain without dropout, whose random numbers would be drawn in another order, and without
    parametrizations, for which it calls its layers once per part (spectral normalization is updated once per call).
    Other layers must treat each image independently, have no parametrization, and be in an `nn.Sequential` or a network
    of `fastgan.models`. The `forward` of another class is tested by `divides`.
    """
    if isinstance(network, Chain) and type(network).forward is Chain.forward:
        return not any(isinstance(module, (nn.modules.dropout._DropoutNd, parametrize.ParametrizationList))
                       for module in network.modules())
    if network._forward_hooks or network._forward_pre_hooks or parametrize.is_parametrized(network):
        return False
    if type(network) is nn.Sequential or type(network).__module__.startswith("fastgan.models."):
        return all(map(is_divisible, network.children()))
    return type(network).__module__.startswith("torch.nn.") and isinstance(network, _EACH_BY_ITSELF)


def divides(network: nn.Module, images: Tensor, *condition: Tensor) -> bool:
    """Test whether one call under `stat_groups` equals separate calls for the parts: `images` (N, ...), and images with
    other statistics.

    The test runs a copy of the network in float64, where any dependence between the parts can be detected. Returns
    False for networks with hooks, parametrizations or dropout, and if the copy fails.
    """
    if any(module._forward_hooks or module._forward_pre_hooks or parametrize.is_parametrized(module)
           or isinstance(module, nn.modules.dropout._DropoutNd) for module in network.modules()):
        return False
    on_gpu = [images.device] if images.device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(on_gpu), synchronised.over(0):
            trial, images = use(copy.deepcopy(network), "reference").double(), images.double()
            parts = images, -0.5 * images.flip(0)  # with different means and variances
            apart = [trial(part, *condition) for part in parts]
            with stat_groups(trial, 2):
                together = trial(torch.cat(parts), *(torch.cat([each, each]) for each in condition))
            return torch.allclose(together, torch.cat(apart), rtol=1e-9, atol=1e-12)
    except Exception as error:
        if from_signal_handler(error):
            raise
        return False


def takes_channels_last(network: nn.Module) -> bool:
    """Whether a network is known to accept images in any memory format, as layers of torch.nn and of fastgan do.

    The `forward` of another class may call `view`, which may fail for channels_last images.
    """
    if network._forward_hooks or network._forward_pre_hooks or "forward" in vars(network):
        return False
    known = type(network).__module__.startswith(("torch.nn.", "fastgan."))
    return known and all(map(takes_channels_last, network.children()))


def originals(*networks: nn.Module) -> Iterator[Tensor]:
    """The parameters from which parametrizations compute the weights of networks."""
    for module in nn.ModuleList(networks).modules():
        if isinstance(module, parametrize.ParametrizationList):
            yield from module.parameters()


def _outermost_chains(module: nn.Module, name: str) -> Iterator[Chain]:
    if isinstance(module, Chain):
        yield module
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        raise FastganError(f"statistic groups: {name or 'the network'} ({type(module).__name__}) would use the whole "
                           "batch; expected it in a fastgan.nn.Chain")
    else:
        for key, child in module.named_children():
            yield from _outermost_chains(child, f"{name}.{key}" if name else key)


def outside_of_stages(network: nn.Module, name: str = "network") -> list[str]:
    """The batch normalizations of `network` that are not part of a block, by name and type: those outside of a `Chain`,
    and those that do not follow a convolution. Only blocks can merge statistics over processes."""
    if isinstance(network, Chain) and type(network).forward is Chain.forward:
        parts = read(flat(network))
        names = {module: f"{name}.{key}" for key, module in network.named_modules()}
        return [word for part in parts if not isinstance(part, list) for word in outside_of_stages(part, names[part])]
    if isinstance(network, nn.modules.batchnorm._BatchNorm):
        return [f"{name} ({type(network).__name__})"]
    return [word for key, child in network.named_children() for word in outside_of_stages(child, f"{name}.{key}")]
