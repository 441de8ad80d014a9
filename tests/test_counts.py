"""The overhead of a step: Python frames and operators of a block, launches of a step, host time.

The limits are the current counts, so that increases are noticed. If a count decreases, lower its limit.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.counters import count_fastgan
from fastgan import presets
from fastgan.nn import Chain
from fastgan.ops.native import extension
from fastgan.ops.triton import launch
from proofs.launches import fetch, record, training_step
from tests.test_kernel_gradients import LAUNCHING

pytestmark = pytest.mark.usefixtures("one_thread")

FRAMES = {"triton": 6, "native": 6}  # from a module's forward, or autograd's backward, to a launch
LAUNCHES = {"convolve_kernel": 28, "bn_act_forward_kernel": 10, "wgrad_kernel": 10, "bn_backward_sums_kernel": 10,
            "bn_backward_apply_kernel": 10, "act_backward_kernel": 2, "gan_loss_kernel": 2, "gradient_norm_kernel": 2,
            "adam_kernel": 2, "finish_step_kernel": 1, "copy_unless_kernel": 1}
HOST = 2.2  # x eager PyTorch's time for three tiny blocks; 1.6 on an idle machine


def tiny_blocks(count: int) -> nn.Sequential:
    blocks = [[nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.LeakyReLU(0.2, True)] for _ in range(count)]
    return nn.Sequential(*(layer for block in blocks for layer in block)).to(memory_format=torch.channels_last)


def images() -> Tensor:
    return torch.randn(2, 8, 8, 8).to(memory_format=torch.channels_last)


def our_frames() -> int:
    """The number of fastgan's frames on the stack above the function that calls this one."""
    frame, count = sys._getframe(2), 0
    while frame is not None:
        count += str(frame.f_globals.get("__name__", "")).startswith("fastgan.")
        frame = frame.f_back  # type: ignore[assignment]
    return count


def noting(depths: dict[str, int], right: Callable[..., Any], name_of: Callable[..., str]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        name = name_of(*arguments)
        depths[name] = max(our_frames(), depths.get(name, 0))
        return right(*arguments, **options)
    return call


@pytest.mark.parametrize("impl", ["native", "triton"])
def test_frames_to_a_launch(impl, monkeypatch):
    depths: dict[str, int] = {}
    for module in LAUNCHING:
        monkeypatch.setattr(module, "launch", noting(depths, launch.launch, lambda kernel, *_: kernel.fn.__name__))
    monkeypatch.setattr(extension, "call", noting(depths, extension.call, lambda device, name, *_: name))
    Chain(*tiny_blocks(1), impl=impl)(images().requires_grad_()).sum().backward()
    assert len(depths) >= 5 and max(depths.values()) <= FRAMES[impl], depths


@pytest.mark.parametrize(("precision", "sums"), [("bf16", 5), ("tf32", 5)])
def test_launches_of_a_step(precision, sums):
    """A step of dcgan-64, forward and backward, with D on real and fake images in one call."""
    launches = record(training_step(presets.get("dcgan-64"), 128, precision), 90)
    assert Counter(one.name.replace("_tma", "") for one in launches) == {**LAUNCHES, "sum_kernel": sums}


def test_launches_of_a_batch():
    assert [one.name for one in record(fetch(presets.get("dcgan-64"), 128), 90)] == ["gather_kernel"]


SPECTRAL = {"triton spectral_rows": 3, "triton spectral_columns": 3, "triton spectral_scale": 3,
            "triton spectral_dot": 2, "triton spectral_gradient": 2}
SPECTRAL_STEP = 111  # kernels of a step, PyTorch's among them


def test_launches_of_a_step_with_spectral_normalization():
    """D is called three times: each call normalizes all of its weights in three launches. Two calls have gradients."""
    count = count_fastgan(presets.get("dcgan-64", norm_d="spectral", loss="hinge"), 128, "bf16")
    names = Counter(kernel.name for kernel in count.kernels)
    assert {name: number for name, number in names.items() if "spectral" in name} == SPECTRAL
    assert not names["mv"] and not names["linalg_vector_norm"] and names["_foreach_add_"] == 1
    assert len(count.kernels) == SPECTRAL_STEP


def test_time_of_the_host():
    """Three tiny blocks, forward and backward, in CPU time of one thread, in turns."""
    eager = tiny_blocks(3)
    networks = {"eager": eager, "native": Chain(*copy.deepcopy(eager), impl="native")}
    x = images()
    taken: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(60):
        for name, network in networks.items():
            begin = time.thread_time()
            torch.autograd.grad(network(x).sum(), list(network.parameters()))
            taken[name].append(time.thread_time() - begin)
    ratio = statistics.median(taken["native"]) / statistics.median(taken["eager"])
    assert ratio < HOST, f"{ratio:.2f} x eager"
