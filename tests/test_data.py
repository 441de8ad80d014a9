"""fastgan/data: the data of each source, the message for each invalid input, and the order of batches."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import math
import os
import struct
import subprocess
import sys
import threading
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastgan import memory
from fastgan.config import DataConfig
from fastgan.data import Loader, open_dataset, sources, to_model_range, to_uint8
from fastgan.data.folder import find_images
from fastgan.data.order import Order, Position
from fastgan.data.pixels import UnusableImage, fit_images, to_channels
from fastgan.errors import FastganError

DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def idx_bytes(array: np.ndarray, magic: int | None = None, shape: tuple[int, ...] | None = None) -> bytes:
    shape = shape or array.shape
    return struct.pack(f">{1 + len(shape)}I", magic or 0x0800 + array.ndim, *shape) + array.tobytes()


def write_idx(folder: Path, prefix: str, count: int, size: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    images, labels = noise(count, size, size, seed=seed), noise(count, seed=seed) % 10
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx_bytes(images))
    (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    return images, labels


def write_images(folder: Path, count: int, size: tuple[int, int] = (8, 8), start: int = 0) -> list[np.ndarray]:
    """RGB noise as lossless files 000.png, 001.png, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = [noise(*size, 3, seed=start + i) for i in range(count)]
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{start + i:03}.png")
    return arrays


