"""`open_dataset`: opens a data set by a name such as "digits" or "folder:DIR"."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fastgan import extras, memory
from fastgan.config import DataConfig, nearest, option, parse_size
from fastgan.data.arrays import Arrays, read_idx_folder, read_npz
from fastgan.data.dataset import Dataset, MemoryDataset
from fastgan.data.folder import drop_unusable_classes, find_images, label_by_folder, open_files, printable
from fastgan.data.pixels import UnusableImage, prepare
from fastgan.data.survey import make_decoder
from fastgan.errors import FastganError, one_line
from fastgan.files import reason

TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10", "celeba": "CelebA"}
NAMED = ["digits", *TORCHVISION, "gaussian"]
LOCAL = {"idx": "idx:DIR", "folder": "folder:DIR", "npz": "npz:FILE"}
UNDIVIDED = {"digits", "folder", "gaussian"}

Items = TypeVar("Items", Tensor, list[Path])


def open_dataset(config: DataConfig, seed: int = 0) -> Dataset:
    """Open the images of `config.source`, in the configured size, channels and split.

    Arrays are kept in memory. Image files are decoded into memory if they need at most `config.cache_gb`, and streamed
    otherwise. The name of the data set is that of the source, or the folder's or file's name without the path.

    Args:
        config: the source and its options.
        seed: seed of the random points of the source "gaussian".

    Raises:
        FastganError: for data that is missing, damaged or not readable, and for an unknown source.
    """
    try:
        return _open(config, seed)
    except OSError as error:
        raise FastganError(f"--data {config.source}: cannot read {error.filename}: {reason(error)}; "
                           "expected files that this user may read") from error
    except (MemoryError, RuntimeError) as error:
        if not memory.ran_out(error):
            raise
        raise FastganError(f"--data {config.source}: out of memory while reading it, with a limit of "
                           f"{memory.limit() / 2**20:,.0f} MB; expected fewer images, a smaller --image-size, or image "
                           "files as folder:DIR, which are streamed if they need more than --cache-gb") from error


def _open(config: DataConfig, seed: int) -> Dataset:
    kind, _, argument = config.source.partition(":")
    if config.source not in NAMED and not (kind in LOCAL and argument):
        raise FastganError(f"{option('source')} {config.source}: unknown; {_suggestion(config.source)}")
    if kind in UNDIVIDED and config.split == "test":
        raise FastganError(f"--split test: {config.source} has no test split; expected train or all")
    path = Path(argument).expanduser().absolute()  # errors name the absolute path
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


def _suggestion(source: str) -> str:
    """A suggestion for an unknown source."""
    path = Path(source).expanduser()
    if path.is_dir() or source.lower() in ("png", "jpg", "jpeg", "images"):
        return f"did you mean folder:{source if path.is_dir() else 'DIR'}, for image files in a folder?"
    return nearest(source.partition(":")[0], [*NAMED, *LOCAL.values()])


def _open_folder(folder: Path, config: DataConfig) -> Dataset:
    """Classes, channels and bit depth are determined from the whole folder, so that they do not depend on `holdout`."""
    paths, not_read = find_images(folder)
    name = printable(folder.resolve().name)
    decoder = make_decoder(paths, name, config)
    paths, failures = drop_unusable_classes(paths, folder, decoder)
    labels, classes = label_by_folder(paths, folder)
    labels = labels if labels is None else _after_holdout(labels, config)
    return open_files(_after_holdout(paths, config), folder, name, decoder, config, (labels, classes),
                      [*not_read, *failures])


def _open_arrays(splits: list[Arrays], name: str, config: DataConfig, classes: list[str] | None = None
                 ) -> MemoryDataset:
    """Concatenate the splits and remove the held-out images. Classes are named by their numbers if not given."""
    shapes = {images.shape[1:] for images, _ in splits}
    if len(shapes) > 1:
        raise FastganError(f"{name}: images of {' and '.join(map(str, shapes))}; expected one shape in all splits")
    images = torch.from_numpy(_concatenate([images for images, _ in splits]))
    images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)
    images = _after_holdout(images, config)
    channels, size = config.channels or images.shape[1], parse_size(config.image_size)
    _check_memory(len(images) * channels * size[0] * size[1], config)
    try:
        data = prepare(images, channels, size, config.fit)
    except UnusableImage as error:
        raise FastganError(f"{name}: no image can be used: {error}; expected another --image-size or --fit") from error
    labels = [labels for _, labels in splits if labels is not None]
    if len(labels) < len(splits):
        return MemoryDataset(name=name, data=data)
    joined = torch.from_numpy(_concatenate(labels).astype(np.int64))
    classes = classes or [str(label) for label in range(int(joined.max()) + 1)]
    return MemoryDataset(name=name, data=data, labels=_after_holdout(joined, config), classes=classes)


def _concatenate(arrays: list[np.ndarray]) -> np.ndarray:
    """Like `np.concatenate`, but a single array is not copied, because a copy may not fit into memory."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _after_holdout(items: Items, config: DataConfig) -> Items:
    """Images, labels or paths without the first `holdout`."""
    if config.holdout >= len(items):
        raise FastganError(f"--holdout {config.holdout}: {config.source} has {len(items)} images; "
                           f"expected at most {len(items) - 1}")
    return items[config.holdout :]


