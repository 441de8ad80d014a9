"""The specifications of the documents as tables: shapes, parameter counts, fields, initial values, noise, pixels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgan import presets
from fastgan.data import to_model_range
from fastgan.errors import FastganError
from fastgan.models import build
from fastgan.presets import PRESETS
from fastgan.train.step import GANStep
from tests.preset_cases import CASES

# outputs of the layers that have weights, channels first: generator, discriminator
SHAPES = {
    "digits": ("128x4x4 64x8x8 32x16x16 1x32x32", "32x16x16 64x8x8 128x4x4 1x1x1"),
    "mxnet-dcgan-mnist": ("1024x4x4 512x8x8 256x16x16 128x32x32 3x64x64",
                          "128x32x32 256x16x16 512x8x8 1024x4x4 1x1x1"),
    "oreilly-gan-mnist": ("256x3x3 128x6x6 64x12x12 1x28x28", "8x28x28 16x14x14 32 1"),
    "d2l-gan-gaussian": ("2", "5 3 1"),
    "d2l-dcgan-pokemon": ("512x4x4 256x8x8 128x16x16 64x32x32 3x64x64", "64x32x32 128x16x16 256x8x8 512x4x4 1x1x1"),
    "tf-dcgan-mnist": ("6272 64x14x14 1x28x28", "64x14x14 128x7x7 1024 2"),
    "dcgan-64": ("512x4x4 256x8x8 128x16x16 64x32x32 3x64x64", "64x32x32 128x16x16 256x8x8 512x4x4 1x1x1"),
    "own-images": ("512x4x4 256x8x8 128x16x16 64x32x32 3x64x64", "64x32x32 128x16x16 256x8x8 512x4x4 1x1x1"),
    "dcgan-32": ("256x4x4 128x8x8 64x16x16 3x32x32", "64x16x16 128x8x8 256x4x4 1x1x1"),
    "dcgan-128": ("1024x4x4 512x8x8 256x16x16 128x32x32 64x64x64 3x128x128",
                  "64x64x64 128x32x32 256x16x16 512x8x8 1024x4x4 1x1x1"),
}

# weights, then scales and offsets of batch normalization: trained values of the generator and of the discriminator
TRAINED = {
    "digits": ((100 * 128 + 128 * 64 + 64 * 32 + 32 * 1) * 4 * 4 + 2 * (128 + 64 + 32),
               (1 * 32 + 32 * 64 + 64 * 128 + 128 * 1) * 4 * 4 + 2 * (64 + 128)),
    "mxnet-dcgan-mnist": (  # only offsets: fix_gamma=True
        (100 * 1024 + 1024 * 512 + 512 * 256 + 256 * 128 + 128 * 3) * 4 * 4 + 1024 + 512 + 256 + 128,
        (3 * 128 + 128 * 256 + 256 * 512 + 512 * 1024 + 1024 * 1) * 4 * 4 + 256 + 512 + 1024),
    "oreilly-gan-mnist": (  # without the generator's biases, which have no gradient
        (25 * 256 + 256 * 128 + 128 * 64 + 64 * 1) * 5 * 5 + 2 * (256 + 128 + 64),
        (1 * 8 + 8 * 16) * 5 * 5 + 8 + 16 + 7 * 7 * 16 * 32 + 32 + 32 * 1 + 1),
    "d2l-gan-gaussian": (2 * 2 + 2, 2 * 5 + 5 + 5 * 3 + 3 + 3 * 1 + 1),
    "d2l-dcgan-pokemon": (
        (100 * 512 + 512 * 256 + 256 * 128 + 128 * 64 + 64 * 3) * 4 * 4 + 2 * (512 + 256 + 128 + 64),
        (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 * 1) * 4 * 4 + 2 * (64 + 128 + 256 + 512)),
    "tf-dcgan-mnist": (
        100 * 6272 + 6272 + 2 * 6272 + 5 * 5 * 128 * 64 + 64 + 2 * 64 + 5 * 5 * 64 * 1 + 1,
        # 5x5 in the second convolution as in the first; the printed code has 10x10 there
        5 * 5 * 1 * 64 + 64 + 2 * 64 + 5 * 5 * 64 * 128 + 128 + 2 * 128
        + 6272 * 1024 + 1024 + 2 * 1024 + 1024 * 2 + 2),
    "dcgan-64": (
        (100 * 512 + 512 * 256 + 256 * 128 + 128 * 64 + 64 * 3) * 4 * 4 + 2 * (512 + 256 + 128 + 64),
        (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 * 1) * 4 * 4 + 2 * (128 + 256 + 512)),
    "dcgan-32": ((100 * 256 + 256 * 128 + 128 * 64 + 64 * 3) * 4 * 4 + 2 * (256 + 128 + 64),
                 (3 * 64 + 64 * 128 + 128 * 256 + 256 * 1) * 4 * 4 + 2 * (128 + 256)),
    "dcgan-128": (
        (100 * 1024 + 1024 * 512 + 512 * 256 + 256 * 128 + 128 * 64 + 64 * 3) * 4 * 4
        + 2 * (1024 + 512 + 256 + 128 + 64),
        (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 * 1024 + 1024 * 1) * 4 * 4 + 2 * (128 + 256 + 512 + 1024)),
}
TRAINED["own-images"] = TRAINED["dcgan-64"]

# parameters that exist but are not trained: scales of fix_gamma, and three of the four unused biases, which cancel
HELD = {"mxnet-dcgan-mnist": (1024 + 512 + 256 + 128, 256 + 512 + 1024), "oreilly-gan-mnist": (256 + 128 + 64, 0)}

ADAM_PAPER = {"lr": 2e-4, "beta1": 0.5, "beta2": 0.999, "adam_eps": 1e-8}
TF_MNIST = {"source": "mnist", "split": "train", "holdout": 5000, "image_size": "28", "channels": 1, "flip": False,
            "last_batch": "rollover"}
FIELDS: dict[str, dict[str, Any]] = {
    "digits": {"source": "digits", "image_size": "32"},
    "mxnet-dcgan-mnist": {
        **ADAM_PAPER, "source": "mnist", "split": "all", "holdout": 0, "image_size": "64", "channels": 3,
        "fit": "stretch", "flip": False, "unit_range": False, "batch": 64, "last_batch": "pad", "nz": 100,
        "noise": "normal", "noise_mean": 0.0, "norm_d": "skip-first", "bn_eps": 1e-5 + 1e-12, "bn_momentum": 0.1,
        "fix_gamma": True, "loss": "bce", "d_loss_weight": 1.0, "d_steps": 1, "real_first": False, "fakes": "reuse",
        "lr_g": None, "lr_d": None, "adam_eps_hat": True, "epochs": 1, "steps": None, "snap": 50,
        "pictures": "side-by-side"},
    "oreilly-gan-mnist": {
        **TF_MNIST, "unit_range": True, "batch": 16, "nz": 100, "noise": "normal", "noise_mean": -1.0, "bn_eps": 1e-3,
        "bn_momentum": 1e-3, "sample_bn": "batch", "loss": "bce", "d_loss_weight": 1.0, "d_steps": 1,
        "fakes": "same-z", "lr": 1e-3, "lr_g": None, "lr_d": None, "beta1": 0.9, "beta2": 0.999, "adam_eps": 1e-8,
        "adam_eps_hat": True, "steps": 3000},
    "d2l-gan-gaussian": {
        "source": "gaussian", "batch": 8, "nz": 2, "noise": "normal", "noise_mean": 0.0, "loss": "bce",
        "d_loss_weight": 0.5, "d_steps": 1, "real_first": True, "fakes": "same-z", "lr_d": 0.05, "lr_g": 0.005,
        "beta1": 0.9, "beta2": 0.999, "adam_eps": 1e-8, "adam_eps_hat": True, "epochs": 20, "steps": None},
    "d2l-dcgan-pokemon": {
        **ADAM_PAPER, "lr": 0.005, "image_size": "64", "channels": 3, "fit": "stretch", "flip": False,
        "unit_range": False, "batch": 256, "last_batch": "keep", "nz": 100, "noise": "normal", "noise_mean": 0.0,
        "norm_d": "all", "bn_eps": 1e-5, "bn_momentum": 0.1, "fix_gamma": False, "gamma_std": 0.0, "loss": "bce",
        "d_loss_weight": 0.5, "d_steps": 1, "real_first": True, "fakes": "same-z", "lr_g": None, "lr_d": None,
        "adam_eps_hat": True, "epochs": 20, "steps": None, "grid": 21},
    "tf-dcgan-mnist": {
        **TF_MNIST, **ADAM_PAPER, "lr": 0.002, "unit_range": False, "batch": 128, "nz": 100, "noise": "uniform",
        "bn_eps": 1e-3, "bn_momentum": 1e-2, "sample_bn": "running", "loss": "softmax", "d_loss_weight": 1.0,
        "d_steps": 1, "fakes": "fresh-z", "lr_g": None, "lr_d": None, "adam_eps_hat": True, "steps": 10_000,
        "grid": 36},
    "dcgan-64": {
        **ADAM_PAPER, "image_size": "64", "unit_range": False, "batch": 128, "nz": 100, "ngf": 64, "ndf": 64,
        "noise": "normal", "noise_mean": 0.0, "norm_d": "skip-first", "bn_eps": 1e-5, "bn_momentum": 0.1,
        "fix_gamma": False, "gamma_std": 0.02, "loss": "bce", "d_loss_weight": 1.0, "d_steps": 1, "real_first": True,
        "fakes": "reuse", "lr_g": None, "lr_d": None, "adam_eps_hat": False, "steps": None, "r1": 0.0},
    "own-images": {**ADAM_PAPER, "image_size": "64", "batch": 64, "flip": True, "ema": 0.999, "norm_d": "skip-first"},
    "dcgan-32": {**ADAM_PAPER, "image_size": "32", "source": "cifar10", "batch": 128, "adam_eps_hat": False},
    "dcgan-128": {**ADAM_PAPER, "image_size": "128", "adam_eps_hat": False},
}

NORMAL = ("normal", 0.02)  # mx.init.Normal(0.02), and the DCGAN paper's N(0, 0.02)
GLOROT = ("uniform", 0.0)  # tf.layers' default
# initial distributions of the weights of the generator and of the discriminator, and of the biases of each
WEIGHTS = {
    **dict.fromkeys(PRESETS, (NORMAL, NORMAL)),
    "oreilly-gan-mnist": (("truncated", 0.1), ("truncated", 0.02)),
    "tf-dcgan-mnist": (GLOROT, GLOROT),
}
BIASES = {name: (0.1 if name.startswith("oreilly") else 0.0, 0.0) for name in PRESETS}
SCALES = {name: 0.02 if name.startswith(("digits", "dcgan", "own")) else 0.0 for name in PRESETS}  # deviation around 1

NOISE = {  # mean, deviation, bound
    **dict.fromkeys(PRESETS, (0.0, 1.0, math.inf)),
    "oreilly-gan-mnist": (-1.0, 1.0, math.inf),  # np.random.normal(-1, 1)
    "tf-dcgan-mnist": (0.0, 1 / math.sqrt(3), 1.0),  # np.random.uniform(-1., 1.)
}

BLACK = {**dict.fromkeys(PRESETS, -1.0), "oreilly-gan-mnist": 0.0}
WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def networks(name: str) -> tuple[nn.Module, nn.Module]:
    return build(presets.get(name).model, CASES[name].shape)


@pytest.mark.parametrize("name", PRESETS)
def test_layer_shapes(name):
    shapes: list[str] = []
    with torch.device("meta"):
        generator, discriminator = networks(name)
        for module in [*generator.modules(), *discriminator.modules()]:
            if isinstance(module, WEIGHTED):
                module.register_forward_hook(lambda _, __, out: shapes.append("x".join(map(str, out.shape[1:]))))
        image = generator(torch.empty(2, presets.get(name).model.nz))
        logits = discriminator(image)
    assert " ".join(shapes) == " ".join(SHAPES[name])
    assert image.shape[1:] == CASES[name].shape
    assert logits.shape == ((2, 2) if name == "tf-dcgan-mnist" else (2,))


@pytest.mark.parametrize("name", PRESETS)
def test_number_of_parameters(name):
    with torch.device("meta"):
        pair = networks(name)
    trained = tuple(sum(p.numel() for p in network.parameters() if p.requires_grad) for network in pair)
    held = tuple(sum(p.numel() for p in network.parameters() if not p.requires_grad) for network in pair)
    assert (trained, held) == (TRAINED[name], HELD.get(name, (0, 0)))


@pytest.mark.parametrize("name", PRESETS)
def test_fields(name):
    values = presets.get(name).validate().flat()
    assert {key: values[key] for key in FIELDS[name]} == FIELDS[name]
    assert values["preset"] == name


@pytest.mark.parametrize("name", PRESETS)
def test_initial_values(name):
    torch.manual_seed(0)
    for network, weights, bias in zip(networks(name), WEIGHTS[name], BIASES[name], strict=True):
        for module in network.modules():
            if isinstance(module, WEIGHTED):
                check_weight(module.weight.detach(), *weights)
                assert module.bias is None or torch.all(module.bias == bias)
            elif isinstance(module, NORMS):
                check_normal(module.weight.detach() - 1, SCALES[name])
                assert torch.all(module.bias == 0)
                assert module.weight.requires_grad is (name != "mxnet-dcgan-mnist")
                assert torch.all(module.running_mean == 0) and torch.all(module.running_var == 1)


def check_weight(weight: Tensor, kind: str, std: float) -> None:
    if kind == "normal":
        check_normal(weight, std)
        if weight.numel() > 1000:
            assert weight.abs().max() > 2.5 * std  # not truncated
    elif kind == "truncated":
        assert weight.abs().max() <= 2 * std
        # redrawn beyond two deviations: the variance is then 1 - 2 a phi(a) / (2 Phi(a) - 1), a = 2
        check_normal(weight, std * math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2))))
    else:
        area = weight[0, 0].numel()
        bound = math.sqrt(6 / (area * (weight.shape[0] + weight.shape[1])))
        assert 0.9 * bound < weight.abs().max() <= bound
        check_normal(weight, bound / math.sqrt(3))


def check_normal(values: Tensor, std: float) -> None:
    """Mean 0 and this deviation, within five standard errors."""
    if not std:
        assert torch.all(values == 0)
        return
    count = values.numel()
    assert abs(values.mean()) < 5 * std / math.sqrt(count)
    assert abs(values.square().mean().sqrt() / std - 1) < 5 / math.sqrt(2 * count)


@pytest.mark.parametrize("name", PRESETS)
def test_noise(name):
    torch.manual_seed(0)
    config = presets.get(name)
    with torch.device("meta"):
        step = GANStep(*networks(name), config.model, config.train)
    z = step.draw(torch.empty(100_000 // config.model.nz, *CASES[name].shape))
    mean, std, bound = NOISE[name]
    assert z.shape == (100_000 // config.model.nz, FIELDS[name].get("nz", 100))
    assert z.mean().item() == pytest.approx(mean, abs=0.02)
    assert z.std().item() == pytest.approx(std, abs=0.02)
    assert z.abs().max() <= bound
    if bound == 1.0:
        assert z.max() > 0.99 and z.min() < -0.99


@pytest.mark.parametrize("name", [name for name in PRESETS if len(CASES[name].shape) == 3])
def test_pixels(name):
    """Every gray level equals that of the document's formula."""
    grey = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    ours = to_model_range(grey, flip=False, unit_range=presets.get(name).data.unit_range, dtype=torch.float64)
    torch.testing.assert_close(ours, CASES[name].plain.scale_pixels(grey), rtol=0, atol=1e-15)
    assert (ours.min().item(), ours.max().item()) == (BLACK[name], 1.0)


def test_oreilly_generator_leaves_the_last_row_and_column_grey():
    """28 pixels from 12 by a VALID 5x5 of stride 2: the convolution reads 27, so the transpose writes 27."""
    generator, _ = networks("oreilly-gan-mnist")
    image = generator(torch.randn(2, 100))
    assert torch.all(image[..., 27, :] == 0) and torch.all(image[..., 27] == 0)
    assert torch.all(image[..., :27, :27] != 0)


def test_options_by_every_name_of_the_command_line():
    config = presets.get("dcgan-64", batchSize=8, niter=3, n_critic=2, dataset="mnist", imageSize="32", manualSeed=5,
                         **{"lr-g": 1e-3, "data-root": "there"})
    assert config == presets.get("dcgan-64", batch=8, epochs=3, d_steps=2, source="mnist", image_size="32", seed=5,
                                 lr_g=1e-3, data_root="there")
    with pytest.raises(FastganError, match="unknown option 'n_crtic'; did you mean n_critic"):
        presets.get("dcgan-64", n_crtic=2)
