"""Folders of images: which files are images, which folders are classes, channels and bit depth."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastgan import cli
from fastgan.config import DataConfig
from fastgan.data import Dataset, folder, open_dataset, survey
from tests.test_data import chw, noise, refused, write_images

both = pytest.mark.parametrize("cache_gb", [4.0, 1e-9], ids=["cached", "streamed"])


def opened(root: Path, **options: object) -> tuple[Dataset, list[str]]:
    """The data set in a folder, and its warnings, each of one line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = open_dataset(DataConfig(**{"source": f"folder:{root}", "image_size": "8", **options}))
    messages = [str(warning.message) for warning in caught]
    assert not any("\n" in message for message in messages)
    return data, messages


def names(data: Dataset) -> list[str]:
    return [Path(path).name for path, _ in data.skipped]


@both
def test_folders_that_tools_leave_are_no_classes(tmp_path, cache_gb):
    for name in ("cat", "dog", ".ipynb_checkpoints", ".git", "cat/.thumbnails", "dog/@eaDir", "#recycle/cat",
                 "$RECYCLE.BIN", "System Volume Information", "lost+found"):
        write_images(tmp_path / name, 2)
    for name in ("__MACOSX/cat", "notes", "empty/below"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "notes" / "readme.txt").write_text("no image")
    for name in ("__MACOSX/cat/._000.png", "cat/._000.png", "cat/.trashed-000.png", "dog/Thumbs.db", "desktop.ini"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7" + bytes(60))
    data, messages = opened(tmp_path, cache_gb=cache_gb)
    assert (data.labels.tolist(), data.classes, data.skipped, messages) == ([0, 0, 1, 1], ["cat", "dog"], [], [])


@both
def test_a_folder_without_a_readable_image_is_no_class(tmp_path, cache_gb):
    """For any held-out images."""
    for name in ("bird", "dog"):
        write_images(tmp_path / name, 2)
    (tmp_path / "bird" / "000.png").write_bytes(b"")
    (tmp_path / "cat").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "cat" / name).write_bytes(b"no image")
    (tmp_path / "horse").mkdir()
    (tmp_path / "horse" / "c.HEIC").write_bytes(b"not read")
    data, messages = opened(tmp_path, cache_gb=cache_gb)
    assert data.classes == ["bird", "dog"] and data.labels.tolist() in ([0, 1, 1], [0, 0, 1, 1])
    assert {"a.png", "b.png", "c.HEIC"} <= set(names(data))
    assert len(messages) == 1 and "cat/a.png" in messages[0] and "horse/c.HEIC" in messages[0]
    held, _ = opened(tmp_path, cache_gb=cache_gb, holdout=2)
    assert (held.classes, held.labels.tolist()) == (data.classes, [1, 1])
    refused(DataConfig(source=f"folder:{tmp_path}", image_size="8", cache_gb=cache_gb, strict=True), "usable", "horse")
    for name in ("bird/001.png", "dog/000.png", "dog/001.png"):
        (tmp_path / name).write_bytes(b"")
    refused(DataConfig(source=f"folder:{tmp_path}", cache_gb=cache_gb), "none of 6", "000.png")


@pytest.mark.parametrize("suffix", folder.SUFFIXES)
def test_every_suffix_is_read_in_any_case(tmp_path, suffix):
    kind = {".jfif": "JPEG", ".pgm": "PPM"}.get(suffix)
    image = Image.fromarray(noise(8, 8) if suffix == ".pgm" else noise(8, 8, 3))
    for name in (f"a{suffix}", f"b{suffix.upper()}"):
        image.save(tmp_path / name, kind)
    (tmp_path / "notes.txt").write_text("not an image")
    data, messages = opened(tmp_path)
    assert len(data) == 2 and not messages
    if suffix in (".png", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"):
        assert torch.equal(data.data[1], chw(np.array(image)))


@both
def test_images_of_types_that_are_not_read_are_counted_and_named(tmp_path, cache_gb):
    write_images(tmp_path, 2)
    for name in ("a.heic", "b.AVIF", "c.tga", "d.dng", "e.psd"):
        (tmp_path / name).write_bytes(b"")
    data, messages = opened(tmp_path, cache_gb=cache_gb)
    assert messages == [f"{tmp_path.name}: skipped 5 of 7 image files: a.heic, b.AVIF, c.tga, ...; "
                        "the first: .heic files are not supported"]
    assert names(data) == ["a.heic", "b.AVIF", "c.tga", "d.dng", "e.psd"] and "5 skipped" in data.summary()
    for path in tmp_path.glob("*.png"):
        path.unlink()
    refused(DataConfig(source=f"folder:{tmp_path}"), "no images, but 5 of unsupported types, a.heic", ".tiff")


def test_unreadable_images_are_counted_and_named(tmp_path):
    write_images(tmp_path, 2)
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((8, 8), 70000, np.int32)).save(tmp_path / "int.tif")
    (tmp_path / "text.png").write_bytes(b"no image")
    data, messages = opened(tmp_path, channels=3)
    assert messages == [f"{tmp_path.name}: skipped 3 of 5 image files: float.tif, int.tif, text.png; "
                        "the first: floating-point values; expected 8 or 16 bits"]
    assert len(data) == 2


