"""Weights of PyTorch's DCGAN example are loaded into fastgan, and other files are rejected."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from fastgan import cli, presets
from fastgan.errors import FastganError
from fastgan.models import DCGANGenerator, weights
from fastgan.models.pretrained import Pretrained
from fastgan.trainer import Trainer
from tests.dcgan_example import named, networks
from tests.plain import dcgan_2015


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for network, name in zip(networks(), ("netG.pth", "netD.pth"), strict=True):
        torch.save(named(network), tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("change", [
    lambda state: state,
    lambda state: {name: tensor for name, tensor in state.items() if "num_batches" not in name},
    *(lambda state, prefix=prefix: {name.replace("main.", prefix, 1): tensor for name, tensor in state.items()}
      for prefix in ("module.main.", "_orig_mod.main.", "module._orig_mod.main.", "_orig_mod.module.main.",
                     "main._orig_mod.", "_orig_mod.main.module."))],
    ids=["as it is", "older than 0.4.1", "DataParallel", "compiled", "compiled, DataParallel",
         "DataParallel, compiled", "a part compiled", "a part in DataParallel, compiled"])
def test_the_examples_generator_makes_the_same_images(files, change):
    torch.save(change(torch.load(files / "netG.pth")), files / "netG.pth")
    source, (netG, _) = Pretrained.load(files / "netG.pth"), networks()
    assert (source.shape, source.model.nz, source.model.ngf) == ((3, 64, 64), 6, 4)
    z = source.noise.from_seeds([0, 1, 2])
    theirs = netG.eval()(z[:, :, None, None]).detach()
    assert theirs.std() > 0.05 and torch.allclose(source.draw(z), theirs, atol=1e-6)


def test_a_compiled_generator_is_saved_and_loaded_under_its_own_names(tmp_path):
    config, generator = presets.get("digits", nz=8, ngf=4), DCGANGenerator(8, 4, 1, 32)
    Pretrained(torch.compile(generator), config.model, (1, 32, 32), [], False).save(tmp_path)
    state = safetensors.torch.load_file(tmp_path / "generator.safetensors")
    assert state.keys() == generator.state_dict().keys()
    safetensors.torch.save_file({f"_orig_mod.{name}": tensor for name, tensor in state.items()},
                                tmp_path / "generator.safetensors")
    for read in (Pretrained.load(tmp_path).generator.state_dict(), weights.read(tmp_path / "generator.safetensors")):
        assert all(torch.equal(tensor, read[name]) for name, tensor in state.items())


def test_names_that_would_become_one_stay(tmp_path):
    state = {"module.a": torch.ones(1), "a": torch.zeros(1)}
    torch.save(state, tmp_path / "both.pth")
    assert weights.read(tmp_path / "both.pth").keys() == state.keys()


def test_the_plain_document_agrees(files):
    """Our network with the example's weights, compared with the plain loop of the example, with batch statistics."""
    source = Pretrained.load(files / "netG.pth")
    state = {f"netG.{name}": tensor for name, tensor in torch.load(files / "netG.pth").items()}
    z = source.noise.from_seeds(range(8))
    source.model = dataclasses.replace(source.model, sample_bn="batch")
    assert torch.allclose(source.draw(z), dcgan_2015.net_g(state, z[:, :, None, None]), atol=1e-5)


def test_training_goes_on_from_the_examples_networks(files, tiny):
    config = tiny(nz=6, ngf=4, ndf=5, image_size="64", channels=3, net_g=str(files / "netG.pth"),
                  net_d=str(files / "netD.pth"), ema=0.9, steps=1)
    trainer = Trainer(config)
    for network, name in ((trainer.step.generator, "netG.pth"), (trainer.step.discriminator, "netD.pth"),
                          (trainer.step.ema.module, "netG.pth")):
        state = torch.load(files / name)
        assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items())
    folder = trainer.fit()
    (files / "netG.pth").unlink()
    after = trainer.step.generator.state_dict()["main.0.weight"]
    resumed = Trainer.resume(folder).step.generator.state_dict()["main.0.weight"]
    assert torch.equal(resumed, after) and not torch.equal(after, torch.load(files / "netD.pth")["main.0.weight"])


