"""The DCGAN at other sizes, channels and depths, and its errors for invalid sizes and names."""

from __future__ import annotations

import pytest
import torch

from fastgan import presets
from fastgan.errors import FastganError
from fastgan.models import DCGANDiscriminator, DCGANGenerator, build

# (height, width) -> (height, width) of the generator's first stage and of the discriminator's last
BASES = {(64, 96): (4, 6), (96, 64): (6, 4), (48, 80): (6, 10), (16, 16): (4, 4), (32, 16): (8, 4), (64, 64): (4, 4)}


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", BASES, ids=lambda size: "x".join(map(str, size)))
def test_shapes(size, channels):
    generator, discriminator = DCGANGenerator(7, 4, channels, size), DCGANDiscriminator(4, channels, size)
    base = BASES[size]
    assert generator.main[0].weight.shape[2:] == base == discriminator.main[-1].weight.shape[2:]
    z = torch.randn(2, 7)
    image = generator(z)
    assert image.shape == (2, channels, *size)
    assert image.abs().max() <= 1
    assert torch.equal(generator(z[:, :, None, None]), image)
    logits = discriminator(image)
    assert logits.shape == (2,)
    logits.sum().backward()
    for parameter in [*generator.parameters(), *discriminator.parameters()]:
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("size", [28, 20, 8, (72, 64), (64, 72), (64, 8), (0, 64)], ids=str)
def test_size_it_cannot_make(size):
    height, width = (size, size) if isinstance(size, int) else size
    for network in (DCGANGenerator, DCGANDiscriminator):
        with pytest.raises(FastganError, match=rf"{height}x{width}.*divisible by 16"):
            network(image_size=size)


@pytest.mark.parametrize(("architecture", "shape"), [("oreilly", (3, 28, 28)), ("tf", (1, 32, 32)),
                                                     ("gaussian", (1, 28, 28)), ("dcgan", (2,))], ids=str)
def test_data_of_another_architecture(architecture, shape):
    config = presets.get("dcgan-64", architecture=architecture)
    with pytest.raises(FastganError, match=f"--architecture {architecture}"):
        build(config.model, shape)


def test_unknown_preset_and_field_name_the_nearest():
    with pytest.raises(FastganError, match=r"unknown preset 'dcgan-46'; did you mean .*dcgan-64"):
        presets.get("dcgan-46")
    with pytest.raises(FastganError, match=r"unknown preset 'zzz'; expected one of digits, .*dcgan-128"):
        presets.get("zzz")
    with pytest.raises(FastganError, match=r"unknown option 'd_step'; did you mean d_steps"):
        presets.get("dcgan-64", d_step=2)
    with pytest.raises(FastganError, match=r"unknown option 'ndff'; did you mean .*ndf"):
        presets.get("dcgan-64").replace(ndff=2)


def test_preset_keeps_what_it_is_given():
    config = presets.get("dcgan-64", batch=32, lr=1e-4, ngf=16)
    assert (config.data.batch, config.train.lr, config.model.ngf, config.preset) == (32, 1e-4, 16, "dcgan-64")
    assert presets.get("dcgan-64").data.batch == 128


def test_label_embeddings_start_weaker_than_z_and_as_strong_as_images():
    """If they are as strong as z, N(0, 1), the generator draws one image per class."""
    networks = build(presets.get("dcgan-32", nz=100, ngf=4, ndf=4).model, (1, 32, 32), 50)
    for network, std in zip(networks, (0.1, 1.0), strict=True):
        weight = network.embedding.weight
        assert weight.std().item() == pytest.approx(std, rel=0.05) and abs(weight.mean()) < 0.1 * std
