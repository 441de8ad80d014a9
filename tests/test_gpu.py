"""Tests that need a GPU, in addition to `make gpu`: `TRITON_INTERPRET=0 pytest -m gpu`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgan import ops, presets
from fastgan.config import DataConfig
from fastgan.data import make_feed
from fastgan.data.dataset import MemoryDataset
from fastgan.models import build
from fastgan.nn import use
from fastgan.ops.engines import why_not as why_no_kernels
from fastgan.train.graph import GraphedStep
from fastgan.train.step import GANStep, Savings
from fastgan.trainer import Trainer
from fastgan.trainer.fetch_step import FetchStep
from tests.near import used
from tests.small_step import Asking

DEVICE = torch.device("cuda")


def why_not() -> str:
    if not torch.cuda.is_available():
        return "no CUDA device: nothing here was tested"
    from fastgan.ops.triton.launch import INTERPRETED

    return "Triton interprets its kernels in this process: set TRITON_INTERPRET=0" if INTERPRETED else ""


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(why_not()), reason=why_not())]


@pytest.fixture(autouse=True)
def repeatable() -> Iterator[None]:
    """cuDNN's fastest weight gradients are summed in any order; bit-for-bit equality needs deterministic ones."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = before


def engines() -> list[str]:
    """The engines that run here, the reference first."""
    return ["reference", *(name for name in ENGINES[1:] if not why_not() and not why_no_kernels(name, DEVICE))]


ENGINES = ["reference", "native", "triton"]
PRECISIONS = ["fp32", "tf32", "bf16", "fp16"]


def make(impl: str, precision: str, preset: str = "dcgan-64", history: int = 4, **fields: Any) -> GANStep:
    """A seeded step with a quarter of the width."""
    if impl not in engines():
        pytest.skip(f"{impl}: {why_no_kernels(impl, DEVICE)}")
    torch.manual_seed(0)
    config = presets.get(preset, **{"ngf": 16, "ndf": 16, "ema": 0.9, **fields})
    networks = (use(network, impl).to(DEVICE, memory_format=torch.channels_last)
                for network in build(config.model, (3, 64, 64)))
    return GANStep(*networks, config.model, config.train, precision=precision, history=history)


def images(count: int = 16, seed: int = 1) -> Tensor:
    torch.manual_seed(seed)
    return (torch.rand(count, 3, 64, 64, device=DEVICE) * 2 - 1).to(memory_format=torch.channels_last)


def everything(step: Any) -> list[Tensor]:
    return [*(tensor.detach().clone() for tensor in step.state()), torch.cuda.get_rng_state()]


UNIT = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}


