"""Names of data to data: `open_dataset`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fastgan import memory
from fastgan.config import DataConfig, nearest, option, parse_size
from fastgan.data.dataset import Dataset, MemoryDataset
from fastgan.data.decode import nothing_readable, unusable
from fastgan.data.folder import find_images, label_by_folder, open_files, printable, without_empty_classes
from fastgan.data.idx import read_idx_folder
from fastgan.data.npz import read_npz
from fastgan.data.pixels import UnusableImage, prepare
from fastgan.errors import FastganError, first_line, one_line
from fastgan.files import reason

TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10", "celeba": "CelebA"}
NAMED = ["digits", *TORCHVISION, "gaussian"]
LOCAL = {"idx": "idx:DIR", "folder": "folder:DIR", "npz": "npz:FILE"}
UNDIVIDED = {"digits", "folder", "gaussian"}

Part = tuple[np.ndarray, np.ndarray | None]  # images uint8 (N, H, W) or (N, H, W, C), labels (N,)
Items = TypeVar("Items", Tensor, list[Path])


def open_dataset(config: DataConfig, seed: int = 0) -> Dataset:
    """The images that `config.source` names, of the wanted size, channels and split.

    Arrays are held in memory; image files as well when they need no more than `config.cache_gb`, else they are
    streamed. The set's name is that of the source, or of the folder or file without its path. `seed` draws the
    gaussian points. Raises `FastganError` for anything missing, damaged, not permitted or not understood.
    """
    try:
        return _open(config, seed)
    except OSError as error:
        raise FastganError(f"--data {config.source}: cannot read {error.filename}: {reason(error)}; "
                           "expected files that this user may read") from error
    except (MemoryError, RuntimeError) as error:
        if not memory.ran_out(error):
            raise
        raise FastganError(f"--data {config.source}: out of memory while it was read, of {memory.limit() / 2**20:,.0f} "
                           "MB here; expected fewer images, a smaller --image-size, or images as files, which stay on "
                           "the disk where they are more than --cache-gb: folder:DIR") from error


def _open(config: DataConfig, seed: int) -> Dataset:
    kind, _, argument = config.source.partition(":")
    if config.source not in NAMED and not (kind in LOCAL and argument):
        raise FastganError(f"{option('source')} {config.source}: unknown; {nearest(kind, [*NAMED, *LOCAL.values()])}")
    if kind in UNDIVIDED and config.split == "test":
        raise FastganError(f"--split test: {config.source} is not divided; expected train or all")
    path = Path(argument).expanduser().absolute()  # so that an error names the place where the data was looked for
    match kind:
        case "idx":
            return _open_arrays(read_idx_folder(path, config.split), printable(path.resolve().name), config)
        case "npz":
            return _open_arrays(read_npz(path, config.split), printable(path.stem), config)
        case "folder":
            return _open_folder(path, config)
        case "digits":
            return _open_arrays([_read_digits()], kind, config)
        case "gaussian":
            return _open_gaussian(config, seed)
        case "celeba":
            return _open_celeba(config)
    return _open_fetched(kind, config)


def _open_folder(folder: Path, config: DataConfig) -> Dataset:
    """Classes are those of the whole folder, so that a label means the same whatever is held out."""
    found = find_images(folder)
    paths, (labels, classes), failures = without_empty_classes(found, label_by_folder(found, folder))
    if config.strict and failures:
        raise unusable(*failures[0])
    if not paths:
        raise nothing_readable(failures)
    labels = labels if labels is None else _after_holdout(labels, config)
    dataset = open_files(_after_holdout(paths, config), folder, printable(folder.resolve().name), (labels, classes),
                         config)
    dataset.skipped = [*failures, *dataset.skipped]
    return dataset


def _open_arrays(parts: list[Part], name: str, config: DataConfig, classes: list[str] | None = None) -> MemoryDataset:
    """Parts one after the other, without the held-out images; classes are named by their number if not given."""
    shapes = {images.shape[1:] for images, _ in parts}
    if len(shapes) > 1:
        raise FastganError(f"{name}: images of {' and '.join(map(str, shapes))}; expected one shape in all parts")
    images = torch.from_numpy(_join([images for images, _ in parts]))
    images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)
    images = _after_holdout(images, config)
    channels, size = config.channels or images.shape[1], parse_size(config.image_size)
    _check_memory(len(images) * channels * size[0] * size[1], config)
    try:
        data = prepare(images, channels, size, config.fit)
    except UnusableImage as error:
        raise FastganError(f"{name}: no image can be used: {error}; expected another --image-size or --fit") from error
    labels = _join_labels([labels for _, labels in parts])
    if labels is None:
        return MemoryDataset(name=name, data=data)
    classes = classes or [str(label) for label in range(int(labels.max()) + 1)]
    return MemoryDataset(name=name, data=data, labels=_after_holdout(labels, config), classes=classes)


def _join(arrays: list[np.ndarray]) -> np.ndarray:
    """One after the other; a single one as it is, as a copy may be more than memory holds."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _join_labels(labels: list[np.ndarray | None]) -> Tensor | None:
    """int64 (N,), or None unless every part has labels."""
    known = [array for array in labels if array is not None]
    return torch.from_numpy(_join(known).astype(np.int64)) if len(known) == len(labels) else None


