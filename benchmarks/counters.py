"""Kernels, bytes and memory of a training step, counted on fake tensors: nothing is computed, and no GPU is needed.

    python -m benchmarks.counters [--preset dcgan-64] [--batch 128] [--precision bf16] [--norm-d spectral]
    python -m benchmarks.counters --memory          peaks by batch, and the largest batch that fits

"pytorch" is the loop of PyTorch's example with channels_last, autocast and fused Adam; "fastgan" is `GANStep` on
Triton's kernels for sm_90, whose launches are in one CUDA graph. Counts are lower bounds:

    bytes    each input of a kernel is read once, each output written once
    FLOP     of matrix products, two for a multiplication and an addition
    kernels  a launch by Triton counts as one, an operator of PyTorch as one, a view or an allocation as none, except

             convolution            1, and 1 for its bias; backward: 1 for each gradient
             batch normalization    statistics, running statistics, normalize; backward: sums, gradient of the input

The workspaces, transposes and split sums of libraries are not counted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks import launches
from benchmarks.implementation import Implementation
from benchmarks.steps import pytorch_step
from fastgan import presets
from fastgan.combinations import partners
from fastgan.config import Config, data_shape
from fastgan.errors import FastganError
from fastgan.ops import library, spectral, tuning, updates
from fastgan.ops.numerics import PRECISIONS
from fastgan.trainer.step_memory import PeakMemory, fake_networks, fake_step, fake_tensors, largest_batch

ARCH = 90
IMPLEMENTATIONS = library.IMPLEMENTATIONS | spectral.IMPLEMENTATIONS | updates.IMPLEMENTATIONS
GIGABYTES = (8, 16, 24, 80)
_FREE = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "_unsafe_view",
         "_reshape_alias", "is_same_size", "promote_types")
_OVERWRITES = ("copy_", "fill_", "zero_", "normal_", "uniform_", "_foreach_copy_", "_foreach_zero_")


class Kernel(NamedTuple):
    name: str
    bytes: int
    flops: int = 0


class Count(NamedTuple):
    """The kernels of a step, in order, and its peak memory in bytes."""

    kernels: list[Kernel]
    peak: int


class Counter(PeakMemory):
    """Within the block, the kernels of operations are counted as well, also those within fastgan's operators.
    `launched`, a handler for `fastgan.ops.triton.launch.through`, counts Triton's launches."""

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__(tensors)
        self.kernels: list[Kernel] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "fastgan":
            with self:
                return IMPLEMENTATIONS[func._schema.name.split("::")[1]](*args, **kwargs)
        if func.namespace != "aten":
            return func(*args, **kwargs)
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:  # below autograd, within fastgan's operators, composite operators are not decomposed
                return func.decompose(*args, **kwargs)
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if func._schema.name != "aten::_local_scalar_dense":
            self.kernels += [kernel for kernel in kernels_of(func, args, kwargs, out) if kernel.bytes]
        return out

    def launched(self, kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], options: dict[str, int]) -> None:
        from fastgan.ops.triton.launch import by_name

        name, given = str(kernel.fn.__name__), by_name(arguments)
        self.kernels.append(Kernel(f"triton {name.removesuffix('_kernel')}", sum(launches.moved(name, given)),
                                   launches.flops(name, given)))


def touched(value: Any) -> int:
    """Bytes of the tensors in a value; views of one storage count at most once each byte of it."""
    sizes: dict[int, dict[Any, int]] = {}
    limits: dict[int, int] = {}
    for tensor in tree_leaves(value):
        if isinstance(tensor, Tensor):
            size = tensor.element_size()
            for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
                size *= length if stride else min(length, 1)
            storage = tensor.untyped_storage()
            view = tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
            sizes.setdefault(storage._cdata, {})[view] = size
            limits[storage._cdata] = storage.nbytes()
    return sum(min(sum(views.values()), limits[key]) for key, views in sizes.items())


def kernels_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> list[Kernel]:
    """The kernels of an operator's call."""
    name = str(func._schema.name).split("::")[1]
    if func.is_view or name in _FREE:
        return []
    if name in _SEVERAL:
        return [Kernel(part, touched(reads) + touched(writes), flops)
                for part, reads, writes, flops in _SEVERAL[name](args, out)]
    reads, writes = [], [out]
    for i, argument in enumerate(func._schema.arguments):
        value = args[i] if i < len(args) else kwargs.get(argument.name)
        written = argument.alias_info is not None and argument.alias_info.is_write
        writes += [value] * written
        reads += [value] * (not written or name not in _OVERWRITES)
    flops = flop_registry[func._overloadpacket](*args, **kwargs, out_val=out) if (
        func._overloadpacket in flop_registry) else 0
    return [Kernel(name, touched(reads) + touched(writes), int(flops))]


Parts = Iterator[tuple[str, Any, Any, int]]  # name, tensors that are read, tensors that are written, FLOP


def _convolution(args: Any, out: Any) -> Parts:
    x, weight, bias = args[:3]
    yield "convolution", (x, weight), out, _flops_of_convolution(x, weight, args[3:9], out)
    if bias is not None:
        yield "add bias", (out, bias), out, 0


def _convolution_backward(args: Any, out: Any) -> Parts:
    gy, x, weight = args[:3]
    gx, gweight, gbias = out
    flops = _flops_of_convolution(x, weight, args[4:10], gy)
    if gx is not None:
        yield "convolution dgrad", (gy, weight), gx, flops
    if gweight is not None:
        yield "convolution wgrad", (gy, x), gweight, flops
    if gbias is not None:
        yield "bias gradient", gy, gbias, 0