@pytest.mark.parametrize("modes, channels, told", [
    (["L"] * 70 + ["RGB"] * 71, 3, "70 gray of 141"), (["RGB"] * 71 + ["L"] * 70, 3, "70 gray of 141"),
    (["RGB"] * 70 + ["L"] * 71, 1, "70 RGB of 141"), (["L", "RGB"], 3, "1 gray of 2"),
    (["RGBA"] + ["RGB"] * 100, 3, "1 RGBA of 101"), (["RGB"] * 100 + ["RGBA"], 3, "1 RGBA of 101"),
    (["RGBA", "L", "RGB", "RGB"], 3, "1 gray and 1 RGBA of 4"), (["RGBA"] * 3, 4, None),
], ids=["colour-late", "colour-early", "gray", "tie", "rgba-first", "rgba-last", "all", "equal"])
def test_most_files_decide_about_channels(tmp_path, modes, channels, told):
    for i, mode in enumerate(modes):
        Image.new(mode, (8, 8)).save(tmp_path / f"{i:03}.png")
    data, messages = opened(tmp_path)
    assert data.shape[0] == channels
    name = {1: "gray", 3: "RGB", 4: "RGBA"}[channels]
    assert messages == ([] if told is None else [f"{tmp_path.name}: {told} inspected images are converted to {name}, "
                                                 "the most frequent mode; --channels sets another"])
    chosen, messages = opened(tmp_path, channels=4)
    assert (chosen.shape[0], messages) == (4, [])


def test_a_sample_of_very_many_files_is_not_every_second_one(tmp_path, monkeypatch):
    """Images and their masks alternate in the order of names."""
    monkeypatch.setattr(survey, "SURVEYED", 20)
    for i in range(20):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i:03}.png")
        Image.new("L", (8, 8)).save(tmp_path / f"{i:03}_mask.png")
    _, (message,) = opened(tmp_path)
    assert " of 20 inspected images are converted to " in message


def write_levels(path: Path, *levels: int) -> None:
    Image.fromarray(np.resize(np.array(levels, np.uint16), (8, 8))).save(path)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@both
def test_12_bits_in_16(tmp_path, suffix, cache_gb):
    write_levels(tmp_path / f"a{suffix}", 0, 2048, 4095)
    write_levels(tmp_path / f"b{suffix}", 16, 8)
    data, messages = opened(tmp_path, cache_gb=cache_gb)
    assert messages == [f"{tmp_path.name}: no value in 2 inspected 16-bit images is above 4095; 16-bit images are read "
                        "as 12-bit, with white at 4095"]
    first, second = (data.read(i)[0] for i in range(2)) if cache_gb < 1 else data.data
    assert first[0, 0, :3].tolist() == [0, 128, 255] and second[0, 0, :2].tolist() == [1, 0]
    assert opened(tmp_path, cache_gb=cache_gb, holdout=1)[1] == messages


def test_16_bits_in_one_image_are_16_bits_in_all(tmp_path):
    write_levels(tmp_path / "a.png", 0, 4095)
    write_levels(tmp_path / "b.png", 0, 4096, 65535)
    (tmp_path / "c.png").write_bytes((tmp_path / "b.png").read_bytes()[:50])
    data, messages = opened(tmp_path)
    assert [image[0, 0, 1].item() for image in data.data] == [16, 16] and data.data[1, 0, 0, 2] == 255
    assert len(messages) == 1 and "c.png" in messages[0]


def test_8_bits_beside_12_stay(tmp_path):
    Image.new("L", (8, 8), 200).save(tmp_path / "a.png")
    write_levels(tmp_path / "b.png", 4095)
    assert opened(tmp_path)[0].data[:, 0, 0, 0].tolist() == [200, 255]


def test_a_dry_run_names_the_rules_of_folders(tmp_path, capsys):
    write_images(tmp_path / "cat", 2)
    write_images(tmp_path / "dog", 2)
    assert cli.main(["train", "--dry-run", "--data", f"folder:{tmp_path}", "--batch", "2"]) == 0
    out = capsys.readouterr().out
    assert f"folder rules:    {folder.RULES}" in out and ".tiff" in folder.RULES and "__MACOSX" in folder.RULES
    assert cli.main(["train", "--dry-run"]) == 0 and folder.RULES not in capsys.readouterr().out
