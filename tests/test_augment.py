"""DiffAugment compared with its plain form, and in captured, repeated and distributed steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastgan import presets
from fastgan.data.order import Shard
from fastgan.errors import FastganError
from fastgan.train import GANStep
from fastgan.train.augment import DiffAugment, augmented
from tests.plain import diff_augment
from tests.test_step_options import networks

ALL = "color,translation,cutout"


def images(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("names", ["color", "translation", "cutout", ALL])
@pytest.mark.parametrize("shape", [(40, 3, 16, 16), (40, 1, 17, 24), (9, 4, 32, 5)],
                         ids=lambda shape: "x".join(map(str, shape)))
def test_equals_the_plain_form(names, shape):
    x = images(*shape)
    torch.manual_seed(3)
    ours = DiffAugment(names)(x.to(memory_format=torch.channels_last))
    torch.manual_seed(3)
    torch.testing.assert_close(ours, diff_augment.augment(x, names), rtol=1e-12, atol=1e-12)
    assert not torch.equal(ours, x)


def test_gradients_of_both_orders():
    x, draws = images(3, 2, 8, 8).requires_grad_(), torch.rand(3, 7, dtype=torch.float64)
    function = lambda x: augmented(x, draws, ALL.split(","))  # noqa: E731
    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)


def test_every_shift_and_cut_is_drawn():
    """Shifts of -2 to 2 of 16 pixels, each about equally often; cuts of 4x4 in a corner to 8x8."""
    marker = torch.zeros(2000, 1, 16, 16)
    marker[:, :, 8, 8] = 1
    torch.manual_seed(0)
    places = DiffAugment("translation")(marker).flatten(1).argmax(1)
    rows, columns = places // 16 - 8, places % 16 - 8
    for shifts in (rows, columns):
        counts = torch.bincount(shifts + 2)
        assert len(counts) == 5 and counts.min() > 300
    kept = DiffAugment("cutout")(torch.ones(2000, 1, 16, 16)).sum((1, 2, 3))
    assert kept.min() == 256 - 64 and kept.max() == 256 - 16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_narrow_images_are_changed_in_float32(dtype):
    x = images(6, 3, 16, 16, dtype=torch.float32).to(dtype)
    torch.manual_seed(3)
    ours = DiffAugment(ALL)(x)
    torch.manual_seed(3)
    assert ours.dtype == dtype and torch.equal(ours, DiffAugment(ALL)(x.float()).to(dtype))


def test_shards_are_parts_of_the_whole():
    x, parts = images(6, 3, 16, 16), []
    for rank in range(3):
        torch.manual_seed(3)
        parts.append(DiffAugment(ALL, Shard(rank, 3))(Shard(rank, 3).take(x)))
    torch.manual_seed(3)
    assert torch.equal(torch.cat(parts), DiffAugment(ALL)(x))


def test_without_names_nothing_is_drawn():
    x, before = images(2, 3, 8, 8), torch.get_rng_state()
    assert DiffAugment("")(x) is x and torch.equal(torch.get_rng_state(), before)


def test_errors():
    with pytest.raises(FastganError, match=r"--augment colour: unknown 'colour'; expected some of color, translation, "
                                           r"cutout, .* did you mean color"):
        presets.get("digits", augment="colour").validate()
    with pytest.raises(FastganError, match="--augment cutout with --architecture gaussian: expected an architecture"):
        presets.get("d2l-gan-gaussian", augment="cutout").validate()
    step = GANStep(*networks(), nz=4, augment="cutout")
    with pytest.raises(FastganError, match=r"a batch \(6, 2\) with augment='cutout': expected images"):
        step(torch.zeros(6, 2, dtype=torch.float64))