def _flops_of_convolution(x: Tensor, weight: Tensor, geometry: Any, y: Tensor) -> int:
    return int(flop_registry[torch.ops.aten.convolution](x, weight, None, *geometry, out_val=y))


def _batch_norm(args: Any, out: Any) -> Parts:
    x, gamma, beta, *running = args[:5]
    y, mean, rstd = out
    yield "batch norm: statistics", x, (mean, rstd), 0
    yield "batch norm: running statistics", (mean, rstd, running), running, 0
    yield "batch norm: normalize", (x, mean, rstd, gamma, beta), y, 0


def _batch_norm_backward(args: Any, out: Any) -> Parts:
    gy, x, gamma, _, _, mean, rstd = args[:7]
    gx, ggamma, gbeta = out
    yield "batch norm backward: sums", (gy, x, mean, rstd), (ggamma, gbeta), 0
    if gx is not None:
        yield "batch norm backward: input", (gy, x, gamma, mean, rstd, ggamma, gbeta), gx, 0


_SEVERAL: dict[str, Callable[[Any, Any], Parts]] = {
    "convolution": _convolution, "convolution_backward": _convolution_backward, "native_batch_norm": _batch_norm,
    "native_batch_norm_backward": _batch_norm_backward}


def count_fastgan(config: Config, batch: int, precision: str) -> Count:
    """fastgan's step with a batch on the device."""
    from fastgan.ops.triton import launch

    with fake_tensors():
        step, given = fake_step(config, batch, precision, data_shape(config), impl="triton")
        parameters = [*step.generator.parameters(), *step.discriminator.parameters()]
        counter = Counter([*parameters, *step.state(), *given])
        with tuning.use(tuning.Plan(engine="reference")), launch.through(counter.launched, ARCH), counter:
            step(*given)
    return Count(counter.kernels, counter.peak)


def count_pytorch(config: Config, batch: int, precision: str) -> Count:
    """A step of PyTorch's loop, whose kernels the host launches one by one."""
    with fake_tensors():
        networks = fake_networks(config, data_shape(config), 0, "reference")
        step = pytorch_step(networks, config, Implementation("pytorch", precision=precision, savings=("fused_adam",)))
        real = torch.empty(batch, *data_shape(config), device="cpu")
        real = real.to(memory_format=torch.channels_last) if real.dim() == 4 else real
        with PeakMemory([]):
            step(real)  # the first step allocates the state of Adam
        tensors = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
        with Counter([*tensors, real]) as counter:
            step(real)
    return Count(counter.kernels, counter.peak)


COUNTS = {"pytorch": count_pytorch, "fastgan": count_fastgan}


def lines(counts: dict[str, Count]) -> Iterator[str]:
    """Kernels by name, those with the most bytes first, and totals."""
    for name, count in counts.items():
        kinds: dict[str, list[Kernel]] = {}
        for kernel in count.kernels:
            kinds.setdefault(kernel.name, []).append(kernel)
        yield f"{name:40}{'kernels':>9}{'MB':>10}{'GFLOP':>10}"
        for kind in sorted(kinds.values(), key=lambda kind: -sum(kernel.bytes for kernel in kind)):
            yield _line(f"  {kind[0].name}", kind)
        yield _line("  in all", count.kernels) + f"   peak {count.peak / 2**20:,.0f} MB\n"


def _line(name: str, kernels: list[Kernel]) -> str:
    moved, flops = sum(kernel.bytes for kernel in kernels), sum(kernel.flops for kernel in kernels)
    return f"{name:40}{len(kernels):9}{moved / 1e6:10.1f}{flops / 1e9:10.1f}"


def memory_lines(config: Config, precision: str) -> Iterator[str]:
    """Peaks by batch, and the largest batches."""
    def peak(name: str, batch: int) -> int:
        return COUNTS[name](config, batch, precision).peak

    peaks = {name: cache(partial(peak, name)) for name in COUNTS}
    yield f"{'peak, MB':16}" + "".join(f"{name:>12}" for name in peaks)
    for batch in (64, 128, 256, 1024):
        yield f"{f'batch {batch}':16}" + "".join(f"{of(batch) / 2**20:12.1f}" for of in peaks.values())
    for size in GIGABYTES:
        yield f"{f'fits in {size} GB':16}" + "".join(f"{largest_batch(of, size * 2**30):12}" for of in peaks.values())


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.counters", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="dcgan-64", help="preset with the networks and steps (dcgan-64)")
    parser.add_argument("--batch", type=int, default=128, help="images per step (128)")
    parser.add_argument("--precision", default="bf16", choices=PRECISIONS, help="of the convolutions (bf16)")
    parser.add_argument("--norm-d", help="as of `fastgan train`; the preset's when not given")
    parser.add_argument("--memory", action="store_true", help="peaks by batch instead")
    given = parser.parse_args(args)
    try:
        chosen = {} if given.norm_d is None else {"norm_d": given.norm_d}
        config = presets.get(given.preset, **chosen)
        config = config.replace(**partners(chosen, config))
        config.check_values()
    except FastganError as error:
        print(f"benchmarks: error: {error}", file=sys.stderr)
        return 2
    found = memory_lines(config, given.precision) if given.memory else lines(
        {name: count(config, given.batch, given.precision) for name, count in COUNTS.items()})
    print(*found, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
