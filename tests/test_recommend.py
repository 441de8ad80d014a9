"""The preset for a user's folder of images: its choices, that given options override them, and that it trains."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastgan import presets
from fastgan.cli import main
from fastgan.config import RunConfig
from fastgan.data import recommend as rules
from fastgan.data.recommend import recommend
from fastgan.errors import FastganError


def folder_of(path: Path, count: int, side: int) -> Path:
    path.mkdir()
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (side, side + 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{i}.png")
    return path


@pytest.mark.parametrize(("side", "on_gpu", "chosen"), [
    (20, False, "32"), (70, False, "64"), (200, False, "64"), (200, True, "128"), (130, True, "128"), (64, True, "64")])
def test_image_size(tmp_path, side, on_gpu, chosen):
    values = {key: value for choice in recommend(folder_of(tmp_path / "a", 5, side), on_gpu)
              for key, value in choice.values.items()}
    assert values["image_size"] == chosen
    assert values["batch"] == 2 and values["steps"] == (250_000 if on_gpu else 50_000)
    presets.get("dcgan-64", **values).validate()


def test_augmentation_and_width_follow_from_the_number(tmp_path, monkeypatch):
    folder, found = folder_of(tmp_path / "a", 6, 40), []
    for few, many in ((7, 8), (6, 7), (1, 6)):
        monkeypatch.setattr(rules, "FEW", few)
        monkeypatch.setattr(rules, "MANY", many)
        values = {key: value for choice in recommend(folder, True) for key, value in choice.values.items()}
        found.append((values["augment"], values["ngf"]))
    assert found == [("color,translation,cutout", 32), ("translation,cutout", 64), ("", 64)]


def test_preset_takes_what_is_given(tmp_path):
    source = f"folder:{folder_of(tmp_path / 'a', 12, 40)}"
    config = presets.get("own-images", data=source, ngf=8, steps=3)
    assert (config.data.source, config.data.image_size, config.model.ngf, config.train.steps) == (source, "32", 8, 3)
    assert config.train.augment == "color,translation,cutout" and config.data.flip and config.train.ema == 0.999
    with pytest.raises(FastganError, match="no such folder"):
        presets.get("own-images", source=f"folder:{tmp_path}/missing")
    assert presets.get("own-images").train.augment == presets.get("dcgan-64", source=source).train.augment == ""


def test_command_line_trains_and_names_its_choices(tmp_path, capsys):
    source = f"folder:{folder_of(tmp_path / 'a', 12, 40)}"
    assert main(["train", "--preset", "own-images", "--data", source, "--steps", "2", "--ngf", "4", "--ndf", "4",
                 "--grid", "4", "--plan", "default", "--no-tensorboard", "--outdir", str(tmp_path / "runs")]) == 0
    out = capsys.readouterr().out
    assert "own-images chooses --image-size 32: the median" in out
    assert "own-images chooses --augment color,translation,cutout: with only 12 images" in out
    assert "own-images chooses --flip: doubles the images" in out and "chooses --ngf" not in out
    (run,) = (tmp_path / "runs").iterdir()
    config = json.loads((run / "training_options.json").read_text())["config"]
    assert config["augment"] == "color,translation,cutout" and config["ngf"] == 4 and config["preset"] == "own-images"


@pytest.mark.parametrize(("total", "steps"), [(10, 50), (225, 50), (600, 120), (2500, 500), (100_000, 500)])
def test_short_runs_have_several_pictures(total, steps):
    assert RunConfig().snapshot_steps(total) == steps
    assert RunConfig(snap=7).snapshot_steps(total) == 7


@pytest.mark.parametrize(("name", "given", "flip"), [
    ("dcgan-32", {}, True), ("dcgan-32", {"flip": False}, False), ("dcgan-32", {"data": "idx:x"}, False),
    ("dcgan-32", {"data": "fashion-mnist"}, False), ("dcgan-128", {}, False), ("dcgan-128", {"data": "celeba"}, True),
    ("dcgan-64", {"data": "celeba"}, False)], ids=str)
def test_photographs_are_mirrored_where_no_document_fixes_the_recipe(name, given, flip):
    assert presets.get(name, **given).data.flip is flip