@pytest.mark.parametrize("dtype", UNIT, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize(("transposed", "n", "ci", "co", "size", "k", "stride", "padding"), [
    (False, 8, 64, 128, 32, 4, 2, 1), (False, 8, 3, 64, 64, 4, 2, 1), (False, 8, 512, 1, 4, 4, 1, 0),
    (False, 3, 25, 7, 13, 5, 3, 2), (True, 8, 128, 64, 16, 4, 2, 1), (True, 8, 100, 512, 1, 4, 1, 0),
    (True, 8, 64, 3, 32, 4, 2, 1), (True, 3, 100, 25, 7, 5, 3, 1)])
@pytest.mark.parametrize("impl", ["native", "triton"])
def test_operation(impl, dtype, transposed, n, ci, co, size, k, stride, padding):
    """Output, all gradients and running statistics, with errors as small as those of the library's layers."""
    if impl not in engines():
        pytest.skip(why_no_kernels(impl, DEVICE))
    torch.manual_seed(0)
    given = {"x": torch.randn(n, ci, size, size), "gamma": 1 + torch.randn(co) / 4, "beta": torch.randn(co),
             "weight": torch.randn((ci, co, k, k) if transposed else (co, ci, k, k)) * (ci * k * k) ** -0.5}
    wide = {"gamma": torch.float32, "beta": torch.float32}
    given = {name: tensor.to(dtype).to(wide.get(name, dtype)) for name, tensor in given.items()}
    function: Callable[..., Tensor] = ops.conv_transpose_bn_act if transposed else ops.conv_bn_act

    def run(impl: str, exact: bool) -> dict[str, Tensor]:
        leaves = {name: (t.double() if exact else t).to(DEVICE).requires_grad_() for name, t in given.items()}
        kind = torch.float64 if exact else torch.float32
        mean, var = torch.zeros(co, device=DEVICE, dtype=kind), torch.ones(co, device=DEVICE, dtype=kind)
        y = function(leaves["x"], leaves["weight"], None, leaves["gamma"], leaves["beta"], mean, var, stride=stride,
                     padding=padding, activation="leaky_relu", impl=impl)
        torch.manual_seed(2)
        g = torch.randn(y.shape).to(dtype).to(y.dtype).to(DEVICE)
        grads = torch.autograd.grad(y, list(leaves.values()), g)
        return {"y": y.detach(), "mean": mean, "var": var,
                **{f"grad {name}": grad for name, grad in zip(leaves, grads, strict=True)}}

    conv = torch.backends.cudnn.conv
    before, conv.fp32_precision = conv.fp32_precision, "ieee"
    try:
        ours, eager, exact = run(impl, False), run("reference", False), run("reference", True)
    finally:
        conv.fp32_precision = before
    for name, value in exact.items():
        share = used(ours[name], eager[name], value, 4 * UNIT[dtype] * value.abs().max().item())
        assert share <= 1, f"{name}: {share:.3g} of the allowed error"


@pytest.mark.parametrize("fields", [
    {}, {"lr_schedule": "cosine", "lr_warmup": 3, "steps": 20}, {"loss": "wgan-gp", "d_steps": 2, "norm_d": "none"},
    {"r1": 1.0, "penalty_every": 3, "norm_d": "none"}, {"fakes": "fresh-z", "adam_eps_hat": True}],
    ids=["plain", "schedule", "wgan-gp", "lazy r1", "eps hat, fresh z"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("impl", ENGINES)
def test_ten_replays_are_ten_eager_steps(impl, precision, fields):
    """No difference in any tensor of the state, the ring and the generator."""
    reals = [images(seed=seed) for seed in range(10)]
    outcomes = []
    for graphed in (False, True):
        step = make(impl, precision, **fields)
        call = GraphedStep(step) if graphed else step
        torch.manual_seed(7)
        for real in reals:
            call(real)
        if graphed:
            assert call.failure == ""
        outcomes.append(everything(step))
    for number, (eager, replayed) in enumerate(zip(*outcomes, strict=True)):
        assert torch.equal(eager.nan_to_num(7), replayed.nan_to_num(7)), number


@pytest.mark.parametrize("impl", ENGINES)
def test_data_on_the_device_without_one_wait(impl):
    """Fetch, D, G, Adam, average: between two reads of the log, the host never waits, and launches one graph per step.
    """
    step = make(impl, "bf16", history=50)
    data = torch.randint(256, (640, 3, 64, 64), dtype=torch.uint8)
    feed = make_feed(MemoryDataset(name="noise", data=data), DataConfig(batch=16, flip=True), 0, DEVICE,
                     gather=step.kernels.gather)
    fed = FetchStep(feed, step, (3, 64, 64), [16], False)
    graphed = GraphedStep(fed)
    fed.prepare()
    graphed()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA,
                                            torch.profiler.ProfilerActivity.CPU]) as profile:
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(45):  # over the end of an epoch of 40
                fed.prepare()
                graphed()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
    launches = sum(event.count for event in profile.key_averages() if event.key == "cudaGraphLaunch")
    assert graphed.failure == "" and launches == 45
    rows = step.metrics_buffer.read(0, step.steps)
    assert len(rows) == 46 and all(row["finite"] == 1 for row in rows)


def test_memory_does_not_grow():
    step = make(engines()[-1], "bf16")
    graphed, real = GraphedStep(step), images()
    for _ in range(10):
        graphed(real)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for _ in range(1000):
        graphed(real)
    torch.cuda.synchronize()
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == before
    graphed.close()


def test_memory_comes_back_on_close():
    step, real = make("reference", "fp32"), images()
    step(real)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    for _ in range(3):
        graphed = GraphedStep(step)
        graphed(real)
        graphed.close()
        del graphed
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before + 2**26


def test_capture_that_fails_changes_nothing(capsys):
    """A forward that reads a value from the device: one line, and the same eager steps as without a graph."""
    reals = [images(seed=seed) for seed in range(3)]
    outcomes = []
    for graphed in (False, True):
        step = make("reference", "fp32")
        step.discriminator, step.savings = Asking(step.discriminator), Savings(together=False)
        call = GraphedStep(step) if graphed else step
        torch.manual_seed(7)
        for real in reals:
            call(real)
        outcomes.append(everything(step))
    assert "training continues without CUDA graphs" in capsys.readouterr().err
    for eager, replayed in zip(*outcomes, strict=True):
        assert torch.equal(eager.nan_to_num(7), replayed.nan_to_num(7))


def test_load_state_dict_in_the_middle():
    step, real = make("reference", "fp32"), images()
    graphed = GraphedStep(step)
    torch.manual_seed(3)
    for _ in range(3):
        graphed(real)
    state, random = copy.deepcopy(step.state_dict()), torch.cuda.get_rng_state()
    for _ in range(3):
        graphed(real)
    expected = everything(step)
    step.load_state_dict(state)
    torch.cuda.set_rng_state(random)
    for _ in range(3):
        graphed(real)
    assert graphed.failure == ""
    for one, other in zip(expected, everything(step), strict=True):
        assert torch.equal(one.nan_to_num(7), other.nan_to_num(7))


@pytest.mark.parametrize("gpu_data_gb", [8.0, 0.0], ids=["resident", "fed from pinned memory"])
@pytest.mark.parametrize("impl", ENGINES)
def test_trainer(tiny, impl, gpu_data_gb):
    """A run with graphs, a run without them and a resumed run have the same checkpoint, bit for bit."""
    if impl not in engines():
        pytest.skip(why_no_kernels(impl, DEVICE))
    config = tiny(device="cuda", impl=impl, gpu_data_gb=gpu_data_gb, flip=True, steps=130, snap=65, log_every=20)
    graphed, eager = Trainer(config), Trainer(config.replace(graph="off"))
    folders: list[Path] = [graphed.fit(), eager.fit()]
    assert graphed.graphed is not None and graphed.graphed.failure == ""
    part = Trainer(config.replace(steps=65)).fit()
    folders.append(Trainer.resume(part, config).fit())
    states = [torch.load(folder / "checkpoints" / "step000130.pt", weights_only=True) for folder in folders]
    flat = [torch.utils._pytree.tree_flatten(state)[0] for state in states]
    for values in zip(*flat, strict=True):
        for other in values[1:]:
            assert torch.equal(values[0], other) if isinstance(other, Tensor) else values[0] == other
