"""Spectral normalization: PyTorch's own to the last digits, in a step and its replays, and the options with it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from fastgan import presets
from fastgan.cli.training import _with_partners
from fastgan.combinations import partners
from fastgan.models import DCGANDiscriminator
from fastgan.nn.spectral import spectral_norm
from fastgan.trainer import Trainer
from fastgan.trainer.step_memory import estimate
from proofs.simulated import assert_replays_equal_eager
from tests.test_step_replays import inputs, make


def test_equals_pytorch():
    torch.manual_seed(0)
    ours, theirs = (nn.Conv2d(3, 5, 4, 2, 1).double() for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    spectral_norm(ours), parametrizations.spectral_norm(theirs)
    mine, other = ours.parametrizations.weight[0], theirs.parametrizations.weight[0]
    mine.u.copy_(other._u), mine.v.copy_(other._v)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for _ in range(3):
        for conv in (ours, theirs):
            conv(x).square().sum().backward()
        torch.testing.assert_close(ours.parametrizations.weight.original.grad,
                                   theirs.parametrizations.weight.original.grad, rtol=1e-10, atol=1e-12)
    ours.eval()
    before = mine.u.clone()
    ours(x)
    assert torch.equal(mine.u, before)
    assert torch.linalg.matrix_norm(ours.weight.flatten(1), 2).item() == pytest.approx(1, rel=1e-3)


def test_singular_values_are_float32_under_autocast():
    torch.manual_seed(0)
    conv = spectral_norm(nn.Conv2d(3, 5, 4, 2, 1))
    other = copy.deepcopy(conv)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = conv.weight
    assert torch.equal(narrow, other.weight)


def test_discriminator():
    """Every convolution and no batch normalization; every largest singular value is 1."""
    torch.manual_seed(0)
    network = DCGANDiscriminator(8, 3, 32, norm="spectral")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 4
    for convolution in convolutions:
        norm = torch.linalg.matrix_norm(convolution.weight.flatten(1), 2).item()
        assert norm == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("fields", [{}, {"r1": 1.0, "penalty_every": 2}, {"precision": "bf16"}], ids=str)
def test_replays(fields):
    assert_replays_equal_eager(make("dcgan-64", norm_d="spectral", loss="hinge", **fields), inputs("dcgan-64"))


@pytest.mark.parametrize(("given", "chosen"), [
    ({"loss": "wgan-gp"}, {"norm_d": "none"}), ({"r1": 1.0}, {"norm_d": "none"}),
    ({"loss": "wgan-gp", "norm_d": "skip-first"}, {}), ({"r1": 1.0, "norm_d": "spectral"}, {"loss": "hinge"}),
    ({"norm_d": "spectral"}, {"loss": "hinge"}), ({"norm_d": "spectral", "loss": "bce"}, {}), ({"loss": "hinge"}, {}),
    ({"r1": 0.0}, {})], ids=str)
def test_options_that_go_together(given, chosen):
    assert partners(given, presets.get("dcgan-64", **given)) == chosen


@pytest.mark.parametrize(("args", "norm"), [
    (["--loss", "wgan-gp"], "none"), (["--loss", "wgan-gp", "--norm-d", "skip-first"], "skip-first")], ids=str)
def test_command_line_says_what_it_chooses(args, norm, capsys):
    """The preset's own value is a given one, too, where it is written."""
    config = _with_partners(presets.get("dcgan-64", loss="wgan-gp"), presets.get("dcgan-64"), args)
    assert config.model.norm_d == norm
    assert ("--norm-d none: selected because of other options" in capsys.readouterr().out) == (norm == "none")


def test_memory_of_a_step_is_counted():
    """On meta and fake tensors, which have no autocast and no values."""
    config = presets.get("digits", norm_d="spectral", loss="hinge", image_size="16", ngf=4, ndf=4)
    with_norm, without = (estimate(changed, 8, "fp32", (1, 16, 16), 0)
                          for changed in (config, config.replace(norm_d="none")))
    assert with_norm.peak > without.peak and with_norm.discriminator == without.discriminator


def test_warning_of_a_penalty_with_batch_normalization(caplog, tmp_path):
    """From Python nothing is chosen."""
    for norm, warned in (("all", True), ("none", False)):
        caplog.clear()
        Trainer(presets.get("digits", image_size="16", ngf=4, ndf=4, r1=1.0, norm_d=norm, outdir=tmp_path))
        assert ("gradient penalty with --norm-d all" in caplog.text) == warned
