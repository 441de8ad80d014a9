"""16-bit copies of weights for all operators of a step: bit for bit the same as separate casts, and never stale."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgan import presets
from fastgan.models import build
from fastgan.nn import use
from fastgan.ops.casts import Casts, cast
from fastgan.ops.native import extension
from fastgan.train import graph
from fastgan.train.graph import GraphedStep
from fastgan.train.step import GANStep, Savings
from proofs.simulated import SimulatedCuda

HALF = torch.bfloat16
CPU = torch.device("cpu")


@pytest.fixture
def weight() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last).requires_grad_()


def test_a_copy_for_the_length_of_a_block(weight):
    casts = Casts([weight], HALF)
    assert cast(weight, torch.float32) is weight and cast(weight, HALF) is not cast(weight, HALF)
    with casts.lent():
        copy = cast(weight, HALF)
        assert copy is cast(weight, HALF) and torch.equal(copy, weight.to(HALF)) and not copy.requires_grad
        assert copy.stride() == weight.stride()
        other = torch.ones(2)
        assert cast(other, HALF) is not cast(other, HALF), "of a tensor that may change at any time"
        assert cast(weight, torch.float32) is weight
    assert cast(weight, HALF) is not copy


def test_copies_follow_the_weights(weight):
    casts, still = Casts([weight], HALF), weight.detach().clone().requires_grad_()
    with casts.lent():
        copy = cast(weight, HALF)
        weight.data.add_(1)
        assert not torch.equal(copy, weight.to(HALF))
        casts.refresh([still])
        assert not torch.equal(copy, weight.to(HALF))
        casts.refresh([weight, still])
        assert torch.equal(copy, weight.to(HALF))
    weight.data.add_(1)
    casts.refresh()
    with casts.lent():
        assert cast(weight, HALF) is copy and torch.equal(copy, weight.to(HALF))
        assert torch.equal(cast(weight, torch.float16), weight.to(torch.float16))


def test_no_copy_of_what_a_weight_is_computed_from():
    """Copies would be written in each step and read by nothing."""
    config = presets.get("dcgan-64", ngf=8, ndf=8, nz=8, norm_d="spectral", loss="hinge")
    networks = [use(network, "native") for network in build(config.model, (3, 16, 16))]
    casts = GANStep(*networks, config.model, config.train, precision="bf16").casts
    assert [casts.copy_of(p) is None for p in networks[1].parameters()] == [True] * 3
    assert len(casts.tensors()) == 3


def test_lending_ends_with_an_error_too(weight):
    outer, inner = Casts([weight], HALF), Casts([weight], HALF)
    with outer.lent():
        copy = cast(weight, HALF)
        with pytest.raises(ZeroDivisionError), inner.lent():
            assert cast(weight, HALF) is not copy
            raise ZeroDivisionError
        assert cast(weight, HALF) is copy


def make(impl: str, precision: str, keep: bool = False, **fields: Any) -> GANStep:
    torch.manual_seed(0)
    config = presets.get("dcgan-64", **{"ngf": 8, "ndf": 8, "nz": 8, "lr": 0.002, **fields})
    generator, discriminator = (use(network, impl) for network in build(config.model, (3, 16, 16)))
    return GANStep(generator, discriminator, config.model, config.train, precision=precision,
                   savings=Savings(keep_casts=keep))


def train(step: GANStep | GraphedStep, seeds: Iterable[int] = range(3)) -> list[Tensor]:
    """The parameters after a step with each seed."""
    for seed in seeds:
        torch.manual_seed(seed)
        step(torch.rand(4, 3, 16, 16).to(memory_format=torch.channels_last) * 2 - 1)
    inner = step.step if isinstance(step, GraphedStep) else step
    return [p.detach().clone() for p in (*inner.generator.parameters(), *inner.discriminator.parameters())]


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(map(torch.equal, ours, theirs))


def copies_are_up_to_date(step: GANStep) -> bool:
    copies = [(p, step.casts.copy_of(p)) for p in (*step.params_g, *step.params_d)]
    return equal(*zip(*((copy, p.to(copy.dtype)) for p, copy in copies if copy is not None), strict=True))


def skip_without(impl: str) -> None:
    if impl == "native" and extension.why_not(CPU):
        pytest.skip(extension.why_not(CPU))


@pytest.mark.parametrize(("impl", "precision"), [("native", "bf16"), ("native", "fp16"), ("triton", "fp16")])
def test_a_step_is_the_same_bit_for_bit(impl, precision, monkeypatch):
    """With and without copies; D's copies would differ if they were not refreshed after its update."""
    skip_without(impl)
    lent = train(make(impl, precision))
    with monkeypatch.context() as patch:
        patch.setattr(Casts, "take", lambda *_: None)
        assert equal(lent, train(make(impl, precision)))
    monkeypatch.setattr(GANStep, "_update_discriminator", without_refresh(GANStep._update_discriminator))
    assert not equal(lent, train(make(impl, precision)))


