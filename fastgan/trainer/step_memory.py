"""The peak memory of a training step, computed without allocating tensors.

    peak    maximum total size of the storages that are alive at the same time: parameters, moments, gradients,
            activations; without workspaces of library convolutions, fragmentation, and the CUDA context

One step runs on fake tensors, which have shapes and storages but no data. For large batches, the peak is a linear
function of the batch size, from which the largest batch for a device is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastgan import memory
from fastgan.config import Config, data_shape
from fastgan.device import pick_device
from fastgan.models import build
from fastgan.nn import use
from fastgan.ops import tuning
from fastgan.train.precision import choose
from fastgan.train.step import GANStep, Savings

LARGE = 512, 1024  # batch sizes from which the peak of other batch sizes is extrapolated
USABLE = 0.9  # fraction of the memory for the step; the rest is for what the peak does not include


class StepMemory(NamedTuple):
    """Number of parameters of each network, and bytes: `state` of weights, gradients, Adam's moments and the moving
    average; `peak` of all tensors at the peak of a step."""

    generator: int
    discriminator: int
    state: int
    peak: int


class PeakMemory(TorchDispatchMode):
    """A context manager that records `peak`, the maximum total bytes of storages that are alive at the same time.

    Args:
        tensors: the tensors that already exist.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.add(list(tensors))

    def add(self, value: Any) -> None:
        """Count the storages of the tensors in a value."""
        for tensor in tree_leaves(value):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._alive = {key: one for key, one in self._alive.items() if not one[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func._schema.name == "aten::_local_scalar_dense":
            return 1  # fake tensors have no values, and no shape depends on this value
        out = func(*args, **(kwargs or {}))
        self.add(out)
        return out


def fake_tensors() -> FakeTensorMode:
    """A context manager in which new tensors have no data."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def fake_networks(config: Config, shape: tuple[int, ...], classes: int, impl: str) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator in channels_last. Call it within `fake_tensors`."""
    with unset_fake_temporarily(), torch.device("meta"):  # rejection sampling never ends on fake tensors
        generator, discriminator = build(config.model, shape, classes)
    for module in (*generator.modules(), *discriminator.modules()):
        places: tuple[dict[str, Any], ...] = module._parameters, module._buffers
        for tensors in places:
            for name, tensor in tensors.items():
                if tensor is not None:
                    layout = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", memory_format=layout)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    tensors[name] = nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
    return use(generator, impl), use(discriminator, impl)


def fake_step(config: Config, batch: int, precision: str, shape: tuple[int, ...], classes: int = 0,
              impl: str = "reference") -> tuple[GANStep, tuple[Tensor, ...]]:
    """A `GANStep` and a batch for it. Call this function and the step within `fake_tensors`.

    shape: (C, H, W), or (2,) for points. classes: number of labels, 0 for none.
    """
    generator, discriminator = fake_networks(config, shape, classes, impl)
    # for the moving average, which copies the generator: copying a fake buffer would read memory that does not exist
    generator.__deepcopy__ = lambda memo: fake_networks(config, shape, classes, impl)[0]  # type: ignore[assignment]
    # as on a GPU, although fake tensors are on the CPU
    savings = Savings(together=True if impl == "triton" else None, keep_casts=True)
    step = GANStep(generator, discriminator, config.model, config.train, precision=precision, savings=savings)
    real = torch.empty(batch, *shape, device="cpu")
    real = real.to(memory_format=torch.channels_last) if real.dim() == 4 else real
    given = (real, torch.zeros(batch, dtype=torch.long, device="cpu")) if classes else (real,)
    step.allocate(*given)
    return step, given


def estimate(config: Config, batch: int, precision: str, shape: tuple[int, ...], classes: int = 0) -> StepMemory:
    """The memory of a training step with PyTorch's operators. Arguments as in `fake_step`."""
    with fake_tensors():
        step, given = fake_step(config, batch, precision, shape, classes)
        parameters = [list(network.parameters()) for network in (step.generator, step.discriminator)]
        with tuning.use(tuning.Plan(engine="reference")), PeakMemory([*parameters[0], *parameters[1], *step.state(),
                                                                  *given]) as counter:
            step(*given)
    generator, discriminator = (sum(map(Tensor.numel, tensors)) for tensors in parameters)
    average = generator if config.train.ema else 0
    return StepMemory(generator, discriminator, 4 * (4 * (generator + discriminator) + average), counter.peak)


def largest_batch(peak: Callable[[int], int], size: float) -> int:
    """The largest batch whose peak memory is at most `size` bytes; 0 if there is none."""
    small, large = LARGE
    slope = (peak(large) - peak(small)) / (large - small)
    return max(0, int((size - peak(small)) / slope + small))


def shortage(config: Config) -> str:
    """The message for an out-of-memory error: the batch size, the memory that a step needs, and the largest batch that
    fits."""
    device = pick_device(config.run.device)
    total = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else memory.limit()
    precision, batch = choose(config.run.precision, device), config.data.batch

    @cache
    def peak(batch: int) -> int:
        return estimate(config, batch, precision, data_shape(config)).peak

    best = largest_batch(peak, USABLE * total)
    message = (f"out of memory on {device} at --batch {batch}: a step needs about {peak(batch) / 2**20:,.0f} MB "
               f"of the {total / 2**20:,.0f} MB of the device; expected ")
    if best < 2 or peak(best) > total:  # extrapolation from large batches is too low for small ones
        return message + "smaller networks (--ngf, --ndf, --image-size), because no batch size fits"
    if best < batch:
        return message + f"--batch {best} or less"
    return message + ("more free memory, or less memory for the data (--cache-gb, --gpu-data-gb); the whole memory "
                      f"is enough for --batch {best}")
