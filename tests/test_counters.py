"""Counted kernels, bytes and operations of a step (benchmarks/counters.py)."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import counters
from benchmarks.counters import count_fastgan, count_pytorch, main
from fastgan import presets
from fastgan.trainer.step_memory import fake_tensors
from proofs.launches import record, training_step

DCGAN = presets.get("dcgan-64")


def kernels(function, **shapes):
    """The kernels of `function(*tensors)` on fake tensors of these shapes."""
    with fake_tensors():
        tensors = [torch.empty(shape, requires_grad=True) for shape in shapes.values()]
        with counters.Counter(tensors) as counter:
            function(*tensors)
    return counter.kernels


def names(found):
    return [kernel.name for kernel in found]


@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "transposed"])
def test_convolution(transposed):
    n, ci, co, k, h = 6, 5, 7, 3, 11
    shape = (ci, co, k, k) if transposed else (co, ci, k, k)
    convolve = F.conv_transpose2d if transposed else F.conv2d
    with fake_tensors():
        x, weight = torch.empty(n, ci, h, h, requires_grad=True), torch.empty(shape, requires_grad=True)
        with counters.Counter([x, weight]) as counter:
            y = convolve(x, weight, stride=2, padding=1)
            torch.autograd.grad(y, [x, weight], y.detach())
    pixels = h * h if transposed else y.shape[2] * y.shape[3]
    assert names(counter.kernels) == ["convolution", "convolution dgrad", "convolution wgrad"]
    for kernel in counter.kernels:
        assert kernel.flops == 2 * n * pixels * ci * co * k * k
        assert kernel.bytes == 4 * (x.numel() + weight.numel() + y.numel())


def test_one_more_operation_is_one_more_kernel():
    def network(x, weight):
        return F.leaky_relu(F.conv2d(x, weight), 0.2)

    one = kernels(network, x=(2, 3, 8, 8), weight=(4, 3, 3, 3))
    two = kernels(lambda x, weight: network(x, weight).abs(), x=(2, 3, 8, 8), weight=(4, 3, 3, 3))
    assert names(two) == [*names(one), "abs"] == ["convolution", "leaky_relu", "abs"]


@pytest.mark.parametrize(("function", "found", "moved"), [
    (lambda x: x[1:].T.reshape(-1).view(3, -1)[0].detach(), ["clone"], 2 * 4 * 12),
    (lambda x: x + 1, ["add"], 4 * (15 + 15)),
    (lambda x: x.detach().mul_(2), ["mul_"], 4 * (15 + 15)),
    (lambda x: x.detach().zero_(), ["zero_"], 4 * 15),
    (lambda x: x.detach().copy_(torch.empty(())), ["copy_"], 4 * (1 + 15)),
    (lambda x: x[1:] - x[:-1], ["sub"], 4 * (15 + 12)),  # both views together count at most their storage
    (lambda x: torch.empty_like(x), [], 0),
], ids=["views", "pointwise", "in place", "zero_", "copy_", "overlap", "allocation"])
def test_bytes(function, found, moved):
    counted = kernels(function, x=(5, 3))
    assert names(counted) == found and sum(kernel.bytes for kernel in counted) == moved


def test_batch_normalisation_reads_its_input_twice():
    with fake_tensors():
        x, weight = torch.empty(8, 4, 16, 16), torch.empty(4, 4, 1, 1, requires_grad=True)
        norm = nn.BatchNorm2d(4)
        with counters.Counter([x, weight]) as counter:
            y = norm(F.conv2d(x, weight))
            torch.autograd.grad(y, [weight], y.detach())
    size = 4 * x.numel()
    found = {kernel.name: kernel.bytes // size for kernel in counter.kernels if kernel.name.startswith("batch norm")}
    assert found == {"batch norm: statistics": 1, "batch norm: running statistics": 0, "batch norm: normalize": 2,
                     "batch norm backward: sums": 2, "batch norm backward: input": 3}


@pytest.fixture(scope="module")
def at_128():
    return {"pytorch": count_pytorch(DCGAN, 128, "bf16"), "fastgan": count_fastgan(DCGAN, 128, "bf16")}


def test_fastgans_launches_are_those_of_the_recorder(at_128):
    recorded = Counter(launch.name for launch in record(training_step(DCGAN, 128, "bf16"), 90))
    found = Counter(f"{name.removeprefix('triton ')}_kernel" for name in names(at_128["fastgan"].kernels)
                    if name.startswith("triton"))
    assert found == recorded


def test_the_work_of_both_steps(at_128):
    """The same products, except gradients of D's weights in G's update, which only PyTorch's loop computes."""
    wgrads = [kernel.flops for kernel in at_128["pytorch"].kernels if "wgrad" in kernel.name]
    theirs, ours = (sum(kernel.flops for kernel in count.kernels) for count in at_128.values())
    assert len(wgrads) == 20 and theirs - ours == sum(wgrads[-10:-5])


def test_a_step_does_not_cost_more_than_today(at_128):
    """docs/cost.md"""
    kernels, moved = ([len(count.kernels) for count in at_128.values()],
                      [sum(kernel.bytes for kernel in count.kernels) for count in at_128.values()])
    assert kernels[0] > 250 and kernels[1] <= 89
    assert moved[1] <= 0.65 * moved[0]


def test_command(capsys):
    assert main(["--preset", "digits", "--batch", "8"]) == 0
    out = capsys.readouterr().out
    assert "triton convolve" in out and "convolution dgrad" in out and out.count("in all") == 2
    assert main(["--preset", "digits", "--memory"]) == 0
    assert "fits in 80 GB" in capsys.readouterr().out


def test_unknown_preset(capsys):
    assert main(["--preset", "dcgan-63"]) == 2
    assert "unknown preset 'dcgan-63'; did you mean" in capsys.readouterr().err