def without_refresh(update):
    def wrapped(self, *args):
        self.casts.refresh, refresh = lambda weights: None, self.casts.refresh
        self.kernels.update = lambda *_: None  # its Adam would write the copies
        try:
            return update(self, *args)
        finally:
            self.casts.refresh = refresh
            del self.kernels.update
    return wrapped


@pytest.mark.parametrize(("impl", "precision", "fields"), [
    ("native", "bf16", {}), ("native", "fp16", {"ema": 0.9}), ("native", "bf16", {"d_steps": 2, "fakes": "fresh-z"}),
    ("native", "bf16", {"loss": "wgan", "weight_clip": 0.01}),
    ("native", "bf16", {"loss": "hinge", "norm_d": "spectral"}), ("triton", "fp16", {"ema": 0.9, "ngf": 4, "ndf": 4})])
def test_kept_copies_change_nothing(impl, precision, fields):
    """Bit for bit, with a batch that is not finite in the end."""
    skip_without(impl)
    step = make(impl, precision, keep=True, **fields)
    step.refresh = None  # a step does not call it
    assert equal(train(step), train(make(impl, precision, **fields))) and copies_are_up_to_date(step)
    before = train(step, [])
    assert step(torch.full((4, 3, 16, 16), torch.nan))["finite"] == 0
    assert equal(train(step, []), before) and copies_are_up_to_date(step)


@pytest.fixture(params=["eager", "graph"])
def wrap(request, monkeypatch, one_thread):
    """Steps as they are, and in a simulated CUDA graph."""
    monkeypatch.setattr(graph, "cuda", SimulatedCuda())
    return GraphedStep if request.param == "graph" else lambda step: step


def test_changed_parameters_take_effect(wrap):
    """In the next step; with kept copies after `refresh`."""
    skip_without("native")

    def changed(step: GANStep, refresh: bool) -> list[Tensor]:
        called = wrap(step)
        train(called)
        for p in (*step.generator.parameters(), *step.discriminator.parameters()):
            p.data.clamp_(-0.02, 0.02)  # which does not increase p._version
        if refresh:
            step.refresh()
        assert not isinstance(called, GraphedStep) or called.failure == ""
        return train(called)

    expected = changed(make("native", "bf16"), refresh=False)
    assert equal(changed(make("native", "bf16", keep=True), refresh=True), expected)
    assert not equal(changed(make("native", "bf16", keep=True), refresh=False), expected), "copies are not kept"


def test_a_loaded_state_takes_effect(wrap):
    skip_without("native")
    other = make("native", "bf16")
    train(other)
    step = make("native", "bf16", keep=True)
    called = wrap(step)
    train(called, [7])
    called.load_state_dict(other.state_dict())
    assert equal(train(called), train(other))
    assert not isinstance(called, GraphedStep) or called.failure == ""


def test_unfrozen_parameters_have_new_copies():
    skip_without("native")
    outcomes = []
    for keep in (False, True):
        step = make("native", "bf16", keep=keep)
        weight = next(step.discriminator.parameters())
        for requires_grad in (False, True):
            train(step)
            weight.requires_grad_(requires_grad)
            weight.data.mul_(0.5)
        outcomes.append(train(step))
    assert equal(*outcomes)