def _check_memory(needed: int, config: DataConfig) -> None:
    available = memory.limit()
    if needed > available:
        raise FastganError(f"--image-size {config.image_size}: {config.source} would need {needed / 1e9:.1f} GB of "
                           f"memory; expected at most {available / 1e9:.1f} GB, or image files as folder:DIR")


def _read_digits() -> Arrays:
    """scikit-learn's handwritten digits, 8x8 in 17 gray levels: (1797, 8, 8) and (1797,)."""
    digits = extras.load("sklearn.datasets", "data", f"{option('source')} digits").load_digits()
    return (digits.images * (255 / 16)).round().astype(np.uint8), digits.target


def _open_gaussian(config: DataConfig, seed: int) -> MemoryDataset:
    """1000 points X A + b with X ~ N(0, 1): float32 (1000, 2), Dive into Deep Learning 17.1."""
    x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    points = x @ x.new_tensor([[1.0, 2.0], [-0.1, 0.5]]) + x.new_tensor([1.0, 2.0])
    return MemoryDataset(name="gaussian", data=_after_holdout(points, config).clone())


def _open_fetched(kind: str, config: DataConfig) -> MemoryDataset:
    """A torchvision data set of arrays; the split "all" is train followed by test."""
    trains = {"train": [True], "test": [False], "all": [True, False]}[config.split]
    sets = [_fetch(kind, config, train=train) for train in trains]
    splits: list[Arrays] = [(np.asarray(each.data), np.asarray(each.targets)) for each in sets]
    return _open_arrays(splits, kind, config, classes=sets[0].classes)


def _open_celeba(config: DataConfig) -> Dataset:
    """CelebA's aligned faces, without labels; the split "all" includes the validation images."""
    celeba = _fetch("celeba", config, split=config.split)
    root = Path(celeba.root, celeba.base_folder, "img_align_celeba")
    paths = _after_holdout([root / name for name in celeba.filename], config)
    return open_files(paths, root, "celeba", make_decoder(paths, "celeba", config), config)


def _fetch(kind: str, config: DataConfig, **split: Any) -> Any:
    """torchvision's dataset object, downloaded to `data_root` if it is not there."""
    datasets = extras.load("torchvision.datasets", "data", f"{option('source')} {kind}")
    root = Path(config.data_root).expanduser().absolute()
    try:
        return getattr(datasets, TORCHVISION[kind])(root, download=True, **split)
    except Exception as error:  # torchvision and the network raise many types
        raise FastganError(f"{option('source')} {kind}: not in {root}, and the download failed: {one_line(error)}; "
                           "expected a connection, or local files as idx:DIR or folder:DIR") from error
