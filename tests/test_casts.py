"""16-bit copies of weights for all operators of a step: bit for bit the same as separate casts, and never stale."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastgan import presets
from fastgan.models import build
from fastgan.nn import use
from fastgan.ops.casts import Casts, cast
from fastgan.ops.native import extension
from fastgan.train.step import GANStep

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


def trained(impl: str, precision: str) -> list[Tensor]:
    torch.manual_seed(0)
    config = presets.get("dcgan-64", ngf=8, ndf=8, nz=8, lr=0.002)
    generator, discriminator = (use(network, impl) for network in build(config.model, (3, 16, 16)))
    step = GANStep(generator, discriminator, config.model, config.train, precision=precision)
    for seed in range(3):
        torch.manual_seed(seed)
        step(torch.rand(4, 3, 16, 16).to(memory_format=torch.channels_last) * 2 - 1)
    return [p.detach().clone() for p in (*generator.parameters(), *discriminator.parameters())]


@pytest.mark.parametrize(("impl", "precision"), [("native", "bf16"), ("native", "fp16"), ("triton", "fp16")])
def test_a_step_is_the_same_bit_for_bit(impl, precision, monkeypatch):
    """With and without copies; D's copies would differ if they were not refreshed after its update."""
    if impl == "native" and extension.why_not(CPU):
        pytest.skip(extension.why_not(CPU))
    lent = trained(impl, precision)
    with monkeypatch.context() as patch:
        patch.setattr(Casts, "take", lambda *_: None)
        assert all(map(torch.equal, lent, trained(impl, precision)))
    monkeypatch.setattr(GANStep, "_update_discriminator", without_refresh(GANStep._update_discriminator))
    assert not all(map(torch.equal, lent, trained(impl, precision)))


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
