"""The estimated memory of a step compared with the actual memory, and the tensors that autograd saves per block."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from benchmarks.counters import Counter as OperationCounter
from benchmarks.counters import count_fastgan
from fastgan import presets
from fastgan.config import data_shape
from fastgan.models import build
from fastgan.nn import use
from fastgan.ops.triton import launch
from fastgan.train.step import GANStep
from fastgan.trainer import step_memory

DCGAN = presets.get("dcgan-64")


def saved_shapes(batch: int) -> Counter[tuple[int, ...]]:
    """Shapes of the tensors that autograd saves in a step, each storage once, without parameters."""
    shapes: dict[int, tuple[int, ...]] = {}
    kept: list[Tensor] = []  # kept alive, so that no address is reused

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and tensor.numel():
            kept.append(tensor)
            shapes.setdefault(tensor.untyped_storage()._cdata, tuple(tensor.shape))
        return tensor

    with step_memory.fake_tensors():
        step, given = step_memory.fake_step(DCGAN, batch, "bf16", (3, 64, 64), impl="triton")
        counter = OperationCounter([])
        with (launch.through(counter.launched, 90), counter,
              torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)):
            step(*given)
    return Counter(shapes.values())


def test_what_is_saved_of_each_block_and_pass():
    """D runs twice, on [real; fake] and in G's update, G once. A block saves y if it is normalized, and a, which is the
    next block's x; the only other saved tensor of an activation's size is D's input."""
    n = 8
    activations = {shape: count for shape, count in saved_shapes(n).items()
                   if len(shape) == 4 and shape[0] in (n, 2 * n) and shape[1] > 1 and shape[2] > 1}
    hidden = [(128, 16, 16), (256, 8, 8), (512, 4, 4)]
    expected = Counter({(n, *shape): 2 for shape in [*hidden, (64, 32, 32)]})  # G
    expected += Counter({(size, *shape): 2 for size in (n, 2 * n) for shape in hidden})  # D
    expected += Counter({(n, 64, 32, 32): 1, (2 * n, 64, 32, 32): 1, (n, 3, 64, 64): 1, (2 * n, 3, 64, 64): 1})
    assert activations == expected


def test_estimate_of_parameters_and_state():
    config = presets.get("digits", ngf=4, ndf=4, ema=0.5)
    one, two = (step_memory.estimate(config, batch, "fp32", (1, 16, 16)) for batch in (512, 1024))
    counts = [sum(p.numel() for p in network.parameters()) for network in build(config.model, (1, 16, 16))]
    assert [one.generator, one.discriminator] == counts
    assert one.state == two.state == 4 * (4 * sum(counts) + counts[0])
    # beyond the state nearly all grows with the batch
    assert 1.9 < (two.peak - two.state) / (one.peak - one.state) <= 2.1


@pytest.mark.parametrize("batch", [32, 128])
def test_peak_against_a_measured_one(batch):
    config = presets.get("digits", ema=0.0)
    shape = data_shape(config)
    torch.manual_seed(0)
    step = GANStep(*(use(network, "reference").to(memory_format=torch.channels_last)
                     for network in build(config.model, shape)), config.model, config.train)
    real = torch.rand(batch, *shape).to(memory_format=torch.channels_last)
    step(real)
    storages = [tensor.untyped_storage() for tensor in [*step.state(), real]]
    before = {storage.data_ptr(): storage.nbytes() for storage in storages}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step(real)
    changes = [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    measured = sum(before.values()) + max(itertools.accumulate(changes))
    assert step_memory.estimate(config, batch, "fp32", shape).peak == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("preset", sorted(presets.PRESETS))
@pytest.mark.filterwarnings("error:Accessing the data pointer of FakeTensor")  # memory that does not exist
def test_every_preset(preset):
    config = presets.get(preset, ema=0.9)
    found = step_memory.estimate(config, 4, "fp32", data_shape(config))
    assert found.peak > found.state > 4 * (found.generator + found.discriminator)


def test_labels():
    config = presets.get("digits", cond=True)
    assert step_memory.estimate(config, 4, "fp32", (1, 16, 16), 10).discriminator > step_memory.estimate(
        presets.get("digits"), 4, "fp32", (1, 16, 16)).discriminator


def test_largest_batch():
    def peak(batch):
        return count_fastgan(DCGAN, batch, "bf16").peak

    best = step_memory.largest_batch(peak, 8 * 2**30)
    assert 0.98 * 8 * 2**30 < peak(best) < 1.02 * 8 * 2**30
    assert step_memory.largest_batch(lambda batch: batch * 2**30 + 9 * 2**30, 8 * 2**30) == 0
