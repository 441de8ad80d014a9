"""The content of pictures and its positions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fastgan import pictures
from fastgan.errors import FastganError
from fastgan.models import DCGANGenerator
from fastgan.models.pretrained import Pretrained
from fastgan.models.sampling import Noise, draw


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_grid_places_every_image(channels, mode):
    images = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, channels, 32, 64) * 40 + 20
    picture = pictures.grid(images, columns=3)
    assert picture.mode == mode and picture.size == (3 * 66 + 2, 2 * 34 + 2)
    pixels = np.array(picture).reshape(*picture.size[::-1], channels)
    for i in range(6):
        top, left = i // 3 * 34 + 2, i % 3 * 66 + 2
        assert (pixels[top:top + 32, left:left + 64] == 40 * i + 20).all()


@pytest.mark.parametrize(("count", "classes", "columns"), [(64, 3, 9), (64, 2, 8), (64, 10, 10), (100, 10, 10),
                                                           (12, 12, 12), (64, 0, None), (8, 10, None), (64, 17, 10),
                                                           (9, 17, None)])
def test_each_class_has_its_columns_near_a_square(count, classes, columns):
    assert pictures.class_columns(count, classes) == columns


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_captions_stand_below_their_tiles(channels):
    """Within the tile for any length; except for their strips, tiles do not move."""
    images = torch.full((4, channels, 64, 64), 50, dtype=torch.uint8)
    picture = pictures.grid(images, 2, ["", "shoe", "", "a very long name of a class"])
    pixels = np.array(picture.convert("L"))
    assert picture.size == (2 * 66 + 2, 2 * 80 + 2)
    strips = [pixels[80 * row + 66:80 * row + 80, 66 * column + 2:66 * column + 66] for row in (0, 1)
              for column in (0, 1)]
    assert [strip.max() > 200 for strip in strips] == [False, True, False, True]
    assert pixels[66:80, :68].max() == 0 and pixels[:, -2:].max() == 0
    assert (pixels[2:66, 2:66] == 50).all() and (pixels[82:146, 68:132] == 50).all()


def test_small_images_are_enlarged_without_blur():
    image = torch.tensor([[0, 255], [255, 0]], dtype=torch.uint8).repeat(4, 4)[None, None]
    assert set(np.unique(np.array(pictures.grid(image)))) == {0, 255}
    assert pictures.grid(image).size == (68, 68)


def test_loss_curves_of_any_number_of_records(tmp_path):
    for count in (0, 1, 100):
        records = [{"step": i, "loss_d": 1.0, "d_real": 0.5, "d_fake": 0.5} | ({"loss_g": 2.0} if i % 5 == 0 else {})
                   for i in range(count)]
        pictures.loss_curves(records, tmp_path / f"{count}.png")
        assert Image.open(tmp_path / f"{count}.png").size == (1080, 720)


@pytest.mark.parametrize("count", [1, 2, 30, 500, 5000])
def test_the_thick_line_follows_the_curve_and_no_outlier(count):
    curve = np.linspace(1, 2, count)
    assert np.abs(pictures.smooth(curve) - curve).max() < 0.05
    if count > 2:
        curve[count // 3] = 1000
        assert pictures.smooth(curve).max() < 2.05 and len(pictures.smooth(curve)) == count


def test_animation_goes_there_and_back(tmp_path):
    frames = torch.stack([torch.full((1, 64, 64), 50 * i, dtype=torch.uint8) for i in range(4)])
    pictures.animation(frames, tmp_path / "walk.gif")
    with Image.open(tmp_path / "walk.gif") as gif:
        shades = []
        for i in range(gif.n_frames):
            gif.seek(i)
            shades.append(np.array(gif.convert("L"))[30, 30])
    assert shades == [0, 50, 100, 150, 100, 50]


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_noise(kind):
    noise = Noise(kind, -1.0 if kind == "normal" else 0.0, 50)
    z = noise(2000)
    assert z.shape == (2000, 50)
    mean, std = (-1.0, 1.0) if kind == "normal" else (0.0, 3 ** -0.5)
    assert z.mean().item() == pytest.approx(mean, abs=0.02) and z.std().item() == pytest.approx(std, abs=0.01)
    assert torch.equal(noise.from_seeds([7, 3])[1], noise.from_seeds([3])[0])


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_path_ends_at_its_ends_and_keeps_the_length(kind):
    noise = Noise(kind, 0.0, 400)
    a, b = noise.from_seeds([1, 2])
    path = noise.path(a, b, 9)
    assert torch.allclose(path[0], a, atol=1e-5) and torch.allclose(path[-1], b, atol=1e-5)
    if kind == "normal":
        assert (path.norm(dim=1) - 20).abs().max() < 2  # the shell of radius sqrt(400)
    assert torch.allclose(noise.path(a, a, 3), a.expand(3, -1))


def test_drawing_changes_nothing_and_running_statistics_need_no_company():
    generator = DCGANGenerator(8, 4, 1, 16)
    generator(torch.randn(20, 8))  # changes the running statistics
    before = {key: value.clone() for key, value in generator.state_dict().items()}
    z = torch.randn(6, 8)
    alone = torch.cat([draw(generator, one[None]) for one in z])
    assert torch.allclose(alone, draw(generator, z), atol=1e-6)
    assert not torch.allclose(alone, draw(generator, z, batch_statistics=True), atol=1e-3)
    assert generator.training
    assert all(torch.equal(value, before[key]) for key, value in generator.state_dict().items())


def test_pretrained_round_trip(tmp_path, tiny):
    config = tiny(nz=8)
    generator = DCGANGenerator(8, 4, 1, (16, 32), num_classes=3)
    saved = Pretrained(generator, config.model, (1, 16, 32), ["a", "b", "c"], False)
    saved.save(tmp_path)
    loaded = Pretrained.load(tmp_path)
    z, labels = saved.noise.from_seeds([0, 1]), torch.tensor([0, 2])
    assert torch.equal(saved.draw(z, labels), loaded.draw(z, labels))
    assert loaded.classes == ["a", "b", "c"] and loaded.shape == (1, 16, 32)


def test_pretrained_that_fails_without_a_word(tmp_path, tiny, monkeypatch):
    Pretrained(DCGANGenerator(8, 4, 1, 16), tiny().model, (1, 16, 16), [], False).save(tmp_path)

    def silent(path: object) -> None:
        raise ValueError

    monkeypatch.setattr("safetensors.torch.load_file", silent)
    with pytest.raises(FastganError, match=r"cannot read the generator in .*: ValueError$"):
        Pretrained.load(tmp_path)