def test_the_examples_own_words_start_a_run(files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    assert cli.main(["train", "--preset", "digits", "--netG", "netG.pth", "--netD", "netD.pth", "--nz", "6", "--ngf",
                     "4", "--ndf", "5", "--imageSize", "64", "--channels", "3", "--steps", "1", "--grid", "4",
                     "--no-tensorboard", "--plan", "default", "--device", "cpu"]) == 0
    assert cli.main(["sample", "netG.pth", "--seeds", "0-3"]) == 0 and Path("samples.png").is_file()
    capsys.readouterr()
    assert cli.main(["train", "--preset", "digits", "--netG", "netG.pth", "--imageSize", "64", "--device", "cpu"]) == 2
    assert "netG.pth: main.0.weight is 6x32x4x4, expected 100x256x4x4" in capsys.readouterr().err


def test_a_runs_own_generator_starts_another(tmp_path, tiny):
    folder = Trainer(tiny(steps=1)).fit()
    weights_file = folder / "generator.safetensors"
    started = Trainer(tiny(net_g=str(weights_file))).step.generator.state_dict()
    state = safetensors.torch.load_file(weights_file)
    assert all(torch.equal(started[name], tensor) for name, tensor in state.items())


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def wrong(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    return lambda path: torch.save(change(torch.load(path)), path)


@pytest.mark.parametrize(("spoil", "message"), [
    (wrong(lambda state: {**state, "main.0.weight": Code()}), r"it contains code \(posix\.mkdir\), which"),
    (wrong(lambda _: nn.Linear(2, 2)), r"it contains code \(torch\.nn\.modules\.linear\.Linear\)"),
    (wrong(lambda state: {"step": state}), r"is not a state_dict: its 'step' is a dict"),
    (wrong(lambda state: list(state.values())), "is not a state_dict, but a list"),
    (lambda path: path.write_bytes(path.read_bytes()[:500]), "cannot read weights from"),
    (lambda path: path.write_text("hello"), "cannot read weights from .*: it is damaged or of another type;"),
    (lambda path: path.write_bytes(b""), "cannot read weights from .*: it is damaged or of another type;"),
    (wrong(lambda _: {}), "not a generator of PyTorch's DCGAN example: it begins with ;"),
    (wrong(lambda _: {"fc.weight": torch.ones(2)}), "it begins with fc.weight; expected main.0.weight"),
    (lambda path: path.write_bytes((path.parent / "netD.pth").read_bytes()), "main.11.weight is its last layer"),
    (wrong(lambda state: {"main.0.weight": torch.empty(0, 4, 4, 4), "main.12.weight": torch.empty(0, 4, 4, 4)}),
     "not a generator of PyTorch's DCGAN example"),
    (wrong(lambda state: {**state, "main.999.weight": torch.empty(9, 9, 4, 4)}), "main.999.weight is its last layer"),
    (wrong(lambda state: {**state, "main.12.weight": torch.empty(100_000, 1, 4, 4)}),
     "main.0.weight is 6x32x4x4, expected 6x800000x4x4"),
    (wrong(lambda state: {name: t for name, t in state.items() if name != "main.4.bias"}),
     r"has no main\.4\.bias; expected 16"),
    (wrong(lambda state: {**state, "main.3.weight": torch.ones(32, 16, 5, 5)}),
     r"main\.3\.weight is 32x16x5x5, expected 32x16x4x4"),
    (wrong(lambda state: {**state, "main.0.bias": torch.ones(32)}), r"contains an unexpected main\.0\.bias"),
], ids=["code", "a module", "nested", "a list", "cut off", "text", "empty", "nothing", "other names", "netD",
        "no values", "too deep", "too wide", "one missing", "other shape", "one more"])
@pytest.mark.filterwarnings("ignore")
def test_other_files_are_refused_in_a_line(files, monkeypatch, spoil, message):
    monkeypatch.chdir(files)
    spoil(files / "netG.pth")
    with pytest.raises(FastganError, match=message) as error:
        Pretrained.load(files / "netG.pth")
    assert "\n" not in str(error.value) and not (files / "ran").exists()


def test_no_such_file(tmp_path):
    with pytest.raises(FastganError, match=r"gone\.pth: No such file or directory; expected what torch\.save"):
        weights.read(tmp_path / "gone.pth")