def write_truncated_jpeg(path: Path, size: int = 64) -> None:
    Image.fromarray(noise(size, size, 3)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def chw(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.atleast_3d(array)).permute(2, 0, 1)


def refused(config: DataConfig, *words: str) -> None:
    """`config` is rejected with one line that contains all `words`."""
    with pytest.raises(FastganError) as caught:
        open_dataset(config)
    message = str(caught.value)
    assert "\n" not in message
    assert "expected" in message or "did you mean" in message
    for word in words:
        assert word in message


def test_digits_are_scaled_to_the_full_range():
    from sklearn.datasets import load_digits

    digits = open_dataset(DataConfig(image_size="8"))
    assert (len(digits), digits.shape, digits.classes) == (1797, (1, 8, 8), [str(i) for i in range(10)])
    assert torch.equal(digits.data[:, 0], torch.from_numpy(load_digits().images * 15.9375).round().byte())
    assert torch.equal(digits.labels, torch.from_numpy(load_digits().target))
    assert digits.summary() == "digits: 1797 images, 1x8x8, 10 classes, cached in 0.1 MB"


def test_gaussian_is_that_of_dive_into_deep_learning():
    points = open_dataset(DataConfig(source="gaussian"), seed=3)
    x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(points.data, x @ torch.tensor([[1, 2], [-0.1, 0.5]]) + torch.tensor([1.0, 2.0]))
    assert (points.shape, points.labels, points.data.dtype) == ((2,), None, torch.float32)
    assert points.fingerprint == open_dataset(DataConfig(source="gaussian"), seed=3).fingerprint
    assert points.fingerprint != open_dataset(DataConfig(source="gaussian"), seed=4).fingerprint


@pytest.mark.parametrize("rename", ["{}", "{}.gz", "dotted", "dotted.gz"])
def test_idx_under_every_name(tmp_path, rename):
    images, labels = write_idx(tmp_path, "train", 7)
    for path in list(tmp_path.iterdir()):
        name = path.name.replace("-idx", ".idx") if "dotted" in rename else path.name
        content = path.read_bytes()
        path.unlink()
        target = tmp_path / (name + ".gz" if rename.endswith("gz") else name)
        target.write_bytes(gzip.compress(content) if rename.endswith("gz") else content)
    data = open_dataset(DataConfig(source=f"idx:{tmp_path}", image_size="6"))
    assert torch.equal(data.data[:, 0], torch.from_numpy(images))
    assert data.labels.tolist() == labels.tolist()
    assert data.name == tmp_path.name


def test_idx_splits_and_holdout(tmp_path):
    train, _ = write_idx(tmp_path, "train", 7)
    test, test_labels = write_idx(tmp_path, "t10k", 4, seed=1)
    config = {"source": f"idx:{tmp_path}", "image_size": "6"}
    everything = open_dataset(DataConfig(**config, split="all"))
    assert torch.equal(everything.data[:, 0], torch.from_numpy(np.concatenate([train, test])))
    held = open_dataset(DataConfig(**config, split="test", holdout=3))
    assert torch.equal(held.data[:, 0], torch.from_numpy(test[3:]))
    assert held.labels.tolist() == test_labels[3:].tolist()


def test_idx_without_labels(tmp_path):
    write_idx(tmp_path, "train", 7)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    data = open_dataset(DataConfig(source=f"idx:{tmp_path}", image_size="6"))
    assert (data.labels, data.classes) == (None, [])


@pytest.mark.skipif(not DEBIAN_FASHION.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_debian_fashion_mnist():
    data = open_dataset(DataConfig(source=f"idx:{DEBIAN_FASHION}", split="test", image_size="28"))
    assert (len(data), data.shape, len(data.classes)) == (10000, (1, 28, 28), 10)
    assert data.labels.bincount().tolist() == [1000] * 10
    assert data.data.float().mean().item() == pytest.approx(73.1, abs=0.1)


def test_torchvision_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(FastganError, match=r"--data mnist: torchvision cannot be imported .*pip install torchv"):
        open_dataset(DataConfig(source="mnist"))


@pytest.mark.parametrize("source, folder", [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_torchvision_reads_what_is_already_there(tmp_path, source, folder):
    train, labels = write_idx(tmp_path / folder / "raw", "train", 7)
    test, _ = write_idx(tmp_path / folder / "raw", "t10k", 3, seed=1)
    data = open_dataset(DataConfig(source=source, data_root=str(tmp_path), image_size="6", split="all"))
    assert torch.equal(data.data[:, 0], torch.from_numpy(np.concatenate([train, test])))
    assert (data.labels[:7].tolist(), len(data.classes)) == (labels.tolist(), 10)


def test_celeba_is_files_without_labels(tmp_path, monkeypatch):
    arrays = write_images(tmp_path / "celeba" / "img_align_celeba", 3)

    class CelebA:
        base_folder = "celeba"

        def __init__(self, root, split, download):
            self.root, self.filename = root, {"train": ["002.png", "000.png"]}[split]

    monkeypatch.setattr("torchvision.datasets.CelebA", CelebA)
    data = open_dataset(DataConfig(source="celeba", data_root=str(tmp_path), image_size="8"))
    assert torch.equal(data.data, torch.stack([chw(arrays[2]), chw(arrays[0])]))
    assert data.labels is None


@pytest.mark.parametrize("source", ["mnist", "fashion-mnist", "cifar10", "celeba"])
def test_failed_download_names_the_ways_out(tmp_path, monkeypatch, source):
    def offline(*args, **kwargs):
        raise RuntimeError("Error downloading:\nno route to host")

    for name in ("MNIST", "CIFAR10", "CelebA"):
        monkeypatch.setattr(f"torchvision.datasets.{name}.download", offline)
    refused(DataConfig(source=source, data_root=str(tmp_path)), source, "no route to host", "idx:DIR", "folder:DIR")


@pytest.mark.parametrize("arrays, part", [
    (["images", "labels"], "train"), (["x_train", "y_train"], "train"), (["x", "y"], "train"),
    (["arr_0"], "train"), (["x_test", "y_test"], "test"),
], ids=lambda value: "+".join(value) if isinstance(value, list) else value)
def test_npz_names(tmp_path, arrays, part):
    contents = dict(zip(arrays, [noise(5, 6, 4, 3), np.arange(5) % 2], strict=False))
    np.savez_compressed(tmp_path / "set.npz", **contents)
    data = open_dataset(DataConfig(source=f"npz:{tmp_path}/set.npz", image_size="6x4", split=part))
    assert torch.equal(data.data.permute(0, 2, 3, 1), torch.from_numpy(contents[arrays[0]]))
    assert (data.labels is None) == (len(arrays) == 1)
    assert data.classes == (["0", "1"] if len(arrays) == 2 else [])


def test_npz_all_is_train_then_test_and_keeps_fortran_order(tmp_path):
    train, test = noise(5, 6, 4), noise(2, 6, 4, seed=1)
    np.savez(tmp_path / "set.npz", x_train=np.asfortranarray(train), x_test=test, y_train=np.zeros((5, 1), int))
    data = open_dataset(DataConfig(source=f"npz:{tmp_path}/set.npz", image_size="6x4", split="all"))
    assert torch.equal(data.data[:, 0], torch.from_numpy(np.concatenate([train, test])))
    assert data.labels is None  # only one part has labels


def test_folder_is_sorted_labelled_and_named(tmp_path):
    cats = write_images(tmp_path / "pets" / "cat" / "deep", 2)
    dogs = write_images(tmp_path / "pets" / "dog", 3, start=5)
    data = open_dataset(DataConfig(source=f"folder:{tmp_path}/pets", image_size="8"))
    assert torch.equal(data.data, torch.stack([chw(array) for array in cats + dogs]))
    assert (data.labels.tolist(), data.classes) == ([0, 0, 1, 1, 1], ["cat", "dog"])
    assert data.summary() == "pets: 5 images, 3x8x8, 2 classes, cached in 0.0 MB"
    held = open_dataset(DataConfig(source=f"folder:{tmp_path}/pets", image_size="8", holdout=2))
    assert (held.labels.tolist(), held.classes) == ([1, 1, 1], ["cat", "dog"])


def test_folder_with_an_image_outside_its_subfolders_has_no_labels(tmp_path):
    write_images(tmp_path / "cat", 2)
    write_images(tmp_path, 1)
    data = open_dataset(DataConfig(source=f"folder:{tmp_path}", image_size="8"))
    assert (data.labels, data.classes) == (None, [])


def test_folder_respects_exif_orientation(tmp_path):
    pixels = noise(4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # the orientation requires a clockwise rotation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    data = open_dataset(DataConfig(source=f"folder:{tmp_path}", image_size="6x4"))
    assert torch.equal(data.data[0], chw(np.rot90(pixels, -1).copy()))


def palette_image() -> Image.Image:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    return image


@pytest.mark.parametrize("image, options, expected", [
    (Image.fromarray(np.full((4, 4), 65535 // 2, np.uint16)), {}, [127]),
    (Image.fromarray(np.full((4, 4), 65535, np.uint16)), {"transparency": 9}, [255]),
    (palette_image(), {}, [10, 20, 30]),
    (palette_image(), {"transparency": 1}, [10, 20, 30, 0]),
    (Image.new("1", (4, 4), 1), {}, [255]),
    (Image.new("LA", (4, 4), (7, 9)), {}, [7, 7, 7, 9]),
    (Image.new("RGBA", (4, 4), (1, 2, 3, 4)), {}, [1, 2, 3, 4]),
], ids=["16-bit", "16-bit-transparent", "palette", "palette-transparent", "1-bit", "grey-alpha", "rgba"])
def test_folder_modes(tmp_path, image, options, expected):
    image.save(tmp_path / "a.png", **options)
    data = open_dataset(DataConfig(source=f"folder:{tmp_path}", image_size="4"))
    assert data.data[0, :, 2, 2].tolist() == expected


@pytest.mark.parametrize("shape", [(218, 178), (178, 218), (31, 97), (64, 64), (7, 5)], ids=str)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_crop_is_torchvisions_resize_and_centre_crop(shape, channels):
    from torchvision.transforms import v2

    pixels = noise(*shape, channels) if channels > 1 else noise(*shape)
    reference = v2.Compose([v2.Resize(64), v2.CenterCrop(64), v2.PILToTensor()])
    expected = torch.cat([reference(Image.fromarray(plane)) for plane in chw(pixels).numpy()])
    given = fit_images(chw(pixels)[None], (64, 64), "crop")[0]
    assert given.shape == expected.shape
    assert (given.int() - expected.int()).abs().max() <= 1  # two fixed-point roundings of the same triangle filter


def test_stretch_halves_by_the_triangle_filter_and_doubles_at_half_pixels():
    row = torch.tensor([0, 80, 160, 240], dtype=torch.uint8).expand(1, 1, 4, 4)
    halved = fit_images(row, (2, 2), "stretch")
    # center 1, weights 1/8 3/8 3/8 1/8 at -1/2, 1/2, 3/2, 5/2, without the first, which is outside
    assert halved[0, 0, 0].tolist() == [round((3 * 0 + 3 * 80 + 160) / 7), round((80 + 3 * 160 + 3 * 240) / 7)]
    doubled = fit_images(row, (4, 8), "stretch")
    assert doubled[0, 0, 0].tolist() == [0, 20, 60, 100, 140, 180, 220, 240]


@pytest.mark.parametrize("size, rows, columns", [
    ((2, 4), slice(2, 4), slice(2, 6)), ((6, 3), slice(0, 6), slice(2, 5)), ((6, 8), slice(0, 6), slice(0, 8)),
], ids=["2x4", "6x3", "whole"])
def test_none_cuts_the_centre(size, rows, columns):
    image = torch.from_numpy(noise(1, 1, 6, 8))
    assert torch.equal(fit_images(image, size, "none"), image[:, :, rows, columns])


@pytest.mark.parametrize("fit", ["crop", "stretch"])
@pytest.mark.parametrize("size", ["16x24", "24x16", "5x3"])
def test_rectangles_from_arrays_and_files_are_alike(tmp_path, fit, size):
    arrays = write_images(tmp_path / "files", 3, size=(13, 11))
    np.savez(tmp_path / "set.npz", np.stack(arrays))
    common = {"image_size": size, "fit": fit}
    files = open_dataset(DataConfig(source=f"folder:{tmp_path}/files", **common))
    array = open_dataset(DataConfig(source=f"npz:{tmp_path}/set.npz", **common))
    assert files.shape == (3, *map(int, size.split("x")))
    assert torch.equal(files.data, array.data)


def test_crop_refuses_an_image_that_is_as_thin_as_a_thread():
    with pytest.raises(UnusableImage, match="too elongated"):
        fit_images(torch.zeros(1, 1, 1, 100000, dtype=torch.uint8), (64, 64), "crop")


@pytest.mark.parametrize("given, expected", [
    ([100], {1: [100], 3: [100] * 3, 4: [100, 100, 100, 255]}),
    ([255, 0, 100], {1: [88], 3: [255, 0, 100], 4: [255, 0, 100, 255]}),
    ([0, 0, 0, 51], {1: [204], 3: [204] * 3, 4: [0, 0, 0, 51]}),
], ids=["grey", "rgb", "rgba"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels(given, expected, channels):
    image = torch.tensor(given, dtype=torch.uint8).view(1, -1, 1, 1).expand(2, -1, 3, 5)
    assert to_channels(image, channels)[1, :, 2, 4].tolist() == expected[channels]


def test_luma_is_pillows():
    pixels = noise(40, 40, 3)
    assert np.array_equal(to_channels(chw(pixels)[None], 1)[0, 0], np.asarray(Image.fromarray(pixels).convert("L")))


@pytest.mark.parametrize("unit_range", [False, True], ids=["symmetric", "unit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_model_range_and_back(unit_range, dtype):
    levels = torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8).expand(4, 3, 8, 8)
    images = to_model_range(levels, flip=False, unit_range=unit_range, dtype=dtype)
    assert (images.min().item(), images.max().item()) == (0 if unit_range else -1, 1)
    assert images.dtype == dtype and images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(to_uint8(images, unit_range), levels)


def test_to_uint8_clamps_and_rounds():
    assert to_uint8(torch.tensor([-3.0, -1.0, 0.0, 0.004, 9.0]), unit_range=False).tolist() == [0, 0, 128, 128, 255]
    assert to_uint8(torch.tensor([-3.0, 0.0, 0.5, 9.0]), unit_range=True).tolist() == [0, 0, 128, 255]


def test_points_are_only_cast():
    points = torch.randn(5, 2)
    assert torch.equal(to_model_range(points, flip=True, unit_range=False, dtype=torch.float64), points.double())


def test_flips_are_whole_images_half_of_them_and_from_the_global_generator():
    images = torch.from_numpy(noise(1, 3, 4, 5)).expand(2000, -1, -1, -1)
    straight = to_model_range(images[:1], flip=False, unit_range=False, dtype=torch.float32)

    def mirrored(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        flipped = to_model_range(images, flip=True, unit_range=False, dtype=torch.float32)
        same, other = ((flipped == candidate).flatten(1).all(1) for candidate in (straight, straight.flip(-1)))
        assert (same ^ other).all()
        return other

    once = mirrored(0)
    assert abs(once.sum().item() - 1000) < 5 * math.sqrt(2000) / 2  # five standard deviations
    assert torch.equal(once, mirrored(0))
    assert not torch.equal(once, mirrored(1))


@pytest.mark.parametrize("source, words", [
    ("minst", ["did you mean mnist"]),
    ("/data/pictures", ["folder:DIR", "digits"]),
    ("folder", ["folder:DIR"]),
    ("folder:", ["folder:DIR"]),
    ("digits:8", ["digits:8"]),
    ("folder:/no/such", ["/no/such", "no such folder"]),
    ("idx:/no/such", ["/no/such", "no such folder"]),
    ("npz:/no/such.npz", ["/no/such.npz", "no such file"]),
])
def test_unknown_and_missing_sources(source, words):
    refused(DataConfig(source=source), *words)


@pytest.mark.parametrize("kind", ["folder", "idx"])
def test_a_file_in_place_of_a_folder(tmp_path, kind):
    (tmp_path / "file").write_text("")
    refused(DataConfig(source=f"{kind}:{tmp_path}/file"), "not a folder", "file")


def test_a_folder_in_place_of_a_file(tmp_path):
    refused(DataConfig(source=f"npz:{tmp_path}"), "not a file", str(tmp_path))


def test_empty_folders(tmp_path):
    (tmp_path / "readme.txt").write_text("nothing here")
    refused(DataConfig(source=f"folder:{tmp_path}"), "no images", ".webp")
    refused(DataConfig(source=f"idx:{tmp_path}"), "train-images-idx3-ubyte")


@pytest.mark.parametrize("source", ["digits", "gaussian"])
def test_undivided_sets_have_no_test_part(source):
    refused(DataConfig(source=source, split="test"), "--split test", source)


@pytest.mark.parametrize("holdout", [1797, 2000])
def test_holdout_that_leaves_nothing(holdout):
    refused(DataConfig(holdout=holdout), str(holdout), "1797", "at most 1796")


def test_arrays_beyond_this_machines_memory(monkeypatch):
    monkeypatch.setattr(memory, "limit", lambda: 10**6)
    refused(DataConfig(), "--image-size 64", "digits", "0.0 GB")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
                         ids=["python", "torch"])
def test_data_that_fills_the_memory(monkeypatch, error):
    def exhausted(*_: object) -> None:
        raise error

    monkeypatch.setattr(sources, "prepare", exhausted)
    monkeypatch.setattr(memory, "limit", lambda: 5 * 2**30)
    refused(DataConfig(), "--data digits", "out of memory while reading it, with a limit of 5,120 MB")


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch):
    monkeypatch.setattr(sources, "prepare", lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        open_dataset(DataConfig())


def test_an_array_is_held_once_while_it_is_read(tmp_path):
    images = np.zeros((1000, 64, 64), np.uint8)
    np.savez(tmp_path / "set.npz", images=images)
    tracemalloc.start()
    open_dataset(DataConfig(source=f"npz:{tmp_path}/set.npz"))
    peak = tracemalloc.get_traced_memory()[1]  # without torch's memory
    tracemalloc.stop()
    assert images.nbytes < peak < 1.8 * images.nbytes


@pytest.mark.parametrize(("membership", "file"), [
    ("0::/a/b", "a/memory.max"), ("0::/", "memory.max"), ("0::/elsewhere", "memory.max"),
    ("3:cpu:/c\n4:memory:/docker/1", "memory/docker/1/memory.limit_in_bytes"),
    ("4:memory:/docker/1", "memory/memory.limit_in_bytes"),
])
def test_memory_that_a_control_group_limits(tmp_path, monkeypatch, membership, file):
    monkeypatch.setattr(memory, "_MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    (tmp_path / "membership").write_text(f"{membership}\n")
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("max\n")
    assert memory.limit() > 10**7
    (tmp_path / file).write_text("10000000\n")
    assert memory.limit() == 10**7


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
def test_memory_that_ulimit_limits(monkeypatch):
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda kind: (10**7 if kind == resource.RLIMIT_AS else 5, -1))
    assert memory.limit() == 10**7


@pytest.mark.skipif(os.name != "posix", reason="links need rights on Windows")
def test_linked_class_folders(tmp_path):
    """Also links that are circular or broken."""
    write_images(tmp_path / "elsewhere", 2)
    write_images(tmp_path / "set" / "birds", 3)
    for name, target in (("cats", "../elsewhere"), ("birds/around", ".."), ("birds/nowhere.png", "../nothing.png")):
        (tmp_path / "set" / name).symlink_to(target)
    found, not_read = find_images(tmp_path / "set")
    assert not_read == [] and [str(path.relative_to(tmp_path / "set")) for path in found] == [
        "birds/000.png", "birds/001.png", "birds/002.png", "cats/000.png", "cats/001.png"]
    data = open_dataset(DataConfig(source=f"folder:{tmp_path}/set", image_size="8"))
    assert data.classes == ["birds", "cats"] and len(data) == 5


def test_damaged_images_are_skipped_and_named(tmp_path):
    arrays = write_images(tmp_path, 3)
    write_truncated_jpeg(tmp_path / "001b.jpg")
    (tmp_path / "002b.png").write_bytes(b"not a picture")
    config = DataConfig(source=f"folder:{tmp_path}", image_size="8")
    data = open_dataset(config)
    assert torch.equal(data.data, torch.stack([chw(array) for array in arrays]))
    assert [Path(path).name for path, _ in data.skipped] == ["001b.jpg", "002b.png"]
    assert "truncated" in data.skipped[0][1]
    assert "3 images" in data.summary() and "2 skipped" in data.summary()
    refused(DataConfig(source=f"folder:{tmp_path}", image_size="8", strict=True), "001b.jpg", "truncated")


def test_decompression_bombs_are_skipped(tmp_path, monkeypatch):
    write_images(tmp_path, 2)
    write_images(tmp_path, 1, size=(60, 60), start=2)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    data = open_dataset(DataConfig(source=f"folder:{tmp_path}", image_size="8"))
    assert len(data) == 2 and "bomb" in data.skipped[0][1]


def test_labels_stay_with_their_images_when_one_is_skipped(tmp_path):
    write_images(tmp_path / "cat", 2)
    write_images(tmp_path / "dog", 2)
    (tmp_path / "cat" / "000.png").write_bytes(b"")
    assert open_dataset(DataConfig(source=f"folder:{tmp_path}")).labels.tolist() == [0, 1, 1]


def test_images_smaller_than_the_crop_are_skipped(tmp_path):
    write_images(tmp_path, 2, size=(9, 9))
    write_images(tmp_path, 1, size=(9, 7), start=2)
    config = {"source": f"folder:{tmp_path}", "image_size": "8", "fit": "none"}
    data = open_dataset(DataConfig(**config))
    assert len(data) == 2
    [(path, reason)] = data.skipped
    assert Path(path).name == "002.png" and "9x7" in reason and "8x8" in reason
    refused(DataConfig(**config, strict=True), "002.png", "9x7")
    refused(DataConfig(fit="none"), "digits", "8x8", "64x64")


@pytest.mark.parametrize("cache_gb", [4.0, 1e-9], ids=["cached", "streamed"])
def test_nothing_readable(tmp_path, cache_gb):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"not a picture")
    refused(DataConfig(source=f"folder:{tmp_path}", cache_gb=cache_gb), "none of 2", "a.png")


IMAGES, LABELS = noise(5, 6, 6), noise(5)
HUGE = (2**32 - 1, 2**16, 2**16)


@pytest.mark.parametrize("images, labels, words", [
    (idx_bytes(IMAGES, magic=0x0801), None, ["0x00000801", "0x00000803"]),
    (b"\x00\x00", None, ["0x0000;", "0x00000803"]),
    (idx_bytes(IMAGES)[:9], None, ["header of 9", "16"]),
    (idx_bytes(IMAGES)[:-1], None, ["179 bytes", "180"]),
    (idx_bytes(IMAGES) + b"x", None, ["181 bytes", "180"]),
    (idx_bytes(IMAGES, shape=HUGE), None, ["declares", str(math.prod(HUGE))]),
    (idx_bytes(IMAGES[:0]), None, ["(0, 6, 6)"]),
    (idx_bytes(IMAGES), idx_bytes(LABELS[:4]), ["4 labels", "5"]),
    (idx_bytes(IMAGES), idx_bytes(IMAGES), ["0x00000803", "0x00000801"]),
], ids=["magic", "no-header", "short-header", "truncated", "overlong", "hostile-sizes", "empty", "counts",
        "labels-magic"])
@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_damaged_idx(tmp_path, compress, images, labels, words):
    suffix = ".gz" if compress is gzip.compress else ""
    (tmp_path / f"train-images-idx3-ubyte{suffix}").write_bytes(compress(images))
    (tmp_path / f"train-labels-idx1-ubyte{suffix}").write_bytes(compress(labels or idx_bytes(LABELS)))
    refused(DataConfig(source=f"idx:{tmp_path}"), "-ubyte", *words)


@pytest.mark.parametrize("damage, words", [
    (lambda content: content[: len(content) // 2], ["end-of-stream", "complete"]),
    (lambda content: content[:-8] + b"\x00" * 4 + content[-4:], ["CRC"]),
    (lambda content: b"not gzip at all", ["gzip"]),
], ids=["truncated", "checksum", "not-gzip"])
def test_damaged_gzip(tmp_path, damage, words):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(gzip.compress(idx_bytes(IMAGES))))
    refused(DataConfig(source=f"idx:{tmp_path}"), path.name, *words)


@pytest.mark.parametrize("arrays, words", [
    ({"images": IMAGES.astype(np.float32)}, ["float32", "uint8"]),
    ({"images": IMAGES[0]}, ["(6, 6)", "(N, H, W)"]),
    ({"images": noise(5, 6, 6, 2)}, ["(5, 6, 6, 2)"]),
    ({"images": IMAGES[:0]}, ["(0, 6, 6)"]),
    ({"images": np.array([{}, {}])}, ["pickle"]),
    ({"images": IMAGES, "labels": np.array([{}] * 5)}, ["pickle"]),
    ({"images": IMAGES, "labels": np.zeros(5)}, ["labels", "float64"]),
    ({"images": IMAGES, "labels": np.zeros(4, int)}, ["labels", "(4,)", "(5,)"]),
    ({"images": IMAGES, "labels": np.arange(5) - 1}, ["-1", "65535"]),
    ({"a": IMAGES, "b": IMAGES}, ["a, b", "x_train"]),
], ids=["dtype", "rank", "two-channels", "empty", "pickled", "pickled-labels", "float-labels", "counts", "negative",
        "names"])
def test_wrong_npz(tmp_path, arrays, words):
    np.savez(tmp_path / "set.npz", **arrays)
    refused(DataConfig(source=f"npz:{tmp_path}/set.npz"), "set.npz", *words)


def test_npz_without_a_test_part(tmp_path):
    np.savez(tmp_path / "set.npz", x_train=IMAGES)
    refused(DataConfig(source=f"npz:{tmp_path}/set.npz", split="test"), "x_train", "x_test")


def test_npz_parts_of_different_shape(tmp_path):
    np.savez(tmp_path / "set.npz", x_train=IMAGES, x_test=IMAGES[:, 1:])
    refused(DataConfig(source=f"npz:{tmp_path}/set.npz", split="all"), "(6, 6)", "(5, 6)")


def npy_header(shape: str) -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize("member, words", [
    (npy_header("(1000000, 4096, 4096)") + b"tiny", ["images cannot be read"]),
    (npy_header("(1, 2, 2)") + b"123", ["images cannot be read"]),
    (npy_header("(1, 2, 2)").replace(b"\x01\x00", b"\x09\x00", 1), ["images cannot be read", "(9, 0)"]),
    (npy_header("nonsense") + b"1234", ["images cannot be read"]),
    (npy_header("((((") + b"1234", ["images cannot be read"]),
    (npy_header("(1, 2, 2)" + " " * 20000) + b"1234", ["images cannot be read", "large"]),
    (b"not an array", ["images is |S12"]),
], ids=["hostile-sizes", "truncated", "version", "header", "unclosed-header", "long-header", "magic"])
def test_damaged_npz_members(tmp_path, member, words):
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("images.npy", member)
    refused(DataConfig(source=f"npz:{tmp_path}/set.npz"), "set.npz", *words)


@pytest.mark.parametrize("content", [b"not a zip", b""], ids=["text", "empty"])
def test_npz_that_is_no_zip(tmp_path, content):
    (tmp_path / "set.npz").write_bytes(content)
    refused(DataConfig(source=f"npz:{tmp_path}/set.npz"), "set.npz", "zip")


POLICIES = ["drop", "keep", "pad", "rollover"]


def permutation(seed: int, epoch: int, length: int = 10) -> list[int]:
    return Order(length, length, "drop", seed).indices(Position(epoch, 0)).tolist()


def test_an_epochs_order_depends_on_seed_and_epoch_only():
    state = torch.get_rng_state()
    orders = [permutation(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert all(a != b for a, b in itertools.combinations(orders, 2))
    assert permutation(2, 1) == orders[7]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("last_batch, steps, tail", [
    ("drop", 2, []),
    ("keep", 3, [lambda now, after: now[8:]]),
    ("pad", 3, [lambda now, after: now[8:] + now[:2]]),
    ("rollover", 2, [lambda now, after: now[8:] + after[:2]]),
], ids=POLICIES)
def test_last_batch(last_batch, steps, tail):
    order = Order(10, 4, last_batch, 5)
    now, after = permutation(5, 0), permutation(5, 1)
    start = 2 if last_batch == "rollover" else 0
    expected = [now[:4], now[4:8], *(batch(now, after) for batch in tail), after[start : start + 4]]
    assert list(itertools.islice(order.walk(Position(0, 0)), len(expected))) == expected
    assert order.batches_per_epoch == steps


@pytest.mark.parametrize("last_batch", POLICIES)
def test_a_batch_that_divides_the_data_makes_all_policies_one(last_batch):
    order = Order(10, 5, last_batch, 5)
    expected = [permutation(5, 0)[:5], permutation(5, 0)[5:], permutation(5, 1)[:5]]
    assert list(itertools.islice(order.walk(Position(0, 0)), 3)) == expected
    assert (order.batches_per_epoch, order.after(Position(0, 5))) == (2, Position(1, 0))


def test_rollover_sees_every_image_equally_often():
    order = Order(7, 3, "rollover", 0)
    seen = list(itertools.chain(*itertools.islice(order.walk(Position(0, 0)), 14)))
    assert [seen.count(i) for i in range(7)] == [6] * 7


@pytest.fixture(params=["memory", "streamed-0", "streamed-2"])
def ten(request, tmp_path) -> DataConfig:
    """Ten labeled images, in memory or streamed by `workers` 0 or 2."""
    write_images(tmp_path / "a", 6)
    write_images(tmp_path / "b", 4, start=6)
    _, _, workers = request.param.partition("-")
    return DataConfig(source=f"folder:{tmp_path}", image_size="8", batch=4, workers=int(workers or 0),
                      cache_gb=1e-9 if workers else 1.0)


def batches(loader: Loader, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [loader.next_batch() for _ in range(count)]


def assert_same(given: list, expected: list) -> None:
    assert len(given) == len(expected)
    for (images, labels), (expected_images, expected_labels) in zip(given, expected, strict=True):
        assert torch.equal(images, expected_images)
        assert torch.equal(labels, expected_labels)


@pytest.mark.parametrize("last_batch", POLICIES)
def test_batches_are_the_orders_and_resume_exactly(ten, last_batch):
    config = DataConfig(**{**vars(ten), "last_batch": last_batch})
    dataset = open_dataset(config)
    assert dataset.is_streamed == (ten.cache_gb < 1)
    assert (dataset.bytes_in_memory == 0) == dataset.is_streamed
    whole = open_dataset(DataConfig(source=config.source, image_size="8"))
    expected = [(whole.data[chosen], whole.labels[chosen])
                for chosen in itertools.islice(Order(10, 4, last_batch, 1).walk(Position(0, 0)), 9)]

    random_state = torch.get_rng_state()
    loader = Loader(dataset, config, 1)
    assert_same(batches(loader, 4), expected[:4])
    state = loader.state_dict()
    assert all(type(value) is int for value in state.values())
    assert_same(batches(loader, 5), expected[4:])
    loader.load_state_dict(state)
    assert_same(batches(loader, 2), expected[4:6])
    loader.close()

    resumed = Loader(dataset, config, 1)
    resumed.load_state_dict(state)
    assert_same(batches(resumed, 5), expected[4:])
    resumed.close()
    assert torch.equal(torch.get_rng_state(), random_state)


def decoding_threads() -> int:
    return sum(thread.name.startswith("fastgan-decode") for thread in threading.enumerate())


def test_close_ends_the_threads(tmp_path):
    write_images(tmp_path, 5)
    config = DataConfig(source=f"folder:{tmp_path}", image_size="8", batch=2, workers=2, cache_gb=1e-9)
    loader = Loader(open_dataset(config), config, 0)
    first = loader.next_batch()[0]
    assert decoding_threads() == 2
    loader.close()
    assert decoding_threads() == 0
    loader.load_state_dict({"epoch": 0, "cursor": 0})
    assert torch.equal(loader.next_batch()[0], first)
    loader.close()


def test_a_program_ends_whose_loader_is_still_open(tmp_path):
    """At exit, Python waits for the threads."""
    write_images(tmp_path, 5)
    program = ("from fastgan.config import DataConfig\nfrom fastgan.data import Loader, open_dataset\n"
               f"config = DataConfig(source='folder:{tmp_path}', image_size='8', batch=2, cache_gb=1e-9)\n"
               "loader = Loader(open_dataset(config), config, 0)\nloader.next_batch()\n")
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_batch_larger_than_the_data():
    config = DataConfig(source="gaussian", batch=1001)
    with pytest.raises(FastganError, match=r"--batch 1001: .* 1000 "):
        Loader(open_dataset(config), config, 0)


@pytest.mark.parametrize("state", [{"epoch": 0, "cursor": 1000}, {"epoch": -1, "cursor": 0}], ids=str)
def test_resuming_beyond_the_data(state):
    config = DataConfig(source="gaussian")
    with pytest.raises(FastganError, match="expected an index below 1000"):
        Loader(open_dataset(config), config, 0).load_state_dict(state)


def test_resuming_where_a_larger_batch_finds_no_room_starts_the_next_epoch():
    config = DataConfig(source="gaussian", batch=64)
    loader = Loader(open_dataset(config), config, 0)
    loader.load_state_dict({"epoch": 3, "cursor": 990})
    assert loader.state_dict() == {"epoch": 4, "cursor": 0}


def test_points_come_in_batches():
    config = DataConfig(source="gaussian", batch=8)
    points, labels = Loader(open_dataset(config), config, 0).next_batch()
    assert (points.shape, points.dtype, labels) == ((8, 2), torch.float32, None)


@pytest.mark.parametrize("workers", [0, 2])
def test_streaming_replaces_the_unreadable_and_warns_once(tmp_path, workers):
    arrays = write_images(tmp_path, 4)
    (tmp_path / "002.png").write_bytes(b"not a picture")
    config = DataConfig(source=f"folder:{tmp_path}", image_size="8", batch=4, workers=workers, cache_gb=1e-9)
    dataset = open_dataset(config)
    loader = Loader(dataset, config, 0)
    with pytest.warns(UserWarning, match=r"002\.png"):
        images, _ = loader.next_batch()
    substituted = [arrays[3 if i == 2 else i] for i in permutation(0, 0, length=4)]
    assert torch.equal(images, torch.stack([chw(array) for array in substituted]))
    assert [Path(path).name for path, _ in dataset.skipped] == ["002.png"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader.next_batch()
    loader.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_strict_streaming_stops_in_one_line(tmp_path, workers):
    write_images(tmp_path, 4)
    write_truncated_jpeg(tmp_path / "002.png")
    config = DataConfig(source=f"folder:{tmp_path}", image_size="8", batch=4, workers=workers, cache_gb=1e-9,
                        strict=True)
    loader = Loader(open_dataset(config), config, 0)
    with pytest.raises(FastganError, match=r"^.*002\.png.*$"):
        loader.next_batch()
    loader.close()
    (tmp_path / "000.png").write_bytes(b"")
    refused(config, "000.png")


def test_fingerprint_of_streamed_files_stays(tmp_path):
    """Runs need it to resume."""
    for name in ("ä", "b"):
        write_images(tmp_path / name, 1, size=(4, 4))
    data = open_dataset(DataConfig(source=f"folder:{tmp_path}", cache_gb=1e-12))
    sizes = [(name, (tmp_path / name).stat().st_size) for name in ("b/000.png", "ä/000.png")]
    known = "".join(f"{name} {size}\n" for name, size in sizes).encode()
    assert data.fingerprint == hashlib.sha256(known).hexdigest()


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no UTF-8")
@pytest.mark.parametrize("cache_gb", [1.0, 1e-12], ids=["cached", "streamed"])
def test_names_that_are_no_text(tmp_path, cache_gb):
    root = tmp_path / os.fsdecode(b"se\xfft")
    for name in (b"\xff", b"two\nlines", "ä b".encode()):
        write_images(root / os.fsdecode(name), 1, size=(4, 4))
    data = open_dataset(DataConfig(source=f"folder:{root}", cache_gb=cache_gb))
    assert data.classes == [r"two\nlines", "ä b", r"\udcff"] and data.name == r"se\udcfft"
    assert len(data.fingerprint) == 64


def test_fingerprints_follow_content_or_names_and_sizes(tmp_path):
    for name in ("one", "two"):
        write_images(tmp_path / name, 3)
    write_images(tmp_path / "three", 3, start=1)

    def fingerprint(name: str, cache_gb: float) -> str:
        config = DataConfig(source=f"folder:{tmp_path / name}", image_size="8", cache_gb=cache_gb)
        return open_dataset(config).fingerprint

    for cache_gb in (1.0, 1e-9):
        assert fingerprint("one", cache_gb) == fingerprint("two", cache_gb)
        assert fingerprint("one", cache_gb) != fingerprint("three", cache_gb)
    assert len(fingerprint("one", 1.0)) == 64