def _after_holdout(items: Items, config: DataConfig) -> Items:
    """Images, labels or paths without the first `holdout`."""
    if config.holdout >= len(items):
        raise FastganError(f"--holdout {config.holdout}: {config.source} has {len(items)} images; "
                           f"expected at most {len(items) - 1}")
    return items[config.holdout :]


def _check_memory(needed: int, config: DataConfig) -> None:
    held = memory.limit()
    if needed > held:
        raise FastganError(f"--image-size {config.image_size}: {config.source} would need {needed / 1e9:.1f} GB; "
                           f"expected at most this machine's {held / 1e9:.1f} GB, or images as files: folder:DIR")


def _read_digits() -> Part:
    """scikit-learn's handwritten digits, 8x8 in 17 grey levels: (1797, 8, 8) and (1797,)."""
    from sklearn.datasets import load_digits  # slow to import

    digits = load_digits()
    return (digits.images * (255 / 16)).round().astype(np.uint8), digits.target


def _open_gaussian(config: DataConfig, seed: int) -> MemoryDataset:
    """1000 points X A + b with X ~ N(0, 1): float32 (1000, 2), Dive into Deep Learning 17.1."""
    x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    points = x @ x.new_tensor([[1.0, 2.0], [-0.1, 0.5]]) + x.new_tensor([1.0, 2.0])
    return MemoryDataset(name="gaussian", data=_after_holdout(points, config).clone())


def _open_fetched(kind: str, config: DataConfig) -> MemoryDataset:
    """A torchvision set of arrays; split "all" is train followed by test."""
    trains = {"train": [True], "test": [False], "all": [True, False]}[config.split]
    fetched = [_fetch(kind, config, train=train) for train in trains]
    parts: list[Part] = [(np.asarray(part.data), np.asarray(part.targets)) for part in fetched]
    return _open_arrays(parts, kind, config, classes=fetched[0].classes)


def _open_celeba(config: DataConfig) -> Dataset:
    """CelebA's aligned faces, without labels; split "all" also has its validation part."""
    celeba = _fetch("celeba", config, split=config.split)
    root = Path(celeba.root, celeba.base_folder, "img_align_celeba")
    paths = _after_holdout([root / name for name in celeba.filename], config)
    return open_files(paths, root, "celeba", (None, []), config)


def _fetch(kind: str, config: DataConfig, **part: Any) -> Any:
    """torchvision's own dataset object, downloaded below `data_root` if it is not there."""
    try:
        from torchvision import datasets  # slow to import
    except Exception as error:  # one that was built for another torch raises anything
        raise FastganError(f"{option('source')} {kind}: torchvision cannot be imported ({first_line(error)}); expected "
                           "it installed: pip install torchvision") from error
    root = Path(config.data_root).expanduser().absolute()
    try:
        return getattr(datasets, TORCHVISION[kind])(root, download=True, **part)
    # from the network, torchvision and its helpers raise nearly anything
    except Exception as error:
        raise FastganError(f"{option('source')} {kind}: not in {root}, and the download failed: {one_line(error)}; "
                           "expected a connection, or local files as idx:DIR or folder:DIR") from error
