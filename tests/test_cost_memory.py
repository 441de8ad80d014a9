"""The memory that the model says a step needs, against what a step has, and what autograd keeps of each block."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch

from fastgan import presets
from fastgan.models import build
from fastgan.nn import use
from fastgan.train.step import GANStep
from fastgan.verify.cost import counted, memory
from fastgan.verify.cost.counted import experiment

DCGAN = presets.get("dcgan-64")


def saved(impl):
    with counted.imagined():
        return memory.saved(counted.ours_step(experiment(DCGAN, 8, "bf16"), impl), 90 if impl == "triton" else None)


def test_what_is_saved_of_each_block_and_pass():
    """D runs twice, on [real; fake] and in G's update, G once. Of a block y is kept where it is normalized, and a,
    which is the next one's x; nothing else of an activation's size but D's input."""
    large = [one for one in saved("triton") if one.bytes > 8 * 1024 and one.what != "statistics"]
    kept = Counter(((one.layer[:1], one.shape[1:]), one.what) for one in large)
    hidden = {"D": [(128, 16, 16), (256, 8, 8), (512, 4, 4)], "G": [(512, 4, 4), (256, 8, 8), (128, 16, 16),
                                                                   (64, 32, 32)]}
    expected = {((name, shape), what): 2 if name == "D" else 1 for name, shapes in hidden.items() for shape in shapes
                for what in ("raw output", "activation")}
    expected |= {(("D", (64, 32, 32)), "activation"): 2, (("G", (3, 64, 64)), "activation"): 1}
    assert {key: count for key, count in kept.items() if key[1] != "state"} == expected
    assert [one.shape for one in large if one.what == "state"] == [(16, 3, 64, 64)]


def test_eager_keeps_more_than_raw_tensors():
    """So the test above can fail."""
    with counted.imagined():
        found = memory.saved(counted.textbook_step(experiment(DCGAN, 8, "bf16")))
    of_one = [one for one in found if one.layer in ("D main.2", "D main.3") and one.bytes > 8 * 1024 and one.run == 1]
    assert {one.what for one in of_one} == {"convolution", "native_batch_norm", "weight, cast"}


@pytest.mark.parametrize("batch", [32, 128])
def test_peak_against_a_measured_one(batch):
    config = presets.get("digits", ema=0.0)
    what = experiment(config, batch, "fp32")
    torch.manual_seed(0)
    step = GANStep(*(use(network, "reference").to(memory_format=torch.channels_last)
                     for network in build(config.model, what.shape)), config.model, config.train)
    real = torch.rand(batch, *what.shape).to(memory_format=torch.channels_last)
    step(real)
    storages = [tensor.untyped_storage() for tensor in [*step.state(), real]]
    before = {storage.data_ptr(): storage.nbytes() for storage in storages}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step(real)
    changes = [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    measured = sum(before.values()) + max(itertools.accumulate(changes))
    assert memory.estimate(what)["peak"] == pytest.approx(measured, rel=0.1)


def test_largest_batch():
    what = experiment(DCGAN, 1, "bf16")

    def peak(batch):
        return counted.ours(what._replace(batch=batch)).peak

    best = memory.largest_batch(peak, 8)
    assert 0.98 * 8 * 2**30 < peak(best) < 1.02 * 8 * 2**30
    assert memory.largest_batch(lambda batch: batch * 2**30 + 9 * 2**30, 8) == 0


def test_report():
    found = "\n".join(memory.report(memory.Model("digits", experiment(presets.get("digits"), 8, "bf16"),
                                                 memory_device(), {})))
    assert "memory (model)" in found and "fits in 80 GB" in found and "raw output" in found


def memory_device():
    from fastgan.verify.cost.devices import DEVICES

    return DEVICES["h100"]
